"""Publish: each row is kept or rejected by its last outcome, in its place, and counted once."""

import random
import struct
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from sft.conversation import Rejection
from sft.filters import publish
from sft.filters.contamination import CONTAMINATED
from sft.filters.judge.verdicts import Verdict
from sft.filters.publish import (
    ExaminedFiles,
    FinalShards,
    read_late_rejections,
    reject_by_judge,
    split_table,
    write_final_shards,
    write_late_rejections,
)
from sft.parquet import EXAMINED, ShardWriter, read_rows


def row(number, reason=None, evidence=None, same_as=None):
    """An examined row; `same_as`: the number of the row with the same id and signature."""
    drawn = random.Random(number if same_as is None else same_as)
    kept = reason is None
    return {
        "id": drawn.randbytes(16).hex(),
        "messages": f'["{number}"]',
        "tools": None,
        "meta": "{}",
        "reason": reason,
        "evidence": evidence,
        "location": f"a.jsonl:{number}",
        "signature": drawn.randbytes(8) + struct.pack("<4I", 1, 1, *[drawn.getrandbits(32)] * 2) if kept else None,
        "control_tokens": number % 2 if kept else None,
    }


def write(folder, rows):
    with ShardWriter(folder, "examined", EXAMINED) as shards:
        for each in rows:
            shards.write(each)
    return folder


def write_final(tmp_path, examined):
    """Write the final shards; return them with their counts, and their folder."""
    target = tmp_path / "target"
    target.mkdir()
    final = FinalShards(target)
    for files in examined.plan_shards():
        final.add(write_final_shards({"scratch": str(tmp_path), "examined": files}))
    return final, target


def numbers(folder, name):
    return [int(each["messages"][2:-2]) for each in read_rows(folder, name)]


def test_rows_are_kept_or_rejected_in_their_order_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "MIN_ROWS_PER_SHARD", 3)
    examined = ExaminedFiles(tmp_path, 0.8)
    examined.add(write(tmp_path / "a", [row(0), row(1, "empty-answer", "a.jsonl:1: x"), row(2), row(3, same_as=0)]))
    examined.add(write(tmp_path / "b", []))
    examined.add(write(tmp_path / "c", [row(4, same_as=2), row(5), row(6, CONTAMINATED, "a.jsonl:6: hives: 90% of 4")]))
    examined.reject_duplicates()
    write_late_rejections(
        tmp_path / "c/examined-00000.parquet", [(1, Rejection("judge-inconsistent", "score 1 of 5 \ud800"))]
    )
    assert len(examined.plan_shards()) == 2
    final, target = write_final(tmp_path, examined)
    assert numbers(target, "kept") == [0, 2]
    rejected = {each["evidence"].split(": ")[0]: each["reason"] for each in read_rows(target, "rejected")}
    assert rejected == {
        "a.jsonl:1": "empty-answer",
        "a.jsonl:3": "duplicate",
        "a.jsonl:4": "duplicate",
        "a.jsonl:5": "judge-inconsistent",
        "a.jsonl:6": CONTAMINATED,
    }
    assert (final.ledger.rows_in, final.ledger.rows_out) == (7, 2)
    assert final.ledger.rejected == {"empty-answer": 1, "duplicate": 2, "judge-inconsistent": 1, CONTAMINATED: 1}
    assert final.examples["duplicate"] == f"a.jsonl:3: the same conversation came before: {row(0)['id']}"
    assert final.examples["judge-inconsistent"] == "a.jsonl:5: score 1 of 5 \\ud800"
    assert final.contaminated_by == {"hives": 1}
    assert final.control_tokens == {"conversations": 0, "control_tokens": 0}
    assert not list(tmp_path.glob("*/examined*.parquet"))


