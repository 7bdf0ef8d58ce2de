"""outages: a real server that fails in one of 24 ways at the beginning, in the middle or at the end of a training.

What it has not received is sent as soon as it answers again, each step once.
"""

import http.client
import time
from urllib.parse import urlsplit

import mlflow
import pytest

from sft.tracking import answers, sync
from sft.tracking import store as store_of_runs
from sft.tracking.journal import Journal
from tests.support.tracked_run import begin, log_step
from tests.tracking.test_answers import ANSWERS, REFUSALS, Server

PHASES = ("beginning", "middle", "end")
# A few, in the suite. To try all: [(way, phase) for way in (*ANSWERS, *REFUSALS) for phase in PHASES]
KINDS = [("closed", "beginning"), ("page", "middle"), ("error", "end"), ("401", "middle")]
TIMED = {"slow", "silent", "endless", "endless error"}  # they end by a limit


def forward(server):
    """Answer as a server at another address does."""
    host = urlsplit(server.url).netloc

    def answer(handler):
        connection = http.client.HTTPConnection(host, timeout=60)
        headers = {**handler.headers, "Host": host}
        connection.request(handler.command, handler.path, handler.body, headers)
        response = connection.getresponse()
        body = response.read()
        handler.send(response.status, body, Content_Type=response.headers.get("Content-Type", ""))

    return answer


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(sync, "PATIENCE", 1.0)
    monkeypatch.setattr(sync, "LONGEST_SYNC", 60.0)
    monkeypatch.setattr(sync, "LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(answers, "MAX_BYTES", 4 << 20)
    monkeypatch.setattr(answers, "MAX_SECONDS", 30.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")


@pytest.mark.parametrize(("way", "phase"), KINDS)
def test_what_an_outage_kept_back_arrives_once(tmp_path, quick, monkeypatch, capsys, server, way, phase):
    real = forward(server)
    proxy = Server(real)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
    fails, is_refusal = {**ANSWERS, **REFUSALS}[way], way in REFUSALS
    journal = begin(tmp_path)
    run = journal.folder.parent
    if way in TIMED:
        monkeypatch.setattr(answers, "MAX_SECONDS", 3.0)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    proxy.answer = fails if phase == "beginning" else real
    if is_refusal and phase == "beginning":
        with pytest.raises(store_of_runs.NoAccessError):
            sync.check_server(run)
    else:
        sync.check_server(run)
    proxy.answer = real
    with sync.sync_at_exit(run) as message, sync.sync_in_background(run):
        log_step(journal, 1, 3.0)
        time.sleep(0.3)
        proxy.answer = fails if phase == "middle" else real
        log_step(journal, 2, 2.0)
        time.sleep(0.5)
        proxy.answer = fails if phase == "end" else real
        log_step(journal, 3, 1.0)
    if phase == "end":
        assert Journal(run).pending(proxy.url) > 0
        assert "make mlflow-sync" in message.text
    proxy.answer = real
    monkeypatch.setattr(answers, "MAX_SECONDS", 60.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    result = sync.sync_run(run, patience=60)
    assert (result.reason, Journal(run).pending(proxy.url)) == (None, 0)
    client = mlflow.MlflowClient(server.url)
    points = client.get_metric_history(result.run_id, "loss")
    assert [(point.step, point.value) for point in sorted(points, key=lambda point: point.step)] == [
        (1, 3.0),
        (2, 2.0),
        (3, 1.0),
    ]
    proxy.shutdown()
    assert "Traceback" not in capsys.readouterr().err
