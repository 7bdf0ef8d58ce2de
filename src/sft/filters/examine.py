"""Step 1 of the filter stage: apply the pipeline to the rows of a source, and write an outcome for each.

Raw files -> files of examined rows (sft.parquet.EXAMINED), in order. Workers examine parts of the raw files; a
published package is one part. Rows that `read.select` does not take are counted and left out. If only some of the
others are taken, workers read the parts twice: to find the rows with the smallest hashes, and to examine them.
"""

import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from sft.batches import batches
from sft.cli import InputError
from sft.filters.contamination import read_benchmark_items
from sft.filters.encoding import valid_text
from sft.filters.pipeline import BYTES_AT_ONCE, ROWS_AT_ONCE, Kept, Outcome, Pipeline, RowCounts
from sft.formats.chat_forms import PACKAGES, FieldCounts, check_read, convert_chats, select_rows
from sft.formats.raw_files import Part, Row, expected_parts, plan_parts, read_objects, read_part
from sft.formats.records import ChatRow
from sft.hashing import keyed_hashes, value_digest
from sft.params.data import Filter, Read
from sft.workers import map_shards, relax_gc, report_position

MIN_WAITING = 1 << 18  # rows whose hashes wait to be merged


class Examined(NamedTuple):
    """What was counted in the rows of a source: found = not selected + not drawn + examined."""

    found: int
    not_selected: int
    not_drawn: int
    rows: RowCounts
    """Of the examined rows."""


def examine_source(task: dict[str, Any], max_rows: int | None, add_folder: Callable[[str], None]) -> Examined:
    """Examine the rows of a source.

    Args:  task: what workers need, JSON-like: source, raw and scratch folder, read, params, the file of benchmark items
    (or None), and a digest of the files they load. max_rows: rows to draw; None = all. add_folder: called with the
    name of each folder of examined rows in the scratch folder, in order.

    Raises:  InputError: a file cannot be read to its end; no row has the fields of the format.
    """
    raw, read = Path(task["raw"]), Read.model_validate_json(task["read"])
    check_read(read.format, read.fields, read.select)
    files = () if read.format in PACKAGES else (read.split, read.config)
    expected = expected_parts(raw, *files) if files else 1

    def part_tasks() -> Iterator[dict[str, Any]]:
        parts = plan_parts(raw, Path(task["scratch"]), *files) if files else iter([None])
        return ({**task, "part": part} for part in parts)

    counts, row_counts, ranked, tasks = FieldCounts(unseen_select=set(read.select)), RowCounts(), 0, part_tasks()
    if max_rows is not None:
        drawn = Draw(max_rows)
        ranking, title = ({**each, "max_rows": max_rows} for each in tasks), f"draw {task['source']}"
        for result in map_shards(rank_part, ranking, title, lambda result: drawn.add(Path(result["file"])), expected):
            counts.add(field_counts(result))
            ranked += result["rows"]
        tasks = drawn.tasks(part_tasks())

    title = f"filter {task['source']}"
    results = map_shards(examine_part, tasks, title, lambda result: add_folder(result["folder"]), expected)
    examined = 0
    for result in results:
        row_counts.merge(result["not_read"], result["ends"])
        counts.add(field_counts(result))
        examined += result["rows"]
    counts.check(read.format, read.fields)
    not_drawn = 0 if max_rows is None else ranked - examined
    return Examined(examined + not_drawn + counts.not_selected, counts.not_selected, not_drawn, row_counts)


def remove_text(part: Sequence[Any] | None) -> None:
    """Remove the decompressed lines of a part that was read, or that nobody reads."""
    if part is not None and (text := Part(*part).text):
        Path(text).unlink(missing_ok=True)


