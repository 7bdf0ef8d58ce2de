"""Shards: rows come back as they went in, in order, whatever their number."""

import pytest

from sft.data import shards
from sft.data.shards import SAMPLES, ShardWriter, read_rows, read_tables


def rows(number: int) -> list[dict]:
    return [
        {"conversation_id": f"c{n}", "sample": n % 3, "ids": [n, n + 1], "mask": [0, 1], "turn_ends": [2]}
        for n in range(number)
    ]


def write(folder, number):
    with ShardWriter(folder, "samples", SAMPLES) as writer:
        for row in rows(number):
            writer.write(row)


@pytest.mark.parametrize("number", [0, 1, 999, 1000, 1001, 2500])
def test_rows_come_back_in_order(tmp_path, number):
    write(tmp_path, number)
    assert list(read_rows(tmp_path)) == rows(number)


def test_long_data_is_cut_into_shards_and_read_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "ROWS_PER_SHARD", 2000)
    write(tmp_path, 4500)
    names = [path.name for path in shards.shard_paths(tmp_path)]
    assert names == ["samples-00000.parquet", "samples-00001.parquet", "samples-00002.parquet"]
    assert max(len(table) for table in read_tables(tmp_path)) == shards.ROWS_PER_GROUP
    assert list(read_rows(tmp_path)) == rows(4500)


def test_same_rows_same_bytes(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, 1500)
    first, second = (tmp_path / name / "samples-00000.parquet" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_a_folder_without_shards_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the stage before"):
        list(read_rows(tmp_path))
