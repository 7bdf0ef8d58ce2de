"""Raw files to rows: the first step of every format.

`read_objects(folder, split)` reads the files of data/raw/<source>/ that sft.raw_folders selects, in the order of their
names, and yields a `Row` for each object: .jsonl (also .jsonlines, .ndjson), .json (an array, an object, or lines),
.parquet, .arrow (as datasets saves it), .feather, .csv and .tsv (with a header), each also as .gz, .zst, .bz2 or .xz.
A row that cannot be read is a `Row` with a fault, so that it is counted.

`plan_parts(folder, scratch, split)` divides the same files into parts for workers; they depend on the files alone. The
rows that `read_part` yields for all parts, in order, are those of `read_objects`.
"""

import contextlib
import csv
import io
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from sft import strict_json
from sft.batches import rows_at_once
from sft.formats.compression import (
    READ_BYTES,
    DamagedFileError,
    bomb,
    lines_of,
    most_bytes,
    open_raw,
    read_whole,
    skip,
)
from sft.formats.spellings import role_of, speaker_of
from sft.raw_folders import ALL, DELIMITED, DOCUMENT, LINES, TABLES, file_kind, select_files

RAW_CHARS = 2_000  # of a faulty row, kept to show it
PART_BYTES = 16 << 20
COMPRESSED = 4  # how many times as large text is, about
TABLE_ROWS, TABLE_BYTES = 256, 8 << 20  # read together
ROW_BYTES = 64 << 20  # longest line, and longest cell of a .csv; filter keeps rows of 8 M characters
LIMIT = f"the limit is {ROW_BYTES:,}"
VALUES_BYTES = 256 << 20  # of the values of a table's dictionaries that are read together
# Names of the list of rows in a file of one object.
ROW_LISTS = {"data", "rows", "train", "validation", "test", "examples", "samples", "instances", "records", "entries"}
ARROW_FILE, ARROW_END = b"ARROW1", b"\xff\xff\xff\xff\0\0\0\0"  # how a file begins, and how a stream ends
UTF_16, GZIP = (b"\xff\xfe", b"\xfe\xff"), b"\x1f\x8b"
Json = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One row of a raw file."""

    location: str
    """`file:n`, the file relative to the folder, n the line (of an array or a table: the item), from 1."""
    record: Json | None
    """The object in the file, or what a format made of it (messages, tools, meta); None if there is a fault."""
    fault: str = ""
    """What is wrong with the row; empty if nothing is."""
    raw: str = ""
    """The first RAW_CHARS characters of a faulty row."""
    is_end: bool = False
    """Whether the file cannot be read from here on, so that the number of lost rows is unknown."""
    size: int = 0
    """Bytes of its JSON; 0 for an item of an array, which is in memory anyway."""


class Part(NamedTuple):
    """A raw file, or a part of it."""

    path: str
    """Relative to the folder, with slashes."""
    first: int = 1
    """Number of the first line or row, from 1."""
    start: int = 0
    end: int | None = None
    """Byte range of a file of lines, or row groups of a table; end None = to the end of the file."""
    text: str = ""
    """A file with the lines of a part of a compressed file. Empty, or gone with a lost worker: `path` has them."""


def read_objects(folder: Path, split: str = ALL, config: str | None = None) -> Iterator[Row]:
    """Yield a row for each object in the files of a split below a folder. Raises InputError: as select_files."""
    for name in select_files(folder, split, config).read:
        yield from read_part(folder, Part(name))


def plan_parts(folder: Path, scratch: Path, split: str = ALL, config: str | None = None) -> Iterator[Part]:
    """Divide the files of a split into parts of PART_BYTES or more. Lines and .parquet are divided, others are not.

    A compressed file of lines is decompressed once, part by part, into files of `scratch`: delete that of a part that
    was read. Raises InputError: no such split or config.
    """
    for name in select_files(folder, split, config).read:
        path, (kind, packed) = folder / name, file_kind(name)
        if kind in LINES and packed and path.stat().st_size > PART_BYTES // COMPRESSED:
            yield from _compressed_parts(path, name, scratch)
        elif path.stat().st_size <= PART_BYTES or packed:
            yield Part(name)
        elif kind in LINES:
            yield from _line_parts(path, name)
        else:
            yield from _table_parts(path, name) if kind == ".parquet" else [Part(name)]


def expected_parts(folder: Path, split: str = ALL, config: str | None = None) -> int:
    """Return about how many parts there are. Raises InputError: as plan_parts."""
    sizes = ((folder / name, file_kind(name)[1]) for name in select_files(folder, split, config).read)
    return sum(-(-path.stat().st_size * (COMPRESSED if packed else 1) // PART_BYTES) for path, packed in sizes)


def read_part(folder: Path, part: Part) -> Iterator[Row]:
    """Yield the rows of a part."""
    path, (kind, _) = folder / part.path, file_kind(part.path)
    if kind in TABLES:
        return _table(path, part)
    if kind in DELIMITED:
        return _delimited(path, part.path, DELIMITED[kind])
    return _document(path, part.path) if kind in DOCUMENT else _lines(path, part)


def _line_parts(path: Path, name: str) -> Iterator[Part]:
    """Yield parts that end with the first line that ends after PART_BYTES."""
    first, start = 1, 0
    with path.open("rb") as file:
        while block := file.read(PART_BYTES):
            lines = block.count(b"\n")
            while not block.endswith(b"\n") and (block := file.readline(READ_BYTES)):
                lines += block.endswith(b"\n")
            yield Part(name, first, start, file.tell())
            first, start = first + lines, file.tell()


def _compressed_parts(path: Path, name: str, scratch: Path) -> Iterator[Part]:
    """Yield parts like those of _line_parts. What follows damage, or a line longer than ROW_BYTES, is one part."""
    first, start = 1, 0
    with contextlib.suppress(DamagedFileError), open_raw(path) as file:
        while block := file.read(PART_BYTES):
            rest = b"" if block.endswith(b"\n") else file.readline(ROW_BYTES + 1)
            if len(rest) > ROW_BYTES or start + len(block) + len(rest) > most_bytes(path):
                break
            block += rest
            handle, text = tempfile.mkstemp(dir=scratch, suffix=".text")
            with open(handle, "wb") as writer:
                writer.write(block)
            yield Part(name, first, start, start + len(block), text)
            first, start = first + block.count(b"\n"), start + len(block)
        else:
            return
    yield Part(name, first, start)


def _table_parts(path: Path, name: str) -> Iterator[Part]:
    """Yield parts that end with the row group that reaches PART_BYTES; a damaged table is one part."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        groups = pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError):
        yield Part(name)
        return
    first, start, size, rows = 1, 0, 0, 0
    for number in range(groups.num_row_groups):
        size += groups.row_group(number).total_byte_size
        rows += groups.row_group(number).num_rows
        if size >= PART_BYTES or number == groups.num_row_groups - 1:
            yield Part(name, first, start, number + 1)
            first, start, size, rows = first + rows, number + 1, 0, 0


