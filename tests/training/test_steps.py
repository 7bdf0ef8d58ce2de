"""steps: the entries of a run's journal, and how they are read after a kill."""

from pathlib import Path
from typing import Any

import pytest

from sft.cli import InputError
from sft.training.steps import Step, StepLog, read_steps, write_csv


def step(iteration: int, loss: float) -> dict[str, Any]:
    """Return the entry of a step."""
    values = {"iteration": iteration, "loss": loss, "lr": 0.1, "grad_norm": 1.0, "tokens": 10, "seconds": 1.0}
    values |= {"trained_tokens": 4}
    return {"kind": "step", **values}


def validation(iteration: int, loss: float) -> dict[str, Any]:
    return {"kind": "validation", "iteration": iteration, "validation_loss": loss}


def test_a_step_and_a_validation_are_entries_and_output(capsys: pytest.CaptureFixture[str]) -> None:
    entries: list[dict[str, Any]] = []
    log = StepLog(lambda kind, **values: entries.append({"kind": kind, **values}), 2)
    first = Step(
        1, 2.5, 0.1, 3.0, tokens=200, trained_tokens=80, seconds=0.5, flops=1e12, mfu=0.25, peak_memory=3 << 30
    )
    log.log_step(first)
    log.log_validation(1, 2.25)
    log.close()
    assert entries[0].pop("seconds_left") >= 0
    assert entries == [
        {
            "kind": "step",
            "flops": 1e12,
            "grad_norm": 3.0,
            "iteration": 1,
            "loss": 2.5,
            "lr": 0.1,
            "mfu": 0.25,
            "peak_memory": 3 << 30,
            "seconds": 0.5,
            "tokens": 200,
            "trained_tokens": 80,
        },
        {"kind": "validation", "iteration": 1, "validation_loss": 2.25},
    ]
    output = capsys.readouterr().out
    assert "step 1/2: loss 2.5000, 400 tokens/s, 2 model TFLOP/s, MFU 25%, peak memory 3.2 GB, 0:00:0" in output
    assert "step 1/2: validation loss 2.2500" in output


def test_the_last_entry_of_a_repeated_step_counts() -> None:
    entries = [step(1, 3.0), step(2, 2.0), step(2, 1.5), {"kind": "end"}, step(3, 1.0), validation(3, 0.5)]
    steps, validations = read_steps(entries, 3)
    assert [entry["loss"] for entry in steps] == [3.0, 1.5, 1.0]
    assert validations == [validation(3, 0.5)]


def test_a_missing_step_is_named() -> None:
    with pytest.raises(InputError, match="1 of 3 steps are missing, the first is 2"):
        read_steps([step(1, 3.0), step(3, 1.0)], 3)


def test_columns_are_written_as_csv(tmp_path: Path) -> None:
    write_csv(tmp_path / "loss.csv", [step(1, 3.0), step(2, 2.5)], ("iteration", "loss"))
    assert (tmp_path / "loss.csv").read_text() == "iteration,loss\n1,3.0\n2,2.5\n"
