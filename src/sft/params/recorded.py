"""The stages, the params with which DVC last ran each, from dvc.lock, and the stages that other values would change."""

import re
from pathlib import Path
from typing import Any

from sft.cli import InputError
from sft.params.read import MISSING, PARAMS, read_text

PIPELINE = Path("dvc.yaml")
LOCK = Path("dvc.lock")
DATA_STAGES = ("fetch", "filter", "prep", "pack")
STAGES = (*DATA_STAGES, "train", "eval")
DATA_SECTIONS = ("filter", "prep", "pack")


def stage_of(name: str) -> str:
    """Return the stage of a name in dvc.yaml or dvc.lock.

    >>> stage_of("filter@chats"), stage_of("fetch-model"), stage_of("pack")
    ('filter', 'fetch', 'pack')
    """
    return re.split("[@-]", name)[0]


def read_lock(lock: Path = LOCK) -> dict[str, Any]:
    """Return the stages of dvc.lock, by name; {} without the file. Raises InputError: DVC cannot read it."""
    if not lock.exists():
        return {}
    _, values = read_text(lock)
    if not isinstance(values, dict) or not isinstance(values.get("stages"), dict):
        raise InputError(f"{lock}: no stages in it. Restore it: git checkout {lock}")
    return dict(values["stages"])


def locked_params(stage: dict[str, Any]) -> dict[str, Any]:
    """Return the params, by dotted name, with which DVC last ran a stage of dvc.lock."""
    return dict(stage.get("params", {}).get(str(PARAMS), {}))


def recorded_data_params(lock: Path = LOCK) -> dict[str, Any]:
    """Return the params, by section, with which DVC last ran the data stages; {} if it did not run them."""
    recorded: dict[str, Any] = {}
    for stage in read_lock(lock).values():
        recorded |= {name: value for name, value in locked_params(stage).items() if name in DATA_SECTIONS}
    return recorded


def changed_params(values: dict[str, Any], lock: dict[str, Any], pipeline: Path = PIPELINE) -> dict[str, list[str]]:
    """Return the stages of dvc.yaml that DVC has not run with these values of params.yaml, and which of them differ.

    A stage that has never run has an empty list. What else changes a stage, its code and the outputs of earlier stages,
    is not compared.
    """
    _, declared = read_text(pipeline)
    changed = {}
    for name, stage in declared["stages"].items():
        each = values.get("fetch", {}).get("sources", {}) if "foreach" in stage else [None]
        for full_name in (name if source is None else f"{name}@{source}" for source in each):
            recorded = locked_params(lock.get(full_name, {}))
            keys = [key for key, old in recorded.items() if _value(values, key) != old]
            if keys or full_name not in lock:
                changed[full_name] = keys
    return changed


def _value(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part, MISSING) if isinstance(values, dict) else MISSING
    return values
