"""What a Megatron checkpoint holds, so that two can be compared: tensors by digest, other objects by value.

The bytes of its files do not serve: they have pickled objects, and pickle writes a value that two objects share once,
equal values twice. What was read from a checkpoint is written in other bytes than what a program has made.
"""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata


def contents(checkpoint: Path) -> dict[str, Any]:
    """Return what a checkpoint holds by name, as plain values. It is trusted: objects are unpickled."""
    state: dict[str, Any] = {
        name: torch.empty(stored.size, dtype=stored.properties.dtype)
        if isinstance(stored, TensorStorageMetadata)
        else io.BytesIO()
        for name, stored in dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata.items()
    }
    dcp.load(state, checkpoint_id=checkpoint, no_dist=True)
    return {name: _plain(value) for name, value in sorted(state.items())}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.detach().view(torch.uint8).numpy() if value.dim() else value.numpy()
    if isinstance(value, np.ndarray):
        return value.shape, str(value.dtype), hashlib.sha256(value.tobytes()).hexdigest()
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, str | int | float | None):
        return value
    return type(value).__name__, _plain(getattr(value, "__dict__", repr(value)))
