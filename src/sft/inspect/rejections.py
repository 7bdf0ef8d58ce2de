"""What the data stages rejected: rows of one form from every stage, and counts by reason.

data/filtered/<source>/rejected-*.parquet, data/prepared/<source>/rejected.jsonl, data/packed/rejected.jsonl
    ->  rows with id, reason, evidence and, where it is known, the conversation; in the order of the files
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sft.files import read_json
from sft.parquet import read_rows, shard_paths

FILTERED = Path("data/filtered")
PREPARED = Path("data/prepared")
PACKED = Path("data/packed/rejected.jsonl")
UNITS = {"filter": "rows", "prep": "conversations", "pack": "samples"}
"""What each stage counts."""
STAGES = tuple(UNITS)


def sources() -> list[str]:
    """Return the sources that the filter stage has written."""
    return sorted(path.name for path in FILTERED.iterdir() if path.is_dir()) if FILTERED.is_dir() else []


def rejected_path(stage: str, source: str) -> Path:
    """Return where a stage writes what it rejects of a source."""
    return {"filter": FILTERED / source, "prep": PREPARED / source / "rejected.jsonl", "pack": PACKED}[stage]


def rejected_rows(stage: str, source: str, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield what a stage rejected of a source, in the order of its files; nothing if the stage did not run."""
    path = rejected_path(stage, source)
    if not path.exists():
        return
    if stage == "filter":
        yield from read_rows(path, "rejected", list(columns) if columns else None)
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row.get("source", source) == source:
                yield row


def count_reasons(stage: str, source: str) -> Counter[str]:
    """Return how many rows of a source a stage rejected, by reason."""
    return Counter(row["reason"] for row in rejected_rows(stage, source, ["reason"]))


def why_rejected(id_start: str) -> list[str]:
    """Return a line for each rejected conversation whose id starts so: the stage and the reason."""
    return [
        f"{row['id']} of {source}: {stage} rejected it, {row['reason']}"
        for source in sources()
        for stage in STAGES
        for row in rejected_rows(stage, source, ["id", "reason"])
        if row["id"].startswith(id_start)
    ]


def num_read(stage: str, source: str) -> int | None:
    """Return how many units (UNITS) of a source a stage read; None if there is no report."""
    report = Path(f"reports/{'filter' if stage == 'filter' else 'prep'}/{source}.json")
    return int(read_json(report)["samples" if stage == "pack" else "rows_in"]) if report.exists() else None


def examples(names: Sequence[str], reason: str, start: int, number: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (stage, source, row) of `number` rows rejected for a reason, from the one numbered `start`."""
    rows = (
        (stage, source, row)
        for source in names
        for stage in STAGES
        for row in rejected_rows(stage, source)
        if row["reason"] == reason
    )
    chosen = itertools.islice(rows, start, start + number)
    for (stage, source), group in itertools.groupby(chosen, key=lambda item: item[:2]):
        group_rows = [row for _, _, row in group]
        kept = {} if stage == "filter" else kept_rows(source, {row["id"] for row in group_rows})
        yield from ((stage, source, {**kept.get(row["id"], {}), **row}) for row in group_rows)


def row_location(row: dict[str, Any]) -> str | None:
    """Return the location of a row in data/raw/<source>, as file:line."""
    location: str | None = json.loads(row.get("meta") or "{}").get("location")
    return location


def kept_rows(source: str, ids: set[str]) -> dict[str, dict[str, Any]]:
    """Return the conversations of data/filtered with these ids: later stages do not write what they reject."""
    paths = shard_paths(FILTERED / source, "kept")
    tables = (pq.read_table(path, filters=[("id", "in", sorted(ids))]) for path in paths)
    return {row["id"]: row for table in tables for row in table.to_pylist()}
