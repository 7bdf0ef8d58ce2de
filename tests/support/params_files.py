"""Changed copies of the repository's params.yaml, and the errors that they give."""

import re
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.params.check import read

DEFAULT = Path(__file__).parents[2] / "params.yaml"


def changed(folder: Path, pattern: str, new: str) -> Path:
    """Write the repository's params.yaml with the first match of a pattern replaced; ^ and $ match at lines."""
    text, count = re.subn(pattern, new, DEFAULT.read_text(encoding="utf-8"), count=1, flags=re.MULTILINE)
    assert count == 1
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def with_source(folder: Path, source: str) -> Path:
    """Write the repository's params.yaml with one more source, `name: {...}`."""
    return changed(folder, "  sources:\n", f"  sources:\n    {source}\n")


def error_of(path: Path) -> str:
    """Return the message of the error that reading a params.yaml raises."""
    with pytest.raises(InputError) as caught:
        read(path)
    return str(caught.value)


def line_of(path: Path, text: str) -> int:
    """Return the number of the first line that starts with a text."""
    lines = path.read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.strip().startswith(text))