class Draw:
    """The rows with the smallest hashes; of equal hashes the first ones. Memory holds about twice their number."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows, self._parts = max_rows, 0
        self._columns = [np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64)]
        self._waiting: list[list[npt.NDArray[Any]]] = []

    def add(self, file: Path) -> None:
        """Add what rank_part wrote for the next part."""
        with np.load(file) as ranked:
            hashes, places = ranked["hashes"], ranked["places"]
        file.unlink()
        self._waiting.append([hashes, np.full(len(places), self._parts), places])
        self._parts += 1
        if sum(len(waiting[0]) for waiting in self._waiting) > max(self._max_rows, MIN_WAITING):
            self._merge()

    def _merge(self) -> None:
        columns = [np.concatenate(column) for column in zip(self._columns, *self._waiting, strict=True)]
        order = np.lexsort(columns[::-1])[: self._max_rows]
        self._columns, self._waiting = [column[order] for column in columns], []

    def tasks(self, tasks: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the tasks of the parts that have drawn rows, with their places among the selected rows, in order."""
        self._merge()
        _, parts, places = self._columns
        for part, task in enumerate(tasks):
            if len(drawn := places[parts == part]):
                yield {**task, "drawn": np.sort(drawn).tolist()}
            else:
                remove_text(task["part"])


def rank_part(task: dict[str, Any]) -> dict[str, Any]:
    """Hash the content of the selected rows of a part, in a worker.

    Writes the smallest hashes, as many as rows are drawn, and their places to a file of task["scratch"].
    """
    counts = FieldCounts(unseen_select=set(Read.model_validate_json(task["read"]).select))
    seed = Filter.model_validate_json(task["params"]).seed
    hashes = keyed_hashes(seed, map(row_text, selected_rows(task, counts)))
    places = np.argsort(hashes, kind="stable")[: task["max_rows"]]
    handle, file = tempfile.mkstemp(dir=task["scratch"], suffix=".npz")
    with open(handle, "wb") as writer:
        np.savez(writer, hashes=hashes[places], places=places.astype(np.int64))
    remove_text(task["part"])
    return {"file": file, "rows": len(hashes), **as_result(counts)}


def row_text(row: Row) -> str:
    """Return what a row holds, wherever it is."""
    return json_text(row.record) if row.record is not None else valid_text(row.raw)


def selected_rows(task: dict[str, Any], counts: FieldCounts) -> Iterator[Row]:
    """Yield the rows of a part that `read.select` takes: as in the file, or records of a package. Updates `counts`."""
    raw, read = Path(task["raw"]), Read.model_validate_json(task["read"])
    if task["part"] is None:
        return check_readable(PACKAGES[read.format](raw), raw)
    return select_rows(check_readable(read_part(raw, Part(*task["part"])), raw), read.select, counts)


def read_folder(
    folder: Path, read: Read, counts: FieldCounts, look: Callable[[Iterable[Row]], Iterator[Row]]
) -> Iterator[Row]:
    """Yield the selected rows of a folder, with records; `look` gets every row first. Raises InputError: bad `read`."""
    check_read(read.format, read.fields, read.select)
    if read.format in PACKAGES:
        return look(PACKAGES[read.format](folder))
    rows = select_rows(look(read_objects(folder, read.split, read.config)), read.select, counts)
    return convert_chats(rows, read.format, read.fields, read.select, counts)


def as_result(counts: FieldCounts) -> dict[str, Any]:
    """Return counts as a worker returns them; `field_counts` is the inverse."""
    return {"fields": {**dataclasses.asdict(counts), "unseen_select": sorted(counts.unseen_select)}}


def field_counts(result: dict[str, Any]) -> FieldCounts:
    """Return the counts that a worker returned."""
    return FieldCounts(**{**result["fields"], "unseen_select": set(result["fields"]["unseen_select"])})


def check_readable(rows: Iterable[Row], raw: Path) -> Iterator[Row]:
    """Yield rows. Raises InputError: a file cannot be read to its end, so its rows cannot be counted."""
    for row in rows:
        if row.is_end:
            raise InputError(
                f"{raw / row.location}: {row.fault}. The lost rows cannot be counted. Download the file again, or "
                "leave it out of the uri."
            )
        yield row


