"""Near-duplicate groups across the sources of a blend, found on disk.

Two conversations are in one group if they are similar (sft.filters.dedup.signatures), directly or through others.
`find_duplicate_groups` writes signatures and band keys to files and compares, band by band, the conversations that
share a key. Memory: a few bytes per conversation, for the keys of one band and the number of its group.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from sft.filters.dedup.signatures import CHANCE, NUMBERS_BYTES, SIGNATURE_BYTES, SLOTS, band_keys, banding

Bytes = npt.NDArray[np.uint8]
Int32s = npt.NDArray[np.int32]
Keys = npt.NDArray[np.uint64]

# Signatures that are compared at once, unless more have the same key.
BLOCK_ROWS = 1 << 16


def find_duplicate_groups(signatures: Iterable[Bytes], threshold: float, folder: Path) -> Int32s:
    """Return the group of each conversation: the number of its first member.

    Shapes:  each of `signatures`: (some conversations, SIGNATURE_BYTES); result: (all conversations,).
    `folder` holds temporary files of 264 bytes, and 8 per band, for each conversation.
    """
    slots, bands = banding(threshold)
    rows = 0
    key_files = [folder / f"keys-{band}" for band in range(bands)]
    with (folder / "signatures").open("wb") as file:
        for block in signatures:
            file.write(block.tobytes())
            rows += len(block)
            keys = band_keys(block, slots, bands)
            for band, path in enumerate(key_files):
                with path.open("ab") as key_file:
                    key_file.write(keys[:, band].tobytes())
    first = np.arange(rows, dtype=np.int32)
    descriptor = os.open(folder / "signatures", os.O_RDONLY)
    try:
        for path in key_files if rows else ():
            for members, starts in buckets(np.fromfile(path, np.uint64)):
                _join(_read_signatures(descriptor, members), members, starts, first, min_same_slots(threshold))
            path.unlink()
    finally:
        os.close(descriptor)
    (folder / "signatures").unlink()
    _flatten(first)
    return first


def min_same_slots(threshold: float) -> int:
    """Return how many slots of a side must be equal for a similarity of at least `threshold`.

    >>> min_same_slots(0.8), min_same_slots(1.0)
    (103, 128)
    """
    return next(same for same in range(SLOTS + 1) if (same / SLOTS - CHANCE) / (1 - CHANCE) >= threshold)


def buckets(keys: Keys) -> Iterator[tuple[Int32s, npt.NDArray[np.int64]]]:
    """Yield (rows, starts) for some buckets at a time: rows that share a key, and where each bucket begins.

    >>> [(rows.tolist(), starts.tolist()) for rows, starts in buckets(np.array([7, 5, 7, 9, 5, 7], np.uint64))]
    [([1, 4, 0, 2, 5], [0, 2, 5])]
    """
    order = np.argsort(keys, kind="stable").astype(np.int32)
    ordered = keys[order]
    del keys
    differs = np.ones(len(order) + 1, np.bool_)  # from the key before it
    differs[1:-1] = ordered[1:] != ordered[:-1]
    shared = ~(differs[1:] & differs[:-1])
    order = order[shared]
    edges = np.flatnonzero(np.append(differs[:-1][shared], True))
    del ordered, differs, shared
    bucket = 0
    while bucket < len(edges) - 1:
        last = max(bucket + 1, int(np.searchsorted(edges, edges[bucket] + BLOCK_ROWS, "right")) - 1)
        yield order[edges[bucket] : edges[last]], edges[bucket : last + 1] - edges[bucket]
        bucket = last


def _read_signatures(descriptor: int, rows: Int32s) -> Bytes:
    """Return the signatures of some rows; read and not mapped, so that they do not stay in memory."""
    signatures = np.empty((len(rows), SIGNATURE_BYTES), np.uint8)
    for place, row in enumerate(rows.tolist()):
        os.preadv(descriptor, [signatures[place].data], row * SIGNATURE_BYTES)
    return signatures


compiled: Any = numba.njit(cache=True)


@compiled
def _root(first, row):  # type: ignore[no-untyped-def]
    while first[row] != row:
        first[row] = first[first[row]]
        row = first[row]
    return row


@compiled
def _are_similar(left, right, min_same):  # type: ignore[no-untyped-def]
    """Return whether two signatures have equal numbers and, on both sides, at least `min_same` equal slots."""
    for place in range(NUMBERS_BYTES):
        if left[place] != right[place]:
            return False
    for side in range(2):
        differing = 0
        begin = NUMBERS_BYTES + side * SLOTS
        for place in range(begin, begin + SLOTS):
            differing += left[place] != right[place]
        if differing > SLOTS - min_same:
            return False
    return True


@compiled
def _join(signatures, members, starts, first, min_same):  # type: ignore[no-untyped-def]
    """Join the similar rows of each bucket; `first` leads from each row to the first row of its group."""
    for bucket in range(len(starts) - 1):
        for later in range(starts[bucket] + 1, starts[bucket + 1]):
            for earlier in range(starts[bucket], later):
                left, right = _root(first, members[earlier]), _root(first, members[later])
                if left != right and _are_similar(signatures[earlier], signatures[later], min_same):
                    first[max(left, right)] = min(left, right)


@compiled
def _flatten(first):  # type: ignore[no-untyped-def]
    for row in range(len(first)):
        first[row] = _root(first, row)
