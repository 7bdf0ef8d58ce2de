"""prep: samples with masks, the same bytes each time, and a ledger that meets the one before."""

import json

import pytest

from sft.command import InputError
from sft.data.shards import read_rows
from sft.files import folder_digest, read_json
from sft.stages import filter as filter_stage
from sft.stages import prep as stage
from tests.project import chat_records, link_project, set_params, tool_records, write_jsonl


@pytest.fixture
def project(tmp_path, monkeypatch):
    link_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "inputs/model").rename(tmp_path / "models/base")
    write_jsonl(tmp_path / "data/raw/calls/a.jsonl", tool_records(8))
    write_jsonl(tmp_path / "data/raw/chats/a.jsonl", chat_records(6))
    filter_stage.main("calls")
    filter_stage.main("chats")
    return tmp_path


def test_samples_tokens_and_trained_tokens_are_counted_as_they_are_written(project):
    stage.main("chats")
    report, rows = (
        read_json(project / "reports/prep/chats.json"),
        list(read_rows(project / "data/prepared/chats")),
    )
    assert (report["rows_in"], report["rows_out"], report["rejected"]) == (6, 6, {})
    assert report["samples"] == len(rows) == 3 + 3 * 2, "three plain conversations, three of two reasoning turns"
    assert report["tokens"] == sum(len(row["ids"]) for row in rows)
    assert report["trained_tokens"] == sum(sum(row["mask"]) for row in rows) > 0
    assert list(rows[0]) == ["conversation_id", "sample", "ids", "mask"]
    by_conversation: dict[str, list[int]] = {}
    for row in rows:
        by_conversation.setdefault(row["conversation_id"], []).append(row["sample"])
    assert sorted(by_conversation.values()) == [[0]] * 3 + [[0, 1]] * 3


def test_the_same_input_gives_the_same_bytes(project):
    stage.main("calls")
    first = folder_digest(project / "data/prepared/calls")
    stage.main("calls")
    assert folder_digest(project / "data/prepared/calls") == first


def test_a_conversation_that_the_template_refuses_is_counted_with_evidence(project):
    template = project / "picky.jinja"
    template.write_text(
        "{% for m in messages %}{% if 'Oslo' in m.content %}{{ raise_exception('no Oslo') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    set_params(project, **{"prep.template": "picky.jinja"})
    stage.main("calls")
    assert read_json(project / "reports/prep/calls.json")["rejected"] == {"template-refuses": 1}
    (line,) = (project / "data/prepared/calls/rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["evidence"] == "no Oslo"


def test_a_ledger_that_does_not_meet_the_one_before_stops_the_stage(project):
    path = project / "reports/filter/calls.json"
    path.write_text(path.read_text().replace('"rows_out": 8', '"rows_out": 9'))
    with pytest.raises(ValueError, match="says 9 rows were handed on, but 8 were found"):
        stage.main("calls")
    assert not (project / "data/prepared/calls").exists()


def test_what_is_missing_says_which_stage_makes_it(project):
    with pytest.raises(InputError, match="dvc repro filter@other"):
        stage.main("other")
    (project / "models/base").rename(project / "elsewhere")
    with pytest.raises(InputError, match="dvc repro fetch-model"):
        stage.main("calls")
