"""Prepared: filtered rows -> a table of samples, the rows that were refused, and counts.

Whole columns at a time: the conversations of a batch become pieces (sft.tokens.render), all text is tokenised in
one call, and ids, masks and turn ends are columns of Parquet without ever being lists.
"""

import functools
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from sft.cli import InputError
from sft.conversation import Conversation, Rejection, normalise
from sft.parquet import SAMPLES
from sft.tokens.reasoning import Shares, control
from sft.tokens.render import ChatTemplate
from sft.tokens.segments import Pieces, Samples
from sft.workers import at_row

# Whole numbers that no 64 bits hold: orjson reads them as floats, json exactly. (A class first: searched for faster.)
LARGE = re.compile(rb"[0-9][0-9]{18}")
Counts = dict[str, Counter[Any]]


class Prepared(NamedTuple):
    """What became of some filtered rows."""

    samples: pa.Table
    """Columns of SAMPLES."""
    rejected: list[dict[str, str]]
    """id, reason, evidence."""
    counts: Counts
    """rows: out, trained (tokens), untrained_turns, reasoning_removed (tokens); rejected; reasoning; lengths."""


def prepare(chat: ChatTemplate, rows: pa.RecordBatch, reasoning: Shares, compared: int = 0) -> Prepared:
    """Prepare rows, columns id, messages, tools of a filtered shard, in order.

    The ids of their first `compared` characters of text are compared with those of the reference tokenizer.
    Raises:  InputError: a row that is not JSON, a template that used up its limits, ids that differ.
    """
    pieces, refused = Pieces(), dict[int, Rejection]()
    controlled, samples, names = [], [], rows["id"].to_pylist()
    columns_read = names, _views(rows["messages"]), rows["tools"].to_pylist()
    for index, (name, messages, tools) in enumerate(zip(*columns_read, strict=True)):
        at_row(name)
        said, known = _parse(name, messages), _parse_tools(tools) if tools else None
        try:
            each = control(name, said, reasoning, chat.tokenizer.ranges, chat.tokenizer.engine.count)
            outcome = chat.add(pieces, each.messages, known, each.budget)
        except (AttributeError, LookupError, TypeError) as error:
            if _is_normal(said, known):
                raise
            raise InputError(
                f"conversation {name}: not as the filter stage writes it. Run that stage again."
            ) from error
        if isinstance(outcome, Rejection):
            refused[index], outcome = outcome, 0
        controlled.append(each)
        samples.append(outcome)
    if compared and not chat.tokenizer.engine.agrees(_first(pieces.texts(), compared)):
        raise InputError(
            f"conversation {names[0]} or one behind it: fastokens gives other ids than tokenizers. "
            "Set SFT_FASTOKENS=0 and rerun: slower, and right."
        )
    columns = pieces.encode(chat.tokenizer.engine)
    row_of = np.repeat(np.arange(len(samples)), samples)
    for sample in sorted(columns.refused):
        refused.setdefault(int(row_of[sample]), columns.refused[sample])
    keep = ~np.isin(row_of, list(refused))

    counts: Counts = {name: Counter() for name in ("rows", "rejected", "reasoning", "lengths")}
    for index, each in enumerate(controlled):
        if index in refused:
            counts["rejected"][refused[index].reason] += 1
            continue
        counts["reasoning"][each.mode] += 1
        counts["rows"]["reasoning_removed"] += each.tokens_removed
        counts["rows"]["untrained_turns"] += len(
            [1 for message in each.messages if "loss" in message and message["loss"] is False]
        )
    counts["rows"]["out"] = len(samples) - len(refused)
    counts["rows"]["trained"] = int(columns.trained[keep].sum())
    counts["lengths"].update(columns.sizes[keep].tolist())
    rejected = [
        {"id": names[index], "reason": refused[index].reason, "evidence": refused[index].evidence}
        for index in sorted(refused)
    ]
    table = _table([names[index] for index in row_of], row_of, columns)
    return Prepared(table if keep.all() else table.take(_array(np.flatnonzero(keep))), rejected, counts)


def _table(names: list[str], row_of: npt.NDArray[np.int64], columns: Samples) -> pa.Table:
    """Put columns beside each other as the schema says."""
    first = np.searchsorted(row_of, row_of)  # sample of each row's first sample
    values: dict[str, pa.Array] = {
        "conversation_id": _texts(names),
        "sample": _array((np.arange(len(row_of)) - first).astype(np.int32)),
        "ids": _lists(columns.ids, columns.sizes, "ids"),
        "mask": _lists(columns.mask, columns.sizes, "mask"),
        "turn_ends": _lists(columns.turn_ends, columns.turns, "turn_ends"),
    }
    return pa.table([values[name] for name in SAMPLES.names], schema=SAMPLES)


# Arrays of Arrow are made from their parts: `pa.array` would import pandas, a tenth of a worker's start.


def _texts(values: list[str]) -> pa.Array:
    encoded = [value.encode() for value in values]
    return pa.StringArray.from_buffers(
        len(values), pa.py_buffer(_offsets(map(len, encoded))), pa.py_buffer(b"".join(encoded))
    )


def _lists(values: npt.NDArray[Any], sizes: npt.NDArray[np.int64], name: str) -> pa.Array:
    assert len(values) < 1 << 31, "offsets of Arrow's lists are 32-bit"
    return pa.ListArray.from_arrays(_array(_offsets(sizes)), _array(values), type=SAMPLES.field(name).type)


def _array(values: npt.NDArray[Any]) -> pa.Array:
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def _offsets(sizes: Iterable[int]) -> npt.NDArray[np.int32]:
    return np.cumsum([0, *sizes]).astype(np.int32)


def _first(texts: Iterable[str], chars: int) -> list[str]:
    """Return the first texts, up to a number of characters, cut where one is longer."""
    found, left = list[str](), chars
    for text in texts:
        if left <= 0:
            break
        found.append(text[:left])
        left -= len(text)
    return found


def _views(column: pa.Array) -> list[memoryview]:
    """Return the UTF-8 of each text of a column, without copying it; none may be null."""
    _, offsets, data = column.buffers()
    bounds = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1].tolist()
    every = memoryview(data)
    return [every[start:end] for start, end in itertools.pairwise(bounds)]


def _is_normal(messages: Any, tools: Any) -> bool:
    """Say whether a conversation is in normal form: bringing it there changes nothing."""
    normal = normalise({"messages": messages, "tools": tools})
    return isinstance(normal, Conversation) and (normal.messages, normal.tools) == (messages, tools)


def _parse(name: str, text: memoryview) -> Any:
    """Read JSON as Python's json does; in messages, numbers stand in the arguments of calls only."""
    try:
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            value = json.loads(bytes(text))  # NaN
            json.dumps(value, ensure_ascii=False).encode()  # a UnicodeEncodeError: half of a surrogate pair
            return value
        if bytes(text[:8]) == b'[{"role"' and not any(["tool_calls" in message for message in value]):
            return value
        return json.loads(bytes(text)) if LARGE.search(text) else value
    except (ValueError, RecursionError) as error:
        raise InputError(f"conversation {name}: not JSON: {error}. Run the filter stage again.") from error


@functools.lru_cache(maxsize=256)
def _parse_tools(text: str) -> Any:
    """Read tools, of which many conversations have the same; nobody changes what is returned."""
    return _parse("with these tools", memoryview(text.encode()))
