"""A base model without a chat template gets ours: the template, its control tokens, and its stop token.

The folder of a model, in Hugging Face layout  ->  the same with
    chat_template.jinja       templates/nano3.jinja, behind the BOS token if the tokenizer begins every text with one
    tokenizer.json            <|im_start|> and <|im_end|>, if it lacks them
    *.safetensors             rows for new tokens in the embedding and the output layer (sft.sources.embedding_rows)
    generation_config.json    <|im_end|> as the first stop token; also the tokenizer's eos_token

Training all weights trains the new rows; adapters do not, which the check `untrained-embeddings` refuses.
"""

import json
from pathlib import Path
from typing import Any

from sft.chat_files import DEFAULT_FILE, stop_ids, write_stop_ids
from sft.cli import InputError, echo
from sft.files import resolve_repo_file
from sft.sources.embedding_rows import add_rows
from sft.sources.model_files import read_config, write_config

TEMPLATE = "templates/nano3.jinja"
CONTROL_TOKENS = ("<|im_start|>", "<|im_end|>")
STOP_TOKEN = "<|im_end|>"
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
BOS = "{{- bos_token -}}\n"


def add_template(folder: Path) -> dict[str, Any]:
    """Add the template to a model folder; return what was added, for the report.

    Raises:  InputError: the tokenizer cannot take another token.
    """
    bos = _bos_token(folder)
    ids, new = _add_control_tokens(folder)
    rows = add_rows(folder, min(new.values()), max(new.values()) + 1) if new else None
    text = resolve_repo_file(TEMPLATE).read_text(encoding="utf-8")
    (folder / DEFAULT_FILE).write_text(BOS + text if bos else text, encoding="utf-8")
    stops = stop_ids(folder) or _listed(read_config(folder / "config.json").get("eos_token_id"))
    write_stop_ids(folder, list(dict.fromkeys([ids[STOP_TOKEN], *stops])))
    named = "".join(f", {token} ({number})" for token, number in new.items())
    echo(
        f"fetch.model: no chat template: {TEMPLATE} added{f' behind {bos}' if bos else ''}, stop token {STOP_TOKEN}"
        + (f"; new tokens{named[1:]}, their embedding the mean of the others ({rows:,} rows)" if new else "")
        + f". Set prep.template: models/base/{DEFAULT_FILE}"
        + (", and peft.name: null" if new else "")
    )
    found = {"template": TEMPLATE, "behind": bos, "stop_token": STOP_TOKEN, "new_tokens": new, "embedding_rows": rows}
    return {name: value for name, value in found.items() if value}


def _bos_token(folder: Path) -> str:
    """Return the token with which the tokenizer begins every text, or ""."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return str(tokenizer.bos_token) if begins else ""


def _add_control_tokens(folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Make CONTROL_TOKENS tokens of the tokenizer; return the id of each, and of those that had none."""
    from tokenizers import Tokenizer

    settings = read_config(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_str(json.dumps(settings))
    taken = set(tokenizer.get_vocab(with_added_tokens=True).values())
    before = {token: tokenizer.token_to_id(token) for token in CONTROL_TOKENS}
    tokenizer.add_special_tokens(list(CONTROL_TOKENS))
    ids: dict[str, int] = {token: tokenizer.token_to_id(token) for token in CONTROL_TOKENS}
    new = {token: ids[token] for token in CONTROL_TOKENS if before[token] is None}
    if new and min(new.values()) <= max(taken):
        raise InputError(
            f"fetch.model: tokenizer.json: not all ids below {max(taken)} are used, so {', '.join(new)} cannot be "
            "added. Fetch a model with a chat template."
        )
    settings["added_tokens"] = json.loads(tokenizer.to_str())["added_tokens"]
    write_config(folder / "tokenizer.json", settings)
    config = read_config(folder / "tokenizer_config.json") | {"eos_token": STOP_TOKEN}
    if "added_tokens_decoder" in config:
        config["added_tokens_decoder"] |= {str(ids[token]): {"content": token, **FLAGS} for token in CONTROL_TOKENS}
    write_config(folder / "tokenizer_config.json", config)
    special = folder / "special_tokens_map.json"
    if special.is_file():
        write_config(special, read_config(special) | {"eos_token": STOP_TOKEN})
    return ids, new


def _listed(ids: Any) -> list[int]:
    return ids if isinstance(ids, list) else [] if ids is None else [ids]
