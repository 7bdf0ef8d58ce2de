"""Parquet shards: the files in which stages hand rows on.

A shard is a file `<name>-00000.parquet`. Rows are written as they come and read in batches, so memory does not grow
with the data. The same rows give the same bytes: fixed compression, fixed row groups, no clock. Every page has a
checksum, which is verified when the page is read: damage is an error, never other rows.

`plan_row_ranges` splits the shards of a folder into row ranges for parallel tasks. It depends on the rows alone, so
the number of workers does not change what they write.
"""

import contextlib
import ctypes
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq

from sft.batches import rows_at_once
from sft.cli import InputError
from sft.hashing import files_below


class _NoPandas:
    """Finds no pandas when pyarrow, with its first array, would import it: 0.35 CPU-seconds, 33 MB in every process.

    pyarrow looks once, and still imports it where it is needed, as in to_pandas.
    """

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "pandas":
            raise ImportError(name)


sys.meta_path.insert(0, _NoPandas)
pa.array([])
sys.meta_path.remove(_NoPandas)

# The most rows of a row group and of a batch that is read, and the bytes from which on it takes no further row.
ROWS_PER_GROUP, BYTES_PER_GROUP = 1_000, 8 << 20
ROWS_PER_SHARD = 100_000
# A folder is split into about ROW_RANGES ranges, of at most ROWS_PER_RANGE rows each.
ROW_RANGES, ROWS_PER_RANGE = 32, 50_000

CONVERSATIONS = pa.schema(
    [("id", pa.string()), ("messages", pa.string()), ("tools", pa.string()), ("meta", pa.string())]
)
REJECTED = CONVERSATIONS.append(pa.field("reason", pa.string())).append(pa.field("evidence", pa.string()))
# Rows between the two steps of the filter stage: rejected ones, and kept ones, which have no reason.
EXAMINED = pa.schema(
    [
        *REJECTED,
        pa.field("location", pa.string()),
        pa.field("signature", pa.binary()),
        pa.field("control_tokens", pa.int32()),
    ]
)
SAMPLES = pa.schema(
    [
        ("conversation_id", pa.string()),
        ("sample", pa.int32()),
        ("ids", pa.list_(pa.int32())),
        ("mask", pa.list_(pa.uint8())),
        ("turn_ends", pa.list_(pa.int32())),
        ("group", pa.uint64()),
        ("license", pa.string()),
    ]
)
# Parts of samples that are longer than a pack (sft.packing.over_length): `window` counts from 1, `whole` is the length
# of the sample, `covered` how many of its tokens no earlier window has.
WINDOWS = pa.schema([*SAMPLES, ("window", pa.int32()), ("covered", pa.int32()), ("whole", pa.int32())])
PACKS = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.uint8())),
        ("seq_start_id", pa.list_(pa.int32())),
        ("conversation_id", pa.list_(pa.string())),
        ("sample", pa.list_(pa.int32())),
        ("source", pa.list_(pa.string())),
        ("repeat", pa.list_(pa.int32())),
        ("window", pa.list_(pa.int32())),
    ]
)
# Columns that may be missing, or null in some rows.
OPTIONAL = {"tools", "turn_ends", "group", "license", "window", "covered", "whole"}
# How every shard is written, packs too. Nobody reads column statistics; checksums find damage. Rows of EXAMINED are
# read once and removed: compressed less, they are half as large again, and written and read in two thirds of the time.
WRITE_OPTIONS: dict[str, Any] = {"compression": "zstd", "write_statistics": False, "write_page_checksum": True}


class ShardWriter:
    """Writes rows to `<folder>/<name>-NNNNN.parquet`; without rows, one empty shard."""

    def __init__(self, folder: Path, name: str, schema: pa.Schema) -> None:
        self._folder, self._name, self._schema = folder, name, schema
        self._rows: list[dict[str, Any]] = []
        self._tables: list[pa.Table] = []
        self._shards = self._rows_in_shard = self._bytes = 0
        self._writer: pq.ParquetWriter | None = None

    def write(self, row: dict[str, Any]) -> None:
        """Add one row."""
        self._rows.append(row)
        self._bytes += sum([_bytes_of(value) for value in row.values()])
        if len(self._rows) == ROWS_PER_GROUP or self._bytes >= BYTES_PER_GROUP:
            self._flush()

    def write_table(self, table: pa.Table) -> None:
        """Add the rows of a table; a row group holds whole tables. Do not mix with `write`."""
        self._tables.append(table)
        self._bytes += table.nbytes
        if sum(map(len, self._tables)) >= ROWS_PER_GROUP or self._bytes >= BYTES_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{self._name}-{self._shards:05d}.parquet"
            self._writer = pq.ParquetWriter(path, self._schema, **_encoding(self._schema))
            self._shards += 1
        if self._rows:
            self._tables.append(pa.Table.from_pylist(self._rows, schema=self._schema))
        if self._tables:
            group = pa.concat_tables(self._tables)
            self._writer.write_table(group, row_group_size=max(1, len(group)))
            self._rows_in_shard += len(group)
        self._rows, self._tables, self._bytes = [], [], 0
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


def _bytes_of(value: Any) -> int:
    """Return about how many bytes a value of a row has: text, bytes or an array of numbers; 0 for a number."""
    return len(value) if isinstance(value, str | bytes) else getattr(value, "nbytes", 0)


