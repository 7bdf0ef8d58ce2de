"""Raw files to rows: the first step of every format.

`read_objects(folder)` reads the files of data/raw/<source>/ in the order of their names and yields a `Row` for each
JSON object: .jsonl, .ndjson, .json (an array, an object, or lines) and .parquet, each also as .gz or .zst. Files of
other kinds (a README) give no rows. A row that cannot be read is a `Row` with a fault, so that it is counted.

`plan_parts(folder)` divides the same files into parts for workers; it depends on the files alone. The rows that
`read_part` yields for all parts, in order, are those of `read_objects`.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sft import strict_json

RAW_CHARS = 2_000  # of a faulty row, kept to show it
LINES, DOCUMENT, TABLE, COMPRESSED = {".jsonl", ".ndjson"}, {".json"}, {".parquet"}, {".gz", ".zst"}
KINDS = ".jsonl, .ndjson, .json or .parquet, plain or with .gz or .zst"  # the same, for messages
PART_BYTES = 16 << 20
PARQUET_ROWS = 256  # read together
ZST_BYTES, READ_BYTES = 16 << 10, 1 << 20  # decompressed, and returned, at a time
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


class Part(NamedTuple):
    """A raw file, or a part of it."""

    path: str
    """Relative to the folder, with slashes."""
    first: int = 1
    """Number of the first line or row, from 1."""
    start: int = 0
    end: int | None = None
    """Byte range of a file of lines, or row groups of a table; end None = to the end of the file."""


def read_objects(folder: Path) -> Iterator[Row]:
    """Yield a row for each JSON object in the files below a folder."""
    for name in _files(folder):
        yield from read_part(folder, Part(name))


def plan_parts(folder: Path) -> list[Part]:
    """Divide the files below a folder into parts of about PART_BYTES. Compressed files and .json stay whole."""
    parts: list[Part] = []
    for name in _files(folder):
        path = folder / name
        if path.stat().st_size <= PART_BYTES or path.suffix not in LINES | TABLE:
            parts.append(Part(name))
        elif path.suffix in LINES:
            parts += _line_parts(path, name)
        else:
            parts += _table_parts(path, name)
    return parts


def read_part(folder: Path, part: Part) -> Iterator[Row]:
    """Yield the rows of a part."""
    path = folder / part.path
    kind = Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix
    if kind in LINES:
        return _lines(path, part)
    return _document(path, part.path) if kind in DOCUMENT else _table(path, part)


def _files(folder: Path) -> list[str]:
    """Return the names of the files below a folder that hold rows, sorted."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    kinds = LINES | DOCUMENT | TABLE
    return [
        path.relative_to(folder).as_posix()
        for path in paths
        if (Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix) in kinds
    ]


def _line_parts(path: Path, name: str) -> Iterator[Part]:
    """Yield parts that end with the first line that ends after PART_BYTES."""
    first, start, end, lines = 1, 0, 0, 0
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            if not block.endswith(b"\n"):
                block += file.readline()
            end += len(block)
            lines += block.count(b"\n")
            if end - start >= PART_BYTES:
                yield Part(name, first, start, end)
                first, start, lines = first + lines, end, 0
    if end > start:
        yield Part(name, first, start, end)


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


# Compression


def _open(path: Path) -> io.BufferedIOBase:
    if path.suffix == ".gz":
        return gzip.open(path)
    if path.suffix == ".zst":
        return io.BufferedReader(_Zstandard(path), READ_BYTES)
    return path.open("rb")


class _Zstandard(io.RawIOBase):
    """A reader of .zst files that raises EOFError if the file is truncated; zstandard's own reader just ends."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("rb")
        self.decoder: Any = None
        self.ready = memoryview(b"")

    def readable(self) -> bool:
        """Return True, which BufferedReader asks for."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the start of the buffer and return the number of bytes; 0 at the end."""
        import zstandard

        rest = b""
        while not self.ready:
            if self.decoder is not None and self.decoder.eof:  # a file may hold several frames
                rest, self.decoder = self.decoder.unused_data, None
            block = rest or self.file.read(ZST_BYTES)
            rest = b""
            if not block:
                if self.decoder is not None:
                    raise EOFError("the file is truncated")
                return 0
            self.decoder = self.decoder or zstandard.ZstdDecompressor().decompressobj()
            self.ready = memoryview(self.decoder.decompress(block))
        count = min(len(buffer), len(self.ready))
        buffer[:count], self.ready = self.ready[:count], self.ready[count:]
        return count

    def close(self) -> None:
        """Close the reader and its file."""
        self.file.close()
        super().close()


def _decompression_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that readers raise for damaged compressed files."""
    import zstandard

    return (gzip.BadGzipFile, zlib.error, EOFError, zstandard.ZstdError)


# Files to rows


def _lines(path: Path, part: Part) -> Iterator[Row]:
    number, position = part.first - 1, part.start
    try:
        with _open(path) as file:
            if part.start:
                file.seek(part.start)
            for line in file:
                if part.end is not None and position >= part.end:
                    break
                number, position = number + 1, position + len(line)
                if line.strip():
                    yield parse_row(line.rstrip(b"\r\n"), f"{part.path}:{number}")
    except _decompression_errors() as error:
        fault = f"damaged compressed file, the rest is unreadable: {error}"
        yield Row(f"{part.path}:{number + 1}", None, fault, is_end=True)


def _document(path: Path, name: str) -> Iterator[Row]:
    """Yield the rows of a .json file: an array of objects, one object, or (as some publishers write) lines."""
    try:
        with _open(path) as file:
            content = file.read()
    except _decompression_errors() as error:
        yield Row(f"{name}:1", None, f"damaged compressed file: {error}", is_end=True)
        return
    whole = parse_row(content, f"{name}:1")
    if whole.record is not None:
        yield whole
    elif content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        try:
            items = strict_json.parse(content)
        except ValueError as error:
            yield Row(f"{name}:1", None, f"not valid JSON: {error}", whole.raw, is_end=True)
            return
        for number, item in enumerate(items, 1):
            yield object_row(item, f"{name}:{number}")
    else:
        yield from _lines(path, Part(name))


def _table(path: Path, part: Part) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = part.first - 1
    try:
        source = io.BytesIO(_open(path).read()) if path.suffix != ".parquet" else path
        table = pq.ParquetFile(source)
        groups = range(part.start, table.num_row_groups if part.end is None else part.end)
        for batch in table.iter_batches(PARQUET_ROWS, row_groups=list(groups)):
            for item in _items(batch):
                number += 1
                yield _table_row(item, f"{part.path}:{number}")
    except (pa.ArrowException, OSError, *_decompression_errors()) as error:
        fault = f"damaged Parquet file, the rest is unreadable: {error}"
        yield Row(f"{part.path}:{number + 1}", None, fault, is_end=True)


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
        return Row(location, None, f"not valid UTF-8: byte {text[error.start]:#04x} at {error.start}", raw)
    except ValueError as error:
        return Row(location, None, f"not valid JSON: {error}", raw)
    return _row(value, location, raw)


def object_row(value: Any, location: str) -> Row:
    """Return the row of a JSON value."""
    return _row(value, location, json.dumps(value, ensure_ascii=False)[:RAW_CHARS])


def _row(value: Any, location: str, raw: str) -> Row:
    if not isinstance(value, dict):
        return Row(location, None, f"expected an object, found {type(value).__name__}", raw)
    return Row(location, value, "", raw)
