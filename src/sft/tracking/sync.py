"""Sync the journal of a run to a store: in the background while it trains, and when a stage ends.

runs/<lineage key>/journal.jsonl  ->  the store (sft.tracking.upload); a line that says what it has

No step waits for a store. After an outage or a lost answer, the store ends up with each entry once; another store gets
the whole journal.
"""

import contextlib
import itertools
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from rich.console import Console
from rich.markup import escape

from sft.cli import InputError, echo
from sft.tracking.address import StoreError, store_name, store_uri
from sft.tracking.journal import Journal
from sft.tracking.store import NoAccessError
from sft.tracking.upload import upload

PATIENCE = 30.0  # seconds that a stage tries again at its end, while a store does not answer
LONGEST_SYNC = 60.0  # seconds that a stage waits for a sync at its beginning, and at its end
EVERY = 2.0  # seconds between two syncs while a training runs
LONGEST_PAUSE = 60.0  # seconds between two tries while a store does not answer
SYSTEM_EVERY = 10.0  # seconds between two samples of the machine; MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL


@dataclass(frozen=True)
class SyncResult:
    """What a store has of a run."""

    store: str
    run_id: str | None
    version: str | None
    """Of the registered model, as in nano3-sft/3."""
    aliases: list[str]
    """Set by the last evaluation."""
    note: str | None
    """Why an evaluation set none, or left champion where it was."""
    pending: int
    """Entries that the store does not have."""
    reason: str | None
    """Why they are pending; None after a sync that sent all there was."""
    notes: tuple[str, ...] = ()
    """What was missing in the store, and was logged again."""


def sync_run(run: Path, patience: float = PATIENCE, *, confirm: bool = True) -> SyncResult:
    """Send the store what it does not have of the run in a folder; retry for some seconds if it does not answer.

    `confirm`: ask the store whether it still has what it had. Raises NoAccessError: it refuses the user.
    """
    journal, store = Journal(run), store_name()
    deadline = time.monotonic() + patience
    reason, notes = None, []
    is_alone = True
    try:
        with journal.sync_lock(patience) as is_alone:
            while is_alone:
                try:
                    notes += upload(journal, store, confirm=confirm)
                    reason = None
                    break
                except StoreError as error:
                    reason = str(error)
                    if time.monotonic() + 1 >= deadline:
                        break
                    time.sleep(1)
    except OSError as error:  # a file system without locks, a full disk
        reason = f"{journal.folder}: {error.strerror or error}."
    state = journal.synced(store)
    pending = journal.pending(store)
    if pending and not is_alone:
        reason = "another process is syncing it."
    return SyncResult(
        store,
        state.get("run_id"),
        state.get("version"),
        state.get("aliases", []),
        state.get("note"),
        pending,
        reason,
        tuple(notes),
    )


def _sync_within(seconds: float, run: Path, patience: float) -> SyncResult:
    """Sync a run, but wait for it some seconds only: a server can answer a byte a minute.

    Raises:  NoAccessError: the store refuses the user. StoreError: it is too slow.
    """
    ended: queue.SimpleQueue[SyncResult | InputError] = queue.SimpleQueue()

    def work() -> None:
        try:
            ended.put(sync_run(run, patience))
        except InputError as error:
            ended.put(error)

    threading.Thread(target=work, name="sync", daemon=True).start()
    try:
        result = ended.get(timeout=seconds)
    except queue.Empty:
        raise StoreError(f"MLflow at {store_name()}: no complete answer in {seconds:.0f} s.") from None
    if isinstance(result, InputError):
        raise result
    for note in result.notes:
        echo(f"[yellow]{escape(note)}.[/]")
    return result


def run_id(run: Path) -> str | None:
    """Return the id that the store gave to the run in a folder, None if it has not been reached yet."""
    return Journal(run).synced(store_name()).get("run_id")


def check_server(run: Path) -> None:
    """Sync a run that begins; warn if the store does not work.

    Raises:  NoAccessError: the store refuses the user or the password; better now than after the training.
    """
    try:
        reason = _sync_within(LONGEST_SYNC, run, patience=0).reason
    except StoreError as error:
        reason = str(error)
    if reason:
        echo(f"[yellow]{escape(reason)} The stage continues; entries are kept in runs/{run.name}.[/]")


