"""Bins: every sample once, no bin too full, and few of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.data.bins import length_quantiles, lower_bound, plan_bins

LENGTHS = st.integers(8, 64).flatmap(lambda size: st.tuples(st.lists(st.integers(1, size), max_size=80), st.just(size)))


def test_the_longest_goes_first_each_to_the_fullest_bin_that_has_room():
    assert plan_bins([3, 5, 2, 4], capacity=7) == [[1, 2], [3, 0]]


def test_a_sample_of_exactly_a_pack_fills_one():
    assert plan_bins([4, 4, 1], capacity=4) == [[0], [1], [2]]


def test_nothing_makes_no_bins():
    assert plan_bins([], capacity=4) == []


@pytest.mark.parametrize("length", [0, 5])
def test_a_length_outside_of_a_pack_is_refused_by_number(length):
    with pytest.raises(ValueError, match=f"sample 1: {length} tokens"):
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
    assert lower_bound(lengths, capacity) <= len(bins)
    # No two bins could be joined: best-fit never leaves that undone.
    fill = sorted(sum(lengths[i] for i in members) for members in bins)
    assert len(fill) < 2 or fill[0] + fill[1] > capacity


def test_ten_thousand_short_samples_pack_within_a_tenth_of_a_percent_of_the_bound():
    lengths = [1 + (i * 7919) % 900 for i in range(10_000)]
    bins = plan_bins(lengths, 4096)
    assert lower_bound(lengths, 4096) <= len(bins) <= lower_bound(lengths, 4096) * 1.001 + 1


def test_copies_of_a_conversation_are_never_in_one_bin_and_samples_of_one_copy_may_be():
    copies = {0: ("a", 0), 1: ("a", 0), 2: ("a", 1), 3: ("a", 1)}
    assert plan_bins([2, 1, 2, 1], capacity=9, copies=copies) == [[0, 1], [2, 3]]


def test_copies_take_the_next_bin_with_room_before_a_new_one():
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


def test_quantiles_are_lengths_that_occur():
    assert length_quantiles([10, 40, 20, 30, 50]) == {
        "p0": 10,
        "p25": 20,
        "p50": 30,
        "p75": 40,
        "p90": 50,
        "p99": 50,
        "p100": 50,
    }
    assert length_quantiles([]) == {}
