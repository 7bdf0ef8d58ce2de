"""Step 1 of the filter stage: apply the pipeline to the rows of a source, and write an outcome for each.

Raw files -> files of examined rows (sft.parquet.EXAMINED), in order. Workers examine parts of the raw files. A
source of which only some rows are taken, or that is a published package, is examined in this process.
"""

import dataclasses
import functools
import heapq
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from sft.cli import InputError
from sft.filters.contamination import read_benchmark_items
from sft.filters.encoding import valid_text
from sft.filters.pipeline import ROWS_AT_ONCE, Kept, Outcome, Pipeline, RowCounts
from sft.formats.chat_forms import PACKAGES, FieldCounts, check_read, convert_chats, read_rows
from sft.formats.raw_files import Part, Row, plan_parts, read_part
from sft.formats.records import ChatRow
from sft.hashing import keyed_hash, value_digest
from sft.params.data import Filter, Read
from sft.workers import map_shards, relax_gc, report_position


def examine_source(
    task: dict[str, Any], max_rows: int | None, add_folder: Callable[[str], None]
) -> tuple[int, RowCounts]:
    """Examine the rows of a source; return how many the raw files hold, and what was counted in them.

    Args:  task: what workers need, JSON-like: source, raw and scratch folder, read, params, the file of benchmark items
    (or None), and a digest of the files they load. max_rows: rows to draw; None = all. add_folder: called with the
    name of each folder of examined rows in the scratch folder, in order.

    Raises:  InputError: a file cannot be read to its end; no row has the fields of the format.
    """
    raw, read = Path(task["raw"]), Read.model_validate_json(task["read"])
    if max_rows is not None or read.format in PACKAGES:
        num_rows = 0

        def count() -> Iterator[Row]:
            nonlocal num_rows
            for row in check_readable(read_rows(raw, read.format, read.fields, read.select, read.split), raw):
                num_rows += 1
                yield row

        seed = Filter.model_validate_json(task["params"]).seed
        folder, _, row_counts = write_examined(count() if max_rows is None else draw(count(), max_rows, seed), task)
        add_folder(folder)
        return num_rows, row_counts
    check_read(read.format, read.fields, read.select)
    parts = [{**task, "part": part} for part in plan_parts(raw, read.split)]
    results = map_shards(examine_part, parts, f"filter {task['source']}", lambda result: add_folder(result["folder"]))
    counts, row_counts = FieldCounts(unseen_select=set(read.select)), RowCounts()
    for result in results:
        row_counts.merge(result["not_read"], result["ends"])
        fields = result["fields"]
        counts.add(FieldCounts(**{**fields, "unseen_select": set(fields["unseen_select"])}))
    counts.check(read.format, read.fields)
    return sum(result["rows"] for result in results), row_counts


def draw(rows: Iterable[Row], number: int, seed: int) -> Iterator[Row]:
    """Draw `number` rows by a keyed hash of their position, in their order; only those are held in memory."""

    def key(item: tuple[int, Row]) -> str:
        return keyed_hash(seed, str(item[0]))

    for _, row in sorted(heapq.nsmallest(number, enumerate(rows), key=key), key=lambda item: item[0]):
        yield row


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
    raw, read = Path(task["raw"]), Read.model_validate_json(task["read"])
    counts = FieldCounts(unseen_select=set(read.select))
    rows = check_readable(read_part(raw, Part(*task["part"])), raw)
    converted = convert_chats(rows, read.format, read.fields, read.select, counts)
    folder, num_rows, row_counts = write_examined(converted, task)
    fields = {**dataclasses.asdict(counts), "unseen_select": sorted(counts.unseen_select)}
    counted = {"not_read": row_counts.not_read.counts, "ends": row_counts.ends}
    return {"folder": folder, "rows": num_rows, "fields": fields, **counted}


def write_examined(rows: Iterable[Row], task: dict[str, Any]) -> tuple[str, int, RowCounts]:
    """Write the outcome of each row into a new folder of task["scratch"].

    Returns its name, the number of rows, and what was counted in them.
    """
    from sft.parquet import EXAMINED, ShardWriter

    pipeline = load_pipeline(task["params"], task["benchmark_items"], task["digest"])
    folder, num_rows, counts = Path(tempfile.mkdtemp(dir=task["scratch"])), 0, RowCounts()
    with ShardWriter(folder, "examined", EXAMINED) as shards:
        for batch in itertools.batched(rows, ROWS_AT_ONCE):
            report_position(f"{task['raw']}: {batch[0].location} to {batch[-1].location}")
            for row, outcome in zip(batch, pipeline.apply(batch, counts), strict=True):
                shards.write(examined_row(row, outcome, task["source"]))
            num_rows += len(batch)
    return folder.name, num_rows, counts


@functools.lru_cache(maxsize=1)
def load_pipeline(params: str, benchmark_items: str | None, digest: str) -> Pipeline:
    """Return the pipeline of this process. `digest` is that of the files it loads: a worker may outlive an edit."""
    relax_gc()
    items = [] if benchmark_items is None else read_benchmark_items(Path(benchmark_items))
    return Pipeline(Filter.model_validate_json(params), items)


def examined_row(row: Row, outcome: Outcome, source: str) -> dict[str, Any]:
    """Return the columns of EXAMINED: the conversation if it is kept so far, else the row as it came, and why."""
    license = {"license": row.license} if isinstance(row, ChatRow) and row.license is not None else {}
    meta = json_text({"source": source, "location": row.location, **license})
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
