"""Over-length: conversations that are longer than a pack, rendered once more -> their windows.

data/filtered/<source>/kept-*.parquet, models/base (tokenizer), the chat template  ->  shards of WINDOWS in the spool

Which tools a window can show depends on the pack size. So pack renders these conversations again, as prep does, with
fewer tools: what a window starts with is what the template writes for them. Another pack size does not run prep again,
and only conversations that need it are rendered twice.
"""

import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather

from sft.cli import InputError
from sft.conversation import Message, Rejection, TemplateKwargs, Tools
from sft.packing.windows import LongAnswer, LongSample, Window, cut_windows
from sft.parquet import WINDOWS, RowRange, ShardWriter, plan_row_ranges, read_row_range
from sft.tokens.outline import Outline, outline
from sft.tokens.prepare import MIN_ROWS_FOR_FASTOKENS, license_in, load_template, read_row
from sft.tokens.reasoning import Controlled, Shares
from sft.tokens.render import Settings
from sft.workers import map_shards, report_position

if TYPE_CHECKING:
    from sft.packing.sample_table import RowGroup
    from sft.params.data import Pack, Prep
    from sft.tokens.render import ChatTemplate
    from sft.tokens.tokenizer import Rendered, Sample

Int32s = npt.NDArray[np.int32]

BASE = Path("models/base")
FILTERED = Path("data/filtered")
PREPARED = Path("data/prepared")
ROWS_AT_ONCE = 64


def longest(pack_size: int, multiple: int) -> int:
    """Return the most tokens of a sample that fit a pack, padded.

    >>> longest(512, 1), longest(512, 8)
    (512, 505)
    """
    return (pack_size - 1) // multiple * multiple + 1


class ChangedError(Exception):
    """A conversation that was prepared has no samples now."""


class PinnedStart:
    """What the windows of a sample start with: its system message, and some of its tools."""

    def __init__(
        self,
        chat: "ChatTemplate",
        sample: "Sample",
        messages: list[Message],
        tools: Tools,
        thinking: bool,
        found: Outline,
        kwargs: TemplateKwargs,
    ) -> None:
        """Find where it ends, and whether the template writes tools there only; else it is used whole or not at all."""
        self._chat, self._tools, self._thinking, self._kwargs = chat, tools or [], thinking, kwargs
        self._known: dict[frozenset[int], Int32s] = {}
        self._sizes = [chat.tokenizer.encoder.count(json.dumps(tool, ensure_ascii=False)) for tool in self._tools]
        asked = next((index for index, message in enumerate(messages) if message["role"] == "user"), -1)
        self._head = messages[: asked + 1]
        ends = [start.token for start in found.starts if messages[start.message]["role"] != "system"]
        self.tokens = ends[0] if ends else 0
        self._behind: list[int] | None = None
        every = frozenset(range(len(self._tools)))
        self._known[every] = np.array(sample.ids[: self.tokens], np.int32)
        for end in ends[:2] if self._tools and asked >= 0 else ():  # some templates list tools in the first question
            if self._is_all_tools(sample.ids, end):
                self.tokens = end
                self._known[every] = np.array(sample.ids[:end], np.int32)
                break

    def _is_all_tools(self, ids: list[int], end: int) -> bool:
        """Return whether tools change nothing behind `end`."""
        try:
            whole, bare = self._prompt(frozenset(range(len(self._tools)))), self._prompt(frozenset())
        except jinja2.TemplateError:
            return False
        self._behind = whole[end:]
        if whole[:end] == ids[:end] and bare[len(bare) - len(self._behind) :] == self._behind:
            return True
        self._behind = None
        return False

    def _prompt(self, chosen: frozenset[int]) -> list[int]:
        tools = [self._tools[number] for number in sorted(chosen)] or None
        return self._chat.prompt_ids(self._head, tools, thinking=self._thinking, kwargs=self._kwargs)

    def _ids(self, chosen: frozenset[int]) -> Int32s | None:
        if chosen not in self._known:
            if self._behind is None:
                return None
            prompt = self._prompt(chosen)
            end = len(prompt) - len(self._behind)
            if prompt[end:] != self._behind:
                return None
            self._known[chosen] = np.array(prompt[:end], np.int32)
        return self._known[chosen]

    def __call__(self, called: frozenset[int], most: int, *, fill: bool = False) -> Int32s | None:
        """Return it with some tools, as sft.packing.windows.Pin."""
        every = frozenset(range(len(self._tools)))
        if self._behind is None and self._tools:
            called = every if called else frozenset()
        ids = self._ids(called)
        if ids is None and not called:  # not without the tools
            ids = self._ids(every)
        if ids is None or len(ids) > most:
            return None
        others = [number for number in sorted(every - called) if fill]
        if not others or (whole := self._ids(every)) is None:
            return ids
        if len(whole) <= most:
            return whole
        scale = (len(whole) - len(ids)) / max(1, sum(self._sizes[number] for number in others))
        chosen, left = list[int](), float(most - len(ids))
        for number in others:
            if self._sizes[number] * scale <= left:
                chosen.append(number)
                left -= self._sizes[number] * scale
        for last in range(len(chosen), 0, -1):
            filled = self._ids(called | frozenset(chosen[:last]))
            if filled is not None and len(filled) <= most:
                return filled
        return ids


