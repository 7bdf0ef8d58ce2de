"""Raw files for tests of formats, and the records of rows without a fault."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sft.formats.chat_forms import PACKAGES, FieldCounts, check_read, convert_chats, select_rows
from sft.formats.raw_files import Row, read_objects


def write(folder: Path, name: str, content: bytes | str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def write_lines(folder: Path, name: str, *objects: Any) -> None:
    write(folder, name, "".join(json.dumps(item) + "\n" for item in objects))


def records(rows: Iterable[Row]) -> list[dict[str, Any]]:
    rows = list(rows)
    assert [row.fault for row in rows] == [""] * len(rows)
    return [row.record for row in rows if row.record is not None]


def read_rows(folder: Path, format: str, fields: Any = None, select: Any = None) -> Iterator[Row]:
    """All rows of a folder, as the filter stage reads them in parts."""
    fields, select = fields or {}, select or {}
    check_read(format, fields, select)
    return PACKAGES[format](folder) if format in PACKAGES else _read_chats(folder, format, fields, select)


def _read_chats(folder: Path, format: str, fields: Any, select: Any) -> Iterator[Row]:
    counts = FieldCounts(unseen_select=set(select))
    rows = select_rows(read_objects(folder), select, counts)
    yield from convert_chats(rows, format, fields, select, counts)
    counts.check(format, fields)
