"""The last step of the near-duplicate search: conversations in order, each compared with those that are kept so far.

`place_postings` and `walk` are plain loops over arrays. `functions` returns them as they are, for small data, or
compiled by numba, which takes a second to load. Compiled code is cached beside this file in __pycache__.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# The low bits of a posting's place: its side (0: asked, 1: answered), whether later conversations find its own by it,
# and whether its own may be the smaller one of a pair that meets there. The other bits are its rank in its side.
SIDE, INDEXED, SMALLER, RANK_BITS = 1, 2, 4, 3
# Less than any difference between two shares of shingles, more than any rounding error.
ROUNDING = 1e-9
# To count the bits that are set in a number; typed, so that compiled code stays with whole numbers.
ONES, TWOS, FOURS = (np.uint64(mask) for mask in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F))
BY_1, BY_2, BY_4, BY_8, BY_16, BY_32, COUNT = (np.uint64(bits) for bits in (1, 2, 4, 8, 16, 32, 127))


class State(NamedTuple):
    """What is known so far, and the index of kept conversations: a region of entries for each token.

    Those that may be the smaller one of a pair fill a region from its front, the others from its back: two of the
    others are never compared.
    """

    kept: Array
    """(conversations,) The earliest kept conversation that is similar; -1 for one that is kept itself."""
    similarity: Array
    """(conversations,) To that one."""
    together: Array
    """(conversations,) An earlier one of the same group that is similar, or itself."""
    seen: Array
    """(conversations,) The last conversation that each was compared with."""
    entries: Array
    """(indexed postings,) Conversations."""
    ranks: Array
    """(indexed postings,) The rank of the token in each."""
    front: Array
    """(tokens,) How many entries are at the front of each region."""
    back: Array
    """(tokens,) And at its back."""

    @classmethod
    def empty(cls, conversations: int, entries: int, tokens: int) -> Self:
        """Return the state before the first conversation."""
        return cls(
            np.full(conversations, -1, np.int32),
            np.zeros(conversations),
            np.arange(conversations, dtype=np.int32),
            np.full(conversations, -1, np.int32),
            np.empty(entries, np.int32),
            np.empty(entries, np.int32),
            np.zeros(tokens, np.int32),
            np.zeros(tokens, np.int32),
        )

    def firsts(self) -> Array:
        """Return the first of those that stay together with each conversation, directly or through others."""
        first = self.together
        while (first != first[first]).any():
            first = first[first]
        return first


def functions(compiled: bool) -> tuple[Callable[..., None], Callable[..., None]]:
    """Return `place_postings` and `walk`."""
    return _compiled() if compiled else (place_postings, walk)


@functools.cache
def _compiled() -> tuple[Callable[..., None], Callable[..., None]]:
    import numba

    return numba.njit(cache=True)(place_postings), numba.njit(cache=True)(walk)


def place_postings(conversations, tokens, places, next_place, to_tokens, to_places, indexed):  # type: ignore[no-untyped-def]
    """Put postings where those of their conversation belong; count the indexed ones of each token."""
    for posting in range(len(tokens)):
        place = next_place[conversations[posting]]
        to_tokens[place] = tokens[posting]
        to_places[place] = places[posting]
        next_place[conversations[posting]] = place + 1
        if places[posting] & INDEXED:
            indexed[tokens[posting]] += 1


# fmt: off
def walk(  # type: ignore[no-untyped-def]
    begin, end, threshold, numbers, shingles, keys, sizes, bitmaps, groups, starts, tokens, places, regions,
    kept, similarity, together, seen, entries, ranks, front, back,
):
    # fmt: on
    """Decide about the conversations begin <= i < end; the arrays behind `regions` are those of State.

    Args:  numbers: all signatures. shingles, keys, sizes, bitmaps, groups: of each conversation: where its shingles
    begin in `numbers`, its key, the number of shingles of each side, its bitmap, its group. starts: where its postings
    begin in `tokens` and `places`. regions: where the entries of each token begin.
    """
    share = threshold / (1 + threshold)  # of the shingles of both that must be common
    for this in range(begin, end):
        best = this  # the earliest kept conversation that is similar, so far
        for posting in range(starts[this], starts[this + 1]):
            token, place = tokens[posting], places[posting]
            side, rank = place & SIDE, place >> RANK_BITS
            for run in range(2 if place & SMALLER else 1):
                for number in range(back[token] if run else front[token]):
                    entry = regions[token + 1] - 1 - number if run else regions[token] + number
                    other = entries[entry]
                    if other >= best:  # the others of this run are later still
                        break
                    least = share * (sizes[this, side] + sizes[other, side]) - ROUNDING
                    if (
                        sizes[this, side] - rank < least
                        or sizes[other, side] - ranks[entry] < least
                        or seen[other] == this
                        or keys[other] != keys[this]
                    ):
                        continue
                    seen[other] = this
                    differing = np.int64(0)
                    for word in range(bitmaps.shape[1]):
                        bits = bitmaps[this, word] ^ bitmaps[other, word]
                        bits = bits - ((bits >> BY_1) & ONES)
                        bits = (bits & TWOS) + ((bits >> BY_2) & TWOS)
                        bits = (bits + (bits >> BY_4)) & FOURS
                        bits = bits + (bits >> BY_8)
                        bits = bits + (bits >> BY_16)
                        bits = bits + (bits >> BY_32)
                        differing += np.int64(bits & COUNT)
                    both = sizes[this, 0] + sizes[this, 1] + sizes[other, 0] + sizes[other, 1]
                    if differing > (1.0 - 2 * share) * both + ROUNDING:
                        continue
                    first, second = this, other
                    if groups[this] == groups[other]:
                        while together[first] != first:
                            first = together[first]
                        while together[second] != second:
                            second = together[second]
                        if first == second:
                            continue
                    # Exactly: the shingles of both sides, in order.
                    similar = 1.0
                    left, right = shingles[this], shingles[other]
                    for compared in range(2):
                        left_end, right_end = left + sizes[this, compared], right + sizes[other, compared]
                        both = sizes[this, compared] + sizes[other, compared]
                        spare = both - 2 * (share * both - ROUNDING)  # shingles that may be of one only
                        common = 0
                        left_now, right_now = left, right
                        while left_now < left_end and right_now < right_end and spare >= 0:
                            if numbers[left_now] == numbers[right_now]:
                                common += 1
                                left_now += 1
                                right_now += 1
                            else:
                                spare -= 1
                                if numbers[left_now] < numbers[right_now]:
                                    left_now += 1
                                else:
                                    right_now += 1
                        similar = min(similar, common / (both - common)) if spare >= 0 else 0.0
                        left, right = left_end, right_end
                        if similar < threshold:
                            break
                    if similar < threshold:
                        continue
                    if groups[this] == groups[other]:
                        together[max(first, second)] = min(first, second)
                    else:
                        best = other
                        similarity[this] = similar
        if best < this:
            kept[this] = best
            continue
        for posting in range(starts[this], starts[this + 1]):
            token, place = tokens[posting], places[posting]
            if place & INDEXED:
                if place & SMALLER:
                    entry = regions[token] + front[token]
                    front[token] += 1
                else:
                    back[token] += 1
                    entry = regions[token + 1] - back[token]
                entries[entry] = this
                ranks[entry] = place >> RANK_BITS