def windows_of(
    chat: "ChatTemplate", controlled: Controlled, tools: Tools, limit: int
) -> Iterator[tuple[int, int, list[Window]]]:
    """Yield number, tokens and windows of each sample of a conversation that is longer than `limit` tokens.

    Raises:  ChangedError: the conversation has no samples.
    """
    rendered = chat.render_samples(controlled.messages, tools, controlled.budget, controlled.cut, controlled.kwargs)
    if isinstance(rendered, Rejection):
        raise ChangedError(f"{rendered.reason}: {rendered.evidence}")
    for number, (text, sample) in enumerate(zip(rendered, chat.encode(rendered), strict=True)):
        if isinstance(sample, Rejection):
            raise ChangedError(f"{sample.reason}: {sample.evidence}")
        if len(sample.ids) > limit:
            windows = _windows_of_sample(chat, text, sample, controlled, tools, limit)
            yield number, len(sample.ids), windows


def _windows_of_sample(
    chat: "ChatTemplate", text: "Rendered", sample: "Sample", controlled: Controlled, tools: Tools, limit: int
) -> list[Window]:
    messages = controlled.messages
    found = outline(chat, text, messages)
    thinking = any("reasoning_content" in messages[turn] for turn in text.turns)
    pin = PinnedStart(chat, sample, messages, tools, thinking, found, controlled.kwargs)
    numbers = {tool["function"]["name"]: number for number, tool in enumerate(tools or [])}
    header_of = {start.message: start.token for start in found.starts}
    answers = []
    for answer in found.answers:
        names = [call["function"]["name"] for call in messages[answer.message].get("tool_calls", ())]
        called = frozenset(numbers[name] for name in names if name in numbers)
        answers.append(
            LongAnswer(header_of.get(answer.message, answer.start), answer.start, answer.end, answer.content, called)
        )
    behind = [start for start in found.starts if start.token >= pin.tokens]
    long_sample = LongSample(
        np.array(sample.ids, np.int32),
        np.array(sample.mask, np.uint8),
        pin.tokens,
        [start.token for start in behind],
        [start.token for start in behind if messages[start.message]["role"] == "user"],
        answers,
        found.breaks,
        (np.array(chat.header_ids(thinking=False), np.int32), np.array(chat.header_ids(thinking=True), np.int32)),
    )
    return cut_windows(long_sample, pin, limit)


