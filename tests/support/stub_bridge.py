"""Stands in for src/sft/training/bridge.py in a project of tests/test_races.py: steps that take time, and no model.

Each step appends its number and process to runs/<lineage key>/trained before its checkpoint is saved.
"""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sft.files import publish_folder, write_json
from sft.hashing import folder_digests
from sft.params.training import TrainParams
from sft.training import checkpoints
from sft.training.steps import Step

STEP_SECONDS = float(os.environ.get("STEP_SECONDS", "0.4"))


def import_base(*, base: Path, checkpoint: Path) -> None:
    """Write an empty checkpoint."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    write_json(checkpoints.manifest_of(checkpoint), {})


def check(**_: Any) -> list[str]:
    """Accept all params."""
    return []


def train(*, run: Path, params: TrainParams, on_step: Callable[[Step], None], **_: Any) -> None:
    """Train from the newest checkpoint on; save one after every step."""
    newest = checkpoints.newest_intact(run)
    done = checkpoints.step_of(newest) if newest else 0
    for number in range(done + 1, params.train.steps + 1):
        time.sleep(STEP_SECONDS)
        with (run / "trained").open("a") as file:
            file.write(f"{number} {os.uname().nodename}-{os.getpid()}\n")
        on_step(Step(number, 1 / number, 0.1, 1.0, 10, 5, STEP_SECONDS))
        checkpoint = checkpoints.iteration_folder(run, number)
        with publish_folder(checkpoint) as folder:
            (folder / "run_config.yaml").write_text("stub: true\n")
        checkpoints.finish_save(checkpoint, folder_digests(checkpoint), params.checkpoint)


def export(*, base: Path, target: Path, **_: Any) -> dict[str, Any]:
    """Copy the base model."""
    shutil.copytree(base, target)
    return {"import": None, "export": None}
