"""The fetch stage: what it publishes, what it reports, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sft.cli import InputError
from sft.files import read_json
from sft.params.data import Download
from sft.stages import fetch

CHAT = json.dumps({"messages": [{"role": "user", "content": "Hi"}]}) + "\n"
MINE = {"uri": "file://mine", "read": "openai", "domain": "chat", "license": "MIT", "origin": "me"}


def set_fetch(source: dict[str, Any] = MINE, **benchmarks: str) -> None:
    """Write params.yaml with a base model, one source and evaluation sets, by name and uri."""
    sets = {name: {"uri": uri, "fields": {"question": "frage"}} for name, uri in benchmarks.items()}
    section = {"model": {"uri": "file://model"}, "benchmarks": sets, "sources": {"mine": source}}
    Path("params.yaml").write_text(json.dumps({"fetch": section}))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.jsonl").write_text(CHAT + "broken\n")
    (tmp_path / "mine/b.jsonl").write_text(CHAT)
    (tmp_path / "mine/README.md").write_text("# Mine\n")
    set_fetch()
    return tmp_path


def test_a_source_is_published_as_it_is_with_every_file_counted(here: Path) -> None:
    fetch.main("mine")
    assert (here / "data/raw/mine/a.jsonl").read_text() == CHAT + "broken\n"
    report = read_json(here / "reports/fetch/mine.json")
    assert (report["unit"], report["rows_in"], report["rows_out"], report["rejected"]) == ("files", 3, 3, {})
    assert [file["path"] for file in report["files"]] == ["README.md", "a.jsonl", "b.jsonl"]
    assert all(len(file["sha256"]) == 64 and file["bytes"] > 0 for file in report["files"])
    assert report["uri"] == "file://mine"
    assert not report.keys() & {"domain", "license", "origin", "format", "read"}


def test_all_files_of_a_list_of_addresses_are_published_under_names_of_their_own(here: Path) -> None:
    (here / "other").mkdir()
    (here / "other/a.jsonl").write_text(CHAT * 2)
    set_fetch({**MINE, "uri": ["file://mine/a.jsonl", "file://other", "file://mine/b.jsonl"]})
    fetch.main("mine")
    assert [path.read_text() for path in sorted((here / "data/raw/mine").rglob("*.jsonl"))] == [
        CHAT * 2,
        CHAT + "broken\n",
        CHAT,
    ]
    report = read_json(here / "reports/fetch/mine.json")
    assert [file["path"] for file in report["files"]] == ["2/a.jsonl", "a.jsonl", "b.jsonl"]
    assert report["uri"] == "file://mine/a.jsonl, file://other, file://mine/b.jsonl"
    assert sorted(path.name for path in (here / "data/raw").iterdir()) == ["mine"]


def test_splits_are_all_published_and_listed_in_a_line_and_in_the_report(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch.main("mine")
    assert "splits" not in read_json(here / "reports/fetch/mine.json")
    assert "splits" not in capsys.readouterr().out
    for name in ("train-0.jsonl", "train-1.jsonl", "test-0.jsonl"):
        (here / "mine" / name).write_text(CHAT)
    fetch.main("mine")
    assert read_json(here / "reports/fetch/mine.json")["splits"] == {"test": 1, "train": 2}
    assert (here / "data/raw/mine/test-0.jsonl").exists()
    assert "mine: splits: test (1 file), train (2 files)." in capsys.readouterr().out


def test_fetching_twice_gives_the_same_bytes(here: Path) -> None:
    fetch.main("mine")
    first = (here / "reports/fetch/mine.json").read_bytes()
    fetch.main("mine")
    assert (here / "reports/fetch/mine.json").read_bytes() == first


def test_what_changes_in_the_blend_changes_no_byte_of_a_fetch(here: Path) -> None:
    fetch.main("mine")
    first = (here / "reports/fetch/mine.json").read_bytes()
    set_fetch({**MINE, "read": {"format": "openai", "max_rows": 1}, "domain": "safety", "epochs": 2.0})
    fetch.main("mine")
    assert (here / "reports/fetch/mine.json").read_bytes() == first


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("mine/a.jsonl", "fetch.sources.mine: mine/a.jsonl: "),
        ("file://mine/c.jsonl", "fetch.sources.mine: file://mine/c.jsonl: "),
        (f"file://mine/a.jsonl#sha256={'0' * 64}", "fetch.sources.mine: file://mine/a.jsonl: "),
    ],
)
def test_what_is_wrong_with_a_source_names_it_and_the_old_one_stays(here: Path, uri: str, place: str) -> None:
    fetch.main("mine")
    report = (here / "reports/fetch/mine.json").read_bytes()
    set_fetch({**MINE, "uri": uri})
    with pytest.raises(InputError) as error:
        fetch.main("mine")
    assert str(error.value).startswith(place)
    assert (here / "data/raw/mine/b.jsonl").exists()
    assert (here / "reports/fetch/mine.json").read_bytes() == report


def test_an_unknown_source_names_the_nearest(here: Path) -> None:
    with pytest.raises(InputError, match="'mine'"):
        fetch.main("mime")


def test_a_secret_in_a_uri_is_in_no_report() -> None:
    source = Download(uri=f"https://host/a.jsonl?sig=hunter2#sha256={'0' * 64}")
    assert fetch.origin(source) == {"uri": "https://host/a.jsonl?...", "sha256": "0" * 64}


def test_the_model_is_published_with_its_digest_and_size(here: Path) -> None:
    from sft.hashing import folder_digest
    from tests.support.tiny_model import make_tiny_base

    make_tiny_base(here / "model")
    fetch.main("model")
    report = read_json(here / "reports/fetch/model.json")
    assert report["digest"] == folder_digest(here / "models/base")
    assert report["parameters"] == 99_648
    assert report["rows_in"] == report["rows_out"] == len(report["files"]) == len(list((here / "model").iterdir()))
    assert [path.name for path in (here / "models").iterdir()] == ["base"]
    assert "added" not in report
    for file in (here / "model").glob("chat_template*"):
        file.unlink()
    fetch.main("model")
    assert read_json(here / "reports/fetch/model.json")["added"] == {
        "template": "templates/nano3.jinja",
        "stop_token": "<|im_end|>",  # its tokenizer has the tokens
    }


def test_a_model_that_cannot_be_read_publishes_nothing(here: Path) -> None:
    (here / "model").mkdir()
    (here / "model/pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="pickled weights"):
        fetch.main("model")
    assert not (here / "models/base").exists()
    assert not (here / "reports").exists()


def test_what_evaluation_sets_ask_is_published_in_the_order_of_their_names(here: Path) -> None:
    (here / "z.jsonl").write_text('{"frage": "Was?"}\n')
    (here / "a.jsonl").write_text('{"frage": "Who?"}\n{"turns": ["One.", "Two."]}\n')
    set_fetch(later="file://z.jsonl", first="file://a.jsonl")
    fetch.main("benchmarks")
    items = [json.loads(line) for line in (here / "data/benchmarks/items.jsonl").read_text().splitlines()]
    assert [tuple(item.values()) for item in items] == [
        ("first", "a.jsonl:1", "Who?"),
        ("first", "a.jsonl:2", "One."),
        ("first", "a.jsonl:2", "Two."),
        ("later", "z.jsonl:1", "Was?"),
    ]
    assert [path.name for path in (here / "data/benchmarks").iterdir()] == ["items.jsonl"]
    report = read_json(here / "reports/fetch/benchmarks.json")
    assert (report["rows_in"], report["rows_out"]) == (4, 4)
    assert {name: item["texts"] for name, item in report["benchmarks"].items()} == {"first": 3, "later": 1}
    assert len(report["benchmarks"]["first"]["files"][0]["sha256"]) == 64


def test_without_evaluation_sets_there_are_no_items(here: Path) -> None:
    fetch.main("benchmarks")
    assert (here / "data/benchmarks/items.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.jsonl", '{"antwort": "Das."}\n', r"fetch\.benchmarks\.first: a\.jsonl:1: "),
        ("a.txt", "Was?\n", r"fetch\.benchmarks\.first: file://a\.txt: "),
    ],
)
def test_an_evaluation_set_that_cannot_be_read_whole_publishes_nothing(
    here: Path, name: str, content: str, fault: str
) -> None:
    (here / name).write_text(content)
    set_fetch(first=f"file://{name}")
    with pytest.raises(InputError, match=fault):
        fetch.main("benchmarks")
    assert not (here / "data/benchmarks").exists()


def test_help_needs_no_heavy_import() -> None:
    program = (
        "import sys, runpy; sys.argv = ['fetch', '--help']\n"
        "try: runpy.run_module('sft.stages.fetch', run_name='__main__')\n"
        "except SystemExit as end: status = end.code\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'requests', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else status)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--source" in done.stdout
