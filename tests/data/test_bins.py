"""Bins: every sample once, no bin too full, and few of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.data.bins import lower_bound, plan_bins

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
