"""Check all of params.yaml: every section, and what depends on several sections."""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sft.cli import InputError
from sft.params.read import NO_PARAMS, PARAMS, change, read_yaml, validate
from sft.params.schema import Params
from sft.params.training import TrainParams

__all__ = ["Params", "check_packs", "check_params", "check_settings", "read", "too_few_packs", "too_long_warmup"]


def read(path: Path = PARAMS) -> Params:
    """Return all params of a params.yaml. Raises InputError: with line and key of every mistake."""
    if not path.exists():
        raise InputError(f"{path.absolute()}: not found. {NO_PARAMS}")
    return read_yaml(path, Params)


def check_params(path: Path = PARAMS) -> Params:
    """Return all params. Raises InputError: as read, and how to go back to the committed file."""
    try:
        return read(path)
    except InputError as error:
        raise InputError(f"{error}{_way_back(path)}") from None


class Changed(NamedTuple):
    """What params.yaml would hold."""

    params: Params
    values: dict[str, Any]
    """The same, as YAML has it."""
    old: dict[str, Any]
    """What it holds now at each key that would change."""


def check_settings(settings: Sequence[str], path: Path = PARAMS) -> Changed:
    """Return params.yaml as settings, `optimizer.lr=1e-5`, would change it; the file stays.

    Raises:  InputError: an unknown key, with the nearest one; a value that its schema does not allow.
    """
    text, values, old = change(settings, path)
    return Changed(validate(path, text, values, Params), values, old)


def check_packs(packs: Mapping[str, int], params: TrainParams | None = None) -> None:
    """Raise InputError if a split has fewer packs than one step; `packs` are by split, default params params.yaml's."""
    params = params or read().training
    messages = [message for split, number in packs.items() if (message := too_few_packs(split, number, params))]
    if messages:
        raise InputError("\n".join(messages))


def too_few_packs(split: str, packs: int, params: TrainParams) -> str:
    """Return why a training with these params would stop for want of packs of a split, "" if it would not."""
    advice = {
        "training": "Add data, or lower train.global_batch_size.",
        "validation": "Raise pack.validation, or set validation.eval_iters to 0.",
    }
    batch = params.train.global_batch_size
    if packs >= batch or split not in advice or (split == "validation" and not params.validation.eval_iters):
        return ""
    return f"data/packed/{split}: {packs} packs, expected at least {batch}, one step. {advice[split]}"


def too_long_warmup(params: TrainParams) -> str:
    """Return why a training with these params would stop at its schedule, "" if it would not."""
    decay = params.scheduler.lr_decay_iters or params.train.train_iters
    if decay is None or params.scheduler.lr_warmup_iters < decay:  # None: train.epochs, and no packs yet
        return ""
    return (
        f"params.yaml: scheduler.lr_warmup_iters: {params.scheduler.lr_warmup_iters}, expected less than the {decay} "
        "steps of the schedule (scheduler.lr_decay_iters, or all steps of the run)."
    )


def _way_back(path: Path) -> str:
    """Return how to drop the changes of a file since the last commit, "" if it has none or git does not have it."""
    if is_committed(path) and not is_committed(path, unchanged=True):
        return f"\nTo drop all changes of {path} since the last commit: git checkout {path}"
    return ""


def is_committed(path: Path, *, unchanged: bool = False) -> bool:
    """Return whether the last commit has a file, `unchanged`: as it is here; False without git."""
    if not shutil.which("git"):
        return False
    commands = [["git", "cat-file", "-e", f"HEAD:./{path}"]]
    commands += [["git", "diff", "--quiet", "HEAD", "--", str(path)]] if unchanged else []
    return all(subprocess.run(command, check=False, capture_output=True).returncode == 0 for command in commands)
