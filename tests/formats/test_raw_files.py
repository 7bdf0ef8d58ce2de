"""Rows from raw files: every container, and every way a row can be broken."""

import bz2
import gzip
import json
import lzma
import tempfile
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.formats import raw_files
from sft.formats.raw_files import read_objects
from tests.support.raw_rows import records, write

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
LINE = json.dumps(CHAT).encode() + b"\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINE),
        ("a.ndjson", LINE),
        ("a.jsonl.gz", gzip.compress(LINE, mtime=0)),
        ("a.jsonl.zst", zstandard.compress(LINE)),
        ("a.jsonl.bz2", bz2.compress(LINE)),
        ("a.jsonl.xz", lzma.compress(LINE)),
        ("a.jsonlines", LINE),
        ("A.JSONL", LINE),
        ("A.JSONL.GZ", gzip.compress(LINE, mtime=0)),
        ("a.json", json.dumps(CHAT, indent=2).encode()),
        ("a.json", json.dumps([CHAT]).encode()),
        ("a.json", b"\xef\xbb\xbf" + LINE),
        ("a.json.gz", gzip.compress(json.dumps([CHAT]).encode(), mtime=0)),
        ("deep/er/a.jsonl", b"\n" + LINE + b"\r\n"),
    ],
)
def test_every_container_gives_the_same_record(tmp_path: Path, name: str, content: bytes) -> None:
    write(tmp_path, name, content)
    assert records(read_objects(tmp_path)) == [CHAT]


def test_parquet_gives_its_rows_without_the_nulls_of_its_structs(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "name": "x"}
    table = pa.Table.from_pylist([CHAT, {"messages": [call]}] * 300)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    rows = list(read_objects(tmp_path))
    assert len(rows) == 600
    assert rows[0].record == CHAT
    assert rows[599].record == {"messages": [{"role": "assistant", "name": "x"}]}
    assert rows[599].location == "a.parquet:600"


def test_json_with_an_object_on_each_line_is_read_by_lines(tmp_path: Path) -> None:
    write(tmp_path, "a.json", LINE + LINE)
    assert [row.location for row in read_objects(tmp_path)] == ["a.json:1", "a.json:2"]


