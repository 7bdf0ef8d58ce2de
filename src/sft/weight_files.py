"""What the *.safetensors of a model folder hold: names, shapes and number formats. Only their headers are read."""

import math
import re
from pathlib import Path
from typing import NamedTuple

from sft.cli import InputError

EMBEDDING = re.compile(r"(embed_tokens|embeddings?|wte|word_embeddings|embed_in)\.weight$")
"""Name of the tensor with a row for each token."""


class Stored(NamedTuple):
    """A tensor as it is stored."""

    shape: tuple[int, ...]
    format: str
    """Of its numbers, as safetensors names it: F32, BF16, F16, F8_E4M3, ..."""


def require_model(folder: Path) -> None:
    """Raise InputError if a folder is missing or holds no model with safetensors weights."""
    if not (folder / "config.json").exists() or not any(folder.glob("*.safetensors")):
        raise InputError(
            f"{folder}: expected a Hugging Face folder with config.json and *.safetensors, found "
            f"{'a folder without them' if folder.is_dir() else 'nothing'}. Run the stage that writes it."
        )


def stored_tensors(folder: Path, param: str = "") -> dict[str, Stored]:
    """Return every tensor of a folder by name. Raises InputError: a file is damaged; says which `param` names it."""
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, Stored] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}
                tensors |= {name: Stored(tuple(of.get_shape()), of.get_dtype()) for name, of in slices.items()}
        except SafetensorError as error:
            raise InputError(f"{param}{path}: damaged safetensors: {error}") from error
    return tensors


def count_parameters(folder: Path) -> int:
    """Return the number of parameters in the weight files of a model folder; tied weights count once."""
    return sum(math.prod(tensor.shape) for tensor in stored_tensors(folder).values())
