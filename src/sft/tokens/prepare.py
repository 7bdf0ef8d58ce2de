"""Prepare: filtered rows -> a table of samples, the rejected rows, and counts.

Works on columns: the conversations of a batch become segments (sft.tokens.render), all their text is tokenized in one
call, and ids, masks and turn ends go to Arrow columns without ever being Python lists.
"""

import contextlib
import functools
import gc
import hashlib
import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from sft.batches import batches
from sft.cli import InputError
from sft.conversation import Message, Rejection, Tools, is_normal, trained_turns
from sft.params.base import license_name
from sft.parquet import CONVERSATIONS, SAMPLES, release_memory
from sft.tokens.reasoning import Controlled, Shares, control_reasoning
from sft.tokens.render import ChatTemplate, Settings
from sft.tokens.row_kwargs import check_kwargs, kwargs_of
from sft.tokens.segments import SampleColumns, Segments
from sft.workers import relax_gc, report_row

# Integers of more than 64 bits: orjson reads them as floats, json exactly. (Starts with a class: faster to search.)
LARGE = re.compile(rb"[0-9][0-9]{18}")
# Rows that are rendered within the same limits of memory: setting them for each would take a tenth of the time.
ROWS_AT_ONCE, BYTES_AT_ONCE = 32, 1 << 22  # few of long rows: the limit is for the text of one
# From this many conversations of a source on, the faster tokenizer saves more time than it takes to load and check.
MIN_ROWS_FOR_FASTOKENS = 500
Counts = dict[str, Counter[Any]]


class PreparedRows(NamedTuple):
    """The samples of some filtered rows, and the rows that have none."""

    samples: pa.Table
    """Columns of SAMPLES."""
    rejected: list[dict[str, str]]
    """id, reason, evidence."""
    counts: Counts
    """rows: out, trained and masked (tokens), untrained_turns, earlier_answers (of them, by `train_answers: last`),
    reasoning_removed (tokens); rejected; reasoning; lengths; kwargs (`name=value`)."""


@functools.cache
def load_template(template: str, base: Path, fast: bool, settings: Settings) -> ChatTemplate:
    """Return the chat template of a worker, without `check_whole`; `fast`: with the faster tokenizer, if ids are equal.

    Raises:  as ChatTemplate.load.
    """
    relax_gc()
    chat = ChatTemplate.load(template, base, whole=False, fast=fast, settings=settings)
    release_memory()  # what loading needed
    gc.freeze()  # the garbage collector need not scan vocabularies again
    return chat


