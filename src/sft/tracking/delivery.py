"""delivery: who has a run tells the store of it, while it goes on and when it ends, and never waits for a store.

runs/<lineage key>/mlflow/outbox.jsonl  ->  the store (sft.tracking.sync); a line on what became of it

What the store is to be told stands in the outbox of the run. A store that was away, or whose answer was lost, has each
thing once in the end; one that was never told of a run gets all of it.
"""

import contextlib
import itertools
import os
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
from sft.tracking.journal import Journal
from sft.tracking.store import NoAnswerError, store_name
from sft.tracking.sync import tell_all

PATIENCE = 30.0  # seconds that a stage waits for a store at its end
EVERY = 2.0  # seconds between two deliveries while a training runs
LONGEST_PAUSE = 60.0  # seconds between two tries while a store does not answer
SYSTEM_EVERY = 10.0  # seconds between two samples of the machine; MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL


@dataclass(frozen=True)
class Told:
    """How far a store has been told of a run."""

    store: str
    run_id: str | None
    version: str | None
    """Of the registered model, as in nano3-sft/3."""
    aliases: list[str]
    """That the last evaluation moved to it."""
    note: str | None
    """Why an evaluation moved none."""
    waiting: int
    """Things that the store has not been told."""
    reason: str | None
    """Why they wait; None: all was told, what waits came meanwhile."""


def deliver(run: Path, patience: float = PATIENCE) -> Told:
    """Tell the store what it has not been told of the run in a folder; wait some seconds for one that is away.

    Raises:  InputError: the store refuses.
    """
    box, store = Journal(run), store_name()
    deadline = time.monotonic() + patience
    reason = None
    with box.delivering(patience) as alone:
        while alone:
            try:
                tell_all(box, store)
                reason = None
                break
            except NoAnswerError as error:
                reason = str(error)
                if time.monotonic() + 1 >= deadline:
                    break
                time.sleep(1)
    state = box.delivered(store)
    told = {name: state.get(name) for name in ("run_id", "version", "note")}
    waiting = box.waiting(store)
    if waiting and not alone:
        reason = "another process is telling it."
    return Told(store, aliases=state.get("aliases", []), waiting=waiting, reason=reason, **told)


def run_id(run: Path) -> str | None:
    """Return the id that the store gave to the run in a folder, None if it could not be asked yet."""
    return Journal(run).delivered(store_name()).get("run_id")


def check_server(run: Path) -> None:
    """Tell the store of a run that begins. One that does not answer is left for later.

    Raises:  InputError: the store refuses; better known now than when the training has ended.
    """
    if reason := deliver(run, patience=0).reason:
        echo(
            f"[yellow]{escape(reason)} The work goes on; what MLflow is to be told waits in runs/{run.name}/mlflow.[/]"
        )


@dataclass
class Ending:
    """What is to be said of MLflow when a stage has ended."""

    text: str = ""


@contextlib.contextmanager
def sync_at_exit(run: Path) -> Iterator[Ending]:
    """Tell the store when a block has ended, well or not. Whether it can be told does not decide how it ended."""
    ending, patience = Ending(), EVERY
    try:
        yield ending
        patience = PATIENCE
    finally:
        try:
            ending.text = summary(deliver(run, patience), run)
        except InputError as error:
            ending.text = f"[yellow]{escape(str(error))} What it was to be told waits: make deliver[/]"


def summary(told: Told, run: Path) -> str:
    """Say in a line where the run and the model stand in MLflow, or how much waits, and for what."""
    if told.reason:
        return (
            f"[yellow]{told.waiting} entries wait in runs/{run.name}/mlflow: {escape(str(told.reason))} "
            "They are told by the next stage that reaches it, or by: make deliver[/]"
        )
    aliases = "".join(f" @{alias}" for alias in told.aliases) + (f" ({told.note})" if told.note else "")
    return f"models/final is {told.version}{aliases} in MLflow, run {told.run_id}"


@contextlib.contextmanager
def delivering(run: Path) -> Iterator[None]:
    """Tell the store in the background while a block runs, and sample the machine; never in the block's way."""
    box, over, terminal = Journal(run), threading.Event(), sys.stdout
    attempt = max(box.attempts())
    threads = [
        threading.Thread(target=_keep_telling, args=(run, over, terminal), name="mlflow", daemon=True),
        threading.Thread(target=_sample_machine, args=(box, attempt, over), name="machine", daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(EVERY)  # a store that is slow is left to the end of the stage


def _keep_telling(run: Path, over: threading.Event, terminal: Any) -> None:
    pause, said = EVERY, False
    console = Console(file=terminal, highlight=False, soft_wrap=True)
    while not over.wait(pause):
        try:
            told = deliver(run, patience=0)
        except InputError as error:
            console.print(f"[yellow]{error} Training goes on; MLflow is asked again at its end.[/]")
            return
        if told.reason and not said:
            console.print(f"[yellow]{told.reason} Training goes on; what MLflow is to be told waits.[/]")
        elif said and not told.reason:
            console.print(f"MLflow at {told.store} answers again, and has been told all")
        said = bool(told.reason)
        pause = min(pause * 2, LONGEST_PAUSE) if said else EVERY


def _sample_machine(box: Journal, attempt: int, over: threading.Event) -> None:
    """Note load, memory, disk, network and GPUs of this machine, as MLflow measures them."""
    monitor = SystemMetricsMonitor("")
    every = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or SYSTEM_EVERY)
    for step in itertools.count():
        monitor.collect_metrics()
        values = {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
        for one in monitor.monitors:
            one.clear_metrics()
        box.add("system", attempt=attempt, step=step, values=values)
        if over.wait(every):
            return
