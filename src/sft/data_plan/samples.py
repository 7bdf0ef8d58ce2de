"""Samples: rows of the files of a source in a small folder that formats read as they read data/raw/<source>/.

Files up to WHOLE_BYTES are read whole. Of larger ones: rows of lines by sft.data_plan.row_sampling, and row groups of
a Parquet file by its footer. A compressed file, or one on a server without ranges, gives the rows at its start, with a
note. Other large files (JSON arrays, .csv, .arrow) cannot be read in part: their figures are not known.
"""

import bz2
import gzip
import io
import lzma
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sft.cli import InputError
from sft.data_plan.ranges import NOT_RANGED, RangeReader, RemoteFile
from sft.data_plan.row_sampling import BUDGET_BYTES, Drawn, draw_rows, draw_totals, exact_totals, rows_of_prefix
from sft.dataset_card import CARD
from sft.hashing import BLOCK_BYTES
from sft.params.data import Read
from sft.raw_folders import LINES, file_kind, select_files

WHOLE_BYTES, WHOLE_COMPRESSED_BYTES = 100_000_000, 16_000_000
COMPRESSED_PREFIX = 8_000_000
FEW_GROUPS = 8
AT_ITS_START = "from rows at its start: right only if its rows are in random order"


class NotSampledError(InputError):
    """A large file of a kind that cannot be read in part."""


@dataclass(frozen=True)
class Sampled:
    """The rows of one file that were read, and how totals of the file follow from them."""

    name: str
    """Path of the small file in the folder."""
    bytes_read: int
    rows_of_read: list[int] | None = None
    """Rows of each read, in the order of the small file; None: the whole file."""
    seen: list[float] | None = None
    """Of each read: its bytes, or its rows if the file states how many it has."""
    size: float = 0
    """What `seen` is a part of."""
    rows_factor: float | None = None
    note: str = ""

    def read_of(self, row: int) -> int:
        """Return the read of a row, numbered from 0."""
        return 0 if self.rows_of_read is None else int(np.searchsorted(np.cumsum(self.rows_of_read), row, "right"))

    def totals(self, by_read: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.float64]:
        """Return draws of the totals of the file; `by_read`: (reads, figures)."""
        if self.seen is None:
            return exact_totals(by_read.sum(0).tolist())
        return draw_totals(by_read, np.array(self.seen, np.float64), self.size, self.rows_factor, seed)


def names_to_read(files: list[RemoteFile], read: Read, folder: Path) -> tuple[set[str], str]:
    """Return the names that split and config take, and a line about the others. `folder` must be empty, and is again.

    Raises:  InputError: no file of this split, or no such config.
    """
    for file in files:
        (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
        (folder / file.name).write_bytes(file.read(0, file.size) if file.name == CARD else b"")
    selected = select_files(folder, read.split, read.config)
    for file in files:
        (folder / file.name).unlink()
    return set(selected.read), selected.line()


def sample_file(file: RemoteFile, folder: Path, seed: int) -> Sampled:
    """Write rows of a file into the folder.

    Raises:  InputError: no answer. NotSampledError: a large file of a kind that cannot be read in part.
    """
    kind, packed = file_kind(file.name)
    path = folder / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    if file.size <= (WHOLE_COMPRESSED_BYTES if packed else WHOLE_BYTES):
        path.write_bytes(file.read(0, file.size))
        return Sampled(file.name, file.size)
    if kind == ".parquet" and not packed and file.has_ranges:
        return _sample_groups(file, path, seed)
    if kind not in LINES:
        raise NotSampledError(f"{file.name}: {file.size:,} bytes: only whole files, lines and Parquet can be planned")
    if packed or not file.has_ranges:
        drawn = _prefix(file)
    else:
        drawn = draw_rows(file.size, file.read, seed, BUDGET_BYTES)
    reads = [[row.rstrip(b"\r\n") for row in rows if row.strip()] for rows in drawn.reads]
    path.write_bytes(_compressed(b"".join(row + b"\n" for rows in reads for row in rows), packed))
    return Sampled(
        name=file.name,
        bytes_read=drawn.bytes_read,
        rows_of_read=[len(rows) for rows in reads],
        seen=[float(sum(map(len, rows))) for rows in drawn.reads],
        size=drawn.size,
        rows_factor=drawn.rows_factor,
        note=drawn.note,
    )


def _prefix(file: RemoteFile) -> Drawn:
    """Return the rows at the start of a file of lines."""
    packed = file_kind(file.name)[1]
    length = min(file.size, COMPRESSED_PREFIX if packed else BUDGET_BYTES)
    content = file.read(0, length)
    if not packed:
        return rows_of_prefix(content, file.size, length == file.size, f"{AT_ITS_START} ({NOT_RANGED})")
    text, used = _decompressed(content, packed)
    drawn = rows_of_prefix(text, round(file.size * len(text) / used), False, f"{AT_ITS_START} (it is compressed)")
    return Drawn(drawn.reads, drawn.size, None, length, drawn.note)


def _compressed(data: bytes, packed: str) -> bytes:
    """Return data compressed as the suffix says, so that the sample of a file has its name, which no other file has."""
    import zstandard

    compress: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress,
        ".zst": zstandard.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
    }
    return compress[packed](data) if packed else data


def _decompressed(prefix: bytes, packed: str) -> tuple[bytes, int]:
    """Return what the start of a compressed file holds, BUDGET_BYTES at most, and how many bytes of it that took.

    It may have several members. Raises InputError: damaged.
    """
    import zstandard

    openers: dict[str, Callable[[Any], Any]] = {
        ".gz": lambda file: gzip.GzipFile(fileobj=file),
        ".zst": lambda file: zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True),
        ".bz2": bz2.BZ2File,
        ".xz": lzma.LZMAFile,
    }

    def read_some(decoder: Any) -> bytes:
        """Return what the next bytes unpack to; `read` would lose it where the prefix ends within a member."""
        block: bytes = decoder.read1(BLOCK_BYTES) if hasattr(decoder, "read1") else decoder.read(BLOCK_BYTES)
        return block

    file, text = io.BytesIO(prefix), bytearray()
    try:
        with openers[packed](file) as decoder:
            while len(text) < BUDGET_BYTES and (block := read_some(decoder)):
                text += block
            return bytes(text), max(1, file.tell())
    except EOFError:  # the prefix ends within a member
        return bytes(text), len(prefix)
    except (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError) as error:
        raise InputError(f"damaged compressed file: {error}") from error


def _sample_groups(file: RemoteFile, path: Path, seed: int) -> Sampled:
    """Return row groups of a Parquet file, in a random order, until BUDGET_BYTES; its footer has the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    reader = RangeReader(file)
    try:
        table = pq.ParquetFile(pa.PythonFile(reader, mode="r"))
        footer = reader.bytes_read
        groups, rows = list(range(table.num_row_groups)), table.metadata.num_rows
        random.Random(seed).shuffle(groups)
        sizes = list[int]()
        with pq.ParquetWriter(path, table.schema_arrow) as writer:
            for group in groups:
                if reader.bytes_read - footer >= BUDGET_BYTES and len(sizes) > 1:
                    break
                content = table.read_row_group(group)
                writer.write_table(content)
                sizes.append(len(content))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file.name}: not a Parquet file: {error}") from error
    if len(sizes) == len(groups):
        return Sampled(file.name, reader.bytes_read)
    note = f"from {len(sizes)} row groups: too few for an interval" if len(sizes) < FEW_GROUPS else ""
    return Sampled(file.name, reader.bytes_read, sizes, [float(size) for size in sizes], rows, note=note)
