"""Raw files for tests of formats, and the records of rows without a fault."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sft.formats.raw_files import Row


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
