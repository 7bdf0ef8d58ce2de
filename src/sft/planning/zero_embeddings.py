"""Control tokens of the chat template whose embedding in the base model is zero: pretraining never saw them.

Reads the tokenizer.json and one row per token of the *.safetensors of a model folder, and the template of the packs.
"""

import re
from pathlib import Path

from sft.files import read_json

EMBEDDING = re.compile(r"(embed_tokens|embeddings?|wte|word_embeddings|embed_in)\.weight$")


def zero_control_tokens(base: Path, template: Path) -> list[str] | None:
    """Return the added tokens of the tokenizer in `base` that the template writes and whose embedding is all zeros.

    None: a file is missing, or the weights have no embedding.
    """
    from safetensors import safe_open

    if not template.is_file() or not (base / "tokenizer.json").is_file():
        return None
    text = template.read_text(encoding="utf-8")
    added = read_json(base / "tokenizer.json").get("added_tokens") or []
    written = {token["id"]: token["content"] for token in added if token["content"] in text}
    for path in sorted(base.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in filter(EMBEDDING.search, file.keys()):
                rows = file.get_slice(name)
                size = rows.get_shape()[0]
                return [written[i] for i in sorted(written) if i < size and not rows[i : i + 1].any()]
    return None
