"""Small real tokenizers: byte-level BPE with chosen control tokens, made without torch."""

import json
from pathlib import Path
from typing import Any

from sft.tokens.tokenizer import SafeTokenizer
from tests.support.tiny_model import ADDED_TOKENS, VOCABULARY, train_tokenizer

# What the tokenizers of Qwen3 and Nemotron 3 add to theirs.
REASONING_AND_TOOLS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)


def write_tokenizer(folder: Path, added: tuple[str, ...] = ADDED_TOKENS, **named: Any) -> Path:
    """Write tokenizer.json and tokenizer_config.json; `named`: eos_token (<|im_end|>), bos_token, chat_template."""
    tokenizer = train_tokenizer(VOCABULARY + len(added), added)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"} | named
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def plain_ids(tokenizer: SafeTokenizer, text: str) -> list[int]:
    """Return the ids of the plain tokenizer, which reads control tokens from any text."""
    ids: list[int] = tokenizer.plain.encode(text, add_special_tokens=False).ids
    return ids