def test_shards_without_rows_are_left_out_but_for_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "MIN_ROWS_PER_SHARD", 1)
    examined = ExaminedFiles(tmp_path, None)
    for name, reasons in (("a", ["x", "x"]), ("b", ["x"]), ("c", [None]), ("d", ["x"]), ("e", [None])):
        examined.add(write(tmp_path / name, [row(ord(name) + place, why, "w") for place, why in enumerate(reasons)]))
    examined.reject_duplicates()
    final, target = write_final(tmp_path, examined)
    rows = {path.name: pq.read_metadata(path).num_rows for path in sorted(target.iterdir())}
    assert [rows[f"kept-{n:05d}.parquet"] for n in range(3)] == [0, 1, 1]
    assert [rows[f"rejected-{n:05d}.parquet"] for n in range(3)] == [2, 1, 1]
    assert len(rows) == 6
    assert (final.ledger.rows_in, final.ledger.rows_out) == (6, 2)


@pytest.mark.parametrize(
    ("sizes", "num_shards"), [([0], 1), ([5], 1), ([2, 2, 2], 2), ([9, 1, 1, 1, 1], 3), ([1] * 80, 8)]
)
def test_consecutive_files_share_a_shard_and_each_is_in_one(tmp_path, monkeypatch, sizes, num_shards):
    monkeypatch.setattr(publish, "MIN_ROWS_PER_SHARD", 3)
    examined = ExaminedFiles(tmp_path, None)
    for number, size in enumerate(sizes):
        examined.add(write(tmp_path / f"{number:03d}", [row(1000 * number + place) for place in range(size)]))
    shards = examined.plan_shards()
    assert len(shards) == num_shards
    assert [path for files in shards for path in files] == [str(path) for path, _ in examined.files]
    assert [size for _, size in examined.files] == sizes


def test_a_late_rejection_applies_to_its_row_in_its_table_only(tmp_path):
    path = (
        write(tmp_path / "a", [row(n, "early" if n == 2 else None, "e") for n in range(4)]) / "examined-00000.parquet"
    )
    write_late_rejections(path, [(1, Rejection("late", "for this"))])
    write_late_rejections(path, [(7, Rejection("late", "of another table"))])
    assert read_late_rejections(path) == {1: ("late", "for this"), 7: ("late", "of another table")}
    kept, rejected = split_table(pq.read_table(path), read_late_rejections(path))
    assert kept["location"].to_pylist() == ["a.jsonl:0", "a.jsonl:3"]
    assert rejected.select(["location", "reason", "evidence"]).to_pylist() == [
        {"location": "a.jsonl:1", "reason": "late", "evidence": "a.jsonl:1: for this"},
        {"location": "a.jsonl:2", "reason": "early", "evidence": "e"},
    ]


class SecondHalfRejected:
    """A judge that gives the first verdict when it has read all conversations."""

    def __init__(self):
        self.asked = []

    def verdicts(self, conversations):
        self.asked += [int(conversation.messages[0]) for conversation in conversations]
        yield from (Verdict(faults=[], consistent=True, score=5 if number < 3 else 1) for number in self.asked)


def test_the_files_of_a_source_are_one_stream_for_the_judge_of_rows_kept_so_far(tmp_path):
    examined = ExaminedFiles(tmp_path, None)
    examined.add(write(tmp_path / "a", [row(0), row(1, "empty-answer", "a.jsonl:1: x"), row(2)]))
    examined.add(write(tmp_path / "b", [row(3), row(4, same_as=0), row(5)]))
    examined.reject_duplicates()
    judge = SecondHalfRejected()
    reject_by_judge([path for path, _ in examined.files], judge, SimpleNamespace(min_score=3))
    assert judge.asked == [0, 2, 3, 5]
    final, target = write_final(tmp_path, examined)
    assert numbers(target, "kept") == [0, 2]
    assert final.ledger.rejected == {"empty-answer": 1, "duplicate": 1, "judge-inconsistent": 2}
    assert final.examples["judge-inconsistent"] == "a.jsonl:3: score 1 of 5"
