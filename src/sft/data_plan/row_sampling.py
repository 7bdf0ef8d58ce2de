"""Row sampling: totals of a large file, with 99 % intervals, from a few range reads.

A read takes all rows that start in a window of bytes, each to its end. One window lies at a random place in each of
`reads` equal parts of the file, so every row has the same chance whatever its length, also in a file that is sorted by
length or consists of blocks. (Whole rows inside a read, or the row after a random place, are biased by up to 560 % on
such files.) The file is a ring: a window that passes its end continues at its start.

    rows = parts of the file / windows x rows seen          other totals = bytes of the file x total seen / bytes seen

Intervals: 99 % bootstrap over reads, because the rows of a read are alike.
"""

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
ReadBytes = Callable[[int, int], bytes]

READS = 200
BUDGET_BYTES = 64_000_000
"""Bytes of a file after which no further read begins."""
CONNECTIONS = 8
PILOT_READS, PILOT_BYTES, MAX_PILOT_BYTES = 10, 1 << 16, 1 << 20
MIN_READS = 24  # whatever they cost
ROWS_PER_WINDOW = 4
MIN_WINDOW = 2_048
DRAWS, LEVEL = 1_000, 99.0


@dataclass(frozen=True)
class Drawn:
    """Rows of a file, by read."""

    reads: list[list[bytes]]
    """The rows of each read, each with its line end."""
    size: int
    """Bytes of the file; of a compressed one, its size when decompressed, estimated."""
    rows_factor: float | None
    """Rows of the file for each row seen; None: by bytes."""
    bytes_read: int
    note: str = ""
    """Why the intervals do not hold; empty if they do."""


def draw_rows(size: int, read: ReadBytes, seed: int, budget: int = BUDGET_BYTES, reads: int = READS) -> Drawn:
    """Return rows of a file of lines. `read(start, stop)` returns its bytes; it is called by CONNECTIONS threads."""
    source = random.Random(seed)
    used: list[int] = []  # bytes of each request; appended to by threads

    def counted(start: int, stop: int) -> bytes:
        content = read(start, min(stop, size))
        used.append(len(content))
        return content

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        places = [source.randrange(size) for _ in range(PILOT_READS)]
        mean = max(1, sum(pool.map(lambda place: _next_row(counted, size, place), places)) // PILOT_READS)
        left = max(budget - sum(used), budget // 2)
        window = min(ROWS_PER_WINDOW * mean, max(mean, left // reads - 2 * mean))
        window = max(1, min(max(window, MIN_WINDOW), size // reads // 2))
        parts = list(range(reads))
        source.shuffle(parts)  # so that the parts read before the budget is spent are a random choice
        starts = [int((part + source.random()) * size / reads) for part in parts]
        found: list[list[bytes]] = []
        for first in range(0, reads, CONNECTIONS):
            if sum(used) >= budget and len(found) >= MIN_READS:
                break
            some = starts[first : first + CONNECTIONS]
            found += pool.map(lambda start: _window(counted, size, start, window, 2 * mean), some)
    return Drawn(found, size, size / (len(found) * window), sum(used))


def _next_row(read: ReadBytes, size: int, place: int) -> int:
    """Return the length of the row after a place, or of the last one; at most about MAX_PILOT_BYTES."""
    content, step = b"", PILOT_BYTES
    while content.count(b"\n") < 2 and place + len(content) < size and len(content) < MAX_PILOT_BYTES:
        content += read(place + len(content), place + len(content) + step)
        step *= 2
    begin = content.find(b"\n") + 1
    end = content.find(b"\n", begin)
    return (end + 1 if end >= 0 else len(content)) - (begin if begin < len(content) else 0)


def _window(read: ReadBytes, size: int, start: int, width: int, ahead: int) -> list[bytes]:
    """Return the rows that start in [start, start + width); what passes the end of the file starts at its begin."""
    rows = _rows_starting_in(read, size, start, min(start + width, size), ahead)
    if start + width > size:
        rows += _rows_starting_in(read, size, 0, start + width - size, ahead)
    return rows


def _rows_starting_in(read: ReadBytes, size: int, start: int, stop: int, ahead: int) -> list[bytes]:
    """Return the rows whose first byte is in [start, stop), each to its end."""
    origin = max(0, start - 1)  # a row starts behind the line end before it
    content = read(origin, min(stop + ahead, size))
    begins = [0] if start == 0 else []
    at = content.find(b"\n")
    while 0 <= at and origin + at + 1 < stop:
        begins.append(at + 1)
        at = content.find(b"\n", at + 1)
    if not begins:
        return []
    step = max(ahead, PILOT_BYTES)
    while (end := content.find(b"\n", begins[-1])) < 0 and origin + len(content) < size:
        content += read(origin + len(content), min(origin + len(content) + step, size))
        step *= 2
    ends = [*begins[1:], end + 1 if end >= 0 else len(content)]
    return [content[begin:end] for begin, end in zip(begins, ends, strict=True)]


def rows_of_prefix(prefix: bytes, size: int, is_whole: bool, note: str) -> Drawn:
    """Return the whole rows at the start of a file that cannot be read by ranges, as READS reads."""
    rows = prefix.splitlines(keepends=True)
    if not is_whole and len(rows) > 1:
        rows.pop()  # cut
    step = max(1, -(-len(rows) // READS))
    return Drawn([rows[at : at + step] for at in range(0, len(rows), step)], size, None, len(prefix), note)


def draw_totals(totals: Floats, seen: Floats, size: float, rows_factor: float | None, seed: int) -> Floats:
    """Return estimates of the totals of a file: the estimate itself, then DRAWS bootstrap draws.

    Args:  totals: (reads, figures), the first figure is rows. seen: (reads,) bytes, or whatever `size` counts.
    Returns:  (1 + DRAWS, figures).
    """
    if not seen.sum():
        return np.zeros((DRAWS + 1, totals.shape[1]))
    counts = np.random.default_rng(seed).multinomial(len(seen), np.full(len(seen), 1 / len(seen)), DRAWS)
    weights = np.vstack([np.ones(len(seen)), counts])
    bytes_seen = np.maximum(weights @ seen, 1)
    drawn: Floats = size * (weights @ totals) / bytes_seen[:, None]
    if rows_factor is not None:
        drawn[:, 0] = rows_factor * (weights @ totals[:, 0])
    return drawn


def exact_totals(totals: Sequence[float]) -> Floats:
    """Return the totals of a file that was read whole, in the same form."""
    return np.tile(np.asarray(totals, np.float64), (DRAWS + 1, 1))


def interval(draws: Floats) -> tuple[float, float, float]:
    """Return (estimate, low, high) of draws of one figure, (1 + DRAWS,)."""
    low, high = np.percentile(draws[1:], [50 - LEVEL / 2, 50 + LEVEL / 2])
    return float(draws[0]), float(low), float(high)
