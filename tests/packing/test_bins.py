"""Bins: every sample once, no bin too full, and few of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.packing import bins as compiled
from sft.packing.bins import lower_bound

LENGTHS = st.integers(8, 64).flatmap(lambda size: st.tuples(st.lists(st.integers(1, size), max_size=80), st.just(size)))


def plan_bins(lengths, capacity, copies=None):
    """Return bins as lists; `copies` maps a sample to its conversation and copy, if it is seen more than once."""
    numbers = (None, None)
    if copies is not None:
        names = sorted({name for name, _ in copies.values()})
        by_sample = [copies.get(index) for index in range(len(lengths))]
        conversations = np.array([names.index(copy[0]) if copy else -1 for copy in by_sample], np.int32)
        numbers = conversations, np.array([copy[1] if copy else 0 for copy in by_sample], np.int32)
    planned = compiled.plan_bins(np.array(lengths, np.int32), capacity, *numbers)
    assert len(planned) == len(planned.firsts())
    return [planned.members[planned.starts[n] : planned.starts[n + 1]].tolist() for n in range(len(planned))]


def test_the_longest_goes_first_each_to_the_fullest_bin_that_it_fits():
    assert plan_bins([3, 5, 2, 4], capacity=7) == [[1, 2], [0, 3]]


def test_a_sample_of_exactly_a_pack_fills_one():
    assert plan_bins([4, 4, 1], capacity=4) == [[0], [1], [2]]


def test_nothing_makes_no_bins():
    assert plan_bins([], capacity=4) == []


@pytest.mark.parametrize("length", [0, 5])
def test_a_length_outside_of_a_pack_is_refused_by_number(length):
    with pytest.raises(ValueError, match=f"sample 1: .*{length}"):
        plan_bins([1, length], capacity=4)


@given(LENGTHS)
def test_every_sample_is_in_exactly_one_bin_and_no_bin_overflows(case):
    lengths, capacity = case
    bins = plan_bins(lengths, capacity)
    assert sorted(index for members in bins for index in members) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in members) <= capacity for members in bins)


@given(LENGTHS)
def test_bins_are_at_most_eleven_ninths_of_the_fewest_possible(case):
    lengths, capacity = case
    bins = plan_bins(lengths, capacity)
    assert lower_bound(np.array(lengths, np.int32), capacity) <= len(bins)
    # No two bins could be joined: best-fit never leaves that undone.
    fill = sorted(sum(lengths[i] for i in members) for members in bins)
    assert len(fill) < 2 or fill[0] + fill[1] > capacity


def test_ten_thousand_short_samples_pack_within_a_tenth_of_a_percent_of_the_bound():
    lengths = [1 + (i * 7919) % 900 for i in range(10_000)]
    bins, bound = plan_bins(lengths, 4096), lower_bound(np.array(lengths), 4096)
    assert bound <= len(bins) <= bound * 1.001 + 1


@pytest.mark.parametrize("capacity", [63, 64, 4095, 4096, 4097, 262_144, 300_000])
def test_a_pair_that_fills_a_bin_finds_each_other_whatever_the_size(capacity):
    short = [1, 2, capacity // 3]
    lengths = [capacity - length for length in short] + short
    assert plan_bins(lengths, capacity) == [[0, 3], [1, 4], [2, 5]]


@given(LENGTHS, st.randoms(use_true_random=False))
def test_bins_taken_in_another_order_are_the_same_bins(case, random):
    lengths, capacity = case
    bins = compiled.plan_bins(np.array(lengths, np.int32), capacity)
    order = random.sample(range(len(bins)), len(bins))
    moved = bins.take(np.array(order, np.int64))
    before, after = (
        [each.members[each.starts[n] : each.starts[n + 1]].tolist() for n in range(len(each))] for each in (bins, moved)
    )
    assert after == [before[place] for place in order]


def test_copies_of_a_conversation_are_never_in_one_bin_and_samples_of_one_copy_may_be():
    copies = {0: ("a", 0), 1: ("a", 0), 2: ("a", 1), 3: ("a", 1)}
    assert plan_bins([2, 1, 2, 1], capacity=9, copies=copies) == [[0, 1], [2, 3]]


def test_copies_take_the_next_bin_that_they_fit_before_a_new_one():
    assert plan_bins([4, 3, 2, 2], capacity=6, copies={2: ("a", 0), 3: ("a", 1)}) == [[0, 2], [1, 3]]


@given(LENGTHS, st.integers(2, 4))
def test_whatever_is_repeated_copies_are_apart_and_nothing_is_lost(case, times):
    once, capacity = case
    lengths = once * times
    copies = {index: (f"c{index % len(once) // 2}", index // len(once)) for index in range(len(lengths))}
    bins = plan_bins(lengths, capacity, copies)
    assert sorted(index for members in bins for index in members) == list(range(len(lengths)))
    for members in bins:
        assert sum(lengths[i] for i in members) <= capacity
        held = {copies[i] for i in members}
        assert len(held) == len({conversation for conversation, _ in held})
