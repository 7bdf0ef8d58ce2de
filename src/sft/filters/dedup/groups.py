"""Clusters: conversations of all sources that are alike, directly or through others, found on disk.

`sft.filters.dedup.near` says how alike two conversations are, by their signatures. Here, for all of a blend at once:
signatures and the keys of their bands go to files; band by band, conversations with the same key are compared.
In memory are a few bytes per conversation: the keys of one band, and who belongs to whom.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from sft.filters.dedup.near import CHANCE, NUMBERS_BYTES, SIGNATURE_BYTES, SLOTS, band_keys, banding

Bytes = npt.NDArray[np.uint8]
Int32s = npt.NDArray[np.int32]
Keys = npt.NDArray[np.uint64]

# Signatures compared at once, if no more than these have one key.
BLOCK_ROWS = 1 << 16


def find_clusters(signatures: Iterable[Bytes], threshold: float, folder: Path) -> Int32s:
    """Number each conversation by the first that it is alike with, directly or through others.

    Shapes:  each of `signatures`: (some conversations, SIGNATURE_BYTES); result: (all conversations,).
    `folder` is for files of 264 bytes, and 8 for each band, per conversation; none of them stays.
    """
    slots, bands = banding(threshold)
    rows = 0
    key_files = [folder / f"keys-{band}" for band in range(bands)]
    with (folder / "signatures").open("wb") as file:
        for some in signatures:
            file.write(some.tobytes())
            rows += len(some)
            keys = band_keys(some, slots, bands)
            for band, path in enumerate(key_files):
                with path.open("ab") as key_file:
                    key_file.write(keys[:, band].tobytes())
    first = np.arange(rows, dtype=np.int32)
    descriptor = os.open(folder / "signatures", os.O_RDONLY)
    try:
        for path in key_files if rows else ():
            for members, starts in buckets(np.fromfile(path, np.uint64)):
                _join(read_rows(descriptor, members), members, starts, first, fewest_same(threshold))
            path.unlink()
    finally:
        os.close(descriptor)
    (folder / "signatures").unlink()
    _shorten(first)
    return first


def fewest_same(threshold: float) -> int:
    """Return how many slots of a side must be the same for a similarity of at least `threshold`.

    >>> fewest_same(0.8), fewest_same(1.0)
    (103, 128)
    """
    return next(same for same in range(SLOTS + 1) if (same / SLOTS - CHANCE) / (1 - CHANCE) >= threshold)


def buckets(keys: Keys) -> Iterator[tuple[Int32s, npt.NDArray[np.int64]]]:
    """Yield the rows that share a key with others, some buckets at a time: rows, and where each bucket begins.

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


def read_rows(descriptor: int, rows: Int32s) -> Bytes:
    """Read the signatures of some rows: not mapped, so that what was read does not stay in memory."""
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
def _alike(one, other, fewest):  # type: ignore[no-untyped-def]
    """Say whether two signatures have the same numbers and, on both sides, so many slots that are the same."""
    for place in range(NUMBERS_BYTES):
        if one[place] != other[place]:
            return False
    for side in range(2):
        differing = 0
        begin = NUMBERS_BYTES + side * SLOTS
        for place in range(begin, begin + SLOTS):
            differing += one[place] != other[place]
        if differing > SLOTS - fewest:
            return False
    return True


@compiled
def _join(signatures, members, starts, first, fewest):  # type: ignore[no-untyped-def]
    """Join what is alike in each bucket; `first` leads from each row to the first of those joined with it."""
    for bucket in range(len(starts) - 1):
        for later in range(starts[bucket] + 1, starts[bucket + 1]):
            for earlier in range(starts[bucket], later):
                one, other = _root(first, members[earlier]), _root(first, members[later])
                if one != other and _alike(signatures[earlier], signatures[later], fewest):
                    first[max(one, other)] = min(one, other)


@compiled
def _shorten(first):  # type: ignore[no-untyped-def]
    for row in range(len(first)):
        first[row] = _root(first, row)
