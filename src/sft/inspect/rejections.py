"""What the data stages refused: each row with its reason and evidence, whichever stage keeps it in which form.

data/filtered/<source>/rejected-*.parquet, data/prepared/<source>/rejected.jsonl, data/packed/rejected.jsonl
    ->  rows of one form, in the order of the files; counts by reason; `rejected` shows them
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sft.files import read_json

FILTERED = Path("data/filtered")
PREPARED = Path("data/prepared")
PACKED = Path("data/packed/rejected.jsonl")
UNITS = {"filter": "rows", "prep": "conversations", "pack": "samples"}
"""What each stage refuses."""
STAGES = tuple(UNITS)


def sources() -> list[str]:
    """List the sources that the filter stage has been through."""
    return sorted(path.name for path in FILTERED.iterdir() if path.is_dir()) if FILTERED.is_dir() else []


def place(stage: str, source: str) -> Path:
    """Return where a stage keeps what it refused of a source."""
    return {"filter": FILTERED / source, "prep": PREPARED / source / "rejected.jsonl", "pack": PACKED}[stage]


def refused(stage: str, source: str, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield what a stage refused of a source, in the order of its files; nothing where the stage did not run."""
    from sft.parquet import read_rows

    path = place(stage, source)
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


def count(stage: str, source: str) -> Counter[str]:
    """Count what a stage refused of a source, by reason."""
    return Counter(row["reason"] for row in refused(stage, source, ["reason"]))


def refusals(start: str) -> list[str]:
    """Say which stages refused the conversations whose id starts so, and for what."""
    return [
        f"{row['id']} of {source} was refused by {stage}: {row['reason']}"
        for source in sources()
        for stage in STAGES
        for row in refused(stage, source, ["id", "reason"])
        if row["id"].startswith(start)
    ]


def taken_in(stage: str, source: str) -> int | None:
    """Return how much of a source a stage read; None where no report says.

    In the units in which it refuses: conversations, but for pack the samples that prep made.
    """
    report = Path(f"reports/{'filter' if stage == 'filter' else 'prep'}/{source}.json")
    return int(read_json(report)["samples" if stage == "pack" else "rows_in"]) if report.exists() else None


def examples(names: Sequence[str], reason: str, start: int, number: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (stage, source, row) of refused rows, from the one numbered `start`, each with its conversation."""
    rows = (
        (stage, source, row)
        for source in names
        for stage in STAGES
        for row in refused(stage, source)
        if row["reason"] == reason
    )
    chosen = list(itertools.islice(rows, start, start + number))
    for (stage, source), group in itertools.groupby(chosen, key=lambda item: item[:2]):
        own = [row for _, _, row in group]
        kept = {} if stage == "filter" else _kept(source, {row["id"] for row in own})
        yield from ((stage, source, {**kept.get(row["id"], {}), **row}) for row in own)


def _kept(source: str, ids: set[str]) -> dict[str, dict[str, Any]]:
    """Find conversations that the filter kept, by id: a later stage writes down no more of what it refuses."""
    import pyarrow.parquet as pq

    from sft.parquet import shard_paths

    paths = shard_paths(FILTERED / source, "kept")
    tables = (pq.read_table(path, filters=[("id", "in", sorted(ids))]) for path in paths)
    return {row["id"]: row for table in tables for row in table.to_pylist()}
