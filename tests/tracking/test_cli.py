"""deliver: what waits for MLflow is told, and attempts that are gone are ended."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.files import read_json
from sft.lineage.resolve import outs, parse_lock
from sft.tracking import cli, delivery, store
from sft.tracking.journal import RECORDS, Dataset, Journal, Metrics, add_model, open_run
from tests.support.finished_project import make_recorded

KEYS = ("0" * 16, "1" * 16)


@pytest.fixture
def waiting(tmp_path, monkeypatch, local_store):
    monkeypatch.chdir(tmp_path)
    for key in KEYS:
        Metrics(open_run(tmp_path / "runs" / key, {}, {}, [])).log(1, loss=1.0)
    return tmp_path / "runs"


def test_every_run_is_told_and_what_is_gone_is_killed(waiting, capsys):
    box = Journal(waiting / KEYS[0])
    box.file.write_text(box.file.read_text().replace(f'"pid": {os.getpid()}', '"pid": 4194305'))
    cli.main()
    said = capsys.readouterr().out
    assert f"runs/{KEYS[0]}: attempt 1 is gone without a word: KILLED" in said
    assert "runs/mlflow.db has been told all of 2 runs" in said
    statuses = {key: store.look_up(key).facts["status"] for key in KEYS}
    assert statuses == {KEYS[0]: "KILLED", KEYS[1]: "RUNNING"}
    cli.main()
    assert f"runs/{KEYS[1]}: 0 told, 0 wait" in capsys.readouterr().out


def test_a_store_that_does_not_answer_ends_with_an_error(waiting, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(delivery.deliver, "__defaults__", (0,))
    with pytest.raises(InputError, match=r"does not answer at http://127\.0\.0\.1:9"):
        cli.main()


@pytest.fixture
def finished(tmp_path, monkeypatch, local_store):
    """A finished run, told to nobody yet, with the dvc.lock of before its last stage."""
    project = make_recorded(tmp_path / "project")
    monkeypatch.chdir(project)
    key = read_json(project / "models/final/lineage.json")["lineage_key"]
    box = open_run(project / "runs" / key, {}, {}, [Dataset("packed", "f" * 64, "file:///x", "training", {})])
    add_model(box, project / "models/final", {})
    whole = (project / "dvc.lock").read_text()
    (project / "dvc.lock").write_text(whole[: whole.index("  eval:")])
    box.attach(RECORDS, {"dvc.lock": project / "dvc.lock", "params.yaml": project / "params.yaml"})
    (project / "dvc.lock").write_text(whole)
    return project


def lock_in_store(project):
    key = read_json(project / "models/final/lineage.json")["lineage_key"]
    run_id = delivery.run_id(project / "runs" / key)
    return store.fetch_records(run_id, Path(tempfile.mkdtemp(dir=project))) / "dvc.lock"


def test_the_lock_that_dvc_wrote_after_the_last_stage_replaces_the_older_one_once(finished, capsys):
    cli.tell_lock()
    assert "as all stages left it. models/final is nano3-sft/1" in " ".join(capsys.readouterr().out.split())
    assert lock_in_store(finished).read_bytes() == (finished / "dvc.lock").read_bytes()
    cli.tell_lock()
    assert capsys.readouterr().out == ""
    cli.main()
    assert "0 told, 0 wait" in capsys.readouterr().out


def test_the_lock_of_another_model_is_no_lock_of_this_run(finished):
    lock, lineage = finished / "dvc.lock", finished / "models/final/lineage.json"
    whole = lock.read_text()
    lock.write_text(whole.replace(outs(parse_lock(whole.encode()))["models/final"], "0" * 32 + ".dir"))
    assert cli.renew_lock(finished) is None
    lock.write_text(whole)
    kept = lineage.read_text()
    lineage.write_text(kept + " ")
    assert cli.renew_lock(finished) is None, "no model of that digest was told"
    lineage.write_text(kept)
    assert cli.renew_lock(finished) is not None


def test_where_no_model_or_no_lock_is_there_is_nothing_to_replace(finished):
    shutil.rmtree(finished / "models")
    assert cli.renew_lock(finished) is None
    assert cli.renew_lock(finished / "runs") is None


def test_a_store_that_is_away_does_not_fail_the_end_of_a_repro(finished, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(delivery, "PATIENCE", 0)
    cli.tell_lock()
    assert "does not answer" in capsys.readouterr().out
