"""Near-duplicate search: which conversations are similar to an earlier one that is kept.

    Search(folder, threshold).add(signatures) ... -> Search.find() -> number, kept number, similarity

Conversations are taken in the order of adding: the first is kept, and each later one is a duplicate if it is at least
as similar as the threshold to an earlier *kept* one; the earliest of those is its evidence. No pair is missed and no
candidate left out. Two sides of |x| and |y| shingles with a Jaccard index of t or more have at least
a = t / (1 + t) * (|x| + |y|) shingles in common. So in any fixed order of all shingles, their first common one is among
the first |x| - a + 1 of one and the first |y| - a + 1 of the other (prefix filtering: Xiao et al., PPJoin, 2008). With
rare shingles first, texts from one template meet only if they are nearly duplicates.

The steps; workers do the second and the third, with a few million numbers in memory each:

1. how frequent each shingle is, counted on a sample: it decides how fast the search is, never what it finds
2. `write_prefixes`: the prefix of each side as postings: a token (a hash of shingle, side and key), and its place
3. `match_postings`: the tokens that conversations share
4. `walk` (sft.filters.dedup.walk): the conversations that share tokens, in order

Memory of the last step: 4 bytes per conversation, 80 more for each that shares a token, 16 for each shared posting.
"""

import itertools
import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sft.filters.dedup.signatures import HEADER
from sft.filters.dedup.walk import INDEXED, RANK_BITS, ROUNDING, SIDE, SMALLER, State, functions
from sft.filters.dedup.words import MULTIPLIERS, mix64
from sft.workers import map_shards, report_position

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Uint32s = npt.NDArray[np.uint32]
Uint64s = npt.NDArray[np.uint64]

# Counters of shingles, and about how many shingles are counted.
COUNTERS, COUNTED = 1 << 21, 1 << 21
# 32-bit numbers of signatures in a task of `write_prefixes` and in a block of it, and for each partition of postings.
TASK_NUMBERS, BLOCK_NUMBERS, PARTITION_NUMBERS = 1 << 24, 1 << 17, 1 << 22
# The bitmap of a conversation has a bit for each value of the lowest bits of a shingle: whether it has an odd number of
# those shingles. Two conversations differ in at least as many shingles as their bitmaps in bits.
BITMAP_BITS = 256
POSTING_COLUMNS = {"tokens": "<u8", "conversations": "<i4", "places": "<i4"}
SHARED_COLUMNS = {"conversations": "<i4", "tokens": "<i4", "places": "<i4"}
# With fewer shared postings, it takes longer to load compiled code than to do without.
COMPILE_FROM = 1 << 12
# Conversations that `walk` takes at once; the pages of signatures that it read are then given back.
WALK_AT_ONCE = 1 << 14


class Duplicates(NamedTuple):
    """What was found: arrays of (duplicates,), in the order of their numbers."""

    number: Int64s
    kept: Int64s
    """The earliest kept conversation that is similar."""
    similarity: Floats


