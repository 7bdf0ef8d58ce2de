"""Partition: one sample wherever that is exact, as few as possible otherwise."""

import pytest

from sft.tokens.partition import partition


def everything(end, turns):
    return turns


def drops_reasoning(thinks, users):
    """A template that drops reasoning before the last user message, and is exact otherwise."""

    def attempt(end, turns):
        last = max(user for user in users if user < end)
        return [turn for turn in turns if turn > last or not thinks[turn]]

    return attempt


def test_a_conversation_is_one_sample_where_that_is_exact():
    assert partition([1, 3, 5], [False] * 6, everything) == [(6, [1, 3, 5])]
    assert partition([], [], everything) == []


def test_context_behind_the_last_trained_turn_is_left_out():
    assert partition([1], [False] * 6, everything) == [(2, [1])]


@pytest.mark.parametrize(
    ("reasoned", "samples"),
    [
        ([5], [(6, [1, 3, 5])]),
        ([1, 3, 5], [(2, [1]), (4, [3]), (6, [5])]),
        ([3], [(4, [1, 3]), (6, [5])]),
        ([1], [(2, [1]), (6, [3, 5])]),
    ],
)
def test_a_sample_ends_with_each_turn_that_later_ones_would_rewrite(reasoned, samples):
    thinks = [index in reasoned for index in range(6)]
    assert partition([1, 3, 5], thinks, drops_reasoning(thinks, [0, 2, 4])) == samples


def test_a_template_that_writes_the_mode_at_the_start_gets_samples_of_one_mode():
    thinks = [False, True, False, False, False, True]

    def one_mode(end, turns):
        mode = any(thinks[turn] for turn in turns)
        return [turn for turn in turns if thinks[turn] == mode]

    assert partition([1, 3, 5], thinks, one_mode) == [(4, [3]), (6, [1, 5])]


def test_a_turn_that_is_exact_in_no_sample_is_returned():
    assert partition([1, 3], [False] * 4, lambda end, turns: [turn for turn in turns if turn != 1]) == 1
