"""tracking/cli: pending entries are sent, killed attempts are ended, and the server is on loopback only."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.cluster import jobs
from sft.cluster.run_lock import RunLock
from sft.files import read_json, write_json
from sft.lineage.resolve import outs, parse_lock
from sft.tracking import cli, store, sync
from sft.tracking.journal import RECORDS, Dataset, Journal, add_model, open_run
from tests.support.finished_project import make_recorded
from tests.support.tracked_run import log_step

KEYS = ("0" * 16, "1" * 16)


@pytest.fixture
def pending(tmp_path, monkeypatch, local_store):
    monkeypatch.chdir(tmp_path)
    for key in KEYS:
        log_step(open_run(tmp_path / "runs" / key, {}, {}, []), 1, 1.0)
    return tmp_path / "runs"


def test_every_run_is_synced_and_an_attempt_whose_process_is_gone_is_killed(pending, capsys):
    run_journal = Journal(pending / KEYS[0])
    run_journal.file.write_text(run_journal.file.read_text().replace(f'"pid": {os.getpid()}', '"pid": 4194305'))
    cli.sync_all()
    output = capsys.readouterr().out
    assert f"runs/{KEYS[0]}: attempt 1" in output
    assert "runs/mlflow.db is up to date with 2 runs" in output
    statuses = {key: store.look_up(key).facts["status"] for key in KEYS}
    assert statuses == {KEYS[0]: "KILLED", KEYS[1]: "RUNNING"}
    cli.sync_all()
    assert f"runs/{KEYS[1]}: 0 sent, 0 pending" in capsys.readouterr().out


def test_an_attempt_that_a_job_or_another_process_trains_goes_on(pending, capsys):
    """The process that submits a job with DETACH=1 begins the attempt, and ends."""
    for key in KEYS:
        file = Journal(pending / key).file
        file.write_text(file.read_text().replace(f'"pid": {os.getpid()}', '"pid": 4194305'))
    write_json(pending / KEYS[0] / "job.json", {"cluster": "big", "stage": "train", "job": "7", "outcome": None})
    with RunLock(pending / KEYS[1]).held():
        cli.sync_all()
    assert {key: store.look_up(key).facts["status"] for key in KEYS} == dict.fromkeys(KEYS, "RUNNING")
    assert "no longer runs" not in capsys.readouterr().out
    jobs.record_outcome(pending / KEYS[0], "CANCELLED")
    cli.sync_all()
    assert {key: store.look_up(key).facts["status"] for key in KEYS} == dict.fromkeys(KEYS, "KILLED")
    assert not RunLock(pending / KEYS[1]).is_held()


def test_a_store_that_does_not_answer_ends_with_an_error(pending, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(sync.sync_run, "__defaults__", (0,))
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9"):
        cli.sync_all()


@pytest.fixture
def finished(tmp_path, monkeypatch, local_store):
    """A finished run that no store has, with the dvc.lock of before its last stage."""
    project = make_recorded(tmp_path / "project")
    monkeypatch.chdir(project)
    key = read_json(project / "models/final/lineage.json")["lineage_key"]
    run_journal = open_run(project / "runs" / key, {}, {}, [Dataset("packed", "f" * 64, "file:///x", "training", {})])
    add_model(run_journal, project / "models/final", {})
    whole = (project / "dvc.lock").read_text()
    (project / "dvc.lock").write_text(whole[: whole.index("  eval:")])
    run_journal.attach(RECORDS, {"dvc.lock": project / "dvc.lock", "params.yaml": project / "params.yaml"})
    (project / "dvc.lock").write_text(whole)
    return project


def lock_in_store(project):
    key = read_json(project / "models/final/lineage.json")["lineage_key"]
    run_id = sync.run_id(project / "runs" / key)
    return store.fetch_records(run_id, Path(tempfile.mkdtemp(dir=project))) / "dvc.lock"


def test_the_lock_that_dvc_wrote_after_the_last_stage_replaces_the_older_one_once(finished, capsys):
    cli.sync_lock()
    assert "nano3-sft/1" in capsys.readouterr().out
    assert lock_in_store(finished).read_bytes() == (finished / "dvc.lock").read_bytes()
    cli.sync_lock()
    assert capsys.readouterr().out == ""
    cli.sync_all()
    assert "0 sent, 0 pending" in capsys.readouterr().out


def test_the_lock_of_another_model_is_no_lock_of_this_run(finished):
    lock, lineage = finished / "dvc.lock", finished / "models/final/lineage.json"
    whole = lock.read_text()
    lock.write_text(whole.replace(outs(parse_lock(whole.encode()))["models/final"], "0" * 32 + ".dir"))
    assert cli.attach_lock(finished) is None
    lock.write_text(whole)
    kept = lineage.read_text()
    lineage.write_text(kept + " ")
    assert cli.attach_lock(finished) is None, "the journal has no model of that digest"
    lineage.write_text(kept)
    assert cli.attach_lock(finished) is not None


def test_where_no_model_or_no_lock_is_there_is_nothing_to_replace(finished):
    shutil.rmtree(finished / "models")
    assert cli.attach_lock(finished) is None
    assert cli.attach_lock(finished / "runs") is None


def test_a_store_that_does_not_answer_does_not_fail_the_end_of_a_repro(finished, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(sync, "PATIENCE", 0)
    cli.sync_lock()
    assert "http://127.0.0.1:9" in capsys.readouterr().out


def options(line):
    return dict(zip(line[4::2], line[5::2], strict=True))


def test_it_listens_on_loopback_and_answers_to_its_own_names(tmp_path):
    assert options(cli.server_command(None, None, 5001, tmp_path)) == {
        "--host": "127.0.0.1",
        "--port": "5001",
        "--workers": "1",
        "--allowed-hosts": "localhost:5001,127.0.0.1:5001",
        "--backend-store-uri": f"sqlite:///{tmp_path}/mlflow.db",
        "--artifacts-destination": f"{tmp_path}/mlflow-artifacts",
    }


def test_another_store_and_place_of_artifacts_are_taken():
    given = options(cli.server_command("postgresql://me@host/db", "s3://bucket/x", 5000, Path("runs")))
    assert given["--backend-store-uri"] == "postgresql://me@host/db"
    assert given["--artifacts-destination"] == "s3://bucket/x"


@pytest.mark.parametrize("store", ["postgresql://me:s3cr3t@host/db", "postgresql://me:s3/cr3t@host/db"])
def test_a_password_on_the_command_line_is_refused(store):
    with pytest.raises(InputError, match=r"PGPASSWORD") as error:
        cli.server_command(store, None, 5000, Path("runs"))
    assert "cr3t" not in str(error.value)


def test_jobs_and_pickles_are_off(tmp_path, monkeypatch):
    became = []
    monkeypatch.setattr(cli.os, "execve", lambda *call: became.append(call))
    cli.serve(None, None, 5000, tmp_path / "new")
    (_, line, environ) = became[0]
    assert line[1:4] == ["-m", "mlflow", "server"]
    assert (environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"], environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"]) == (
        "false",
        "false",
    )
