"""Hugging Face's way to prepare a corpus, for bench.peers.prep: `datasets.map` over `apply_chat_template`.

The template is ours, with generation marks around what an assistant says, which `return_assistant_tokens_mask` needs.
"""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.project import ROOT

TEMPLATE = ROOT / "templates" / "nano3.jinja"


def load_tokenizer(folder: Path) -> Any:
    """Load a tokenizer with our template, which marks what the assistant generates."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE.read_text(encoding="utf-8")
    return tokenizer


def write_input(records: list[dict[str, Any]], path: Path) -> None:
    """Write OpenAI records as JSON lines that `datasets` can load: messages and tools as JSON text."""
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            for message in record["messages"]:
                for call in message.get("tool_calls", []):
                    call["function"]["arguments"] = json.loads(call["function"]["arguments"])
            row = {"messages": json.dumps(record["messages"]), "tools": json.dumps(record.get("tools"))}
            file.write(json.dumps(row) + "\n")


@contextlib.contextmanager
def preparation(
    path: Path, tokenizer_folder: Path, processes: int | None, scratch: Path
) -> Iterator[Callable[[int | None], tuple[int, int]]]:
    """Yield a function that prepares the first rows, or all, of a file of `write_input` and returns (rows, tokens).

    `processes`: None for this process. With several, tokens are not counted.
    """
    import datasets

    datasets.disable_progress_bars()
    tokenizer = load_tokenizer(tokenizer_folder)

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        messages, tools = json.loads(row["messages"]), json.loads(row["tools"])
        encoded = tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return {"input_ids": encoded["input_ids"], "assistant_masks": encoded["assistant_masks"]}

    with tempfile.TemporaryDirectory(dir=scratch) as cache:
        rows = datasets.load_dataset("json", data_files=str(path), cache_dir=cache, split="train")

        def prepare(number: int | None) -> tuple[int, int]:
            selected = rows if number is None else rows.select(range(number))
            options = {"remove_columns": rows.column_names, "load_from_cache_file": False, "num_proc": processes}
            prepared = selected.map(encode, **options)
            return len(prepared), sum(map(len, prepared["input_ids"])) if processes is None else 0

        yield prepare


def count_equal_ids(project: Path, tokenizer_folder: Path, limit: int) -> tuple[int, int, int]:
    """Compare the ids in a prepared project with Hugging Face's, over conversations that are one sample to both.

    Returns how many are equal, how many were compared, and how many were skipped because a user typed a control token
    as text: Hugging Face turns it into one.
    """
    import pyarrow.parquet as pq

    tokenizer = load_tokenizer(tokenizer_folder)
    control = set(tokenizer.all_special_tokens)
    ids = {
        row["conversation_id"]: row["ids"]
        for path in sorted((project / "data/prepared/bench").glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    }
    equal = compared = skipped = 0
    for path in sorted((project / "data/filtered/bench").glob("kept-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            messages = json.loads(row["messages"])
            if any(token in row["messages"] for token in control):
                skipped += 1
            elif compared < limit and not any("reasoning_content" in message for message in messages):
                tools = json.loads(row["tools"]) if row["tools"] else None
                encoded = tokenizer.apply_chat_template(messages, tools=tools, tokenize=True, return_dict=True)
                compared += 1
                equal += encoded["input_ids"] == ids[row["id"]]
    return equal, compared, skipped