# Files to rows


def _lines(path: Path, part: Part) -> Iterator[Row]:
    number, position = part.first - 1, part.start
    try:
        text = Path(part.text) if part.text and Path(part.text).exists() else None
        with open_raw(text or path) as file:
            skip(file, 0 if text else part.start)
            for line, size in lines_of(path, file, ROW_BYTES):
                if part.end is not None and position >= part.end:
                    break
                number, position = number + 1, position + size
                if size > ROW_BYTES:
                    raw = line[: 4 * RAW_CHARS].decode("utf-8", "replace")[:RAW_CHARS]
                    yield Row(f"{part.path}:{number}", None, f"a line of {size:,} bytes; {LIMIT}", raw)
                elif line.strip():
                    yield parse_row(line.rstrip(b"\r\n"), f"{part.path}:{number}")
    except DamagedFileError as error:
        yield _rest(part.path, number, error)


def _rest(name: str, rows: int, error: object) -> Row:
    """Return the fault of a file of which only some rows can be read."""
    return Row(f"{name}:{rows + 1}", None, f"{error}; the rest is unreadable", is_end=True)


def _document(path: Path, name: str) -> Iterator[Row]:
    """Yield the rows of a .json file: an array of objects, one object, or (as some publishers write) lines."""
    try:
        content = read_whole(path)
    except DamagedFileError as error:
        yield _rest(name, 0, error)
        return
    whole = parse_row(content, f"{name}:1")
    if whole.record is not None:
        yield from _rows_of_object(whole, whole.record, name)
    elif content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        try:
            items = strict_json.parse(content)
        except ValueError as error:
            yield Row(f"{name}:1", None, f"not valid JSON: {error}", whole.raw, is_end=True)
            return
        yield from _rows_of_items(items, name)
    else:
        yield from _lines(path, Part(name))


