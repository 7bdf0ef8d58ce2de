"""The steps of a run: entries of its journal, and a progress line on the terminal."""

import csv
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from sft.cli import InputError, echo
from sft.files import publish_file

RECENT_STEPS = 20  # whose time is that of the steps left
BAR_COLUMNS = 8  # the whole line fits 80


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    iteration: int
    """1 for the first step."""
    loss: float
    """Mean over the trained tokens of the step, before its update."""
    lr: float
    """Learning rate of its update."""
    grad_norm: float
    """Of all gradients, before clipping."""
    tokens: int
    """Tokens that went through the model, over all ranks, without padding."""
    trained_tokens: int
    """Those of them that the loss is a mean over."""
    seconds: float
    flops: float = 0.0
    """Floating-point operations of the model, over all ranks: without padding and recomputation. A weight that adapters
    leave as it is has no gradient of its own: two thirds of what it takes otherwise."""
    mfu: float | None = None
    """Share of the GPUs' peak that these are; None: the peak is not known, or a CPU."""
    peak_memory: int = 0
    """Bytes: most of any rank so far; of its GPU, or resident on a CPU."""


class StepLog:
    """Logs each step to the journal of its run and to the terminal.

    `add(kind, **values)` appends an entry: `step` has the values of Step and seconds_left, `validation` has iteration
    and validation_loss.
    """

    def __init__(self, add: Callable[..., None], iterations: int) -> None:
        self._add, self._iterations = add, iterations
        self._ends: deque[float] = deque(maxlen=RECENT_STEPS + 1)
        self._bar = Progress(
            TextColumn("train"),
            BarColumn(BAR_COLUMNS),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
        )
        self._task = self._bar.add_task("train", total=iterations, facts="")
        self._bar.start()

    def log_step(self, step: Step) -> None:
        """Log one training step."""
        self._ends.append(time.monotonic())
        mean = step.seconds
        if (steps := len(self._ends) - 1) > 0:
            mean = (self._ends[-1] - self._ends[0]) / steps  # with saves and validations between them
        left = round(mean * (self._iterations - step.iteration), 1)
        self._add("step", **asdict(step), seconds_left=left)
        self._bar.update(self._task, completed=step.iteration, facts=describe(step, left))
        every = max(1, self._iterations // 10)
        if not self._bar.console.is_terminal and (step.iteration % every == 0 or step.iteration == 1):
            echo(f"step {step.iteration}/{self._iterations}: {describe(step, left, whole=True)}")

    def log_validation(self, iteration: int, loss: float) -> None:
        """Log the validation loss of a step."""
        self._add("validation", iteration=iteration, validation_loss=loss)
        self._bar.console.print(f"step {iteration}/{self._iterations}: validation loss {loss:.4f}", highlight=False)

    def close(self) -> None:
        """End the progress line."""
        self._bar.stop()


def describe(step: Step, seconds_left: float, *, whole: bool = False) -> str:
    """Return the loss, the speed and the time left as text; as a `whole` also model FLOP/s and memory."""
    facts = [f"loss {step.loss:.4f}"]
    if step.seconds:
        facts.append(f"{step.tokens / step.seconds:,.0f} tokens/s")
        if whole:
            facts.append(f"{step.flops / step.seconds / 1e12:,.3g} model TFLOP/s")
    if step.mfu is not None:
        facts.append(f"MFU {step.mfu:.0%}")
    if whole:
        facts.append(f"peak memory {step.peak_memory / 1e9:.1f} GB")
    return ", ".join([*facts, f"{timedelta(seconds=round(seconds_left))} left"])


def last_by_step(entries: Iterable[dict[str, Any]], kind: str) -> dict[int, dict[str, Any]]:
    """Return the entries of a kind by step; a resumed training repeats steps: the last entry counts."""
    return {entry["iteration"]: entry for entry in entries if entry["kind"] == kind}


def read_steps(entries: Iterable[dict[str, Any]], iterations: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return (training steps, validations) of a complete run, in order. Raises InputError: a step is missing."""
    entries = list(entries)
    steps, validations = last_by_step(entries, "step"), last_by_step(entries, "validation")
    missing = [step for step in range(1, iterations + 1) if step not in steps]
    if missing:
        raise InputError(
            f"the run's journal.jsonl: {len(missing)} of {iterations} steps are missing, the first is {missing[0]}. "
            "Somebody changed the file. To train the run again, move its folder away."
        )
    return [steps[step] for step in range(1, iterations + 1)], [validations[step] for step in sorted(validations)]


def write_csv(target: Path, entries: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Publish some columns of entries as a CSV file with a header."""
    with publish_file(target) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([entry[name] for name in columns] for entry in entries)