@dataclass
class SyncMessage:
    """What to print about MLflow when a stage has ended."""

    text: str = ""


@contextlib.contextmanager
def sync_at_exit(run: Path) -> Iterator[SyncMessage]:
    """Sync after the block, whether it fails or not; a store that fails does not change how the block ends."""
    message, patience = SyncMessage(), EVERY
    try:
        yield message
        patience = PATIENCE
    finally:
        try:
            message.text = summary(_sync_within(LONGEST_SYNC, run, patience), run)
        except InputError as error:
            message.text = f"[yellow]{escape(str(error))} Entries are kept. Send them: make mlflow-sync[/]"


def summary(result: SyncResult, run: Path) -> str:
    """Return a line: the run and the version in MLflow, or how many entries are pending and why."""
    if result.reason:
        return (
            f"[yellow]{result.pending} entries pending in runs/{run.name}: {escape(result.reason)} "
            "The next stage sends them, or: make mlflow-sync[/]"
        )
    aliases = "".join(f" @{alias}" for alias in result.aliases) + (f" ({result.note})" if result.note else "")
    return f"models/final is {result.version}{aliases} in MLflow, run {result.run_id}"


@contextlib.contextmanager
def sync_in_background(run: Path) -> Iterator[None]:
    """Sync and sample the machine in threads while a block runs: in the process that trains.

    Nodes of a job do not open an SQLite file, which a shared file system may not lock: `follow_in_background` syncs it.
    """
    journal, done, terminal = Journal(run), threading.Event(), sys.stdout
    attempt = max(journal.attempts())
    threads = [threading.Thread(target=_sample_machine, args=(journal, attempt, done), name="machine", daemon=True)]
    if not ("SFT_RUN" in os.environ and _is_file()):
        threads.append(_syncing(run, done, terminal))
    with _running(threads, done):
        yield


@contextlib.contextmanager
def follow_in_background(run: Path) -> Iterator[None]:
    """Sync in a thread while a block runs: in the process that follows a job, if the store is an SQLite file."""
    done = threading.Event()
    with _running([_syncing(run, done, sys.stdout)] if _is_file() else [], done):
        yield


def _is_file() -> bool:
    return store_uri().startswith("sqlite:")


def _syncing(run: Path, done: threading.Event, terminal: Any) -> threading.Thread:
    return threading.Thread(target=_keep_syncing, args=(run, done, terminal), name="mlflow", daemon=True)


@contextlib.contextmanager
def _running(threads: list[threading.Thread], done: threading.Event) -> Iterator[None]:
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join(EVERY)  # a slow store is synced at the end of the stage


def _keep_syncing(run: Path, done: threading.Event, terminal: Any) -> None:
    pause, is_away = EVERY, False
    console = Console(file=terminal, highlight=False, soft_wrap=True)
    while not done.wait(pause):
        try:
            result = sync_run(run, patience=0, confirm=is_away)  # after an outage it may be another store
        except NoAccessError as error:
            if not done.is_set():
                console.print(f"[yellow]{escape(str(error))} Training continues; the next try is at its end.[/]")
            return
        if done.is_set():  # training ended meanwhile: the sync at the end of the stage says what is pending
            return
        for note in result.notes:
            console.print(f"[yellow]{escape(note)}.[/]")
        if result.reason and not is_away:
            console.print(f"[yellow]{escape(result.reason)} Training continues; entries are kept.[/]")
        elif is_away and not result.reason:
            console.print(f"MLflow at {result.store} answers again and is up to date")
        is_away = bool(result.reason)
        pause = min(pause * 2, LONGEST_PAUSE) if is_away else EVERY


def _sample_machine(journal: Journal, attempt: int, done: threading.Event) -> None:
    """Log load, memory, disk, network and GPUs of this machine, as MLflow measures them."""
    monitor = SystemMetricsMonitor("")
    every = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or SYSTEM_EVERY)
    for step in itertools.count():
        monitor.collect_metrics()
        values = {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
        for part in monitor.monitors:
            part.clear_metrics()
        try:
            journal.add("system", attempt=attempt, step=step, values=values)
        except OSError:  # the disk is full: the next step says so
            return
        if done.wait(every):
            return
