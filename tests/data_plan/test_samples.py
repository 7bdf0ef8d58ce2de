"""samples: which files are read whole, in part or not at all, and where each row of a small file came from."""

import bz2
import functools
import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest
import zstandard

from sft.cli import InputError
from sft.data_plan import samples
from sft.data_plan.ranges import RemoteFile, read_local
from sft.data_plan.samples import NotSampledError, Sampled, names_to_read, sample_file
from sft.params.data import Read

LINES = b"".join(b'{"n": %d}\n' % number for number in range(20_000))
UNPACKED = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".zst": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
}
PACKED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}


def local(folder: Path, name: str, content: bytes) -> RemoteFile:
    (folder / name).write_bytes(content)
    return RemoteFile(name, len(content), functools.partial(read_local, folder / name))


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to write to; every file is a large one."""
    monkeypatch.setattr(samples, "WHOLE_BYTES", 10)
    monkeypatch.setattr(samples, "WHOLE_COMPRESSED_BYTES", 10)
    (tmp_path / "small").mkdir()
    return tmp_path / "small"


def test_a_small_file_is_whole(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    sampled = sample_file(local(tmp_path, "a.json", b"[]"), tmp_path / "out", 1)
    assert (sampled, (tmp_path / "out/a.json").read_bytes()) == (Sampled("a.json", 2), b"[]")


def test_rows_of_lines_are_written_read_by_read(small: Path) -> None:
    sampled = sample_file(local(small.parent, "a.jsonl", LINES), small, 1)
    rows = (small / "a.jsonl").read_bytes().splitlines()
    assert len(rows) == sum(sampled.rows_of_read or [])
    assert set(rows) <= set(LINES.splitlines())
    assert not sampled.note


@pytest.mark.parametrize("suffix", PACKED)
def test_the_start_of_a_compressed_file_is_read(small: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = PACKED[suffix](LINES[:100_000]) + PACKED[suffix](LINES[100_000:])
    monkeypatch.setattr(samples, "COMPRESSED_PREFIX", len(content) * 3 // 4)
    sampled = sample_file(local(small.parent, f"a.jsonl{suffix}", content), small, 1)
    rows = UNPACKED[suffix]((small / f"a.jsonl{suffix}").read_bytes())
    assert LINES.startswith(rows)
    assert sampled.name == f"a.jsonl{suffix}"  # a.jsonl may be another file
    assert len(rows) > 90_000
    assert samples.AT_ITS_START in sampled.note
    assert sampled.bytes_read == len(content) * 3 // 4


@pytest.mark.parametrize("suffix", PACKED)
def test_what_a_compressed_file_unpacks_to_is_bounded(
    small: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "BUDGET_BYTES", 2 << 20)
    text, used = samples._decompressed(PACKED[suffix](b"x" * 99 + b"\n" + b"a row\n" * (3 << 20)), suffix)
    assert 2 << 20 <= len(text) < 8 << 20
    assert used > 0


def test_a_large_file_that_has_no_parts_is_named(small: Path) -> None:
    with pytest.raises(NotSampledError, match=r"a\.csv: 20 bytes"):
        sample_file(local(small.parent, "a.csv", b"x" * 20), small, 1)
    with pytest.raises(InputError, match="damaged"):
        sample_file(local(small.parent, "a.jsonl.gz", b"x" * 20), small, 1)


def test_rows_belong_to_their_reads() -> None:
    sampled = Sampled("a", 1, rows_of_read=[2, 0, 1], seen=[10, 0, 10], size=200, rows_factor=7)
    assert [sampled.read_of(row) for row in range(3)] == [0, 0, 2]
    totals = sampled.totals(np.array([[2.0, 6.0], [0, 0], [1, 4]]), seed=1)
    assert totals[0].tolist() == [21, 100]


@pytest.mark.parametrize("card", ["", "---\nconfigs:\n- data_files: data/train-0.jsonl\n---\n"])
def test_a_split_is_chosen_by_the_card_or_the_names_alone(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, card: str
) -> None:
    readme = tmp_path_factory.mktemp("card") / "README.md"
    readme.write_text(card)
    files = [
        RemoteFile(name, 1, functools.partial(read_local, Path())) for name in ("data/train-0.jsonl", "data/test.jsonl")
    ]
    files.append(RemoteFile("README.md", len(card), functools.partial(read_local, readme)))
    names, line = names_to_read(list(files), Read(format="openai"), tmp_path)
    assert names == {"data/train-0.jsonl"}
    assert ("README.md does not name" if card else "of split test") in line
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