def add_windows(groups: "Sequence[RowGroup]", params: "Pack", prep: "Prep", spool: Path) -> "list[RowGroup]":
    """Return the row groups of all sources, those of the windows of each source behind its own."""
    from sft.packing.sample_table import READ_TOKENS, batch_row_groups, list_row_groups

    sources = list(dict.fromkeys(group.source for group in groups))
    fixed: dict[str, Any] = {"limit": longest(params.pack_size, params.pad_segments_to), "spool": str(spool)}
    finding = [
        (source, {**fixed, "groups": batch})
        for source in sources
        for batch in batch_row_groups([group for group in groups if group.source == source], READ_TOKENS)
    ]
    found = map_shards(find_over_length, [task for _, task in finding], "find over-length samples")
    names = {
        source: [path for (owner, _), path in zip(finding, found, strict=True) if owner == source and path]
        for source in sources
    }
    fixed |= {"settings": Settings.of(prep), "reasoning": prep.reasoning.model_dump()}
    tasks = [
        (source, {**fixed, "source": source, "conversations": paths, "row_range": row_range})
        for source, paths in names.items()
        for row_range in (plan_row_ranges(FILTERED / source, "kept") if paths else ())
    ]
    made: dict[str, list[RowGroup]] = {}
    folders = map_shards(write_windows, [task for _, task in tasks], "cut windows")
    for (source, _), folder in zip(tasks, folders, strict=True):
        made.setdefault(source, []).extend(list_row_groups({source: Path(folder)}))
    by_source = [[group for group in groups if group.source == source] + made.get(source, []) for source in sources]
    return list(itertools.chain.from_iterable(by_source))


def find_over_length(task: dict[str, Any]) -> str:
    """Write the ids of conversations with a sample that is too long (a task of sft.workers); return the file or ""."""
    from sft.packing.sample_table import RowGroup, read_row_group, write_arrow

    found = []
    for values in task["groups"]:
        for rows in read_row_group(RowGroup(*values), ["conversation_id", "mask"]):
            found.append(rows["conversation_id"].filter(pc.greater(rows["mask"].value_lengths(), task["limit"])))
    names = pa.chunked_array(found, pa.string()).unique()
    return write_arrow(pa.table({"id": names}), Path(task["spool"])) if len(names) else ""


def write_windows(task: dict[str, Any]) -> str:
    """Write the windows of the over-length conversations among some filtered rows (a task of sft.workers).

    Returns the folder of their shards. Raises InputError: a conversation is not what prep made samples of.
    """
    row_range, source = RowRange(*task["row_range"]), task["source"]
    template = PREPARED / source / "chat_template.jinja"
    reasoning = Shares(**task["reasoning"])
    tables = [pyarrow.feather.read_table(path, memory_map=True) for path in task["conversations"]]
    names = pa.concat_tables(tables)["id"]
    fast = len(names) >= MIN_ROWS_FOR_FASTOKENS
    chat = load_template(str(template), BASE, fast, Settings.of_task(task["settings"]))
    folder = Path(tempfile.mkdtemp(prefix="windows-", dir=task["spool"]))
    with ShardWriter(folder, "windows", WINDOWS) as shards:
        for rows in read_row_range(row_range, ROWS_AT_ONCE, ["id", "messages", "tools", "meta"]):
            report_position(f"{row_range.path}: windows")
            for row in rows.filter(pc.is_in(rows["id"], value_set=names)).to_pylist():
                for window in window_rows(chat, reasoning, row, task["limit"], source):
                    shards.write(window)
    return str(folder)


def window_rows(
    chat: "ChatTemplate", reasoning: Shares, row: dict[str, Any], limit: int, source: str
) -> Iterator[dict[str, Any]]:
    """Yield the rows of WINDOWS of a filtered row."""
    read = read_row(chat, reasoning, row["id"], memoryview(row["messages"].encode()), row["tools"], row["meta"])
    try:
        for number, whole, windows in windows_of(chat, read.controlled, read.tools, limit):
            for place, window in enumerate(windows):
                yield {
                    "conversation_id": row["id"],
                    "sample": number,
                    "ids": window.ids,
                    "mask": window.mask,
                    "turn_ends": [],
                    "group": read.group,
                    "license": license_in(row["meta"]),
                    "window": place + 1,
                    "covered": window.covered,
                    "whole": whole,
                }
    except ChangedError as error:
        raise InputError(
            f"data/filtered/{source}: conversation {row['id']}: prep made samples of it, and now {error}. "
            f"Run: dvc repro --force prep@{source}"
        ) from error