def prepare_rows(
    chat: ChatTemplate, rows: pa.RecordBatch, reasoning: Shares, max_tokens: int | None = None, compared: int = 0
) -> PreparedRows:
    """Return the samples of rows (columns id, messages, tools, meta of a filtered shard), in order.

    A row with a sample of more than `max_tokens` is rejected. Compares the ids of the first `compared` characters of
    text with those of the reference tokenizer.

    Raises:  InputError: a row is not JSON, the template exceeds its limits, or the ids differ.
    """
    segments, rejections = Segments(), dict[int, Rejection]()
    read, samples, names = list[Row](), list[int](), rows["id"].to_pylist()
    columns_read = [names, _views(rows["messages"]), rows["tools"].to_pylist(), rows["meta"].to_pylist()]
    rows_read = zip(*columns_read, strict=True)
    with _naming_row(*columns_read[:3]):
        for at_once in batches(rows_read, lambda row: len(row[1]), ROWS_AT_ONCE, BYTES_AT_ONCE):
            read += [read_row(chat, reasoning, *row) for row in at_once]  # outside of the limits: the template's
            with chat.limited():
                for row in read[len(samples) :]:
                    outcome = _add_row(chat, segments, row)
                    if isinstance(outcome, Rejection):
                        rejections[len(samples)], outcome = outcome, 0
                    samples.append(outcome)
    if compared and not chat.tokenizer.encoder.matches_reference(_first_texts(segments.texts(), compared)):
        raise InputError(
            f"data/filtered: conversation {names[0]} or a later one: fastokens and tokenizers give different ids. "
            "Set SFT_FASTOKENS=0 and rerun: slower, but exact."
        )
    columns = segments.encode(chat.tokenizer.encoder)
    row_of = np.repeat(np.arange(len(samples)), samples)
    for sample in sorted(columns.rejected):
        rejections.setdefault(int(row_of[sample]), columns.rejected[sample])
    for sample in np.flatnonzero(columns.sizes > max_tokens).tolist() if max_tokens else []:
        evidence = f"a sample of {columns.sizes[sample]} tokens; prep.max_tokens is {max_tokens}"
        rejections.setdefault(int(row_of[sample]), Rejection("too-long", evidence))
    keep = ~np.isin(row_of, list(rejections))

    counts: Counts = {name: Counter() for name in ("rows", "rejected", "reasoning", "lengths", "kwargs")}
    for index, row in enumerate(read):
        if index in rejections:
            counts["rejected"][rejections[index].reason] += 1
            continue
        counts["reasoning"][row.controlled.mode] += 1
        counts["kwargs"].update(f"{name}={json.dumps(value)}" for name, value in row.controlled.kwargs.items())
        counts["rows"]["reasoning_removed"] += row.controlled.tokens_removed
        counts["rows"]["earlier_answers"] += row.earlier_answers
        counts["rows"]["untrained_turns"] += len(
            [1 for message in row.controlled.messages if "loss" in message and message["loss"] is False]
        )
    counts["rows"]["out"] = len(samples) - len(rejections)
    counts["rows"]["trained"] = int(columns.trained[keep].sum())
    counts["rows"]["masked"] = int(columns.masked[keep].sum())
    counts["lengths"].update(columns.sizes[keep].tolist())
    rejected = [
        {"id": names[index], "reason": rejections[index].reason, "evidence": rejections[index].evidence}
        for index in sorted(rejections)
    ]
    licenses = [license_in(meta) for meta in rows["meta"].to_pylist()]
    of_rows = [names[index] for index in row_of], [licenses[index] for index in row_of]
    table = _table(*of_rows, np.array([row.group for row in read], np.uint64)[row_of], row_of, columns)
    return PreparedRows(table if keep.all() else table.take(pa.array(np.flatnonzero(keep))), rejected, counts)


def prepare_examined(
    chat: ChatTemplate, kept: list[dict[str, Any]], reasoning: Shares, max_tokens: int | None = None
) -> PreparedRows:
    """Return the samples of rows that the filter keeps, before they are in a shard."""
    schema = pa.schema([CONVERSATIONS.field(name) for name in ("id", "messages", "tools", "meta")])
    columns = [{name: row[name] for name in schema.names} for row in kept]
    return prepare_rows(chat, pa.RecordBatch.from_pylist(columns, schema=schema), reasoning, max_tokens)


class Row(NamedTuple):
    """A filtered row as it is trained."""

    name: str
    group: int
    controlled: Controlled
    tools: Tools
    earlier_answers: int
    """Those that are not trained because of `prep.train_answers: last`."""


def read_row(
    chat: ChatTemplate, reasoning: Shares, name: str, messages_json: memoryview, tools_json: str | None, meta: str
) -> Row:
    """Return a row as it is trained."""
    report_row(name)
    messages, tools = _parse(name, messages_json), _parse_tools(tools_json) if tools_json else None
    group = group_number(name, messages, meta)
    earlier = trained_turns(messages)[:-1] if chat.settings.train_answers == "last" else []
    for index in earlier:
        messages[index]["loss"] = False
    ranges, count = chat.tokenizer.token_ranges, chat.tokenizer.encoder.count
    controlled = control_reasoning(name, messages, reasoning, ranges, count, kwargs_of(meta, chat))
    return Row(name, group, controlled, tools, len(earlier))


def _add_row(chat: ChatTemplate, segments: Segments, row: Row) -> int | Rejection:
    """Add the samples of a row to `segments`; return their number, or why there are none."""
    report_row(row.name)
    messages, _, budget, _, cut, kwargs = row.controlled
    if kwargs and (rejection := check_kwargs(kwargs, chat)):
        return rejection
    return chat.add_samples(segments, messages, row.tools, budget, cut, kwargs)


@contextlib.contextmanager
def _naming_row(names: list[str], messages: list[memoryview], tools: list[str | None]) -> Iterator[None]:
    """Raise InputError for what fails because a row of a batch is not in normal form."""
    try:
        yield
    except (AttributeError, LookupError, TypeError) as error:
        for name, messages_json, tools_json in zip(names, messages, tools, strict=True):
            if not is_normal(_parse(name, messages_json), tools_json and _parse_tools(tools_json)):
                raise InputError(
                    f"data/filtered: conversation {name}: not in normal form. Run: dvc repro --force filter"
                ) from error
        raise