def _rows_of_object(row: Row, value: Json, name: str) -> Iterator[Row]:
    """Yield the rows of the only object of a file: those in its list of rows, or its values; another object is a row.

    Its values are rows if they are objects with the same keys, as of rows by id. Columns of pandas are a fault.
    """
    lists = {key: item for key, item in value.items() if type(item) is list and item and type(item[0]) is dict}
    has_messages = any(role_of(speaker_of(items[0])) is not None for items in lists.values())
    objects = [item for item in value.values() if type(item) is dict]
    keys = objects[0].keys() if objects and len(objects) == len(value) else {}
    if keys and all(key.isdigit() for key in keys):
        yield replace(
            row, record=None, fault="columns, as pandas writes them. Write rows: orient='records', lines=True"
        )
    elif keys and len(objects) > 1 and all(item.keys() == keys for item in objects):
        yield from _rows_of_items(objects, name)
    elif has_messages:
        yield row
    elif len(lists) > 1 and lists.keys() <= ROW_LISTS:
        yield replace(row, record=None, fault=f"rows in several lists: {', '.join(lists)}. Write a file for each")
    elif len(lists) == 1 and lists.keys() <= ROW_LISTS:
        (items,) = lists.values()
        yield from _rows_of_items(items, name)
    else:
        yield row


def _rows_of_items(items: list[Any], name: str) -> Iterator[Row]:
    return (object_row(item, f"{name}:{number}") for number, item in enumerate(items, 1))


def _table(path: Path, part: Part) -> Iterator[Row]:
    import pyarrow as pa

    number = part.first - 1
    try:
        for batch in _batches(path, part):
            for item in _items(batch):
                number += 1
                yield _table_row(item, f"{part.path}:{number}")
    except (pa.ArrowException, OSError, DamagedFileError) as error:
        yield _rest(part.path, number, f"damaged {file_kind(part.path)[0]} file: {error}")


