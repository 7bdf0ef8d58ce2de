"""Step 2 of the filter stage: reject duplicates, ask the judge, and write the final shards.

Files of examined rows (sft.filters.examine), in order
    -> next to each a file with its late rejections: duplicates, and what the judge rejects
    -> shards of kept and of rejected rows, written by workers, and the counts for the report

Memory holds the rows of a few thousand conversations at most.
"""

import bisect
import contextlib
import itertools
import json
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sft.conversation import Conversation, Rejection
from sft.filters.contamination import CONTAMINATED
from sft.filters.encoding import valid_text
from sft.hashing import files_below
from sft.ledger import Ledger

if TYPE_CHECKING:
    import pyarrow as pa

    from sft.filters.judge.judge import Judge
    from sft.params.data import JudgeParams

# The kept rows of a source go to about SHARDS shards, each of at least MIN_ROWS_PER_SHARD rows and at most
# sft.parquet.ROWS_PER_SHARD.
SHARDS, MIN_ROWS_PER_SHARD = 8, 12_500
LATE = ".late.jsonl"  # next to an examined file: place, reason and evidence of each row that is rejected later


class ExaminedFiles:
    """The files of examined rows of a source, in order."""

    def __init__(self, scratch: Path, near_duplicates: float | None) -> None:
        from sft.filters.dedup.within_source import SourceDuplicates

        self._folder = scratch / "duplicates"
        self._duplicates = SourceDuplicates(self._folder, near_duplicates)
        self.files: list[tuple[Path, int]] = []
        """Each with its number of rows."""
        self._rows = 0

    def add(self, folder: Path) -> None:
        """Add the files of a folder."""
        from sft.parquet import read_tables, shard_paths

        for path in shard_paths(folder):
            begin = self._rows
            for table in read_tables(folder, path.stem, ["id", "reason", "signature"]):
                is_kept = table["reason"].is_null()
                kept, rows = table.filter(is_kept), self._rows + np.flatnonzero(is_kept.to_numpy())
                self._duplicates.add(rows, kept["id"], kept["signature"])
                self._rows += len(table)
            self.files.append((path, self._rows - begin))

    def reject_duplicates(self) -> None:
        """Write the duplicates of each file to its late rejections."""
        from sft.parquet import release_memory

        release_memory()
        starts = [0, *itertools.accumulate(rows for _, rows in self.files)]

        def file_of(duplicate: tuple[int, Rejection]) -> int:
            return bisect.bisect(starts, duplicate[0]) - 1

        for number, duplicates in itertools.groupby(self._duplicates.find(), key=file_of):
            rejections = ((row - starts[number], rejection) for row, rejection in duplicates)
            write_late_rejections(self.files[number][0], rejections)
        shutil.rmtree(self._folder)
        release_memory()

    def plan_shards(self) -> list[list[str]]:
        """Return lists of consecutive files, one for each final shard."""
        from sft.parquet import ROWS_PER_SHARD

        enough = min(ROWS_PER_SHARD, max(MIN_ROWS_PER_SHARD, self._rows // SHARDS))
        shards, size = list[list[str]](), enough
        for path, rows in self.files:
            if size >= enough:
                shards.append([])
                size = 0
            shards[-1].append(str(path))
            size += rows
        return shards


def reject_by_judge(paths: Sequence[Path], judge: "Judge", params: "JudgeParams") -> None:
    """Write what the judge rejects, among the rows that are kept so far, to the late rejections of each examined file.

    All files are one stream of conversations: a slow verdict holds up none of the next file.
    """
    from sft.filters.judge.verdicts import reject_by_verdict
    from sft.parquet import read_tables

    places = deque[tuple[Path, int]]()  # of the conversations that have no verdict yet

    def conversations() -> Iterator[Conversation]:
        for path in paths:
            rejected, begin = read_late_rejections(path), 0
            for table in read_tables(path.parent, path.stem, ["reason", "messages", "tools"]):
                for place, row in enumerate(table.to_pylist(), begin):
                    if row["reason"] is None and place not in rejected:
                        places.append((path, place))
                        yield Conversation.of_row(row)
                begin += len(table)

    outcomes = ((*places.popleft(), reject_by_verdict(verdict, params)) for verdict in judge.verdicts(conversations()))
    for path, of_file in itertools.groupby(outcomes, key=lambda outcome: outcome[0]):
        write_late_rejections(path, ((place, rejection) for _, place, rejection in of_file if rejection is not None))


def write_late_rejections(path: Path, rejections: Iterable[tuple[int, Rejection]]) -> None:
    """Add late rejections to an examined file: the place of each row, and why."""
    with path.with_suffix(LATE).open("a", encoding="utf-8") as file:
        for place, rejection in rejections:
            file.write(json.dumps([place, rejection.reason, rejection.evidence]) + "\n")


def read_late_rejections(path: Path) -> dict[int, tuple[str, str]]:
    """Return reason and evidence of the late rejections of an examined file, by the place of the row."""
    late = path.with_suffix(LATE)
    lines = late.read_text(encoding="utf-8").splitlines() if late.exists() else []
    return {place: (reason, evidence) for place, reason, evidence in map(json.loads, lines)}


def write_final_shards(task: dict[str, Any]) -> dict[str, Any]:
    """Write the rows of some examined files to final shards, in a worker.

    The shards go into a new folder of task["scratch"]; returns the folder and what was counted.
    """
    from sft.parquet import CONVERSATIONS, REJECTED, ShardWriter, read_tables, release_memory

    folder = Path(tempfile.mkdtemp(dir=task["scratch"]))
    schemas = {"kept": CONVERSATIONS, "rejected": REJECTED}
    rows, reasons, benchmarks, control_tokens = 0, Counter[str](), Counter[str](), Counter[str]()
    examples: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        shards = {name: stack.enter_context(ShardWriter(folder, name, schemas[name])) for name in schemas}
        for path in map(Path, task["examined"]):
            release_memory()
            late, begin = read_late_rejections(path), 0
            for table in read_tables(path.parent, path.stem):
                kept, rejected = split_table(table, {place - begin: rejection for place, rejection in late.items()})
                for name, part in (("kept", kept), ("rejected", rejected)):
                    shards[name].write_table(part.select(schemas[name].names))
                begin += len(table)
                for row in rejected.select(["reason", "evidence", "location"]).to_pylist():
                    reasons[row["reason"]] += 1
                    examples.setdefault(row["reason"], row["evidence"])
                    if row["reason"] == CONTAMINATED:
                        benchmarks[row["evidence"].removeprefix(f"{row['location']}: ").partition(":")[0]] += 1
                counts = kept["control_tokens"].to_pylist()
                control_tokens.update(conversations=sum(count > 0 for count in counts), control_tokens=sum(counts))
            rows += begin
    counted = {"rows": rows, "rejected": reasons, "contaminated_by": benchmarks, "control_tokens": control_tokens}
    return {"examined": task["examined"], "folder": str(folder), "examples": examples, **counted}


def split_table(table: "pa.Table", late: dict[int, tuple[str, str]]) -> "tuple[pa.Table, pa.Table]":
    """Return the kept and the rejected rows of a table of EXAMINED; `late` has reason and evidence by place."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if in_table := {place: rejection for place, rejection in late.items() if 0 <= place < len(table)}:
        columns = {name: table[name].to_pylist() for name in ("reason", "evidence", "location")}
        for place, (reason, evidence) in in_table.items():
            columns["reason"][place] = reason
            columns["evidence"][place] = valid_text(f"{columns['location'][place]}: {evidence}")
        for name in ("reason", "evidence"):
            table = table.set_column(table.column_names.index(name), name, pa.array(columns[name], pa.string()))
    is_kept = pc.is_null(table["reason"])
    return table.filter(is_kept), table.filter(pc.invert(is_kept))


class FinalShards:
    """The final shards of a source, numbered in its folder, and the counts for its report."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._shards = folder, Counter[str]()
        self.ledger, self.examples = Ledger(), dict[str, str]()
        """`examples`: for each reason the evidence of its first row."""
        self.contaminated_by, self.control_tokens = Counter[str](), Counter[str]()

    def add(self, written: dict[str, Any]) -> None:
        """Add a result of `write_final_shards`; a shard without rows only if there is no other of its name."""
        rejected = Counter[str](written["rejected"])
        kept = written["rows"] - rejected.total()
        self.ledger.add(Ledger(written["rows"], kept, rejected))
        for name, rows in (("kept", kept), ("rejected", rejected.total())):
            for path in files_below(Path(written["folder"])):  # glob would leave out what cannot be read
                if path.name.startswith(f"{name}-") and (rows or not self._shards[name]):
                    path.rename(self._folder / f"{name}-{self._shards[name]:05d}.parquet")
                    self._shards[name] += 1
        self.examples = written["examples"] | self.examples
        self.contaminated_by.update(written["contaminated_by"])
        self.control_tokens.update(written["control_tokens"])
        for path in written["examined"]:
            Path(path).unlink()
