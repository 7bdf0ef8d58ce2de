"""training_run: what a training logs before its first step. tests/test_pipeline.py looks at the MLflow run."""

import pytest

from sft.cli import InputError
from sft.hashing import file_digest
from sft.lineage.key import Lineage
from sft.tracking import journal, training_run
from tests.support.finished_project import make_recorded

LINEAGE = Lineage(
    data="d" * 64,
    base_model="b" * 64,
    params={"optimizer": {"lr": 1e-5}},
    code="c" * 64,
    numeric_packages={"torch": "2.13.0"},
)
METADATA = {"pack_size": 64, "sampled": False}


@pytest.fixture
def project(tmp_path, monkeypatch):
    project = make_recorded(tmp_path / "project")
    monkeypatch.chdir(project)
    for name in ("DVC_ROOT", "CLUSTER", "DVC_EXP_NAME", "SFT_SWEEP"):
        monkeypatch.delenv(name, raising=False)
    return project


def begin(project):
    """Begin an attempt; return the journal's entries by kind."""
    run = project / "runs" / LINEAGE.key
    training_run.begin_attempt(LINEAGE, METADATA, run, "data/packed")
    entries = {}
    for _, entry in journal.Journal(run).read():
        entries.setdefault(entry["kind"], []).append(entry)
    return entries


def test_an_attempt_is_logged_with_its_data_its_params_and_where_it_runs(project, monkeypatch):
    monkeypatch.setattr(training_run.sync, "check_server", lambda run: None)
    monkeypatch.setenv("CLUSTER", "big")
    monkeypatch.setenv("SFT_SWEEP", "rates")
    entries = begin(project)
    assert [entry["digest"] for entry in entries["data"]] == [LINEAGE.data]
    (run,) = entries["run"]
    assert (run["params"]["optimizer.lr"], run["params"]["packages.torch"]) == ("1e-05", "2.13.0")
    assert [(data["name"], data["context"]) for data in run["datasets"]] == [
        ("packed", "training"), ("calls", "source"), ("chats", "source"),
    ]  # fmt: skip
    assert run["datasets"][0]["source"] == (project / "data/packed").as_uri()
    tags = {"cluster": "big", "sweep": "rates", "dvc.lock.sha256": file_digest(project / "dvc.lock")}
    assert tags.items() <= run["tags"].items()
    assert "dvc.experiment" not in run["tags"]
    assert [entry["attempt"] for entry in entries["attempt"]] == [1]
    assert "end" not in entries


def test_an_attempt_that_the_server_refuses_is_logged_as_failed(project, monkeypatch):
    def refuse(run):
        raise InputError("no access")

    monkeypatch.setattr(training_run.sync, "check_server", refuse)
    with pytest.raises(InputError, match="no access"):
        begin(project)
    run_journal = journal.Journal(project / "runs" / LINEAGE.key)
    ends = [(entry["attempt"], entry["status"]) for _, entry in run_journal.read() if entry["kind"] == "end"]
    assert ends == [(1, "FAILED")]
