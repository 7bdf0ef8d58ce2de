"""Bins: which samples share a pack.

Pure functions over lengths. Best-fit decreasing: the longest sample first, each into the bin where it
leaves the least room. Linear in the samples, whatever the pack size: a counting sort, then bins kept by the
room left in them, with a bit for each room that says whether there is one. Two copies of a conversation never
share a bin. Compiled by numba; compiled code is kept beside this file in __pycache__.
"""

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class Bins:
    """Samples by bin, one bin after the other."""

    members: Int32s
    """(samples,) Numbers of the samples, in each bin in order."""
    starts: Int64s
    """(bins + 1,) Where each bin begins in `members`; the last is their number."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def firsts(self) -> Int32s:
        """Return the smallest number in each bin."""
        return self.members[self.starts[:-1]]

    def take(self, order: Int64s) -> "Bins":
        """Return the bins in another order.

        >>> bins = plan_bins(np.array([3, 5, 2, 4], np.int32), capacity=7).take(np.array([1, 0]))
        >>> bins.members.tolist(), bins.starts.tolist()
        ([0, 3, 1, 2], [0, 2, 4])
        """
        sizes = np.diff(self.starts)[order]
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        moved = np.repeat(self.starts[:-1][order] - starts[:-1], sizes)
        moved += np.arange(len(self.members))
        return Bins(self.members[moved], starts)


def length_quantiles(lengths: Int32s) -> dict[str, int]:
    """Return quantiles of lengths by the nearest rank; none of nothing.

    >>> length_quantiles(np.array([3, 1, 2]))["p50"]
    2
    """
    ordered = np.sort(lengths)
    last = len(ordered) - 1
    return {f"p{round(q * 100)}": int(ordered[round(q * last)]) for q in QUANTILES} if last >= 0 else {}


def lower_bound(lengths: Int32s, capacity: int) -> int:
    """Return the fewest bins that any packing could need by volume.

    >>> lower_bound(np.array([3, 5, 2, 4]), capacity=7)
    2
    """
    return -(-int(lengths.sum(dtype=np.int64)) // capacity)


def plan_bins(
    lengths: Int32s, capacity: int, conversations: Int32s | None = None, copies: Int32s | None = None
) -> Bins:
    """Put samples into bins, each into exactly one.

    `conversations` has the number of each sample's conversation where that is repeated, else -1, and `copies`
    which copy of it the sample belongs to: samples of different copies are kept apart, at the price of a fuller
    bin or of a new one.

    Shapes:  lengths, conversations, copies: (samples,).
    Units:   lengths and capacity in tokens, 1 <= length <= capacity.
    Raises:  ValueError: a length outside that range.
    Source:  Johnson 1973, best-fit decreasing: at most 11/9 OPT + 6/9 bins; in practice within 0.01 %.

    >>> plan_bins(np.array([3, 5, 2, 4], np.int32), capacity=7).members.tolist()
    [1, 2, 0, 3]
    >>> copy = np.array([0, 1], np.int32)
    >>> len(plan_bins(np.array([2, 2], np.int32), 7, conversations=np.zeros(2, np.int32), copies=copy))
    2
    """
    lengths = np.ascontiguousarray(lengths, np.int32)
    wrong = (lengths < 1) | (lengths > capacity)
    if wrong.any():
        sample = int(wrong.argmax())
        raise ValueError(f"sample {sample}: {lengths[sample]} tokens do not fit into a pack of {capacity}")
    nobody = np.empty(0, np.int32)
    if conversations is None or copies is None:
        conversations = copies = nobody
    bin_of, bins = _best_fit(lengths, capacity, conversations, copies)
    return Bins(*_by_bin(bin_of, bins))


compiled: Any = numba.njit(cache=True)


# A word with one bit, times this, has in its highest 6 bits a number of its own for each bit (de Bruijn).
DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
BIT_OF = np.empty(64, np.int64)
for _bit in range(64):
    BIT_OF[(int(DE_BRUIJN) << _bit & 0xFFFFFFFFFFFFFFFF) >> 58] = _bit


@compiled
def _lowest_bit(word):  # type: ignore[no-untyped-def]
    """Return the number of the lowest bit that is set."""
    return BIT_OF[((word & (~word + np.uint64(1))) * DE_BRUIJN) >> np.uint64(58)]


@compiled
def _least_room(rooms, words, least):  # type: ignore[no-untyped-def]
    """Return the least room >= `least` that some bin has, or -1: bits of rooms, and of words that are not 0."""
    word = least >> 6
    if word >= len(rooms):
        return -1
    rest = rooms[word] >> np.uint64(least & 63)
    if rest != 0:
        return least + _lowest_bit(rest)
    word += 1
    group = word >> 6
    if group >= len(words):
        return -1
    found = words[group] >> np.uint64(word & 63)
    if found != 0:
        word += _lowest_bit(found)
        return (word << 6) + _lowest_bit(rooms[word])
    for later in range(group + 1, len(words)):
        if words[later] != 0:
            word = (later << 6) + _lowest_bit(words[later])
            return (word << 6) + _lowest_bit(rooms[word])
    return -1


@compiled
def _best_fit(lengths, capacity, conversations, copies):  # type: ignore[no-untyped-def]
    """Return the bin of each sample and how many bins there are. Of bins with the same room the last used wins."""
    samples = len(lengths)
    ends = np.zeros(capacity + 2, np.int64)  # counting sort: the longest first, equal ones in order
    for length in lengths:
        ends[capacity - length + 1] += 1
    for place in range(1, capacity + 2):
        ends[place] += ends[place - 1]
    order = np.empty(samples, np.int32)
    for sample in range(samples):
        place = capacity - lengths[sample]
        order[ends[place]] = sample
        ends[place] += 1

    one = np.uint64(1)
    rooms = np.zeros(capacity // 64 + 1, np.uint64)
    words = np.zeros(len(rooms) // 64 + 1, np.uint64)
    top = np.full(capacity + 1, -1, np.int32)  # room -> the bin that got it last
    under = np.empty(samples, np.int32)  # bin -> the bin with the same room before it
    bin_of = np.empty(samples, np.int32)
    bins = 0
    repeated = len(conversations) > 0
    last_placed = np.full(conversations.max() + 1 if repeated else 0, -1, np.int32)  # of each conversation
    placed_before = np.empty(samples if repeated else 0, np.int32)

    length = capacity
    for place in range(samples):
        while ends[capacity - length] <= place:
            length -= 1
        sample = order[place]
        conversation = conversations[sample] if repeated else -1
        chosen = -1
        room = _least_room(rooms, words, length)
        while room >= 0:
            above, chosen = -1, top[room]
            if conversation >= 0:
                while chosen >= 0:
                    other = last_placed[conversation]
                    while other >= 0 and (bin_of[other] != chosen or copies[other] == copies[sample]):
                        other = placed_before[other]
                    if other < 0:
                        break
                    above, chosen = chosen, under[chosen]
            if chosen >= 0:
                if above >= 0:
                    under[above] = under[chosen]
                else:
                    top[room] = under[chosen]
                    if top[room] < 0:
                        word = room >> 6
                        rooms[word] ^= one << np.uint64(room & 63)
                        if rooms[word] == 0:
                            words[word >> 6] ^= one << np.uint64(word & 63)
                break
            room = _least_room(rooms, words, room + 1)
        if chosen < 0:
            room, chosen = capacity, bins
            bins += 1
        bin_of[sample] = chosen
        if conversation >= 0:
            placed_before[sample] = last_placed[conversation]
            last_placed[conversation] = sample
        if room > length:
            room -= length
            under[chosen] = top[room]
            top[room] = chosen
            word = room >> 6
            rooms[word] |= one << np.uint64(room & 63)
            words[word >> 6] |= one << np.uint64(word & 63)
    return bin_of, bins


@compiled
def _by_bin(bin_of, bins):  # type: ignore[no-untyped-def]
    """Return (members, starts) of Bins: a counting sort of the samples by bin."""
    starts = np.zeros(bins + 1, np.int64)
    for bin_ in bin_of:
        starts[bin_ + 1] += 1
    for bin_ in range(bins):
        starts[bin_ + 1] += starts[bin_]
    following = starts[:-1].copy()
    members = np.empty(len(bin_of), np.int32)
    for sample in range(len(bin_of)):
        bin_ = bin_of[sample]
        members[following[bin_]] = sample
        following[bin_] += 1
    return members, starts
