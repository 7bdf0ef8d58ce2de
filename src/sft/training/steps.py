"""The steps of a run: steps.jsonl in its folder, metrics for MLflow, a progress line on the terminal."""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sft.cli import echo
from sft.files import publish_file

FILE = "steps.jsonl"


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
    seconds: float


class StepLog:
    """Logs each step to runs/<lineage key>/steps.jsonl, to MLflow and to the terminal."""

    def __init__(self, folder: Path, iterations: int, log_metrics: Callable[..., None]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / FILE).open("a", encoding="utf-8")
        self._iterations, self._log_metrics = iterations, log_metrics
        self._bar = Progress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tokens/s  left"),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task("train", total=iterations, loss="-", speed="-")
        self._bar.start()

    def log_step(self, step: Step) -> None:
        """Log one training step."""
        speed = step.tokens / step.seconds if step.seconds else math.nan
        self._write(asdict(step))
        self._log_metrics(step.iteration, loss=step.loss, lr=step.lr, grad_norm=step.grad_norm, tokens_per_second=speed)
        self._bar.update(self._task, completed=step.iteration, loss=f"{step.loss:.4f}", speed=f"{speed:,.0f}")
        every = max(1, self._iterations // 10)
        if not self._bar.console.is_terminal and (step.iteration % every == 0 or step.iteration == 1):
            echo(f"step {step.iteration}/{self._iterations}: loss {step.loss:.4f}, {speed:,.0f} tokens/s")

    def log_validation(self, iteration: int, loss: float) -> None:
        """Log the validation loss of a step."""
        self._write({"iteration": iteration, "validation_loss": loss})
        self._log_metrics(iteration, validation_loss=loss)
        self._bar.console.print(f"step {iteration}/{self._iterations}: validation loss {loss:.4f}", highlight=False)

    def close(self) -> None:
        """Close the file and end the progress line."""
        self._bar.stop()
        self._file.close()

    def _write(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry, sort_keys=True) + "\n")
        self._file.flush()


def read_steps(folder: Path, iterations: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return (training steps, validations) of a complete run in order; of a repeated step, the last entry counts."""
    steps: dict[int, dict[str, Any]] = {}
    validations: dict[int, dict[str, Any]] = {}
    for line in (folder / FILE).read_text(encoding="utf-8").splitlines():
        if not line.endswith("}"):
            continue  # cut off by a kill; the resumed run repeats this step
        entry = json.loads(line)
        (validations if "validation_loss" in entry else steps)[entry["iteration"]] = entry
    if sorted(steps) != list(range(1, iterations + 1)):
        raise AssertionError(f"{folder / FILE}: found {len(steps)} steps, expected each of 1 to {iterations}")
    return [steps[i] for i in sorted(steps)], [validations[i] for i in sorted(validations)]


def write_csv(target: Path, entries: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Publish some columns of entries as a CSV file with a header."""
    with publish_file(target) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([entry[name] for name in columns] for entry in entries)
