"""Parquet shards: how rows are kept between stages.

A shard is a Parquet file `<name>-00000.parquet`; rows are written as they come and read in batches, so
memory does not grow with the data. Same rows, same bytes: fixed compression, fixed row groups, no clock.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_GROUP = 1_000
ROWS_PER_SHARD = 100_000

CONVERSATIONS = pa.schema(
    [("id", pa.string()), ("messages", pa.string()), ("tools", pa.string()), ("meta", pa.string())]
)
REJECTED = CONVERSATIONS.append(pa.field("reason", pa.string())).append(pa.field("evidence", pa.string()))
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
        self._shards = self._rows_in_shard = 0
        self._writer: pq.ParquetWriter | None = None

    def write(self, row: dict[str, Any]) -> None:
        """Add one row."""
        self._rows.append(row)
        if len(self._rows) == ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{self._name}-{self._shards:05d}.parquet"
            self._writer = pq.ParquetWriter(path, self._schema, compression="zstd", write_statistics=False)
            self._shards += 1
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows_in_shard += len(self._rows)
        self._rows = []
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
        if kind is None and (self._rows or self._shards == 0):
            self._flush()
        self._finish_shard()


def read_batches(folder: Path, name: str = "", columns: list[str] | None = None) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of the shards of a folder, in order, in batches of at most ROWS_PER_GROUP rows."""
    for path in shard_paths(folder, name):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS_PER_GROUP, columns=columns):
                yield batch.to_pylist()


def read_rows(folder: Path, name: str = "", columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of the shards of a folder one by one, in order."""
    for batch in read_batches(folder, name, columns):
        yield from batch


def shard_paths(folder: Path, name: str = "") -> list[Path]:
    """List the shards of a folder in order; raises FileNotFoundError if there are none."""
    paths = sorted(folder.glob(f"{name}*.parquet"))
    if not paths:
        raise FileNotFoundError(2, "no Parquet shards: run the stage before this one", str(folder / f"{name}*.parquet"))
    return paths
