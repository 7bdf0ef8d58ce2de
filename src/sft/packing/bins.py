"""Bins: which samples share a pack.

Pure functions over lengths: best-fit decreasing, the longest sample first, each into the bin with the least space that
it fits. Linear in the samples, whatever the pack size: a counting sort, then bins indexed by the space left in them,
with a bit for each space that says whether such a bin exists. Two copies of a conversation never share a bin.
Compiled by numba; the compiled code is cached beside this file in __pycache__.
"""

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bins:
    """Samples, bin by bin."""

    members: Int32s
    """(samples,) Numbers of the samples, ascending in each bin."""
    starts: Int64s
    """(bins + 1,) Where each bin begins in `members`; the last is the number of samples."""

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


def lower_bound(lengths: Int32s, capacity: int) -> int:
    """Return the fewest bins that any packing needs, by volume.

    >>> lower_bound(np.array([3, 5, 2, 4]), capacity=7)
    2
    """
    return -(-int(lengths.sum(dtype=np.int64)) // capacity)


def plan_bins(
    lengths: Int32s, capacity: int, conversations: Int32s | None = None, copies: Int32s | None = None
) -> Bins:
    """Assign every sample to a bin.

    `conversations` has the conversation of each sample if it is seen more than once, else -1, and `copies` the copy
    that the sample belongs to: samples of different copies go to different bins, which may cost another bin.

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
        raise ValueError(f"sample {sample}: found {lengths[sample]} tokens, expected 1 to {capacity}")
    none = np.empty(0, np.int32)
    if conversations is None or copies is None:
        conversations = copies = none
    bin_of, bins = _best_fit(lengths, capacity, conversations, copies)
    return Bins(*_by_bin(bin_of, bins))


compiled: Any = numba.njit(cache=True)


# De Bruijn sequence: a word with one bit set, times this, has a distinct number in its highest 6 bits.
DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
BIT_OF = np.empty(64, np.int64)
for _bit in range(64):
    BIT_OF[(int(DE_BRUIJN) << _bit & 0xFFFFFFFFFFFFFFFF) >> 58] = _bit


@compiled
def _lowest_bit(word):  # type: ignore[no-untyped-def]
    """Return the position of the lowest set bit."""
    return BIT_OF[((word & (~word + np.uint64(1))) * DE_BRUIJN) >> np.uint64(58)]


@compiled
def _least_space(spaces, words, least):  # type: ignore[no-untyped-def]
    """Return the least space >= `least` of any bin, or -1; bits say which spaces, and which words of these, are set."""
    word = least >> 6
    if word >= len(spaces):
        return -1
    rest = spaces[word] >> np.uint64(least & 63)
    if rest != 0:
        return least + _lowest_bit(rest)
    word += 1
    group = word >> 6
    if group >= len(words):
        return -1
    rest = words[group] >> np.uint64(word & 63)
    if rest != 0:
        word += _lowest_bit(rest)
        return (word << 6) + _lowest_bit(spaces[word])
    for later in range(group + 1, len(words)):
        if words[later] != 0:
            word = (later << 6) + _lowest_bit(words[later])
            return (word << 6) + _lowest_bit(spaces[word])
    return -1


@compiled
def _best_fit(lengths, capacity, conversations, copies):  # type: ignore[no-untyped-def]
    """Return the bin of each sample and the number of bins. Of bins with the same space the last used one is taken."""
    samples = len(lengths)
    ends = np.zeros(capacity + 2, np.int64)  # counting sort, stable, the longest first
    for length in lengths:
        ends[capacity - length + 1] += 1
    for place in range(1, capacity + 2):
        ends[place] += ends[place - 1]
    order = np.empty(samples, np.int32)
    for sample in range(samples):
        place = capacity - lengths[sample]
        order[ends[place]] = sample
        ends[place] += 1

    bit_0 = np.uint64(1)
    spaces = np.zeros(capacity // 64 + 1, np.uint64)
    words = np.zeros(len(spaces) // 64 + 1, np.uint64)
    top = np.full(capacity + 1, -1, np.int32)  # space -> the bin that reached it last
    under = np.empty(samples, np.int32)  # bin -> the bin that reached the same space before it
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
        space = _least_space(spaces, words, length)
        while space >= 0:
            above, chosen = -1, top[space]
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
                    top[space] = under[chosen]
                    if top[space] < 0:
                        word = space >> 6
                        spaces[word] ^= bit_0 << np.uint64(space & 63)
                        if spaces[word] == 0:
                            words[word >> 6] ^= bit_0 << np.uint64(word & 63)
                break
            space = _least_space(spaces, words, space + 1)
        if chosen < 0:
            space, chosen = capacity, bins
            bins += 1
        bin_of[sample] = chosen
        if conversation >= 0:
            placed_before[sample] = last_placed[conversation]
            last_placed[conversation] = sample
        if space > length:
            space -= length
            under[chosen] = top[space]
            top[space] = chosen
            word = space >> 6
            spaces[word] |= bit_0 << np.uint64(space & 63)
            words[word >> 6] |= bit_0 << np.uint64(word & 63)
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
