"""delivery: a store that is away, slow or another has the same in the end, and no step waits for it."""

import shutil
import threading
import time

import pytest

from sft.cli import InputError
from sft.tracking import delivery
from sft.tracking import store as store_of_runs
from sft.tracking.delivery import deliver
from sft.tracking.journal import Metrics, record_status
from tests.support.dask_cluster import wait_until
from tests.support.servers import mlflow_server
from tests.support.tracked_run import begin, children, history


def test_a_server_that_stops_and_starts_again_has_every_step_once_and_in_order(server, tmp_path, monkeypatch, capsys):
    (tmp_path / "server").mkdir()
    shutil.copyfile(server.folder / "empty.db", tmp_path / "server/mlflow.db")
    with mlflow_server(tmp_path / "server") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        box = begin(tmp_path)
        run, metrics = box.folder.parent, Metrics(box)
        step = 0
        with record_status(box), delivery.delivering(run):

            def train(steps):
                nonlocal step
                for _ in range(steps):
                    step += 1
                    metrics.log(step, loss=1 / step, lr=0.1)
                    time.sleep(0.005)

            train(50)
            wait_until(lambda: delivery.run_id(run) and box.waiting(server.url) == 0)
            server.stop()
            train(50)
            wait_until(lambda: "does not answer" in capsys.readouterr().out)
            assert box.waiting(server.url) > 0
            server.start()
            train(50)
        told = deliver(run)
        assert (told.waiting, told.reason) == (0, None)
        assert history(told.run_id) == [(step, 1 / step) for step in range(1, 151)]
        assert len(history(told.run_id, "lr")) == 150
        assert store_of_runs.connect().get_run(told.run_id).info.status == "FINISHED"
    assert step == 150


def test_a_server_that_is_away_from_beginning_to_end_is_told_later(tmp_path, served, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cr3t-word@127.0.0.1:9")
    box = begin(tmp_path)
    run = box.folder.parent
    delivery.check_server(run)
    with delivery.sync_at_exit(run) as ending, record_status(box):
        monkeypatch.setattr(delivery, "PATIENCE", 0)
        Metrics(box).log(1, loss=2.0)
        assert delivery.run_id(run) is None
    assert "entries wait in runs/" in ending.text
    assert "s3cr3t-word" not in ending.text + "".join(
        path.read_text() for path in box.folder.iterdir() if path.is_file()
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.url)
    told = deliver(run)
    assert told.waiting == 0
    assert history(told.run_id) == [(1, 2.0)]


def test_another_store_gets_the_whole_story(tmp_path, store, server, monkeypatch):
    box = begin(tmp_path, key="a" * 16)
    Metrics(box).log(1, loss=1.0)
    here = deliver(box.folder.parent)
    Metrics(box).log(2, loss=0.5)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    there = deliver(box.folder.parent)
    assert (here.store, there.store) == ("runs/mlflow.db", server.url)
    assert history(there.run_id) == [(1, 1.0), (2, 0.5)]


def test_a_server_that_refuses_is_said_before_training_begins(tmp_path, served, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.url.replace("127.0.0.1", "127.0.0.2"))
    box = begin(tmp_path)
    with pytest.raises(InputError, match=r"refuses|does not answer"):
        store_of_runs.connect()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{served.url}/nothing-here")
    with pytest.raises(InputError, match="refuses"):
        delivery.check_server(box.folder.parent)


def test_what_is_written_while_a_store_is_told_is_not_said_to_wait(tmp_path, store, monkeypatch):
    box = begin(tmp_path)
    tell = delivery.tell_all

    def tell_and_go_on(box, name):
        tell(box, name)
        Metrics(box).log(1, loss=1.0)

    monkeypatch.setattr(delivery, "tell_all", tell_and_go_on)
    told = deliver(box.folder.parent)
    assert (told.waiting, told.reason) == (1, None)
    with box.delivering(0):
        assert deliver(box.folder.parent, patience=0).reason == "another process is telling it."


def test_a_slow_server_does_not_hold_up_a_step(tmp_path, store, monkeypatch):
    answered = threading.Event()
    monkeypatch.setattr(delivery, "tell_all", lambda box, name: answered.wait(30))
    box = begin(tmp_path)
    metrics = Metrics(box)
    with delivery.delivering(box.folder.parent):
        wait_until(lambda: any(one.name == "mlflow" for one in threading.enumerate()))
        time.sleep(0.3)
        for step in range(100):
            metrics.log(step, loss=1.0)
        assert not answered.is_set(), "the steps did not wait for it"
    answered.set()


def test_the_machine_is_sampled_while_a_block_runs(tmp_path, store, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    box = begin(tmp_path)
    with delivery.delivering(box.folder.parent):
        time.sleep(0.5)
    told = deliver(box.folder.parent)
    measured = children(told.run_id)["attempt-1"].data.metrics
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= measured.keys()
