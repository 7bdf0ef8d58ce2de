"""The fetch stage: what it publishes, what it reports, and what it refuses."""

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.files import read_json
from sft.params.data import Benchmark, Download, Fetch, Source
from sft.stages import fetch

CHAT = json.dumps({"messages": [{"role": "user", "content": "Hi"}]}) + "\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.jsonl").write_text(CHAT + "broken\n")
    (tmp_path / "mine/b.jsonl").write_text(CHAT)
    (tmp_path / "mine/README.md").write_text("# Mine\n")
    section = Fetch(
        model=Download(uri="file://model"),
        sources={"mine": Source(uri="file://mine", format="openai", domain="chat", license="MIT", origin="me")},
    )
    monkeypatch.setattr(fetch, "load", lambda name: section)
    return tmp_path


def test_a_source_is_published_as_it_is_with_every_row_and_file_counted(here: Path) -> None:
    fetch.main("mine")
    assert (here / "data/raw/mine/a.jsonl").read_text() == CHAT + "broken\n"
    report = read_json(here / "reports/fetch/mine.json")
    assert (report["rows_in"], report["rows_out"], report["rejected"]) == (3, 3, {})
    assert [(file["path"], file["rows"]) for file in report["files"]] == [
        ("README.md", 0),
        ("a.jsonl", 2),
        ("b.jsonl", 1),
    ]
    assert all(len(file["sha256"]) == 64 and file["bytes"] > 0 for file in report["files"])
    told = {key: report[key] for key in ("uri", "domain", "license", "origin", "format")}
    assert told == {
        "uri": "file://mine",
        "domain": "chat",
        "license": "MIT",
        "origin": "me",
        "format": "openai",
    }


def test_fetching_twice_gives_the_same_bytes(here: Path) -> None:
    fetch.main("mine")
    first = (here / "reports/fetch/mine.json").read_bytes()
    fetch.main("mine")
    assert (here / "reports/fetch/mine.json").read_bytes() == first


def test_a_source_without_rows_is_refused_and_the_old_one_stays(here: Path) -> None:
    fetch.main("mine")
    report = (here / "reports/fetch/mine.json").read_bytes()
    for name in ("a.jsonl", "b.jsonl"):
        (here / "mine" / name).unlink()
    with pytest.raises(InputError, match=r"not one row of format 'openai' in 1 files \(README.md\)"):
        fetch.main("mine")
    assert (here / "data/raw/mine/b.jsonl").exists()
    assert (here / "reports/fetch/mine.json").read_bytes() == report


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("c.jsonl.gz", gzip.compress(CHAT.encode() * 99, mtime=0)[:-9], r"c\.jsonl\.gz:\d+"),
        ("c.jsonl.gz", gzip.compress(CHAT.encode(), mtime=0) + b"garbage", r"c\.jsonl\.gz:2"),
        ("c.json.gz", gzip.compress(b"[]", mtime=0)[:-9], r"c\.json\.gz:1"),
        ("c.json", f"[{CHAT}, {CHAT}".encode(), r"c\.json:1"),
        ("c.parquet", b"PAR1 cut off", r"c\.parquet:1"),
    ],
)
def test_a_file_that_cannot_be_read_to_its_end_stops_the_stage(
    here: Path, name: str, content: bytes, place: str
) -> None:
    """One row would stand for all that are lost."""
    (here / "mine" / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"^fetch\.sources\.mine: {place}: .*cannot be counted"):
        fetch.main("mine")
    assert not (here / "data/raw/mine").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uri": "mine/a.jsonl"}, "fetch.sources.mine: mine/a.jsonl: unknown scheme"),
        ({"format": "opneai"}, "fetch.sources.mine: format 'opneai' is unknown. Did you mean 'openai'?"),
        ({"where": {"kind": ["x"]}}, "fetch.sources.mine: where: no row has the field kind"),
        ({"uri": "file://mine/README.md"}, "Read are .jsonl, .ndjson, .json or .parquet, with or without .gz or .zst"),
        (
            {"uri": "file://mine/a.jsonl", "sha256": "0" * 64},
            "If you changed the file, write what was found into sha256",
        ),
    ],
)
def test_what_is_wrong_with_a_source_names_it_and_says_what_to_do(
    here: Path, change: dict[str, object], message: str
) -> None:
    source = Source.model_validate({"uri": "file://mine", "format": "openai", **change})
    with pytest.raises(InputError) as error:
        fetch.fetch_source("mine", source)
    assert message in str(error.value)


def test_an_unknown_source_names_the_nearest(here: Path) -> None:
    with pytest.raises(InputError, match=r"'mime' is no source. Did you mean 'mine'\? Known: mine, model, benchmarks"):
        fetch.main("mime")


def test_a_secret_in_a_uri_is_in_no_report() -> None:
    source = Source(uri="https://host/a.jsonl?sig=hunter2", format="openai", sha256="0" * 64)
    assert fetch.describe(source) == {
        "uri": "https://host/a.jsonl?...",
        "domain": "unspecified",
        "license": "unspecified",
        "origin": "",
        "sha256": "0" * 64,
    }


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


def test_a_model_that_cannot_be_read_publishes_nothing(here: Path) -> None:
    (here / "model").mkdir()
    (here / "model/pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="pickled weights"):
        fetch.main("model")
    assert not (here / "models/base").exists()
    assert not (here / "reports").exists()


def name_benchmarks(monkeypatch: pytest.MonkeyPatch, **uris: str) -> None:
    section = Fetch(
        model=Download(uri="file://model"),
        benchmarks={name: Benchmark(uri=uri, fields={"question": "frage"}) for name, uri in uris.items()},
        sources={"mine": Source(uri="file://mine", format="openai")},
    )
    monkeypatch.setattr(fetch, "load", lambda name: section)


def test_what_evaluation_sets_ask_is_published_in_the_order_of_their_names(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "z.jsonl").write_text('{"frage": "Was?"}\n')
    (here / "a.jsonl").write_text('{"frage": "Who?"}\n{"turns": ["One.", "Two."]}\n')
    name_benchmarks(monkeypatch, later="file://z.jsonl", first="file://a.jsonl")
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
    assert {name: told["texts"] for name, told in report["benchmarks"].items()} == {"first": 3, "later": 1}
    assert len(report["benchmarks"]["first"]["files"][0]["sha256"]) == 64


def test_without_evaluation_sets_there_are_no_items(here: Path) -> None:
    fetch.main("benchmarks")
    assert (here / "data/benchmarks/items.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.jsonl", '{"antwort": "Das."}\n', r"fetch\.benchmarks\.first: a\.jsonl:1: a record without a question"),
        ("a.csv", "frage\nWas?\n", r"fetch\.benchmarks\.first: file://a\.csv: not one item in 1 files \(a\.csv\)"),
    ],
)
def test_an_evaluation_set_that_cannot_be_read_whole_publishes_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, fault: str
) -> None:
    (here / name).write_text(content)
    name_benchmarks(monkeypatch, first=f"file://{name}")
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
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--source" in done.stdout
    assert time.monotonic() - started < 30
