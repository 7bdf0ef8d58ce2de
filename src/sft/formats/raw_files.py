"""Raw files to rows: what every format starts from.

`read_objects(folder)` streams the files of data/raw/<source>/ in the order of their names and yields a `Row`
for each JSON object: .jsonl, .ndjson, .json (an array, an object, or lines) and .parquet, each also .gz or
.zst. Other files (a README) yield no rows. `cut` names parts of the same files for workers, by the files alone;
`read_part` reads one, and all in order are what `read_objects` gives. `convert` turns objects into records in
OpenAI's form (messages, tools, meta). None of them raises for a row's sake: a broken row is a row with a fault,
so that it is counted.
"""

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from sft import strict_json

RAW_CHARS = 2_000
LINES, DOCUMENT, TABLE, PACKED = {".jsonl", ".ndjson"}, {".json"}, {".parquet"}, {".gz", ".zst"}
KINDS = ".jsonl, .ndjson, .json or .parquet, with or without .gz or .zst behind"  # the same, for a message
PART_BYTES = 16 << 20
PARQUET_ROWS = 256  # read together
ZST_BYTES, READ_BYTES = 16 << 10, 1 << 20  # unpacked, and handed on, at a time
# The reasons that a format may give in meta["refuse"] for a sound record that must not be trained on.
CLOSED_MODEL, FAILED_ROLLOUT, NO_ANSWER = "closed-model", "failed-rollout", "no-answer"
FILTERED = "filtered-by-field"
REFUSALS = (CLOSED_MODEL, FAILED_ROLLOUT, NO_ANSWER, FILTERED)

Json = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One row of a raw file."""

    location: str
    """`file:n`, the file relative to the folder, n the line (of an array or a table: the item), from 1."""
    record: Json | None
    """messages, tools, meta; None if there is a fault."""
    fault: str = ""
    """What is wrong with the row, or empty."""
    raw: str = ""
    """The text of a faulty row, cut."""
    is_end: bool = False
    """Whether the file cannot be read from here on: nobody knows how many rows are lost."""


class Part(NamedTuple):
    """A part of a raw file, or all of it."""

    path: str
    """Relative to the folder, with slashes."""
    first: int = 1
    """Number of its first line, or row."""
    start: int = 0
    end: int | None = None
    """Bytes of a file of lines, or row groups of a table; None = to the end."""


def read_objects(folder: Path) -> Iterator[Row]:
    """Yield a row for each JSON object below a folder; its record is the object as it stands in the file."""
    for name in _files(folder):
        yield from read_part(folder, Part(name))


def cut(folder: Path) -> list[Part]:
    """Cut the files below a folder into parts of about PART_BYTES: files of lines and tables, if not compressed."""
    parts: list[Part] = []
    for name in _files(folder):
        path = folder / name
        if path.stat().st_size <= PART_BYTES or path.suffix not in LINES | TABLE:
            parts.append(Part(name))
        elif path.suffix in LINES:
            parts += _cut_lines(path, name)
        else:
            parts += _cut_table(path, name)
    return parts


def read_part(folder: Path, part: Part) -> Iterator[Row]:
    """Yield the rows of a part."""
    path = folder / part.path
    kind = Path(path.stem).suffix if path.suffix in PACKED else path.suffix
    if kind in LINES:
        return _lines(path, part)
    return _document(path, part.path) if kind in DOCUMENT else _table(path, part)


def _files(folder: Path) -> list[str]:
    """Name the files below a folder that hold rows, in order."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    kinds = LINES | DOCUMENT | TABLE
    return [
        path.relative_to(folder).as_posix()
        for path in found
        if (Path(path.stem).suffix if path.suffix in PACKED else path.suffix) in kinds
    ]


def _cut_lines(path: Path, name: str) -> Iterator[Part]:
    """Cut behind the first line that ends after PART_BYTES."""
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


def _cut_table(path: Path, name: str) -> Iterator[Part]:
    """Cut behind the first row group with which a part has PART_BYTES; a damaged table is one part."""
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
    """A reader of .zst files that raises EOFError where one is cut off; zstandard's own ends silently."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("rb")
        self.decoder: Any = None
        self.ready = memoryview(b"")

    def readable(self) -> bool:
        """Say yes, for BufferedReader."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a part of the buffer; 0 = the end."""
        import zstandard

        rest = b""
        while not self.ready:
            if self.decoder is not None and self.decoder.eof:  # a file may hold several frames
                rest, self.decoder = self.decoder.unused_data, None
            block = rest or self.file.read(ZST_BYTES)
            rest = b""
            if not block:
                if self.decoder is not None:
                    raise EOFError("the file is cut off")
                return 0
            self.decoder = self.decoder or zstandard.ZstdDecompressor().decompressobj()
            self.ready = memoryview(self.decoder.decompress(block))
        count = min(len(buffer), len(self.ready))
        buffer[:count], self.ready = self.ready[:count], self.ready[count:]
        return count

    def close(self) -> None:
        """Close the file too."""
        self.file.close()
        super().close()


def _damage() -> tuple[type[Exception], ...]:
    """Return what readers of damaged compressed and Parquet files raise."""
    import zstandard

    return (gzip.BadGzipFile, zlib.error, EOFError, zstandard.ZstdError)


# Containers