def examine_part(task: dict[str, Any]) -> dict[str, Any]:
    """Examine a part of the raw files, in a worker; return the folder that was written and what was counted."""
    read = Read.model_validate_json(task["read"])
    counts = FieldCounts(unseen_select=set(read.select))
    rows = selected_rows(task, counts)
    if "drawn" in task:
        drawn = set(task["drawn"])
        rows = (row for place, row in enumerate(rows) if place in drawn)
    if task["part"] is not None:
        rows = convert_chats(rows, read.format, read.fields, read.select, counts)
    folder, num_rows, row_counts = write_examined(rows, task)
    if "drawn" in task:
        counts.not_selected = 0  # rank_part counted them
    remove_text(task["part"])
    counted = {"not_read": row_counts.not_read.counts, "ends": row_counts.ends}
    return {"folder": folder, "rows": num_rows, **as_result(counts), **counted}


def write_examined(rows: Iterable[Row], task: dict[str, Any]) -> tuple[str, int, RowCounts]:
    """Write the outcome of each row into a new folder of task["scratch"].

    Returns its name, the number of rows, and what was counted in them.
    """
    from sft.parquet import EXAMINED, ShardWriter

    pipeline = load_pipeline(task["params"], task["benchmark_items"], task["digest"])
    folder, num_rows, counts = Path(tempfile.mkdtemp(dir=task["scratch"])), 0, RowCounts()
    with ShardWriter(folder, "examined", EXAMINED) as shards:
        for examined in examine_rows(rows, pipeline, task["source"], counts, task["raw"]):
            shards.write(examined)
            num_rows += 1
    return folder.name, num_rows, counts


def examine_rows(
    rows: Iterable[Row], pipeline: Pipeline, source: str, counts: RowCounts, folder: str
) -> Iterator[dict[str, Any]]:
    """Yield the columns of EXAMINED of each row of a source; `folder` is where its files are. Updates `counts`."""
    for batch in batches(rows, lambda row: row.size, ROWS_AT_ONCE, BYTES_AT_ONCE):
        report_position(f"{folder}: {batch[0].location} to {batch[-1].location}")
        for row, outcome in zip(batch, pipeline.apply(batch, counts), strict=True):
            yield examined_row(row, outcome, source)


@functools.lru_cache(maxsize=1)
def load_pipeline(params: str, benchmark_items: str | None, digest: str) -> Pipeline:
    """Return the pipeline of this process. `digest` is that of the files it loads: a worker may outlive an edit."""
    relax_gc()
    items = [] if benchmark_items is None else read_benchmark_items(Path(benchmark_items))
    return Pipeline(Filter.model_validate_json(params), items)


def examined_row(row: Row, outcome: Outcome, source: str) -> dict[str, Any]:
    """Return the columns of EXAMINED: the conversation if it is kept so far, else the row as it came, and why."""
    from_row = {"license": row.license, "group": row.group} if isinstance(row, ChatRow) else {}
    if isinstance(outcome, Kept) and outcome.conversation.template_kwargs:
        from_row["template_kwargs"] = outcome.conversation.template_kwargs
    from_row = {name: value for name, value in from_row.items() if value is not None}
    meta = json_text({"source": source, "location": row.location, **from_row})
    if isinstance(outcome, Kept):
        content: dict[str, Any] = {"messages": outcome.conversation.messages, "tools": outcome.conversation.tools}
        columns = {"id": outcome.id, "signature": outcome.signature, "control_tokens": outcome.control_tokens}
    else:
        content = row.record if row.record is not None else {"raw": row.raw}
        evidence = valid_text(f"{row.location}: {outcome.evidence}")
        columns = {"id": value_digest(content)[:32], "reason": outcome.reason, "evidence": evidence}
    messages = json_text(content.get("messages", content))
    tools = None if content.get("tools") is None else json_text(content["tools"])
    return {**columns, "messages": messages, "tools": tools, "meta": meta, "location": row.location}


def json_text(value: Any) -> str:
    """Return a value as JSON that UTF-8 can hold."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # lone surrogates in rejected rows, and integers of more than 64 bits
        return valid_text(json.dumps(value, ensure_ascii=False))
