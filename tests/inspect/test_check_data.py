"""check-data: the command on a file:// source that nobody has fetched."""

import subprocess
import sys

import pytest

from sft.cli import InputError
from sft.inspect.check_data import check
from tests.support.printed_json import printed_json
from tests.support.project import ROOT, chat_records, set_params, write_jsonl
from tests.support.tiny_model import make_tiny_base

MODULE = "sft.inspect.check_data"


@pytest.fixture
def project(tmp_path):
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    source = {"uri": "file://mine", "read": {"format": "auto", "select": {"kind": ["good"]}}}
    set_params(tmp_path, **{"fetch.sources": {"mine": source}})
    rows = [{**record, "kind": "good", "mood": "glad"} for record in chat_records(4)]
    broken = {"messages": [{"role": "user", "content": "?"}], "kind": "good"}
    write_jsonl(tmp_path / "mine/train.jsonl", [*rows, broken, {**rows[0], "kind": "bad"}])
    write_jsonl(tmp_path / "mine/test.jsonl", rows)
    return tmp_path


def test_a_source_is_checked_where_it_is_and_nothing_is_written(project):
    make_tiny_base(project / "models/base")
    (project / "dated.jinja").write_text("{{ strftime_now('%Y') }}" + (ROOT / "templates/nano3.jinja").read_text())
    set_params(project, **{"prep.template": "dated.jinja", "prep.date": "2026-01-31"})
    before = sorted(project.rglob("*"))
    facts = printed_json(project, MODULE, "--source", "mine")
    assert sorted(project.rglob("*")) == before
    assert (facts["rows"], facts["kept"], facts["not_selected"]) == (6, 4, 1)
    assert facts["read"].startswith("read: openai")
    assert facts["rejected"] == {"last-turn-not-assistant": facts["rejected"]["last-turn-not-assistant"]}
    assert facts["rejected"]["last-turn-not-assistant"]["number"] == 1
    assert facts["rejected"]["last-turn-not-assistant"]["example"].startswith("train.jsonl:5: ")
    assert facts["files"]["not_read"]["of split test"] == {"files": 1, "first": "test.jsonl"}
    assert facts["not_read"]["mood"]["values"] == 4
    lengths = facts["lengths"]
    assert lengths["samples"] >= 4
    assert 0 < lengths["trained_tokens"] < lengths["tokens"]
    assert lengths["quantiles"]["p0"] <= lengths["quantiles"]["p50"] <= lengths["quantiles"]["p100"]
    pieces = lengths["examples"][0]["pieces"]
    assert "".join(piece["text"] for piece in pieces).startswith("2026")
    trained = "".join(piece["text"] for piece in pieces if piece["is_trained"])
    assert "Yes, " in trained
    assert "Sure?" not in trained


def test_a_path_is_checked_without_a_source(project):
    facts = printed_json(project, MODULE, "--source", "mine/test.jsonl")
    assert (facts["rows"], facts["kept"], facts["read"][:12]) == (4, 4, "read: openai")


@pytest.mark.parametrize("name", ["rows#1.jsonl", "rows{a,b}.jsonl", "rows?.jsonl"])
def test_a_path_that_is_no_uri_is_an_error(project, monkeypatch, name):
    monkeypatch.chdir(project)
    (project / name).touch()
    with pytest.raises(InputError, match=r"rows.*\.jsonl: found .* Rename the path"):
        check(name)


def test_a_message_names_the_uri(project):
    (project / "empty.jsonl").touch()
    command = [sys.executable, "-m", MODULE, "--source", "empty.jsonl"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: file://empty.jsonl: no row")


def test_without_a_base_model_it_says_how_to_get_one(project):
    command = [sys.executable, "-m", MODULE, "--source", "mine"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert ["rows", "the first 6: 4 kept, 1 not selected"] in lines
    assert any(name == "note" and "make fetch" in text for name, text in lines)
    assert not (project / "data").exists()


def test_a_source_that_is_not_fetched_names_the_stage(project):
    set_params(
        project, **{"fetch.sources": {"mine": {"uri": "https://host/a.jsonl#sha256=" + "0" * 64, "read": "openai"}}}
    )
    assert printed_json(project, MODULE, "--source", "mine", message="dvc repro fetch@mine") is None