def _encoding(schema: pa.Schema) -> dict[str, Any]:
    """Return the encoding of columns: byte streams for lists of numbers, dictionaries for lists of text."""
    lists = {field.name: field.type.value_type for field in schema if pa.types.is_list(field.type)}
    numbers = [name for name, kind in lists.items() if pa.types.is_integer(kind)]
    texts = [name for name in lists if name not in numbers]
    return {
        **WRITE_OPTIONS,
        **({"compression": "lz4"} if schema is EXAMINED else {}),
        "use_dictionary": [f"{name}.list.element" for name in texts],
        "column_encoding": {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in numbers},
    }


class RowRange(NamedTuple):
    """Consecutive row groups of one shard."""

    path: str
    first_group: int
    groups: int
    first_row: int
    """In the shard."""
    rows: int


def plan_row_ranges(folder: Path, name: str = "") -> list[RowRange]:
    """Split the shards of a folder into ranges of whole row groups, of about equal length, in order."""
    groups: list[tuple[str, int, int]] = []
    for shard in shard_paths(folder, name):
        metadata = read_metadata(shard)
        groups += [
            (str(shard), number, metadata.row_group(number).num_rows) for number in range(metadata.num_row_groups)
        ]
    most = min(ROWS_PER_RANGE, -(-sum(rows for _, _, rows in groups) // ROW_RANGES))
    ranges: list[RowRange] = []
    for path, number, rows in groups:
        last = ranges[-1] if ranges and ranges[-1].path == path else None
        if last and last.rows + rows <= most:
            ranges[-1] = last._replace(groups=last.groups + 1, rows=last.rows + rows)
        else:
            ranges.append(RowRange(path, number, 1, last.first_row + last.rows if last else 0, rows))
    return ranges


def read_row_range(row_range: RowRange, rows: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield columns of a range of filtered rows, at most `rows` rows at a time; raises as `read_batches`."""
    groups = range(row_range.first_group, row_range.first_group + row_range.groups)
    return read_batches(row_range.path, columns, CONVERSATIONS, rows, groups)


def read_tables(
    folder: Path, name: str = "", columns: Sequence[str] | None = None, schema: pa.Schema | None = None
) -> Iterator[pa.Table]:
    """Yield the rows of the shards of a folder, in order, as tables of at most ROWS_PER_GROUP rows."""
    for path in shard_paths(folder, name):
        for batch in read_batches(path, columns, schema):
            yield pa.Table.from_batches([batch])


def read_rows(folder: Path, name: str = "", columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of the shards of a folder one by one, in order."""
    for table in read_tables(folder, name, columns):
        yield from table.to_pylist()


def read_batches(
    path: Path | str,
    columns: Sequence[str] | None = None,
    schema: pa.Schema | None = None,
    rows: int = ROWS_PER_GROUP,
    groups: Sequence[int] | None = None,
    threads: bool = False,
) -> Iterator[pa.RecordBatch]:
    """Yield columns of a shard, at most `rows` rows at a time; with a schema, cast to its types.

    Raises:  InputError: the file is damaged; with a schema: a column is missing, has nulls, or cannot be cast.
    """
    with _damage_as_input_error(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        present = set(file.schema_arrow.names)
        chosen = columns if columns is not None or schema is None else schema.names
        if chosen is not None:
            if missing := set(chosen) - present - OPTIONAL:
                raise pa.ArrowKeyError(f"no column {', '.join(sorted(missing))}")
            chosen = [name for name in chosen if name in present]
        numbers = list(groups if groups is not None else range(file.num_row_groups))
        missing_rows = sum(file.metadata.row_group(number).num_rows for number in numbers)
        for number in numbers:
            group = file.metadata.row_group(number)  # bytes as they are encoded: those of a repeated text count once
            size = rows_at_once(group.num_rows, group.total_byte_size, rows, BYTES_PER_GROUP)
            for batch in file.iter_batches(batch_size=size, row_groups=[number], columns=chosen, use_threads=threads):
                missing_rows -= len(batch)
                yield batch if schema is None else _typed(batch, schema)
        if missing_rows:  # the footer has no checksum
            raise pa.ArrowInvalid(f"{missing_rows} rows fewer than its footer says")


def read_metadata(path: Path | str) -> pq.FileMetaData:
    """Return the footer of a shard. Raises InputError: it is damaged."""
    with _damage_as_input_error(path):
        return pq.read_metadata(path)


@contextlib.contextmanager
def _damage_as_input_error(path: Path | str) -> Iterator[None]:
    """Raise InputError where a file cannot be read, or has another form than stages write."""
    try:
        yield
    except (pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # a fault of the machine, not of the file
            raise
        fault = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"{path}: damaged, or changed after a stage wrote it: {fault}. Rerun that stage: dvc repro --force <stage>"
        ) from error


def _typed(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return a batch cast to the types of the schema: other tools write large_string for string, or int64 for int32."""
    fields = [schema.field(name) for name in batch.schema.names]
    if [field.type for field in fields] != batch.schema.types:
        batch = batch.cast(pa.schema(fields))
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if column.null_count and name not in OPTIONAL:
            raise pa.ArrowInvalid(f"{column.null_count} rows have no {name}")
    return batch


def shard_paths(folder: Path, name: str = "") -> list[Path]:
    """List the shards of a folder in order; raises FileNotFoundError if there are none."""
    paths = [path for path in files_below(folder) if path.match(f"{name}*.parquet") and path.parent == folder]
    if not paths:
        raise FileNotFoundError(2, "no Parquet shards: run the previous stage first", str(folder / f"{name}*.parquet"))
    return paths


def release_memory() -> None:
    """Return freed memory to the system: Arrow keeps all of it, glibc keeps blocks smaller than 32 MB."""
    pa.default_memory_pool().release_unused()
    ctypes.CDLL(None).malloc_trim(0)
