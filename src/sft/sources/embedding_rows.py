"""Rows of the embedding for new tokens: the mean of the rows that the model was trained with.

A shard of the weights that changes is written as a new file; the file that it was, which may also be in the cache of
downloads, stays as it is. Every other shard stays the same file.
"""

import os
import re
from pathlib import Path
from typing import Any

from sft.sources.base_weights import embedding_rows
from sft.sources.model_files import read_config, write_config
from sft.weight_files import count_parameters

VOCABULARY = re.compile(
    r"(?:^|\.)(embed_tokens|embeddings?|tok_embeddings|wte|word_embeddings|embed_in|lm_head|embed_out|output_layer|output)"
    r"\.(weight|bias)$"
)
"""Tensors with a row for each token, if they have as many rows as the embedding."""
MULTIPLE = 128
"""Rows of an embedding that grows; tensor parallelism divides them, and Megatron pads to the same."""
ROWS_AT_ONCE = 4096
INDEX = "model.safetensors.index.json"


def add_rows(folder: Path, first: int, tokens: int) -> int:
    """Give the ids from `first` on a new row in the embedding and the output layer; return the number of rows.

    Rows that no token had are used before the embedding grows; all of them get the mean of the rows below `first`, as
    in transformers' resize_token_embeddings, without its noise. Rows of zeros, which were never trained, do not count.
    One row more than `tokens`, the size of the vocabulary, is left; by it an untrained token is known (sft.planning).
    """
    before = embedding_rows(folder)
    after = before if tokens < before else -(-(tokens + 1) // MULTIPLE) * MULTIPLE
    for path in sorted(folder.glob("*.safetensors")):
        _rewrite(path, first, before, after)
    config = read_config(folder / "config.json")
    _set_vocabulary(config, before, after)
    write_config(folder / "config.json", config)
    if (folder / INDEX).is_file():
        _update_index(folder)
    return after


def _rewrite(path: Path, first: int, before: int, after: int) -> None:
    """Replace a shard by a new file with changed rows; leave it alone if it has no tensor of the vocabulary."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, framework="pt") as file:  # tensors are mapped, not read
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
        changed = [name for name in tensors if VOCABULARY.search(name) and len(tensors[name]) == before]
        for name in changed:
            kept = tensors[name][:first]
            row = _mean_row(kept).expand(after - first, *kept.shape[1:])
            tensors[name] = kept.new_empty(after, *kept.shape[1:])
            tensors[name][:first], tensors[name][first:] = kept, row
        if changed:
            new = path.with_name(f"{path.name}.new")
            save_file(tensors, new, metadata)
            os.replace(new, path)


def _mean_row(rows: Any) -> Any:
    """Return the mean of the rows of a tensor, in its number format; the same on every machine."""
    import numpy as np
    import torch

    total, count = np.float64(0), 0
    for part in rows.split(ROWS_AT_ONCE):
        values = part.to(torch.float64).numpy().reshape(len(part), -1)
        trained = values[values.any(axis=1)]
        total = total + trained.sum(axis=0)
        count += len(trained)
    return torch.from_numpy(np.atleast_1d(total / max(1, count))).to(rows.dtype).reshape(rows.shape[1:])


def _set_vocabulary(config: dict[str, Any], before: int, after: int) -> None:
    """Set vocab_size, also in the config of a part (text_config)."""
    for key, value in config.items():
        if key == "vocab_size" and value == before:
            config[key] = after
        elif isinstance(value, dict):
            _set_vocabulary(value, before, after)


def _update_index(folder: Path) -> None:
    """Write the bytes and parameters of all shards into their index, where it has them."""
    index, size = read_config(folder / INDEX), 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            size += path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
    found = {"total_size": size, "total_parameters": count_parameters(folder)}
    metadata = index.get("metadata") or {}
    index["metadata"] = metadata | {name: value for name, value in found.items() if name in metadata}
    write_config(folder / INDEX, index)