def _batches(path: Path, part: Part) -> Iterator[Any]:
    """Yield the rows of a table in batches of at most TABLE_ROWS. A compressed table is read whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind, packed = file_kind(part.path)
    source = pa.BufferReader(read_whole(path)) if packed else pa.OSFile(str(path), "rb")
    if kind == ".parquet":
        table = pq.ParquetFile(source)
        groups = range(part.start, table.num_row_groups if part.end is None else part.end)
        for number in groups:
            group = table.metadata.row_group(number)
            rows = rows_at_once(group.num_rows, group.total_byte_size, TABLE_ROWS, TABLE_BYTES)
            if longest := _dictionary_bytes(source, group):  # each row may repeat it
                rows = max(1, min(rows, VALUES_BYTES // longest))
            yield from table.iter_batches(rows, row_groups=[number])
    else:
        for batch in _arrow_batches(source):
            dictionaries = [column.dictionary.nbytes for column in batch.columns if pa.types.is_dictionary(column.type)]
            rows = max(1, min(TABLE_ROWS, VALUES_BYTES // max([1, *dictionaries])))
            for first in range(0, len(batch), rows):
                yield batch.slice(first, rows)


def _dictionary_bytes(source: Any, group: Any) -> int:
    """Return the size of the largest dictionary of a row group, decompressed: no value of it is longer.

    The footer does not say it. A header of a page begins with its kind and this size, each an integer of Thrift's
    compact protocol: a byte, then seven bits at a time (parquet-format, PageHeader).
    """
    largest = 0
    for number in range(group.num_columns):
        column = group.column(number)
        if column.physical_type != "BYTE_ARRAY" or not column.has_dictionary_page:
            continue
        header = source.read_at(16, column.dictionary_page_offset)
        numbers = re.match(rb"\x15([\x80-\xff]*[\0-\x7f])\x15([\x80-\xff]*[\0-\x7f])", header, re.DOTALL)
        if numbers:
            largest = max(largest, sum((byte & 127) << (7 * at) for at, byte in enumerate(numbers[2])) >> 1)
    return largest


def _arrow_batches(source: Any) -> Iterator[Any]:
    """Yield the batches of an Arrow file, or of an Arrow stream, which datasets writes. Raises DamagedFileError."""
    import pyarrow as pa

    if source.size() >= len(ARROW_FILE) and source.read_at(len(ARROW_FILE), 0) == ARROW_FILE:
        file = pa.ipc.open_file(source)
        yield from map(file.get_batch, range(file.num_record_batches))
        return
    source.seek(0)
    yield from pa.ipc.open_stream(source)
    end = len(ARROW_END)  # pyarrow takes a stream that ends between two batches for a whole one
    if source.size() < end or source.read_at(end, source.size() - end) != ARROW_END:
        raise DamagedFileError("it ends without the mark that ends a stream, so batches may be missing")


def _delimited(path: Path, name: str, delimiter: str) -> Iterator[Row]:
    """Yield the rows of a table as text, whose first row names the columns; all values are text."""
    number = 0
    csv.field_size_limit(ROW_BYTES)
    try:
        with open_raw(path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
            table = csv.reader(_text_lines(path, text), delimiter=delimiter, strict=True)
            columns = next(table, [])
            if len(set(columns)) < len(columns) or not all(columns):
                yield _rest(name, 0, f"expected a name for each column in the first row, found {columns[:10]}")
                return
            for cells in table:
                if cells:
                    number += 1
                    yield _delimited_row(columns, cells, f"{name}:{number}")
    except (csv.Error, DamagedFileError) as error:
        yield _rest(name, number, error)


def _text_lines(path: Path, text: io.TextIOWrapper) -> Iterator[str]:
    """Yield the lines of a table as text. Raises csv.Error: one is too long. DamagedFileError: the file is a bomb."""
    most, position = most_bytes(path), 0
    while line := text.readline(ROW_BYTES + 1):
        position += len(line)
        if len(line) > ROW_BYTES:
            raise csv.Error(f"a line of more than {ROW_BYTES:,} characters")
        if position > most:
            raise bomb(path)
        yield line


def _delimited_row(columns: list[str], cells: list[str], location: str) -> Row:
    raw = ",".join(cells)[:RAW_CHARS].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if len(cells) != len(columns):
        return Row(location, None, f"expected {len(columns)} columns, found {len(cells)}", raw)
    text = json.dumps(dict(zip(columns, cells, strict=True)), ensure_ascii=False)
    return parse_row(text.encode("utf-8", "surrogateescape"), location)


def _items(batch: Any) -> list[Json | Exception]:
    """Return the rows of a batch; an exception for a row that Python cannot hold (no UTF-8, no valid date)."""
    try:
        return list(batch.to_pylist())
    except (OverflowError, ValueError) as error:
        if len(batch) == 1:
            return [error]
        return [item for row in range(len(batch)) for item in _items(batch.slice(row, 1))]


def _table_row(item: Json | Exception, location: str) -> Row:
    if isinstance(item, Exception):
        return Row(location, None, f"a value that cannot be read: {item}")
    try:
        text = json.dumps(_without_nulls(item), default=_as_text)
    except UnicodeDecodeError as error:
        return Row(location, None, f"a column of bytes that are not UTF-8: {error}", repr(item)[:RAW_CHARS])
    return parse_row(text.encode(), location)


def _without_nulls(value: Any) -> Any:
    """Leave out nulls, and NaN, which is pandas' null: a Parquet struct has every key in every row."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None and item == item}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _as_text(value: Any) -> str:
    """Return the text of a value that JSON has no type for: bytes that hold text, dates, decimals."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


# Values to rows


def parse_row(text: bytes, location: str) -> Row:
    """Return the row of a JSON object, given as text."""
    raw = text[: 4 * RAW_CHARS].decode("utf-8", "replace")[:RAW_CHARS]
    try:
        value = strict_json.parse(text)
    except UnicodeDecodeError as error:
        coding = " (UTF-16?)" if text[:2] in UTF_16 else " (compressed?)" if text[:2] == GZIP else ""
        fault = f"not valid UTF-8{coding}: byte {text[error.start]:#04x} at {error.start}"
        return Row(location, None, fault, raw)
    except ValueError as error:
        return Row(location, None, f"not valid JSON: {error}", raw)
    return _row(value, location, raw, len(text))


def object_row(value: Any, location: str) -> Row:
    """Return the row of a JSON value."""
    return _row(value, location, json.dumps(value, ensure_ascii=False)[:RAW_CHARS])


def _row(value: Any, location: str, raw: str, size: int = 0) -> Row:
    if not isinstance(value, dict):
        return Row(location, None, f"expected an object, found {type(value).__name__}", raw)
    return Row(location, value, "", raw, size=size)
