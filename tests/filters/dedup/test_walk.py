"""Walk: compiled code and plain code fill the same arrays."""

import numpy as np
import pytest

from sft.filters.dedup.walk import INDEXED, RANK_BITS, SMALLER, State, functions

SIDES = [range(10), range(1, 11), range(100, 110), range(2, 12)]
"""The only shingles of both sides of each conversation; all share one token, the first of each."""


def walk_over(compiled, groups=(0, 1, 2, 3), share=0.8):
    """Walk over SIDES at once, with one token by which each is indexed; return the state."""
    place_postings, walk = functions(compiled)
    number, places = len(SIDES), np.full(len(SIDES), (0 << RANK_BITS) | SMALLER | INDEXED, np.int32)
    tokens, to_places, indexed = np.empty(number, np.int32), np.empty(number, np.int32), np.zeros(1, np.int32)
    owners, starts = np.arange(number, dtype=np.int32), np.arange(number + 1)
    place_postings(owners, np.zeros(number, np.int32), places, starts[:-1].copy(), tokens, to_places, indexed)
    assert indexed.tolist() == [number]
    numbers = np.array([list(side) * 2 for side in SIDES], np.uint32).ravel()
    sizes = np.full((number, 2), 10, np.int32)
    state = State.empty(number, number, 1)
    texts = numbers, 20 * np.arange(number), np.zeros(number, np.uint64), sizes, np.zeros((number, 4), np.uint64)
    regions = np.array([0, number])
    walk(0, number, share, *texts, np.array(groups, np.int32), starts, tokens, to_places, regions, *state)
    return state


@pytest.mark.parametrize("groups", [(0, 1, 2, 3), (0, 0, 0, 1), (0, 0, 0, 0)])
def test_compiled_code_does_the_same(groups):
    plain, compiled = walk_over(False, groups), walk_over(True, groups)
    for name, one, other in zip(State._fields, plain, compiled, strict=True):
        if name not in ("entries", "ranks"):  # only their first ones are filled
            assert one.tolist() == other.tolist(), name


def test_only_kept_conversations_are_indexed_and_named():
    """The second is similar to the first; the fourth only to the second."""
    state = walk_over(False)
    assert state.kept.tolist() == [-1, 0, -1, -1]
    assert state.similarity.tolist() == [0, 9 / 11, 0, 0]
    assert (state.front.tolist(), state.back.tolist()) == ([3], [0])
    assert state.entries[:3].tolist() == [0, 2, 3]


def test_those_of_one_group_are_kept_together_through_others():
    state = walk_over(False, (0, 0, 0, 0))
    assert state.kept.tolist() == [-1] * 4
    assert state.firsts().tolist() == [0, 0, 2, 0]
