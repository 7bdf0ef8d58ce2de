"""Shards: rows come back unchanged and in order, whatever their number."""

import random
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft import parquet
from sft.cli import InputError
from sft.parquet import CONVERSATIONS, SAMPLES, ShardWriter, read_rows, read_tables


def rows(number: int) -> list[dict]:
    return [
        {
            "conversation_id": f"c{n}",
            "sample": n % 3,
            "ids": [n, n + 1],
            "mask": [0, 1],
            "turn_ends": [2],
            "group": None,
            "license": "MIT",
        }
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


def test_long_data_is_split_into_shards_and_read_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROWS_PER_SHARD", 2000)
    write(tmp_path, 4500)
    names = [path.name for path in parquet.shard_paths(tmp_path)]
    assert names == ["samples-00000.parquet", "samples-00001.parquet", "samples-00002.parquet"]
    assert max(len(table) for table in read_tables(tmp_path)) == parquet.ROWS_PER_GROUP
    assert list(read_rows(tmp_path)) == rows(4500)


def test_long_arrays_are_written_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "BYTES_PER_GROUP", 4000)
    with ShardWriter(tmp_path, "windows", pa.schema([("ids", pa.list_(pa.int32()))])) as writer:
        for _ in range(9):
            writer.write({"ids": np.zeros(300, np.int32)})
    (shard,) = parquet.shard_paths(tmp_path)
    footer = parquet.read_metadata(shard)
    assert [footer.row_group(number).num_rows for number in range(footer.num_row_groups)] == [4, 4, 1]


def test_long_rows_are_written_and_read_few_at_a_time(tmp_path, monkeypatch):
    long = [
        {"id": str(n), "messages": random.Random(n).randbytes(500).hex(), "tools": "", "meta": ""} for n in range(50)
    ]
    monkeypatch.setattr(parquet, "BYTES_PER_GROUP", 4000)
    with ShardWriter(tmp_path, "kept", CONVERSATIONS) as writer:
        for row in long:
            writer.write(row)
    (shard,) = parquet.shard_paths(tmp_path)
    footer = parquet.read_metadata(shard)
    assert {footer.row_group(number).num_rows for number in range(footer.num_row_groups)} == {4, 2}
    monkeypatch.setattr(parquet, "BYTES_PER_GROUP", 2000)
    assert max(len(batch) for batch in parquet.read_batches(shard)) < 4
    assert list(read_rows(tmp_path)) == long


def test_same_rows_same_bytes(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, 1500)
    first, second = (tmp_path / name / "samples-00000.parquet" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_a_folder_without_shards_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as missing:
        list(read_rows(tmp_path))
    assert missing.value.filename == str(tmp_path / "*.parquet")


def test_a_shard_with_any_byte_damaged_is_an_error_or_gives_the_same_rows_or_fewer(tmp_path):
    """Fewer: the footer has no checksum, and its number of rows is what the reports of stages are for."""
    write(tmp_path, 40)
    (path,) = parquet.shard_paths(tmp_path)
    sound, refused = path.read_bytes(), 0
    for place in range(0, len(sound), 5):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 0x80]) + sound[place + 1 :])
        try:
            rows_read = [row for table in read_tables(tmp_path, schema=SAMPLES) for row in table.to_pylist()]
        except InputError:
            refused += 1
        else:
            assert rows_read == rows(40) or (rows_read == rows(40)[: len(rows_read)] and len(rows_read) < 40)
    assert refused > len(sound) / 5 / 2


@pytest.mark.parametrize("length", [0, 8, 300, -8, -1])
def test_a_shard_that_is_cut_off_is_an_error_that_names_it(tmp_path, length):
    write(tmp_path, 40)
    (path,) = parquet.shard_paths(tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    for read in (lambda: list(read_rows(tmp_path)), lambda: parquet.plan_row_ranges(tmp_path)):
        with pytest.raises(InputError, match=r"samples-00000\.parquet: "):
            read()


def test_types_of_other_tools_are_cast(tmp_path):
    write(tmp_path, 3)
    (path,) = parquet.shard_paths(tmp_path)
    wide = {"conversation_id": pa.large_string(), "sample": pa.int64(), "mask": pa.large_list(pa.int64())}
    pq.write_table(
        pq.read_table(path).select([*wide, "ids"]).cast(pa.schema([*wide.items(), SAMPLES.field("ids")])), path
    )
    (table,) = read_tables(tmp_path, schema=SAMPLES)
    assert table.schema.types == [SAMPLES.field(name).type for name in table.column_names]
    assert table.to_pylist() == [{name: row[name] for name in table.column_names} for row in rows(3)]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda table: table.drop_columns(["ids"]), r"no column ids\b"),
        (lambda table: table.set_column(1, "sample", pa.array([0, None, 0], pa.int32())), "1 rows .* sample"),
        (lambda table: table.set_column(1, "sample", pa.array(["x", "y", "z"])), "z.* int32"),
        (lambda table: table.set_column(1, "sample", pa.array([1 << 40, 0, 0])), "1099511627776"),
    ],
)
def test_a_shard_of_another_form_is_an_error(tmp_path, change, fault):
    write(tmp_path, 3)
    (path,) = parquet.shard_paths(tmp_path)
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(InputError, match=rf"samples-00000\.parquet: .*{fault}"):
        list(read_tables(tmp_path, schema=SAMPLES))


def test_no_array_loads_pandas_and_what_needs_it_does():
    """pyarrow would import it for its first array, in every worker."""
    code = (
        "import sys, pyarrow as pa; from sft.parquet import SAMPLES; "
        "table = pa.Table.from_pylist([{'sample': 1}], schema=SAMPLES); assert 'pandas' not in sys.modules; "
        "assert table.to_pandas()['sample'].tolist() == [1]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
