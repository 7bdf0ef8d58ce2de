"""Compressed files are read to their end, or say that they cannot be."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest
import zstandard

from sft.formats.raw_files import read_objects
from sft.hashing import value_digest
from tests.support.raw_rows import records, write

LINE = b'{"messages": []}\n'


@pytest.mark.parametrize("suffix", ["gz", "zst", "bz2", "xz"])
def test_a_cut_off_archive_gives_its_sound_rows_then_a_fault_never_silence(tmp_path: Path, suffix: str) -> None:
    packers = {"gz": gzip.compress, "zst": zstandard.compress, "xz": lzma.compress}
    pack = packers.get(suffix, lambda text: bz2.compress(text, 1))
    lines = "".join(json.dumps({"messages": [], "n": value_digest(n)}) + "\n" for n in range(4000))
    packed = pack(lines.encode())
    write(tmp_path, f"a.jsonl.{suffix}", packed[: len(packed) * 3 // 4])
    write(tmp_path, "b.jsonl", LINE)
    rows = list(read_objects(tmp_path))
    faults = [row for row in rows if row.record is None]
    assert 1000 < len(rows) < 4000
    assert "damaged compressed file" in faults[-1].fault
    assert rows[-1].location == "b.jsonl:1"


def test_a_zst_file_of_several_frames_is_read_to_its_end(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl.zst", zstandard.compress(LINE) + zstandard.compress(LINE * 9_999))
    assert len(records(read_objects(tmp_path))) == 10_000


@pytest.mark.parametrize("suffix", ["gz", "zst", "bz2", "xz"])
def test_a_file_that_is_not_compressed_is_one_fault(tmp_path: Path, suffix: str) -> None:
    write(tmp_path, f"a.jsonl.{suffix}", LINE)
    (row,) = read_objects(tmp_path)
    assert row.is_end
    assert "damaged compressed file" in row.fault