def license_in(meta: str) -> str:
    """Return the license that a filtered row states in `meta`, its JSON text; "" without one.

    >>> license_in('{"license": "MIT"}'), license_in('{"license": ["MIT", "CC0-1.0"]}'), license_in('{}')
    ('MIT', 'MIT, CC0-1.0', '')
    """
    return license_name(json.loads(meta).get("license")) if '"license":' in meta else ""


def group_number(name: str, messages: list[Message], meta: str) -> int:
    """Return a hash of what the conversations of one split group share; `meta` is the JSON text of a filtered row.

    That is the row's `group`; without one, the first user message, whatever its case, spaces and Unicode form; without
    that, the id.
    """
    group = json.loads(meta).get("group") if '"group":' in meta else None
    user = next((message["content"] for message in messages if message["role"] == "user"), None)
    if group is not None:
        key = f"group:{json.dumps(group, sort_keys=True)}"
    elif user:
        folded = user.lower() if user.isascii() else unicodedata.normalize("NFKC", user).casefold()
        key = f"user:{' '.join(folded.split())}"
    else:
        key = f"id:{name}"
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8])


def _table(
    names: list[str],
    licenses: list[str],
    groups: npt.NDArray[np.uint64],
    row_of: npt.NDArray[np.int64],
    columns: SampleColumns,
) -> pa.Table:
    """Return columns as a table of SAMPLES."""
    first = np.searchsorted(row_of, row_of)  # index of the first sample of its row
    values: dict[str, pa.Array] = {
        "conversation_id": _texts(names),
        "sample": pa.array((np.arange(len(row_of)) - first).astype(np.int32)),
        "ids": _lists(columns.ids, columns.sizes, "ids"),
        "mask": _lists(columns.mask, columns.sizes, "mask"),
        "turn_ends": _lists(columns.turn_ends, columns.turns, "turn_ends"),
        "group": pa.array(groups),
        "license": _texts(licenses),
    }
    return pa.table([values[name] for name in SAMPLES.names], schema=SAMPLES)


def _texts(values: list[str]) -> pa.Array:
    return pa.array([value.encode("utf-8", "backslashreplace") for value in values], pa.string())  # lone surrogates


def _lists(values: npt.NDArray[Any], sizes: npt.NDArray[np.int64], name: str) -> pa.Array:
    assert len(values) < 1 << 31, "offsets of Arrow's lists are 32-bit"
    return pa.ListArray.from_arrays(pa.array(_offsets(sizes)), pa.array(values), type=SAMPLES.field(name).type)


def _offsets(sizes: Iterable[int]) -> npt.NDArray[np.int32]:
    return np.cumsum([0, *sizes]).astype(np.int32)


def _first_texts(texts: Iterable[str], chars: int) -> list[str]:
    """Return the first `chars` characters of some texts."""
    first, left = list[str](), chars
    for text in texts:
        if left <= 0:
            break
        first.append(text[:left])
        left -= len(text)
    return first


def _views(column: pa.Array) -> list[memoryview]:
    """Return the UTF-8 of each text of a column, without a copy; no text may be null."""
    _, offsets, data = column.buffers()
    bounds = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1].tolist()
    view = memoryview(data)
    return [view[start:end] for start, end in itertools.pairwise(bounds)]


def _parse(name: str, text: memoryview) -> Any:
    """Return parsed JSON, as Python's json reads it. In messages, only arguments of calls have numbers."""
    try:
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            value = json.loads(bytes(text))  # NaN
            json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate raises UnicodeEncodeError
            return value
        if bytes(text[:8]) == b'[{"role"' and not any(["tool_calls" in message for message in value]):
            return value
        return json.loads(bytes(text)) if LARGE.search(text) else value
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"data/filtered: conversation {name}: not JSON: {error}. Run: dvc repro --force filter"
        ) from error


@functools.lru_cache(maxsize=256)
def _parse_tools(text: str) -> Any:
    """Return parsed tools, cached: many conversations share them. Do not change the result."""
    return _parse("with these tools", memoryview(text.encode()))
