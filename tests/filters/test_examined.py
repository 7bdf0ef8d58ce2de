"""Examined: each row becomes what was said of it last, in its place, and every row is counted once."""

import random

import pyarrow.parquet as pq
import pytest

from sft.conversation import Rejection
from sft.filters import examined
from sft.filters.contamination import CONTAMINATED
from sft.filters.dedup.signatures import SIGNATURE_BYTES
from sft.filters.examined import Examined, Result, decide, read_refusals, valid_text, write_final_shards, write_refusals
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
        "where": f"a.jsonl:{number}",
        "signature": drawn.randbytes(SIGNATURE_BYTES) if kept else None,
        "control_tokens": number % 2 if kept else None,
    }


def write(folder, rows):
    with ShardWriter(folder, "examined", EXAMINED) as shards:
        for each in rows:
            shards.write(each)
    return folder


def settled(tmp_path, found):
    """Settle part by part; return the result and its folder."""
    target = tmp_path / "target"
    target.mkdir()
    result = Result(target)
    for part in found.cut():
        result.take(write_final_shards({"scratch": str(tmp_path), "examined": part}))
    return result, target


def numbers(folder, name):
    return [int(each["messages"][2:-2]) for each in read_rows(folder, name)]


def test_rows_come_out_kept_or_refused_in_their_order_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(examined, "FEWEST_ROWS_PER_SHARD", 3)
    found = Examined(tmp_path, 0.8)
    found.add(write(tmp_path / "a", [row(0), row(1, "empty-answer", "a.jsonl:1: x"), row(2), row(3, same_as=0)]))
    found.add(write(tmp_path / "b", []))
    found.add(write(tmp_path / "c", [row(4, same_as=2), row(5), row(6, CONTAMINATED, "a.jsonl:6: hives: 90% of 4")]))
    found.reject_duplicates()
    write_refusals(tmp_path / "c/examined-00000.parquet", [(1, Rejection("judge-inconsistent", "score 1 of 5 \ud800"))])
    assert len(found.cut()) == 2
    result, target = settled(tmp_path, found)
    assert numbers(target, "kept") == [0, 2]
    assert [each["id"] for each in read_rows(target, "signatures")] == [row(0)["id"], row(2)["id"]]
    refused = {
        each["where"]: each["reason"]
        for each in ({**one, "where": one["evidence"].split(": ")[0]} for one in read_rows(target, "rejected"))
    }
    assert refused == {
        "a.jsonl:1": "empty-answer",
        "a.jsonl:3": "duplicate",
        "a.jsonl:4": "duplicate",
        "a.jsonl:5": "judge-inconsistent",
        "a.jsonl:6": CONTAMINATED,
    }
    assert (result.ledger.rows_in, result.ledger.rows_out) == (7, 2)
    assert result.ledger.rejected == {"empty-answer": 1, "duplicate": 2, "judge-inconsistent": 1, CONTAMINATED: 1}
    assert result.examples["duplicate"] == f"a.jsonl:3: the same conversation came before: {row(0)['id']}"
    assert result.examples["judge-inconsistent"] == "a.jsonl:5: score 1 of 5 \\ud800"
    assert result.contaminated_by == {"hives": 1}
    assert result.typed == {"conversations": 0, "control_tokens": 0}
    assert not list(tmp_path.glob("*/examined*.parquet"))


def test_shards_without_rows_are_left_out_but_for_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(examined, "FEWEST_ROWS_PER_SHARD", 1)
    found = Examined(tmp_path, None)
    for name, reasons in (("a", ["x", "x"]), ("b", ["x"]), ("c", [None]), ("d", ["x"]), ("e", [None])):
        found.add(write(tmp_path / name, [row(ord(name) + place, why, "w") for place, why in enumerate(reasons)]))
    found.reject_duplicates()
    result, target = settled(tmp_path, found)
    rows = {path.name: pq.read_metadata(path).num_rows for path in sorted(target.iterdir())}
    assert [rows[f"kept-{n:05d}.parquet"] for n in range(3)] == [0, 1, 1]
    assert [rows[f"rejected-{n:05d}.parquet"] for n in range(3)] == [2, 1, 1]
    assert len(rows) == 9
    assert (result.ledger.rows_in, result.ledger.rows_out) == (6, 2)


@pytest.mark.parametrize(("sizes", "parts"), [([0], 1), ([5], 1), ([2, 2, 2], 2), ([9, 1, 1, 1, 1], 3), ([1] * 80, 8)])
def test_files_are_cut_into_neighbours_each_once(tmp_path, monkeypatch, sizes, parts):
    monkeypatch.setattr(examined, "FEWEST_ROWS_PER_SHARD", 3)
    found = Examined(tmp_path, None)
    for number, size in enumerate(sizes):
        found.add(write(tmp_path / f"{number:03d}", [row(1000 * number + place) for place in range(size)]))
    cut = found.cut()
    assert len(cut) == parts
    assert [path for part in cut for path in part] == [str(path) for path, _ in found.files]
    assert [size for _, size in found.files] == sizes


def test_what_is_refused_later_takes_its_place_in_its_table_only(tmp_path):
    path = (
        write(tmp_path / "a", [row(n, "early" if n == 2 else None, "e") for n in range(4)]) / "examined-00000.parquet"
    )
    write_refusals(path, [(1, Rejection("late", "for this"))])
    write_refusals(path, [(7, Rejection("late", "of another table"))])
    assert read_refusals(path) == {1: ("late", "for this"), 7: ("late", "of another table")}
    kept, rejected = decide(pq.read_table(path), read_refusals(path))
    assert kept["where"].to_pylist() == ["a.jsonl:0", "a.jsonl:3"]
    assert rejected.select(["where", "reason", "evidence"]).to_pylist() == [
        {"where": "a.jsonl:1", "reason": "late", "evidence": "a.jsonl:1: for this"},
        {"where": "a.jsonl:2", "reason": "early", "evidence": "e"},
    ]


def test_text_that_utf8_cannot_hold_is_escaped():
    assert (valid_text("\ud800 é"), valid_text("plain")) == ("\\ud800 é", "plain")
