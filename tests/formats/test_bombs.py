"""bombs: files that grow when they are read, and lines without an end, cost one row or one message, not the memory."""

import bz2
import gzip
import lzma
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from sft.formats import compression, raw_files
from sft.formats.raw_files import plan_parts, read_objects, read_part

PACKERS = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": lambda content: bz2.compress(content, 1),
    ".xz": lambda content: lzma.compress(content, preset=0),
}
NAMES = ("a.jsonl", "a.json", "a.csv", "a.parquet")


@pytest.fixture
def low(monkeypatch):
    monkeypatch.setattr(raw_files, "ROW_BYTES", 1 << 15)
    monkeypatch.setattr(compression, "BOMB_BYTES", 1 << 16)
    monkeypatch.setattr(compression, "BOMB_RATIO", 5)


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("parts", [False, True])
def test_a_line_that_is_too_long_is_one_row(tmp_path, low, monkeypatch, suffix, parts):
    monkeypatch.setattr(raw_files, "PART_BYTES", 1 << 16)
    monkeypatch.setattr(compression, "BOMB_BYTES", 1 << 20)
    content = b'{"a": 1}\n{"a": "' + b"x" * (3 << 16) + b'"}\n{"a": 3}\n'
    (tmp_path / f"a.jsonl{suffix}").write_bytes(PACKERS[suffix](content))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    planned = plan_parts(tmp_path, scratch) if parts else []
    rows = [row for part in planned for row in read_part(tmp_path, part)] if parts else read_objects(tmp_path)
    first, long, last = rows
    assert (first.record, last.record, last.location) == ({"a": 1}, {"a": 3}, f"a.jsonl{suffix}:3")
    assert long.fault.startswith("a line of 196,618 bytes")
    assert len(long.raw) == raw_files.RAW_CHARS
    assert not long.is_end


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        *((f"{name}.gz", unit) for name in NAMES for unit in (b"x", b"\n", b'{"a": 1}\n')),
        *((f"{name}{suffix}", b"x") for name in NAMES for suffix in (".zst", ".bz2", ".xz")),
    ],
)
def test_a_bomb_ends_its_file_in_bounded_memory(tmp_path, low, name, unit):
    suffix = Path(name).suffix
    (tmp_path / name).write_bytes(PACKERS[suffix](unit * ((8 << 20) // len(unit))))
    tracemalloc.start()
    last = None
    for row in read_objects(tmp_path):
        last = row
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert last is not None
    assert last.is_end
    assert "more than" in last.fault
    assert suffix in (".zst", ".xz") or peak < 5 << 20, "less than what is in the file"
    assert len(list(plan_parts(tmp_path, tmp_path))) == 1


def test_a_zst_file_grows_by_64_mb_at_a_time(tmp_path, low):
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(b"x" * (256 << 20)))
    tracemalloc.start()
    (row,) = read_objects(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert row.is_end
    assert peak < 140 << 20


def test_a_value_that_a_parquet_dictionary_repeats_is_not_read_for_many_rows_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_files, "VALUES_BYTES", 3_100_000)
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), pa.array(["x" * 1_000_000]))
    pq.write_table(pa.table({"id": range(300), "a": values}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 200_000
    batches = list(raw_files._batches(tmp_path / "a.parquet", raw_files.Part("a.parquet")))
    assert {len(batch) for batch in batches} == {3}
    assert sum(map(len, batches)) == 300
