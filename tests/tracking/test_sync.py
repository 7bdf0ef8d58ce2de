"""sync: after an outage, a slow store or a new one, the store has the same, and no step waits for it."""

import errno
import fcntl
import io
import shutil
import threading
import time

import pytest

from sft.tracking import store as store_of_runs
from sft.tracking import sync
from sft.tracking.journal import record_status
from sft.tracking.store import NoAccessError
from sft.tracking.sync import sync_run
from tests.support.dask_cluster import wait_until
from tests.support.servers import mlflow_server
from tests.support.tracked_run import begin, children, history, log_step


def test_a_server_that_stops_and_starts_again_has_every_step_once_and_in_order(server, tmp_path, monkeypatch, capsys):
    (tmp_path / "server").mkdir()
    shutil.copyfile(server.folder / "empty.db", tmp_path / "server/mlflow.db")
    with mlflow_server(tmp_path / "server") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        run_journal = begin(tmp_path)
        run = run_journal.folder.parent
        step = 0
        with record_status(run_journal), sync.sync_in_background(run):

            def train(steps):
                nonlocal step
                for _ in range(steps):
                    step += 1
                    log_step(run_journal, step, 1 / step)
                    time.sleep(0.005)

            train(50)
            wait_until(lambda: sync.run_id(run) and run_journal.pending(server.url) == 0)
            server.stop()
            train(50)
            wait_until(lambda: "entries are kept" in capsys.readouterr().out)
            assert run_journal.pending(server.url) > 0
            server.start()
            train(50)
        result = sync_run(run)
        assert (result.pending, result.reason) == (0, None)
        assert history(result.run_id) == [(step, 1 / step) for step in range(1, 151)]
        assert len(history(result.run_id, "lr")) == 150
        assert store_of_runs.connect().get_run(result.run_id).info.status == "FINISHED"
    assert step == 150


def test_a_server_that_does_not_answer_during_the_run_is_synced_later(tmp_path, served, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cr3t-word@127.0.0.1:9")
    run_journal = begin(tmp_path)
    run = run_journal.folder.parent
    sync.check_server(run)
    with sync.sync_at_exit(run) as ending, record_status(run_journal):
        monkeypatch.setattr(sync, "PATIENCE", 0)
        log_step(run_journal, 1, 2.0)
        assert sync.run_id(run) is None
    assert "pending in runs/" in ending.text
    assert "s3cr3t-word" not in ending.text + "".join(
        path.read_text() for path in run_journal.folder.iterdir() if path.is_file()
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.url)
    result = sync_run(run)
    assert result.pending == 0
    assert history(result.run_id) == [(1, 2.0)]


def test_another_store_gets_the_whole_journal(tmp_path, store, server, monkeypatch):
    run_journal = begin(tmp_path, key="a" * 16)
    log_step(run_journal, 1, 1.0)
    here = sync_run(run_journal.folder.parent)
    log_step(run_journal, 2, 0.5)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    there = sync_run(run_journal.folder.parent)
    assert (here.store, there.store) == ("runs/mlflow.db", server.url)
    assert history(there.run_id) == [(1, 1.0), (2, 0.5)]


def test_entries_added_during_a_sync_have_no_reason_to_be_pending(tmp_path, store, monkeypatch):
    run_journal = begin(tmp_path)
    upload = sync.upload

    def upload_and_add(run_journal, name, **options):
        notes = upload(run_journal, name, **options)
        log_step(run_journal, 1, 1.0)
        return notes

    monkeypatch.setattr(sync, "upload", upload_and_add)
    result = sync_run(run_journal.folder.parent)
    assert (result.pending, result.reason) == (1, None)
    with run_journal.sync_lock(0):
        assert sync_run(run_journal.folder.parent, patience=0).reason == "another process is syncing it."


def test_a_slow_server_does_not_hold_up_a_step(tmp_path, store, monkeypatch):
    asked, answer = threading.Event(), threading.Event()

    def upload(run_journal, name, **options):
        asked.set()
        assert answer.wait(900), "the steps wait for it"
        return []

    monkeypatch.setattr(sync, "upload", upload)
    run_journal = begin(tmp_path)
    with sync.sync_in_background(run_journal.folder.parent):
        asked.wait(300)
        for step in range(100):
            log_step(run_journal, step, 1.0)
        answer.set()


def test_the_machine_is_sampled_while_a_block_runs(tmp_path, store, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    run_journal = begin(tmp_path)
    with sync.sync_in_background(run_journal.folder.parent):
        time.sleep(0.5)
    result = sync_run(run_journal.folder.parent)
    measured = children(result.run_id)["attempt-1"].data.metrics
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= measured.keys()


@pytest.mark.parametrize(("uri", "on_node"), [("sqlite:///store.db", False), ("http://127.0.0.1:9", True)])
def test_a_node_of_a_job_syncs_to_a_server_and_the_process_that_follows_it_to_an_sqlite_file(
    tmp_path, monkeypatch, uri, on_node
):
    run = begin(tmp_path).folder.parent
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(sync, "_keep_syncing", lambda run, done, terminal: done.wait())
    for block, variables, expected in (
        (sync.sync_in_background, {"SFT_RUN": str(run)}, on_node),
        (sync.sync_in_background, {}, True),
        (sync.follow_in_background, {}, not on_node),
    ):
        with pytest.MonkeyPatch.context() as environment:
            for name, value in variables.items():
                environment.setenv(name, value)
            with block(run):
                names = {thread.name for thread in threading.enumerate()}
        assert ("mlflow" in names) == expected, (block, variables)


def test_a_lock_that_fails_is_said_at_once_and_training_goes_on(tmp_path, monkeypatch, capsys):
    def fails(file, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fails)
    began = time.monotonic()
    sync.check_server(tmp_path / "runs/key")
    with sync.sync_at_exit(tmp_path / "runs/key") as message:
        pass
    assert time.monotonic() - began < sync.LONGEST_SYNC / 2
    assert "Input/output error" in capsys.readouterr().out
    assert "Input/output error" in message.text


@pytest.mark.parametrize("ends", [sync.SyncResult("a", None, None, [], None, 1, "no answer."), NoAccessError("no")])
def test_a_sync_that_lasts_longer_than_its_training_prints_nothing(tmp_path, monkeypatch, ends):
    """The terminal may be closed by then, and the stage has said what is pending."""
    done, terminal = threading.Event(), io.StringIO()

    def sync_run(*_, **__):
        done.set()
        terminal.close()
        if isinstance(ends, Exception):
            raise ends
        return ends

    monkeypatch.setattr(sync, "EVERY", 0.0)
    monkeypatch.setattr(sync, "sync_run", sync_run)
    sync._keep_syncing(tmp_path, done, terminal)
    assert done.is_set()
