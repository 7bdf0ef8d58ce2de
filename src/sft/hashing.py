"""Digests of files, folders and values, and keyed hashes that give the same order on every machine."""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

BLOCK_BYTES = 1 << 20
SETTLED_NS = 2_000_000_000
"""A file that changed less than this ago could change again within one tick of its file system's clock."""
_known_digests: dict[tuple[int, ...], str] = {}


def file_digest(path: Path) -> str:
    """Return the sha256 of a file, as 64 hex digits. A large file that has not changed is read once by a process."""
    before = _stamp(path.stat())
    if before in _known_digests:
        return _known_digests[before]
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    result = digest.hexdigest()
    after = path.stat()
    if after.st_size > BLOCK_BYTES and _stamp(after) == before and time.time_ns() - after.st_ctime_ns > SETTLED_NS:
        _known_digests[before] = result
    return result


def _stamp(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def files_below(folder: Path) -> list[Path]:
    """Return every file below a folder, sorted; none, if there is no folder.

    Raises:  OSError: a folder below it cannot be read. `Path.rglob` would leave out what it holds, without a word.
    """
    if not folder.exists():
        return []
    paths = (Path(parent, name) for parent, _, names in os.walk(folder, onerror=_raise) for name in names)
    return sorted(path for path in paths if path.is_file())


def _raise(error: OSError) -> NoReturn:
    raise error


def folder_digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below a folder, by relative path, in order."""
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files_below(folder)}


def folder_digest(folder: Path) -> str:
    """Return one sha256 for a folder: of the names and digests of all its files."""
    return value_digest(folder_digests(folder))


def value_digest(value: Any) -> str:
    """Return the sha256 of a JSON-like value, independent of the order of its keys.

    >>> value_digest({"a": 1, "b": 2}) == value_digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(canonical_json(value)).hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return a JSON-like value as compact JSON in UTF-8, with sorted keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def keyed_hash(seed: int, text: str) -> str:
    """Return a hash of a text and a seed. Sorting by it shuffles texts in the same way on every machine."""
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()


def keyed_hashes(seed: int, texts: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Return the first 64 bits of the keyed hash of each text, as numbers in the same order.

    >>> f"{keyed_hashes(1, ['text'])[0]:016x}" == keyed_hash(1, "text")[:16]
    True
    """
    digests = (hashlib.sha256(f"{seed}:{text}".encode()).digest() for text in texts)
    return np.fromiter((int.from_bytes(digest[:8]) for digest in digests), np.uint64)
