"""deliver: what waits for MLflow is told, and attempts that are gone are ended."""

import os

import pytest

from sft.command import InputError
from sft.run import deliver, tracking
from sft.run.outbox import Metrics, Outbox, open_run

KEYS = ("0" * 16, "1" * 16)


@pytest.fixture
def waiting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for key in KEYS:
        Metrics(open_run(tmp_path / "runs" / key, {}, {}, [])).log(1, loss=1.0)
    return tmp_path / "runs"


def test_every_run_is_told_and_what_is_gone_is_killed(waiting, capsys):
    box = Outbox(waiting / KEYS[0])
    box.file.write_text(box.file.read_text().replace(f'"pid": {os.getpid()}', '"pid": 4194305'))
    deliver.main()
    said = capsys.readouterr().out
    assert f"runs/{KEYS[0]}: attempt 1 is gone without a word: KILLED" in said
    assert "runs/mlflow.db has been told all of 2 runs" in said
    statuses = {key: tracking.look_up(key).facts["status"] for key in KEYS}
    assert statuses == {KEYS[0]: "KILLED", KEYS[1]: "RUNNING"}
    deliver.main()
    assert f"runs/{KEYS[1]}: 0 told, 0 wait" in capsys.readouterr().out


def test_a_store_that_does_not_answer_ends_with_an_error(waiting, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracking.deliver, "__defaults__", (0,))
    with pytest.raises(InputError, match=r"does not answer at http://127\.0\.0\.1:9"):
        deliver.main()
