"""Batches: rows that are taken together, bounded in number and in bytes, so that long rows take no more memory."""

from collections.abc import Callable, Iterable, Iterator


def batches[T](rows: Iterable[T], size: Callable[[T], int], most: int, most_bytes: int) -> Iterator[list[T]]:
    """Yield rows in lists of at most `most` rows and, unless one alone is longer, `most_bytes` bytes.

    >>> list(batches([1, 1, 5, 9, 1], lambda row: row, 2, 6))
    [[1, 1], [5], [9], [1]]
    """
    batch, total = list[T](), 0
    for row in rows:
        length = size(row)
        if batch and (len(batch) == most or total + length > most_bytes):
            yield batch
            batch, total = [], 0
        batch.append(row)
        total += length
    if batch:
        yield batch


def rows_at_once(rows: int, total_bytes: int, most: int, most_bytes: int) -> int:
    """Return how many of `rows` rows of `total_bytes` to take at once, if all are about as long; at least one.

    >>> rows_at_once(100, 1000, 256, 500), rows_at_once(100, 1000, 20, 500), rows_at_once(1, 1000, 20, 500)
    (50, 20, 1)
    """
    return max(1, min(most, most_bytes * rows // max(1, total_bytes)))
