"""Compressed files as streams of bytes that raise an error if the file is damaged or ends too early."""

import bz2
import contextlib
import io
import lzma
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sft.raw_folders import COMPRESSED

READ_BYTES, ZST_BUFFER_BYTES = 1 << 20, 1 << 14  # returned at a time
# A file that grows to more of both is a bomb: .gz cannot grow as much, and text does not.
BOMB_RATIO, BOMB_BYTES = 2_000, 1 << 30


class DamagedFileError(ValueError):
    """A compressed file that is damaged or truncated."""


@contextlib.contextmanager
def open_raw(path: Path) -> Iterator[BinaryIO]:
    """Open a file; .gz, .zst, .bz2 and .xz are decompressed. Raises DamagedFileError, also while it is read."""
    from isal import igzip, igzip_lib  # decompresses .gz 2.4 times as fast as Python's gzip

    damaged: Any = (zlib.error, igzip_lib.IsalError, lzma.LZMAError, EOFError)
    openers: dict[str, Any] = {".gz": igzip.open, ".zst": _open_zst, ".bz2": bz2.open, ".xz": lzma.open}
    try:
        with openers.get(path.suffix.lower(), lambda file: file.open("rb"))(path) as file:
            yield file
    except damaged as error:
        raise DamagedFileError(f"damaged compressed file: {error}") from error
    except OSError as error:
        if (
            error.errno is not None
        ):  # of the disk; gzip, bz2 and pyarrow raise OSError without a number for a damaged file
            raise
        raise DamagedFileError(f"damaged compressed file: {error}") from error


def most_bytes(path: Path) -> int:
    """Return how many bytes a raw file may hold, decompressed."""
    is_packed = path.suffix.lower() in COMPRESSED
    return max(BOMB_BYTES, BOMB_RATIO * path.stat().st_size) if is_packed else sys.maxsize


def bomb(path: Path) -> DamagedFileError:
    """Return the error of a file that holds more."""
    return DamagedFileError(f"more than {most_bytes(path):,} bytes from {path.stat().st_size:,} compressed ones")


def read_whole(path: Path) -> bytes:
    """Return what is in a file. Raises DamagedFileError: as open_raw; it is a bomb."""
    most, content = most_bytes(path), io.BytesIO()
    with open_raw(path) as file:
        while block := file.read(READ_BYTES):
            if content.tell() + len(block) > most:
                raise bomb(path)
            content.write(block)
    return content.getvalue()


def lines_of(path: Path, file: BinaryIO, longest: int) -> Iterator[tuple[bytes, int]]:
    """Yield each line of an open file with its length; only the start of one longer than `longest` is in memory.

    Raises:  DamagedFileError: the file is a bomb.
    """
    most, position = most_bytes(path), 0
    while line := file.readline(longest + 1):
        size, end = len(line), line
        while len(end) and size > longest and not end.endswith(b"\n"):
            end = file.readline(READ_BYTES)
            size += len(end)
            if position + size > most:
                raise bomb(path)
        position += size
        if position > most:
            raise bomb(path)
        yield line, size


def skip(file: BinaryIO, count: int) -> None:
    """Go `count` bytes forward; a file that cannot seek is read."""
    if file.seekable():
        file.seek(count, io.SEEK_CUR)
        return
    while count > 0 and (block := file.read(min(count, READ_BYTES))):
        count -= len(block)


def _open_zst(path: Path) -> io.BufferedReader:
    import pyarrow as pa  # zstandard's reader just ends where a file is truncated

    # What is in the buffer is lost where the file is damaged, so it is small.
    return io.BufferedReader(pa.input_stream(str(path), compression="zstd"), ZST_BUFFER_BYTES)
