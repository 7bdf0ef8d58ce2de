"""Parquet shards: how rows are kept between stages.

A shard is a Parquet file `<name>-00000.parquet`; rows are written as they come and read in batches, so
memory does not grow with the data. Same rows, same bytes: fixed compression, fixed row groups, no clock.

`plan_stretches` cuts the shards of a folder into stretches of rows for workers: by the rows alone, so that what
they write does not depend on how many they are.
"""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_GROUP = 1_000
ROWS_PER_SHARD = 100_000
# Work is cut into about so many stretches, of at most so many rows.
STRETCHES, ROWS_PER_STRETCH = 32, 50_000

CONVERSATIONS = pa.schema(
    [("id", pa.string()), ("messages", pa.string()), ("tools", pa.string()), ("meta", pa.string())]
)
REJECTED = CONVERSATIONS.append(pa.field("reason", pa.string())).append(pa.field("evidence", pa.string()))
# What the filter's workers hand to its stage: rejected rows, and kept ones, which have no reason.
EXAMINED = pa.schema(
    [
        *REJECTED,
        pa.field("where", pa.string()),
        pa.field("signature", pa.binary()),
        pa.field("control_tokens", pa.int32()),
    ]
)
SIGNATURES = pa.schema([("id", pa.string()), ("signature", pa.binary())])
SAMPLES = pa.schema(
    [
        ("conversation_id", pa.string()),
        ("sample", pa.int32()),
        ("ids", pa.list_(pa.int32())),
        ("mask", pa.list_(pa.uint8())),
        ("turn_ends", pa.list_(pa.int32())),
    ]
)
PACKS = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.uint8())),
        ("seq_start_id", pa.list_(pa.int32())),
        ("conversation_id", pa.list_(pa.string())),
        ("sample", pa.list_(pa.int32())),
        ("source", pa.list_(pa.string())),
        ("repeat", pa.list_(pa.int32())),
    ]
)


class ShardWriter:
    """Write rows to `<folder>/<name>-NNNNN.parquet`; at least one shard, empty if there were no rows."""

    def __init__(self, folder: Path, name: str, schema: pa.Schema) -> None:
        self._folder, self._name, self._schema = folder, name, schema
        self._rows: list[dict[str, Any]] = []
        self._tables: list[pa.Table] = []
        self._shards = self._rows_in_shard = 0
        self._writer: pq.ParquetWriter | None = None

    def write(self, row: dict[str, Any]) -> None:
        """Add one row."""
        self._rows.append(row)
        if len(self._rows) == ROWS_PER_GROUP:
            self._flush()

    def write_table(self, table: pa.Table) -> None:
        """Add the rows of a table; a row group holds whole tables. Not for a writer that also gets single rows."""
        self._tables.append(table)
        if sum(map(len, self._tables)) >= ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{self._name}-{self._shards:05d}.parquet"
            self._writer = pq.ParquetWriter(path, self._schema, write_statistics=False, **_encoding(self._schema))
            self._shards += 1
        if self._rows:
            self._tables.append(pa.Table.from_pylist(self._rows, schema=self._schema))
        if self._tables:
            group = pa.concat_tables(self._tables)
            self._writer.write_table(group, row_group_size=max(1, len(group)))
            self._rows_in_shard += len(group)
        self._rows, self._tables = [], []
        if self._rows_in_shard >= ROWS_PER_SHARD:
            self._finish_shard()

    def _finish_shard(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._rows_in_shard = None, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and (self._rows or self._tables or self._shards == 0):
            self._flush()
        self._finish_shard()


def _encoding(schema: pa.Schema) -> dict[str, Any]:
    """Choose how columns are written: lists of numbers by their bytes, lists of names by a dictionary."""
    lists = {field.name: field.type.value_type for field in schema if pa.types.is_list(field.type)}
    numbers = [name for name, kind in lists.items() if pa.types.is_integer(kind)]
    repeating = [name for name in lists if name not in numbers]
    return {
        "compression": "zstd",
        "use_dictionary": [f"{name}.list.element" for name in repeating],
        "column_encoding": {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in numbers},
    }


class Stretch(NamedTuple):
    """Rows that belong together: some row groups of one shard."""

    path: str
    first_group: int
    groups: int
    first_row: int
    """In the shard."""
    rows: int


def plan_stretches(folder: Path, name: str = "") -> list[Stretch]:
    """Cut the shards of a folder into stretches of whole row groups, about equally long, in order."""
    groups: list[tuple[str, int, int]] = []
    for shard in shard_paths(folder, name):
        metadata = pq.read_metadata(shard)
        groups += [
            (str(shard), number, metadata.row_group(number).num_rows) for number in range(metadata.num_row_groups)
        ]
    most = min(ROWS_PER_STRETCH, -(-sum(rows for _, _, rows in groups) // STRETCHES))
    stretches: list[Stretch] = []
    for path, number, rows in groups:
        last = stretches[-1] if stretches and stretches[-1].path == path else None
        if last and last.rows + rows <= most:
            stretches[-1] = last._replace(groups=last.groups + 1, rows=last.rows + rows)
        else:
            stretches.append(Stretch(path, number, 1, last.first_row + last.rows if last else 0, rows))
    return stretches


def read_stretch(stretch: Stretch, rows: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield columns of a stretch, at most so many rows at a time."""
    with pq.ParquetFile(stretch.path) as file:
        chosen = range(stretch.first_group, stretch.first_group + stretch.groups)
        yield from file.iter_batches(batch_size=rows, row_groups=list(chosen), columns=columns, use_threads=False)


def read_tables(folder: Path, name: str = "", columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yield the rows of the shards of a folder, in order, as tables of at most ROWS_PER_GROUP rows."""
    for path in shard_paths(folder, name):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS_PER_GROUP, columns=columns, use_threads=False):
                yield pa.Table.from_batches([batch])


def read_rows(folder: Path, name: str = "", columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of the shards of a folder one by one, in order."""
    for table in read_tables(folder, name, columns):
        yield from table.to_pylist()


def shard_paths(folder: Path, name: str = "") -> list[Path]:
    """List the shards of a folder in order; raises FileNotFoundError if there are none."""
    paths = sorted(folder.glob(f"{name}*.parquet"))
    if not paths:
        raise FileNotFoundError(2, "no Parquet shards: run the stage before this one", str(folder / f"{name}*.parquet"))
    return paths


def give_back() -> None:
    """Return freed memory to the system: Arrow keeps all of it, and glibc blocks of less than 32 MB."""
    pa.default_memory_pool().release_unused()
    ctypes.CDLL(None).malloc_trim(0)
