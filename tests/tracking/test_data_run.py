"""data_run: the counts of the reports by stage and source, and summed; missing reports count nothing."""

from pathlib import Path

import pytest

from sft.files import read_json, write_json
from sft.hashing import folder_digest
from sft.tracking.data_run import counts, data_sets
from sft.tracking.journal import Dataset
from tests.support.finished_project import make_recorded

PACKED = Dataset("packed", "f" * 64, "file:///data/packed", "training", {"pack_size": "64"})


@pytest.fixture
def project(tmp_path):
    return make_recorded(tmp_path / "project")


def test_every_stage_counts_by_source_and_in_all(project):
    path = project / "reports/filter/calls.json"
    write_json(
        path, {**read_json(path), "sampled": False, "rejected": {"no-answer": 1, "over-length": 2}, "rows_out": 7}
    )
    found = counts(project)
    assert {name: value for name, value in found.items() if name.startswith("filter/")} == {
        "filter/calls/rows_in": 10, "filter/calls/rows_out": 7,
        "filter/calls/rejected.no-answer": 1, "filter/calls/rejected.over-length": 2,
        "filter/chats/rows_in": 10, "filter/chats/rows_out": 9, "filter/chats/rejected.no-answer": 1,
        "filter/calls/rows_found": 10, "filter/chats/rows_found": 10, "filter/rows_found": 20,
        "filter/rows_in": 20, "filter/rows_out": 16, "filter/rejected.no-answer": 2, "filter/rejected.over-length": 2,
    }  # fmt: skip
    assert found["prep/trained_tokens"] == 90
    assert found["pack/splits.training.packs"] == 3
    assert found["pack/chats/trained_tokens"] == 45
    for stage in ("fetch", "filter"):
        lost = sum(value for name, value in found.items() if name.startswith(f"{stage}/rejected."))
        assert found[f"{stage}/rows_in"] == found[f"{stage}/rows_out"] + lost


def test_lengths_and_the_numbers_of_single_files_stay_in_the_reports(project):
    path = project / "reports/prep/calls.json"
    write_json(path, {**read_json(path), "length_quantiles": {"p50": 3}})
    assert not [name for name in counts(project) if "p50" in name or "bytes" in name]


def test_sources_and_evaluation_sets_go_in_and_the_packed_data_comes_out(project):
    sets = {dataset.name: dataset for dataset in data_sets(project, PACKED)}
    assert {name: dataset.context for name, dataset in sets.items()} == {
        "calls": "source", "chats": "source", "benchmarks": "decontamination", "packed": "output",
    }  # fmt: skip
    for name, place in (("calls", "data/raw/calls"), ("chats", "data/raw/chats"), ("benchmarks", "data/benchmarks")):
        assert sets[name].digest == folder_digest(project / place), name
        assert sets[name].source == (project / place).as_uri()
    assert (sets["calls"].tags["license"], sets["calls"].tags["rows"]) == ("Apache-2.0", "10")
    assert sets["benchmarks"].tags == {"rows": "2", "sets": "gsm8k"}
    assert (sets["packed"].digest, sets["packed"].tags) == (PACKED.digest, PACKED.tags)


def test_reports_that_are_not_there_count_nothing(project):
    for path in Path(project / "reports").rglob("*.json"):
        path.unlink()
    assert counts(project).keys() == {f"pack/{name}/{count}" for name in ("calls", "chats") for count in (
        "conversations", "tokens", "trained_tokens")}  # fmt: skip
    assert [dataset.name for dataset in data_sets(project, PACKED)] == ["packed"]
