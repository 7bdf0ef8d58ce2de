"""Examined: what the filter knows of rows before it knows of all of them, and what it writes when it does.

Files of examined rows (sft.parquet.EXAMINED), by workers of the filter stage, in order
    -> beside each the rows that are refused after that: because they repeat an earlier one, or by a judge
    -> shards of kept and rejected rows and of signatures, by workers again, and what is counted

Nothing here holds more than the rows of a few thousand conversations.
"""

import bisect
import contextlib
import itertools
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.conversation import Conversation, Rejection
from sft.filters.contamination import CONTAMINATED
from sft.filters.dedup.within_source import SourceDuplicates
from sft.ledger import Ledger

if TYPE_CHECKING:
    import pyarrow as pa

    from sft.filters.judge.judge import Judge
    from sft.params.data import JudgeParams

# What is kept of a source is written in about so many shards, of at least so many rows and at most those of a shard.
SHARDS, FEWEST_ROWS_PER_SHARD = 8, 12_500
REFUSED = ".refused.jsonl"  # beside an examined file: place, reason and evidence of each row refused after that


class Examined:
    """The files with the examined rows of a source, in order, and the rows of them that nothing speaks against."""

    def __init__(self, scratch: Path, near: float | None) -> None:
        self._duplicates = SourceDuplicates(scratch / "duplicates", near)
        self.files: list[tuple[Path, int]] = []
        """Each with the number of its rows."""
        self._rows = 0

    def add(self, folder: Path) -> None:
        """Add the files of a folder."""
        import numpy as np

        from sft.parquet import read_tables, shard_paths

        for path in shard_paths(folder):
            begin = self._rows
            for table in read_tables(folder, path.stem, ["id", "reason", "signature"]):
                is_kept = table["reason"].is_null()
                kept, rows = table.filter(is_kept), self._rows + np.flatnonzero(is_kept.to_numpy())
                ids = bytes.fromhex("".join(kept["id"].to_pylist()))
                self._duplicates.add(rows, ids, b"".join(kept["signature"].to_pylist()))
                self._rows += len(table)
            self.files.append((path, self._rows - begin))

    def reject_duplicates(self) -> None:
        """Write beside each file which of its rows repeat an earlier one."""
        from sft.parquet import release_memory

        release_memory()
        starts = [0, *itertools.accumulate(rows for _, rows in self.files)]

        def file_of(found: tuple[int, Rejection]) -> int:
            return bisect.bisect(starts, found[0]) - 1

        for number, found in itertools.groupby(self._duplicates.find(), key=file_of):
            write_refusals(self.files[number][0], ((row - starts[number], rejection) for row, rejection in found))
        shutil.rmtree(self._duplicates.folder)
        release_memory()

    def cut(self) -> list[list[str]]:
        """Cut the files into lists of neighbours, each for a shard of what is kept."""
        from sft.parquet import ROWS_PER_SHARD

        most = min(ROWS_PER_SHARD, max(FEWEST_ROWS_PER_SHARD, self._rows // SHARDS))
        parts, size = list[list[str]](), most
        for path, rows in self.files:
            if size >= most:
                parts.append([])
                size = 0
            parts[-1].append(str(path))
            size += rows
        return parts


def refuse_by_judge(path: Path, judge: "Judge", params: "JudgeParams") -> None:
    """Let the judge look at what is kept so far of an examined file."""
    from sft.filters.judge.verdicts import rejection_of
    from sft.parquet import read_tables

    refused, begin = read_refusals(path), 0
    for table in read_tables(path.parent, path.stem, ["reason", "messages", "tools"]):
        rows = [
            (place, row)
            for place, row in enumerate(table.to_pylist(), begin)
            if row["reason"] is None and place not in refused
        ]
        asked = (Conversation(json.loads(row["messages"]), json.loads(row["tools"] or "null")) for _, row in rows)
        outcomes = [
            (place, rejection_of(verdict, params))
            for (place, _), verdict in zip(rows, judge.verdicts(asked), strict=True)
        ]
        write_refusals(path, ((place, rejection) for place, rejection in outcomes if rejection is not None))
        begin += len(table)


def write_refusals(path: Path, refusals: Iterable[tuple[int, Rejection]]) -> None:
    """Add to what is refused of an examined file: the place of each row, and why."""
    with path.with_suffix(REFUSED).open("a", encoding="utf-8") as file:
        for place, rejection in refusals:
            file.write(json.dumps([place, rejection.reason, rejection.evidence]) + "\n")


def read_refusals(path: Path) -> dict[int, tuple[str, str]]:
    """Return reason and evidence by the place of the row."""
    beside = path.with_suffix(REFUSED)
    lines = beside.read_text(encoding="utf-8").splitlines() if beside.exists() else []
    return {place: (reason, evidence) for place, reason, evidence in map(json.loads, lines)}


def write_final_shards(task: dict[str, Any]) -> dict[str, Any]:
    """Write the rows of some examined files as what they are in the end: kept or rejected.

    The shards go into a new folder in task["scratch"]; returns it, and what was counted.
    """
    from sft.parquet import CONVERSATIONS, REJECTED, SIGNATURES, ShardWriter, read_tables, release_memory

    folder = Path(tempfile.mkdtemp(dir=task["scratch"]))
    schemas = {"kept": CONVERSATIONS, "rejected": REJECTED, "signatures": SIGNATURES}
    rows, reasons, by_set, typed = 0, Counter[str](), Counter[str](), Counter[str]()
    examples: dict[str, str] = {}
    with contextlib.ExitStack() as written:
        shards = {name: written.enter_context(ShardWriter(folder, name, schemas[name])) for name in schemas}
        for path in map(Path, task["examined"]):
            release_memory()
            refused, begin = read_refusals(path), 0
            for table in read_tables(path.parent, path.stem):
                kept, rejected = decide(table, {place - begin: refusal for place, refusal in refused.items()})
                for name, part in (("kept", kept), ("signatures", kept), ("rejected", rejected)):
                    shards[name].write_table(part.select(schemas[name].names))
                begin += len(table)
                for row in rejected.select(["reason", "evidence", "where"]).to_pylist():
                    reasons[row["reason"]] += 1
                    examples.setdefault(row["reason"], row["evidence"])
                    if row["reason"] == CONTAMINATED:
                        by_set[row["evidence"].removeprefix(f"{row['where']}: ").partition(":")[0]] += 1
                tokens = kept["control_tokens"].to_pylist()
                typed.update(conversations=sum(number > 0 for number in tokens), control_tokens=sum(tokens))
            rows += begin
    counted = {"rows": rows, "rejected": reasons, "contaminated_by": by_set, "typed": typed}
    return {"examined": task["examined"], "folder": str(folder), "examples": examples, **counted}


def decide(table: "pa.Table", refused: dict[int, tuple[str, str]]) -> "tuple[pa.Table, pa.Table]":
    """Part a table of EXAMINED rows in (kept, rejected); `refused` are reason and evidence of others, by place."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if here := {place: refusal for place, refusal in refused.items() if 0 <= place < len(table)}:
        told = {name: table[name].to_pylist() for name in ("reason", "evidence", "where")}
        for place, (reason, evidence) in here.items():
            told["reason"][place], told["evidence"][place] = reason, valid_text(f"{told['where'][place]}: {evidence}")
        for name in ("reason", "evidence"):
            table = table.set_column(table.column_names.index(name), name, pa.array(told[name], pa.string()))
    is_kept = pc.is_null(table["reason"])
    return table.filter(is_kept), table.filter(pc.invert(is_kept))


class Result:
    """What became of the rows of a source: shards in its folder, and counts."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._shards = folder, Counter[str]()
        self.ledger, self.examples = Ledger(), dict[str, str]()
        self.contaminated_by, self.typed = Counter[str](), Counter[str]()

    def take(self, settled: dict[str, Any]) -> None:
        """Add what `settle` wrote and counted; shards without rows only where there are no others."""
        rejected = Counter[str](settled["rejected"])
        kept = settled["rows"] - rejected.total()
        self.ledger.add(Ledger(settled["rows"], kept, rejected))
        for name, rows in (("kept", kept), ("signatures", kept), ("rejected", rejected.total())):
            for path in sorted(Path(settled["folder"]).glob(f"{name}-*")):
                if rows or not self._shards[name]:
                    path.rename(self._folder / f"{name}-{self._shards[name]:05d}.parquet")
                    self._shards[name] += 1
        self.examples = settled["examples"] | self.examples
        self.contaminated_by.update(settled["contaminated_by"])
        self.typed.update(settled["typed"])
        for path in settled["examined"]:
            Path(path).unlink()


def valid_text(text: str) -> str:
    """Return a text that UTF-8 can hold: lone surrogates are written as escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