class Search:
    """The conversations to compare: add all, in order, then call `find` once.

    Args:  folder: a new folder for temporary files: the signatures, and about twice as much while searching.
    threshold: the least similarity of duplicates.
    """

    def __init__(self, folder: Path, threshold: float) -> None:
        folder.mkdir()
        self.folder, self._threshold = folder.absolute(), threshold
        for name in ("signatures", "lengths"):
            (folder / name).touch()

    def add(self, signatures: Sequence[bytes]) -> None:
        """Add conversations by their signatures."""
        lengths = np.array([len(signature) // 4 for signature in signatures], "<u4")
        for name, content in (("signatures", b"".join(signatures)), ("lengths", lengths.tobytes())):
            with (self.folder / name).open("ab") as file:
                file.write(content)

    def find(self, groups: Int32s | None = None) -> tuple[Duplicates, Int64s]:
        """Return the duplicates; and for each conversation the first of its group that is similar, or its own number.

        Args:  groups: (conversations,) Conversations of the same group are never duplicates of each other. Without
        groups, all may be.
        """
        starts = _starts(np.fromfile(self.folder / "lengths", "<u4"))
        if len(starts) < 3:
            return Duplicates(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)), starts[:-1]
        count_shingles(self.folder / "signatures", starts).tofile(self.folder / "frequencies")
        parts = map_shards(write_prefixes, self._plan_prefixes(starts), "index shingles")
        shared = map_shards(match_postings, self._plan_matches(parts), "match shingles")
        return self._walk(starts, parts, shared, groups)

    def _plan_prefixes(self, starts: Int64s) -> list[dict[str, Any]]:
        """Return the tasks of `write_prefixes`: ranges of conversations, by the size of their signatures."""
        cuts = np.searchsorted(starts, np.arange(TASK_NUMBERS, starts[-1], TASK_NUMBERS))
        partition_bits = int(starts[-1] // PARTITION_NUMBERS).bit_length()
        common = {"folder": str(self.folder), "threshold": self._threshold, "partition_bits": partition_bits}
        return [
            {**common, "first": first, "last": last, "begin": int(starts[first])}
            for first, last in itertools.pairwise(sorted({0, *cuts.tolist(), len(starts) - 1}))
        ]

    def _plan_matches(self, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the tasks of `match_postings`: a partition of each part, by where it begins and its length."""
        bounds = [_starts(np.array(part["postings"])).tolist() for part in parts]
        return [
            {
                "folder": str(self.folder),
                "parts": [(part["folder"], each[p], each[p + 1]) for part, each in zip(parts, bounds, strict=True)],
            }
            for p in range(len(bounds[0]) - 1)
        ]

    def _walk(
        self, starts: Int64s, parts: list[dict[str, Any]], shared: list[dict[str, Any]], groups: Int32s | None
    ) -> tuple[Duplicates, Int64s]:
        """Load what conversations share, and walk over those; returns as `find`."""
        postings, num_tokens = (sum(part[name] for part in shared) for name in ("postings", "tokens"))
        place_postings, walk = functions(compiled=postings >= COMPILE_FROM)
        counts = np.zeros(len(starts) - 1, np.int32)
        for part in shared:
            np.add.at(counts, _read(part, "conversations"), np.int32(1))
        rows = np.flatnonzero(counts)  # the conversations that share a token
        posting_starts = _starts(counts[rows])  # where the postings of each begin
        counts[rows] = np.arange(len(rows), dtype=np.int32)
        tokens, places = np.empty(postings, np.int32), np.empty(postings, np.int32)
        indexed, next_place, first_token = np.zeros(num_tokens, np.int32), posting_starts[:-1].copy(), 0
        for part in shared:
            numbered = _read(part, "tokens") + np.int32(first_token)
            owners = counts[_read(part, "conversations")]
            place_postings(owners, numbered, _read(part, "places"), next_place, tokens, places, indexed)
            first_token += part["tokens"]
        regions = _starts(indexed)
        del counts, next_place, indexed

        keys, sizes, bitmaps = _read_headers(parts, rows)
        group = np.arange(len(rows), dtype=np.int32) if groups is None else groups[rows]
        state = State.empty(len(rows), int(regions[-1]), num_tokens)
        with (self.folder / "signatures").open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        numbers = np.frombuffer(mapped, "<u4")
        texts = numbers, starts[rows] + HEADER, keys, sizes, bitmaps, group
        for begin in range(0, len(rows), WALK_AT_ONCE):
            end = min(begin + WALK_AT_ONCE, len(rows))
            walk(begin, end, self._threshold, *texts, posting_starts, tokens, places, regions, *state)
            mapped.madvise(mmap.MADV_DONTNEED)
        together = np.arange(len(starts) - 1)
        together[rows] = rows[state.firsts()]
        found = np.flatnonzero(state.kept >= 0)
        return Duplicates(rows[found], rows[state.kept[found]], state.similarity[found]), together


def count_shingles(path: Path, starts: Int64s) -> Bytes:
    """Return how often shingles occur in a sample of conversations, as logarithms to base 2, by their lowest bits.

    `starts`, (conversations + 1,), says where each signature begins in a file, in 32-bit numbers.
    """
    counts = np.zeros(COUNTERS, np.uint32)
    sampled = range(0, len(starts) - 1, -(-int(starts[-1]) // COUNTED))
    with path.open("rb") as file:
        for block in itertools.batched(sampled, 1 << 10):
            spans = [(int(starts[number]) + HEADER, int(starts[number + 1])) for number in block]
            shingles = b"".join(os.pread(file.fileno(), 4 * (end - begin), 4 * begin) for begin, end in spans)
            np.add.at(counts, np.frombuffer(shingles, "<u4") & np.uint32(COUNTERS - 1), np.uint32(1))
    logarithms: Bytes = np.log2(np.maximum(counts, 1)).astype(np.uint8)
    return logarithms


def write_prefixes(task: dict[str, Any]) -> dict[str, Any]:
    """Write postings, headers and bitmaps of some conversations to a new folder (a task of sft.workers).

    Returns the folder, and how many postings each partition has: those of a token that begins with its bits.
    """
    source, first, bits = Path(task["folder"]), task["first"], task["partition_bits"]
    starts = _starts(np.fromfile(source / "lengths", "<u4", task["last"] - first, offset=4 * first))
    frequencies = np.fromfile(source / "frequencies", np.uint8)
    folder = Path(tempfile.mkdtemp(prefix="postings-", dir=source))
    columns: list[tuple[npt.NDArray[Any], ...]] = []
    with (folder / "headers").open("wb") as headers, (folder / "bitmaps").open("wb") as bitmaps:
        begin = 0
        while begin < len(starts) - 1:
            end = max(begin + 1, int(np.searchsorted(starts, starts[begin] + BLOCK_NUMBERS, "right")) - 1)
            report_position(f"conversations {first + begin} to {first + end - 1}")
            offset, size = 4 * (task["begin"] + int(starts[begin])), int(starts[end] - starts[begin])
            numbers = np.fromfile(source / "signatures", "<u4", size, offset=offset)
            block = Block.of(numbers, starts[begin : end + 1] - starts[begin])
            headers.write(block.headers.tobytes())
            bitmaps.write(block.bitmaps().tobytes())
            tokens, conversations, places = block.postings(frequencies, task["threshold"])
            columns.append((tokens, (conversations + first + begin).astype(np.int32), places.astype(np.int32)))
            begin = end
    joined = [np.concatenate(column) for column in zip(*columns, strict=True)]
    partition = (joined[0] >> np.uint64(48)).astype(np.uint16) >> (16 - bits)
    order = np.argsort(partition, kind="stable")
    for (name, kind), column in zip(POSTING_COLUMNS.items(), joined, strict=True):
        column[order].astype(kind, copy=False).tofile(folder / name)
    postings = np.bincount(partition, minlength=1 << bits).tolist()
    return {"folder": str(folder), "first": first, "last": task["last"], "postings": postings}


class Block(NamedTuple):
    """Some conversations, of two sides each."""

    headers: Uint32s
    """(conversations, HEADER)"""
    keys: Uint64s
    """(conversations,)"""
    sizes: Int64s
    """(sides,) How many shingles each has."""
    shingles: Uint32s
    """(shingles,) Side after side."""

    @classmethod
    def of(cls, numbers: Uint32s, starts: Int64s) -> "Block":
        """Read signatures; `starts` says where each begins."""
        places = starts[:-1, None] + np.arange(HEADER)
        headers = numbers[places]
        keys = np.ascontiguousarray(headers[:, :2]).view("<u8").ravel()
        return cls(headers, keys, headers[:, 2:].astype(np.int64).ravel(), np.delete(numbers, places.ravel()))

    def bitmaps(self) -> Bytes:
        """Return the bitmap of each conversation, (conversations, BITMAP_BITS / 8)."""
        owner = np.repeat(np.arange(len(self.keys)), self.sizes.reshape(-1, 2).sum(axis=1))
        bits = owner * BITMAP_BITS + (self.shingles & np.uint32(BITMAP_BITS - 1))
        is_odd = (np.bincount(bits, minlength=len(self.keys) * BITMAP_BITS) & 1).astype(np.bool_)
        return np.packbits(is_odd, bitorder="little").reshape(-1, BITMAP_BITS // 8)

    def postings(self, frequencies: Bytes, threshold: float) -> tuple[Uint64s, Int64s, Int64s]:
        """Return token, conversation and place of each posting.

        Later conversations find one by the side whose prefix has the rarer shingles; they search by both of theirs.
        """
        frequency = frequencies[self.shingles & np.uint32(COUNTERS - 1)]
        ordered = (frequency.astype(np.uint64) << np.uint64(32)) | self.shingles
        begins = _starts(self.sizes)
        for begin, end in itertools.pairwise(begins.tolist()):
            ordered[begin:end].sort()
        longest = _prefix_lengths(self.sizes, threshold)
        as_smaller = _prefix_lengths(self.sizes, 2 * threshold / (1 + threshold))
        side = np.repeat(np.arange(len(self.sizes)), longest)
        rank = np.arange(len(side)) - np.repeat(_starts(longest)[:-1], longest)
        prefix = ordered[begins[side] + rank]
        cost = np.bincount(side, np.exp2((prefix >> np.uint64(32)).astype(np.float64)), len(self.sizes))
        is_first = cost[::2] < cost[1::2]
        is_indexed = np.column_stack([is_first, ~is_first]).ravel()[side]
        tokens = self.keys[side >> 1] + (prefix & np.uint64(0xFFFFFFFF)) * np.uint64(MULTIPLIERS[0])
        tokens += (side & SIDE).astype(np.uint64)
        places = (rank << RANK_BITS) | (rank < as_smaller[side]) * SMALLER | is_indexed * INDEXED | (side & SIDE)
        return mix64(tokens), side >> 1, places


def match_postings(task: dict[str, Any]) -> dict[str, Any]:
    """Write the postings of a partition whose token conversations share to a new folder (a task of sft.workers).

    A pair can meet at a token if one of the two is found by it, and one may be the smaller there. Returns the folder,
    and how many postings and tokens it has; tokens are numbered.
    """
    tokens, conversations, places = (
        np.concatenate(
            [
                np.fromfile(Path(folder) / name, kind, end - begin, offset=begin * np.dtype(kind).itemsize)
                for folder, begin, end in task["parts"]
            ]
        )
        for name, kind in POSTING_COLUMNS.items()
    )
    report_position(f"{len(tokens)} postings")
    # The low bits of a token, and its posting: sorted faster than an index. Different tokens may look equal.
    bits = np.uint64(max(1, len(tokens).bit_length()))
    tokens <<= bits
    tokens |= np.arange(len(tokens), dtype=np.uint64)
    tokens.sort()
    posting = (tokens & np.uint64((1 << int(bits)) - 1)).astype(np.int64)
    tokens >>= bits
    edges = np.flatnonzero(np.append(tokens[1:] != tokens[:-1], True)) + 1  # behind the postings of each token
    sizes = np.diff(edges, prepend=0) if len(tokens) else edges[:0]
    several = sizes > 1
    posting, sizes = posting[np.repeat(several, sizes)], sizes[several]
    flags = np.bitwise_or.reduceat(places[posting], _starts(sizes)[:-1]) if len(sizes) else places[:0]
    meets = (flags & INDEXED > 0) & (flags & SMALLER > 0)
    posting, sizes = posting[np.repeat(meets, sizes)], sizes[meets]
    numbers = np.repeat(np.arange(len(sizes)), sizes)
    folder = Path(tempfile.mkdtemp(prefix="shared-", dir=task["folder"]))
    for name, column in zip(SHARED_COLUMNS, (conversations[posting], numbers, places[posting]), strict=True):
        column.astype(SHARED_COLUMNS[name], copy=False).tofile(folder / name)
    return {"folder": str(folder), "postings": len(posting), "tokens": len(sizes)}


def _read(part: dict[str, Any], name: str) -> Int32s:
    """Read a column that `match_postings` wrote."""
    return np.fromfile(Path(part["folder"]) / name, SHARED_COLUMNS[name])


def _read_headers(parts: list[dict[str, Any]], rows: Int64s) -> tuple[Uint64s, Int32s, Uint64s]:
    """Return key, sizes and bitmap of some conversations, from what `write_prefixes` wrote."""
    headers, bitmaps = [np.empty((0, HEADER), "<u4")], [np.empty((0, BITMAP_BITS // 64), "<u8")]
    for part in parts:
        in_part = rows[slice(*np.searchsorted(rows, [part["first"], part["last"]]))] - part["first"]
        headers.append(np.fromfile(Path(part["folder"]) / "headers", "<u4").reshape(-1, HEADER)[in_part])
        bitmaps.append(np.fromfile(Path(part["folder"]) / "bitmaps", "<u8").reshape(-1, BITMAP_BITS // 64)[in_part])
    header = np.concatenate(headers)
    keys = np.ascontiguousarray(header[:, :2]).view("<u8").ravel()
    return keys, header[:, 2:].astype(np.int32), np.concatenate(bitmaps)


def _prefix_lengths(sizes: Int64s, share: float) -> Int64s:
    """Return the number of shingles of which at least one is common if this share of all is, or one."""
    return sizes + 1 - np.maximum(1, np.ceil(sizes * share - ROUNDING)).astype(np.int64)


def _starts(lengths: npt.NDArray[Any]) -> Int64s:
    """Return where each of some consecutive pieces begins, and where the last ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
