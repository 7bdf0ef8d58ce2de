"""Compare the params that dvc.lock has for the model in models/final with those that it was trained with.

DVC reads params.yaml again when a stage ends. After an edit in the last moment of a training it takes the model for one
of other params.
"""

import hashlib
from pathlib import Path
from typing import Any

from sft.cli import InputError
from sft.files import flatten
from sft.lineage.resolve import FINAL, LINEAGE, Records, listing, of_folder, outs
from sft.params.recorded import locked_params


def names_model(records: Records) -> bool:
    """Return whether the model that dvc.lock names has this lineage.json."""
    files = listing(records.root, outs(records.lock).get(FINAL, "")) or {}
    content = records.read(LINEAGE) or b""
    return files.get(Path(LINEAGE).name) == hashlib.md5(content, usedforsecurity=False).hexdigest()


def differing(records: Records) -> dict[str, tuple[Any, Any]]:
    """Return (value in lineage.json, value in dvc.lock) by name of a param; {} if dvc.lock is not of this model."""
    if not names_model(records):
        return {}
    trained = flatten(records.lineage["params"])
    locked = flatten(locked_params(records.lock["train"]))
    return {name: (trained[name], value) for name, value in locked.items() if trained.get(name, value) != value}


def refuse_differing(root: Path) -> None:
    """Raise InputError if dvc.lock has other params for models/final than those that it was trained with."""
    if (root / LINEAGE).exists() and (found := differing(of_folder(root))):
        listed = [f"{name}: {locked!r}, the model has {trained!r}" for name, (trained, locked) in found.items()]
        raise InputError(
            f"dvc.lock: {', '.join(listed)}. params.yaml was edited as the training ended: DVC takes this model for "
            "one of the new params. To train them: make train FORCE=1"
        )
