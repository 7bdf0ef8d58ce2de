"""row_sampling: files of known totals, read at random; intervals hold what they promise."""

import random

import numpy as np
import pytest

from sft.data_plan.row_sampling import draw_rows, draw_totals, exact_totals, interval, rows_of_prefix

FIGURES = ("rows", "tokens", "packs")
SEEDS = 100


def line(tokens: int, length: int) -> bytes:
    return (f"{tokens:06d}".encode() + b"x" * max(0, length - 7)) + b"\n"


def make_file(kind: str) -> bytes:
    """8 MB of rows whose first six digits are their tokens."""
    source, rows, size = random.Random(kind), [], 0
    while size < 8_000_000:
        block = size // 1_000_000
        mean = {"blocks": 300 * 4 ** (block % 4)}.get(kind, 1_000)
        length = max(20, int(source.lognormvariate(0, 0.8) * mean))
        rows.append(line(max(1, int(length / source.uniform(3, 5))), length))
        size += len(rows[-1])
    if kind == "sorted":
        rows.sort(key=len)
    return b"".join(rows)


def totals_of(rows: list[bytes]) -> list[float]:
    tokens = [int(row[:6]) for row in rows]
    return [len(rows), sum(tokens), sum(-(-number // 512) for number in tokens)]


@pytest.mark.parametrize("kind", ["any-order", "sorted", "blocks"])
def test_the_truth_is_in_the_interval_and_the_estimate_has_no_bias(kind: str) -> None:
    content = make_file(kind)
    truth = totals_of(content.splitlines(keepends=True))
    held, errors = np.zeros(3), []
    for seed in range(SEEDS):
        drawn = draw_rows(len(content), lambda start, stop: content[start:stop], seed, budget=1_500_000)
        assert drawn.bytes_read < 4_000_000
        totals = np.array([totals_of(rows) for rows in drawn.reads], float)
        seen = np.array([sum(map(len, rows)) for rows in drawn.reads], float)
        draws = draw_totals(totals, seen, drawn.size, drawn.rows_factor, seed)
        for number in range(3):
            _, low, high = interval(draws[:, number])
            held[number] += low <= truth[number] <= high
        errors.append(draws[0] / truth - 1)
    assert dict(zip(FIGURES, held, strict=True)) == {name: pytest.approx(100, abs=7) for name in FIGURES}
    assert np.abs(np.mean(errors, axis=0)).max() < 0.03


def test_every_row_is_drawn_equally_often_and_whole() -> None:
    rows = [line(number, 30 + 4_000 * (number % 7 == 0)) for number in range(60)]
    content, seen = b"".join(rows)[:-1], np.zeros(60)  # the last row has no line end
    for seed in range(150):
        for row in (
            row for read in draw_rows(len(content), lambda a, b: content[a:b], seed, reads=4).reads for row in read
        ):
            assert row.rstrip(b"\n") == rows[int(row[:6])].rstrip(b"\n")
            seen[int(row[:6])] += 1
    long = np.arange(60) % 7 == 0
    assert seen[long].mean() == pytest.approx(seen[~long].mean(), rel=0.12)


def test_reads_end_with_the_budget() -> None:
    content = line(5, 1 << 20) * 120
    drawn = draw_rows(len(content), lambda start, stop: content[start:stop], 1, budget=8 << 20)
    assert 0 < len(drawn.reads) < 200
    assert drawn.bytes_read < 100 << 20


def test_a_prefix_loses_its_cut_row_only() -> None:
    drawn = rows_of_prefix(b"a\nb\nc", 50, False, "why")
    assert (drawn.reads, drawn.rows_factor, drawn.note) == ([[b"a\n"], [b"b\n"]], None, "why")
    assert rows_of_prefix(b"a\nb", 3, True, "").reads == [[b"a\n"], [b"b"]]


def test_a_file_that_was_read_whole_has_no_interval() -> None:
    assert interval(exact_totals([7.0, 3.0])[:, 1]) == (3.0, 3.0, 3.0)
    assert draw_totals(np.zeros((2, 3)), np.zeros(2), 10, None, 0).sum() == 0
