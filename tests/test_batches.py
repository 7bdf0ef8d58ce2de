"""Batches: bounded in rows and in bytes; all rows, in order."""

from sft.batches import batches, rows_at_once


def test_long_rows_make_small_batches():
    rows = [3] * 4 + [0] * 596
    made = list(batches(rows, lambda row: row, 256, 10))
    assert [len(batch) for batch in made] == [3, 256, 256, 85]
    assert [row for batch in made for row in batch] == rows


def test_a_row_longer_than_a_batch_is_alone():
    assert list(batches([1, 20, 1], lambda row: row, 256, 10)) == [[1], [20], [1]]
    assert list(batches([], lambda row: row, 256, 10)) == []


def test_rows_are_taken_one_by_one_at_least():
    assert [rows_at_once(8, size, 256, 100) for size in (0, 100, 400, 10_000)] == [256, 8, 2, 1]
