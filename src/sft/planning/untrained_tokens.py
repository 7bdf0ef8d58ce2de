"""Control tokens of the chat template whose embedding was never trained: zero in the base model, or added by fetch.

Reads the tokenizer.json and one row per token of the *.safetensors of a model folder, and the template of the packs.
A token that fetch added (sft.sources.add_template) has the row of the ids behind the vocabulary, which no token has.
"""

from pathlib import Path
from typing import Any, NamedTuple

from sft.files import read_json
from sft.weight_files import EMBEDDING


class UntrainedTokens(NamedTuple):
    """Control tokens that the template writes, in order of their ids."""

    zero: tuple[str, ...]
    """The embedding is all zeros."""
    new: tuple[str, ...]
    """The embedding is that of the last id, which no token has."""


def untrained_control_tokens(base: Path, template: Path) -> UntrainedTokens | None:
    """Return the added tokens of the tokenizer in `base` that the template writes and that were never trained.

    None: a file is missing, or the weights have no embedding.
    """
    from safetensors import safe_open

    if not template.is_file() or not (base / "tokenizer.json").is_file():
        return None
    text, tokenizer = template.read_text(encoding="utf-8"), read_json(base / "tokenizer.json")
    added = tokenizer.get("added_tokens") or []
    written = {token["id"]: token["content"] for token in sorted(added, key=_id) if token["content"] in text}
    tokens = max([len(tokenizer.get("model", {}).get("vocab", ())) - 1, *map(_id, added)]) + 1
    for path in sorted(base.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in filter(EMBEDDING.search, file.keys()):
                rows = file.get_slice(name)
                size = rows.get_shape()[0]
                row_of = {number: rows[number : number + 1] for number in written if number < size}
                zero = [number for number, row in row_of.items() if not row.any()]
                unused = rows[size - 1 : size] if tokens < size else None
                new = [n for n, row in row_of.items() if unused is not None and n not in zero and row.equal(unused)]
                return UntrainedTokens(tuple(written[n] for n in zero), tuple(written[n] for n in new))
    return None


def _id(token: dict[str, Any]) -> int:
    return int(token["id"])
