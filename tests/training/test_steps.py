"""steps: what a run's steps.jsonl holds, and how it is read after a kill."""

import json
from pathlib import Path
from typing import Any

import pytest

from sft.training.steps import Step, StepLog, read_steps


def entry(iteration: int, loss: float) -> dict[str, Any]:
    return {"iteration": iteration, "loss": loss, "lr": 0.1, "grad_norm": 1.0, "tokens": 10, "seconds": 1.0}


def write_steps(folder: Path, *lines: dict[str, Any] | str) -> None:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / "steps.jsonl").write_text(text)


def test_a_step_and_a_validation_are_lines_metrics_and_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics: list[tuple[int, dict[str, float]]] = []
    log = StepLog(tmp_path / "key", 2, lambda step, **values: metrics.append((step, values)))
    log.log_step(Step(iteration=1, loss=2.5, lr=0.1, grad_norm=3.0, tokens=200, seconds=0.5))
    log.log_validation(1, 2.25)
    log.close()
    assert (tmp_path / "key/steps.jsonl").read_text().splitlines() == [
        '{"grad_norm": 3.0, "iteration": 1, "loss": 2.5, "lr": 0.1, "seconds": 0.5, "tokens": 200}',
        '{"iteration": 1, "validation_loss": 2.25}',
    ]
    assert metrics == [
        (1, {"loss": 2.5, "lr": 0.1, "grad_norm": 3.0, "tokens_per_second": 400.0}),
        (1, {"validation_loss": 2.25}),
    ]
    output = capsys.readouterr().out
    assert "step 1/2: loss 2.5000, 400 tokens/s" in output
    assert "step 1/2: validation loss 2.2500" in output


def test_the_last_entry_of_a_repeated_step_counts_and_a_cut_line_does_not(tmp_path: Path) -> None:
    write_steps(
        tmp_path, entry(1, 3.0), entry(2, 2.0), '{"iteration": 3, "lo', entry(2, 1.5), entry(3, 1.0),
        {"iteration": 3, "validation_loss": 0.5},
    )  # fmt: skip
    steps, validations = read_steps(tmp_path, 3)
    assert [step["loss"] for step in steps] == [3.0, 1.5, 1.0]
    assert validations == [{"iteration": 3, "validation_loss": 0.5}]


def test_a_missing_step_is_a_fault(tmp_path: Path) -> None:
    write_steps(tmp_path, entry(1, 3.0), entry(3, 1.0))
    with pytest.raises(AssertionError, match=r"steps\.jsonl: found 2 steps, expected each of 1 to 3"):
        read_steps(tmp_path, 3)
