"""rejections: rows that the stages rejected, by source, stage and reason."""

import json

import pytest

from sft.files import write_json
from sft.inspect.rejections import STAGES, count_reasons, examples, num_read, rejected_rows, sources, why_rejected
from sft.parquet import CONVERSATIONS, REJECTED, ShardWriter


def row(name, **more):
    return {"id": name * 32, "messages": f'["{name}"]', "tools": None, "meta": "{}", **more}


def write_lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Two sources, the second filtered only."""
    monkeypatch.chdir(tmp_path)
    for source, rejected_names in (("calls", "cd"), ("chats", "e")):
        with (
            ShardWriter(tmp_path / "data/filtered" / source, "kept", CONVERSATIONS) as kept,
            ShardWriter(tmp_path / "data/filtered" / source, "rejected", REJECTED) as rejected,
        ):
            for name in "ab":
                kept.write(row(name))
            for name in rejected_names:
                rejected.write(row(name, reason="think-tags", evidence=name))
    write_lines(
        tmp_path / "data/prepared/calls/rejected.jsonl", {"id": "a" * 32, "reason": "no-stop-token", "evidence": "p"}
    )
    write_lines(
        tmp_path / "data/packed/rejected.jsonl",
        {"id": "b" * 32, "source": "calls", "reason": "think-tags", "evidence": "q"},
        {"id": "b" * 32, "source": "calls", "reason": "think-tags", "evidence": "r"},
        {"id": "b" * 32, "source": "chats", "reason": "over-length", "evidence": "s"},
    )
    return tmp_path


def test_every_stage_is_counted_by_source_and_reason(project):
    assert sources() == ["calls", "chats"]
    counted = {(source, stage): dict(count_reasons(stage, source)) for source in sources() for stage in STAGES}
    assert counted == {
        ("calls", "filter"): {"think-tags": 2},
        ("calls", "prep"): {"no-stop-token": 1},
        ("calls", "pack"): {"think-tags": 2},
        ("chats", "filter"): {"think-tags": 1},
        ("chats", "prep"): {},
        ("chats", "pack"): {"over-length": 1},
    }


def test_nothing_is_rejected_where_no_stage_ran(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sources() == []
    assert [list(rejected_rows(stage, "calls")) for stage in STAGES] == [[], [], []]
    assert why_rejected("") == []


def test_what_a_stage_read_comes_from_the_reports_in_its_own_unit(project):
    assert [num_read(stage, "calls") for stage in STAGES] == [None, None, None]
    write_json(project / "reports/filter/calls.json", {"rows_in": 4})
    write_json(project / "reports/prep/calls.json", {"rows_in": 2, "samples": 5})
    assert [num_read(stage, "calls") for stage in STAGES] == [4, 2, 5]


@pytest.mark.parametrize(("start", "number", "evidence"), [(0, 9, "cdqre"), (1, 2, "dq"), (3, 1, "r"), (5, 1, "")])
def test_examples_run_through_sources_stages_and_files_in_order(project, start, number, evidence):
    found = list(examples(["calls", "chats"], "think-tags", start, number))
    assert "".join(one["evidence"] for _, _, one in found) == evidence


def test_an_example_of_a_later_stage_has_the_conversation_that_filter_kept(project):
    ((stage, source, found),) = examples(["calls"], "no-stop-token", 0, 5)
    assert (stage, source) == ("prep", "calls")
    assert found == {**row("a"), "reason": "no-stop-token", "evidence": "p"}


def test_the_reasons_of_a_conversation_are_found_by_the_start_of_its_id(project):
    assert why_rejected("aaaaaa") == [f"{'a' * 32} of calls: prep rejected it, no-stop-token"]
    assert len(why_rejected("b")) == 3
    assert why_rejected("f") == []