def test_files_come_in_the_order_of_their_names_and_others_are_left_alone(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a/z.jsonl", "README.md", "c.txt"):
        write(tmp_path, name, LINE)
    assert [row.location for row in read_objects(tmp_path)] == ["a/z.jsonl:1", "b.jsonl:1"]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b'{"messages": [', "not valid JSON"),
        (b'{"messages": "\xff"}', "not valid UTF-8: byte 0xff at 14"),
        (b"[1, 2]", "expected an object, found list"),
        (b'{"messages": NaN}', "NaN is not JSON"),
        (b'{"messages": [], "x": "\\ud800"}', "surrogate"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_broken_row_is_a_fault_at_its_line_and_the_next_row_is_read(tmp_path: Path, line: bytes, fault: str) -> None:
    write(tmp_path, "a.jsonl", LINE + line + b"\n" + LINE)
    good, broken, next_good = read_objects(tmp_path)
    assert good.record == next_good.record == CHAT
    assert (broken.location, broken.record, next_good.location) == ("a.jsonl:2", None, "a.jsonl:3")
    assert fault in broken.fault
    assert broken.raw == line.decode("utf-8", "replace")[:2000]


def test_a_file_that_is_no_parquet_is_one_fault(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", b"PAR1 but not really")
    (row,) = read_objects(tmp_path)
    assert row.location == "a.parquet:1"
    assert "damaged .parquet file" in row.fault


def test_what_parquet_knows_and_json_does_not_becomes_text_or_is_left_out(tmp_path: Path) -> None:
    table = pa.table({"text": [b"caf\xc3\xa9"], "day": [date(2026, 1, 2)], "score": [float("nan")], "n": [1.5]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert records(read_objects(tmp_path)) == [{"text": "café", "day": "2026-01-02", "n": 1.5}]


def test_bytes_in_parquet_that_are_no_text_are_a_fault_of_their_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [b"a", b"\xff", b"b"]}), tmp_path / "a.parquet")
    good, broken, next_good = read_objects(tmp_path)
    assert (good.record, next_good.record) == ({"text": "a"}, {"text": "b"})
    assert (broken.location, broken.record) == ("a.parquet:2", None)
    assert "not UTF-8" in broken.fault


@pytest.mark.parametrize(
    "odd",
    [
        pa.array([b"a", b"\xff\xfe", b"b"]).view(pa.string()),
        pa.array([0, 1 << 30, 0], pa.int32()).view(pa.date32()),
        pa.array([0, 1 << 62, 0]).view(pa.duration("s")),
    ],
    ids=["text", "date", "duration"],
)
def test_a_value_in_parquet_that_cannot_be_read_is_a_fault_of_its_row(tmp_path: Path, odd: pa.Array) -> None:
    pq.write_table(pa.table({"n": [1, 2, 3], "odd": odd}), tmp_path / "a.parquet")
    good, broken, next_good = read_objects(tmp_path)
    assert [row.record and row.record["n"] for row in (good, broken, next_good)] == [1, None, 3]
    assert broken.location == "a.parquet:2"
    assert broken.fault.startswith("a value that cannot be read")
    assert not broken.is_end


@pytest.mark.parametrize(
    ("document", "rows"),
    [
        ({"version": "1", "data": [{"a": 1}, {"a": 2}]}, [{"a": 1}, {"a": 2}]),
        ({"x7": {"a": 1}, "x8": {"a": 2}}, [{"a": 1}, {"a": 2}]),
        ({"data": [{"role": "user", "content": "a"}]}, [{"data": [{"role": "user", "content": "a"}]}]),
        ({"pairs": [{"input": "a", "output": "b"}]}, [{"pairs": [{"input": "a", "output": "b"}]}]),
        ({"request": {"a": 1}, "response": {"b": 2}}, [{"request": {"a": 1}, "response": {"b": 2}}]),
        (
            {"messages": [{"role": "user", "content": "a"}], "examples": [{"a": 1}]},
            [{"messages": [{"role": "user", "content": "a"}], "examples": [{"a": 1}]}],
        ),
        ({"train": [{"a": 1}], "test": [{"a": 2}]}, "rows in several lists: train, test"),
        ({"a": {"0": 1, "1": 2}, "b": {"0": 1, "1": 2}}, "columns, as pandas writes them"),
    ],
    ids=str,
)
def test_a_file_of_one_object_may_hold_its_rows(tmp_path, document, rows):
    (tmp_path / "a.json").write_text(json.dumps(document), encoding="utf-8")
    found = list(read_objects(tmp_path))
    if isinstance(rows, str):
        assert [row.fault[: len(rows)] for row in found] == [rows]
    else:
        assert [row.record for row in found] == rows
        assert [row.location for row in found] == [f"a.json:{number}" for number in range(1, len(rows) + 1)]


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(['{"a": 1}', "", "{broken", '{"b": "' + "x" * 40 + '"}', " ", "[1]"]), max_size=30),
    st.booleans(),
)
def test_parts_in_order_are_the_file_whatever_stands_in_it(lines, ends):
    with (
        tempfile.TemporaryDirectory() as place,
        tempfile.TemporaryDirectory() as scratch,
        pytest.MonkeyPatch.context() as patch,
    ):
        folder = Path(place)
        (folder / "a.jsonl").write_text("\n".join(lines) + ("\n" if ends else ""))
        (folder / "b.jsonl.gz").write_bytes(gzip.compress(b'{"c": 1}\n' * 30))
        (folder / "d.jsonl.gz").write_bytes(gzip.compress((folder / "a.jsonl").read_bytes()))
        (folder / "e.jsonl.zst").write_bytes(zstandard.compress((folder / "a.jsonl").read_bytes()))
        (folder / "f.jsonl.gz").write_bytes(gzip.compress((folder / "a.jsonl").read_bytes() * 9)[:-9])
        (folder / "g.jsonl.gz").write_bytes(b"no archive")
        (folder / "c.json").write_text('{"d": 1}')
        (folder / "README.md").write_text("no rows")
        patch.setattr(raw_files, "PART_BYTES", 16)
        patch.setattr(raw_files, "READ_BYTES", 8)
        parts = list(raw_files.plan_parts(folder, Path(scratch)))
        whole = list(raw_files.read_objects(folder))
        assert [row for part in parts for row in raw_files.read_part(folder, part)] == whole
        sound = [row for row in whole if row.location[0] not in "fg"]
        assert len(sound) == 3 * sum(bool(line.strip()) for line in lines) + 31
        assert [row.location[0] for row in whole if row.is_end] == ["f", "g"]
        bounds = {name: [part.first for part in parts if part.path.startswith(name)] for name in "abde"}
        assert len(bounds["b"]) == 15
        assert bounds["a"] == (bounds["d"] or [1]) == (bounds["e"] or [1]), "as if the file were not compressed"
        texts = [part.text for part in parts if part.text]
        assert sorted(texts) == sorted(map(str, Path(scratch).iterdir()))
        text = sum(len(line) + 1 for line in lines)
        assert len([part for part in parts if part.path == "a.jsonl"]) >= min(3, text // 70)


def test_parts_of_a_table_are_its_row_groups_in_order(tmp_path, monkeypatch):
    table = pa.table({"messages": [json.dumps([{"role": "user", "content": str(n)}]) for n in range(100)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no table" * 9)
    monkeypatch.setattr(raw_files, "PART_BYTES", 100)
    parts = list(raw_files.plan_parts(tmp_path, tmp_path))
    assert len(parts) > 10
    assert [row for part in parts for row in raw_files.read_part(tmp_path, part)] == list(
        raw_files.read_objects(tmp_path)
    )
    assert next(row.location for row in raw_files.read_part(tmp_path, parts[1])) == f"a.parquet:{parts[1].first}"


def arrow_stream(rows: list[dict[str, object]], batch: int) -> bytes:
    """What datasets' save_to_disk writes."""
    table, sink = pa.Table.from_pylist(rows), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table, max_chunksize=batch)
    return bytes(sink.getvalue())


def test_a_folder_of_save_to_disk_gives_its_rows_alone(tmp_path: Path) -> None:
    write(tmp_path, "train/data-00000-of-00001.arrow", arrow_stream([{**CHAT, "n": n} for n in range(1000)], 300))
    write(tmp_path, "train/dataset_info.json", "{}")
    write(tmp_path, "train/state.json", "{}")
    write(tmp_path, "dataset_dict.json", "{}")
    rows = list(read_objects(tmp_path))
    assert [row.record for row in rows] == [{**CHAT, "n": n} for n in range(1000)]
    assert rows[-1].location == "train/data-00000-of-00001.arrow:1000"


def test_an_arrow_file_is_read_too(tmp_path: Path) -> None:
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, pa.schema({"n": pa.int64()})) as file,
    ):
        file.write_batch(pa.record_batch({"n": [1, 2]}))
    assert records(read_objects(tmp_path)) == [{"n": 1}, {"n": 2}]


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_arrow_stream_never_ends_in_silence(share: float) -> None:
    content = arrow_stream([{"n": n} for n in range(30)], 10)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), "a.arrow", content[: int(len(content) * share)])
        rows = list(read_objects(Path(folder)))
    assert rows[-1].is_end
    assert [row.record for row in rows[:-1]] == [{"n": n} for n in range(len(rows) - 1)]


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.tsv", "\t"), ("a.csv.gz", ",")])
def test_a_table_as_text_has_quotes_and_newlines_in_its_cells(tmp_path: Path, name: str, separator: str) -> None:
    text = separator.join(["prompt", "completion"]) + "\r\n" + separator.join(['"a, ""b""\tc\nd"', "é"]) + "\r\n\r\n"
    content = b"\xef\xbb\xbf" + text.encode()
    write(tmp_path, name, gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
    (row,) = read_objects(tmp_path)
    assert (row.location, row.record) == (f"{name}:1", {"prompt": 'a, "b"\tc\nd', "completion": "é"})


def test_a_broken_row_of_a_csv_is_a_fault_and_the_next_row_is_read(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", b"prompt,completion\na\nb,\xff\nc,d\n")
    short, other_encoding, good = read_objects(tmp_path)
    assert short.fault == "expected 2 columns, found 1"
    assert "not valid UTF-8: byte 0xff" in other_encoding.fault
    assert (good.location, good.record) == ("a.csv:3", {"prompt": "c", "completion": "d"})


@pytest.mark.parametrize("content", ["a,a\n1,2\n", "a,\n1,2\n", 'a,b\n1,"2\n', 'a,b\n1,"2"3\n'])
def test_a_csv_that_cannot_be_read_to_its_end_says_so(tmp_path: Path, content: str) -> None:
    write(tmp_path, "a.csv", content)
    assert list(read_objects(tmp_path))[-1].is_end


def test_an_arrow_stream_that_ends_between_two_batches_is_not_taken_for_whole(tmp_path: Path) -> None:
    content = arrow_stream([{"n": 1}], 10)
    write(tmp_path, "a.arrow", content[:-8])  # without the mark that ends a stream
    row, end = read_objects(tmp_path)
    assert (row.record, end.record, end.is_end) == ({"n": 1}, None, True)