def _lines(path: Path, part: Part) -> Iterator[Row]:
    number, at = part.first - 1, part.start
    try:
        with _open(path) as file:
            if part.start:
                file.seek(part.start)
            for line in file:
                if part.end is not None and at >= part.end:
                    break
                number, at = number + 1, at + len(line)
                if line.strip():
                    yield parse_row(line.rstrip(b"\r\n"), f"{part.path}:{number}")
    except _damage() as error:
        fault = f"damaged compressed file, the rest is unreadable: {error}"
        yield Row(f"{part.path}:{number + 1}", None, fault, is_end=True)


def _document(path: Path, name: str) -> Iterator[Row]:
    """Read a .json file: an array of objects, one object, or (as some publishers write) lines."""
    try:
        with _open(path) as file:
            content = file.read()
    except _damage() as error:
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
    except (pa.ArrowException, OSError, *_damage()) as error:
        fault = f"damaged Parquet file, the rest is unreadable: {error}"
        yield Row(f"{part.path}:{number + 1}", None, fault, is_end=True)


def _items(batch: Any) -> list[Json | Exception]:
    """Return the rows of a batch, or what is wrong with one: a text that is not UTF-8, a date that Python has not."""
    try:
        return list(batch.to_pylist())
    except (OverflowError, ValueError) as error:
        if len(batch) == 1:
            return [error]
        return [item for row in range(len(batch)) for item in _items(batch.slice(row, 1))]


def _table_row(item: Json | Exception, where: str) -> Row:
    if isinstance(item, Exception):
        return Row(where, None, f"a value that cannot be read: {item}")
    try:
        text = json.dumps(_present(item), default=_as_text)
    except UnicodeDecodeError as error:
        return Row(where, None, f"a column of bytes that are not UTF-8: {error}", repr(item)[:RAW_CHARS])
    return parse_row(text.encode(), where)


def _present(value: Any) -> Any:
    """Leave out what is null: a Parquet struct has every key in every row, null where the row has none.

    NaN is pandas' null.
    """
    if isinstance(value, dict):
        return {key: _present(item) for key, item in value.items() if item is not None and item == item}
    return [_present(item) for item in value] if isinstance(value, list) else value


def _as_text(value: Any) -> str:
    """Write a type that JSON lacks: bytes (text whose writer did not say so), dates, decimals."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


# Rows


def parse_row(text: bytes, where: str) -> Row:
    """Make a row of the text of a JSON object."""
    raw = text[: 4 * RAW_CHARS].decode("utf-8", "replace")[:RAW_CHARS]
    try:
        value = strict_json.parse(text)
    except UnicodeDecodeError as error:
        return Row(where, None, f"not valid UTF-8: byte {text[error.start]:#04x} at {error.start}", raw)
    except ValueError as error:
        return Row(where, None, f"not valid JSON: {error}", raw)
    return _row(value, where, raw)


def object_row(value: Any, where: str) -> Row:
    """Make a row of a value that was read already."""
    return _row(value, where, json.dumps(value, ensure_ascii=False)[:RAW_CHARS])


def _row(value: Any, where: str, raw: str) -> Row:
    if not isinstance(value, dict):
        return Row(where, None, f"expected an object, found {type(value).__name__}", raw)
    return Row(where, value, "", raw)


def convert(rows: Iterable[Row], to_record: Callable[[Json, str], Json]) -> Iterator[Row]:
    """Turn objects into records, row by row."""
    return (converted(row, to_record) for row in rows)


def converted(row: Row, to_record: Callable[[Json, str], Json]) -> Row:
    """Turn an object into a record; an object that has not the format's shape becomes a fault."""
    if row.record is None:
        return row
    try:
        return Row(row.location, _checked(to_record(row.record, row.location)))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        return replace(row, record=None, fault=f"not of this format: {reason}")


def _checked(record: Json) -> Json:
    """Check the types that every reader of a record relies on. Raises ValueError."""
    messages, tools, meta = record["messages"], record.get("tools"), record.get("meta")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError("messages must be a list of objects")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise ValueError("tools must be a list of objects")
    if meta is not None and not isinstance(meta, dict):
        raise ValueError("meta must be an object")
    if meta and meta.get("refuse") not in (None, *REFUSALS):
        raise ValueError(f"meta.refuse must be one of {', '.join(REFUSALS)}")
    return record


# Parts of a record


def exchange(question: Any, answer: Any) -> list[Json]:
    """Return the messages of a question and its answer: texts, or lists of messages."""
    return [*_turn("user", question), *_turn("assistant", answer)]


def _turn(role: str, content: Any) -> list[Json]:
    if isinstance(content, list):
        return content
    if not isinstance(content, str):
        raise ValueError(f"question and answer must be texts or lists of messages, found {type(content).__name__}")
    return [{"role": role, "content": content}]


def call_of(id: str, call: Json) -> Json:
    """Bring a call, {name, arguments}, into OpenAI's form."""
    return {"id": id, "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}


def tool_of(tool: Json) -> Json:
    """Bring a tool into OpenAI's form: the bare function is wrapped, other keys than its own are left out."""
    function = tool.get("function", tool)
    kept = {key: function[key] for key in ("name", "description", "parameters") if function.get(key) is not None}
    return {"type": "function", "function": {"name": function["name"], **kept}}
