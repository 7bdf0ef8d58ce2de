"""Rows of the embedding for new tokens: the mean of the rows that the model was trained with.

A shard of the weights that changes is written as a new file, tensor by tensor; the file that it was, which may also be
in the cache of downloads, stays as it is. Every other shard stays the same file.
"""

import json
import math
import os
import re
from pathlib import Path
from typing import Any, BinaryIO

from sft.sources.base_weights import embedding_rows, tensor_shapes
from sft.sources.model_files import read_config, write_config

VOCABULARY = re.compile(
    r"(?:^|\.)(embed_tokens|embeddings?|tok_embeddings|wte|word_embeddings|embed_in|lm_head|embed_out|output_layer|output)"
    r"\.(weight|bias)$"
)
"""Tensors with a row for each token, if they have as many rows as the embedding."""
MULTIPLE = 128
"""Rows of an embedding that grows; tensor parallelism divides them, and Megatron pads to the same."""
ROWS_AT_ONCE = 4096
INDEX = "model.safetensors.index.json"
COPIED_AT_ONCE = 1 << 24  # bytes


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
    with path.open("rb") as old:
        header = json.loads(old.read(int.from_bytes(old.read(8), "little")))
        start, metadata = old.tell(), header.pop("__metadata__", None)
        changed = {name for name, of in header.items() if VOCABULARY.search(name) and of["shape"][0] == before}
        if not changed:
            return
        order = sorted(header, key=lambda name: header[name]["data_offsets"])
        layout: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
        end = 0
        for name in order:
            of = header[name]
            size = of["data_offsets"][1] - of["data_offsets"][0]
            shape = of["shape"]
            if name in changed:
                size, shape = size // before * after, [after, *shape[1:]]
            layout[name] = {**of, "shape": shape, "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(layout, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        new = path.with_name(f"{path.name}.new")
        with new.open("wb") as target:
            target.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                offset, end = header[name]["data_offsets"]
                old.seek(start + offset)
                if name not in changed:
                    _copy(old, target, end - offset)
                else:
                    _copy(old, target, (end - offset) // before * first)
                    target.write(_mean_row(path, name, first) * (after - first))
    os.replace(new, path)


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    """Copy bytes from the position of one file to that of another."""
    while size:
        data = source.read(min(size, COPIED_AT_ONCE))
        target.write(data)
        size -= len(data)


def _mean_row(path: Path, name: str, rows: int) -> bytes:
    """Return the mean of the first rows of a tensor, in its number format; the same on every machine."""
    import numpy as np
    import torch
    from safetensors import safe_open

    total, count = np.float64(0), 0
    with safe_open(path, framework="pt") as file:
        tensor = file.get_slice(name)
        for start in range(0, rows, ROWS_AT_ONCE):
            part = tensor[start : min(start + ROWS_AT_ONCE, rows)]
            values = part.to(torch.float64).numpy().reshape(len(part), -1)
            trained = values[values.any(axis=1)]
            total = total + trained.sum(axis=0)
            count += len(trained)
    mean = torch.from_numpy(np.atleast_1d(total / max(1, count))).to(part.dtype)
    return bytes(mean.view(torch.uint8).numpy().tobytes())


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
    found = {"total_size": size, "total_parameters": sum(map(math.prod, tensor_shapes(folder).values()))}
    metadata = index.get("metadata") or {}
    index["metadata"] = metadata | {name: value for name, value in found.items() if name in metadata}
    write_config(folder / INDEX, index)
