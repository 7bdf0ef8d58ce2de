"""intervals: known values of shares, the paired bootstrap over groups of conversations."""

import random

import pytest

from sft.evaluation.intervals import FEWEST, Pair, change_bounds, loss_change, pair_losses, share_change, share_interval


def pairs(number, shift=0.0, noise=1.0, seed=0):
    """Conversations of 5 to 50 tokens whose loss per token changes by `shift` in the mean."""
    draw = random.Random(seed)
    made = []
    for _ in range(number):
        tokens, before = draw.randint(5, 50), draw.uniform(1, 4)
        made.append(Pair(before * tokens, (before + shift + draw.gauss(0, noise)) * tokens, tokens))
    return made


@pytest.mark.parametrize(("hits", "low", "high"), [(17, 0.64, 0.95), (0, 0.0, 0.16), (20, 0.84, 1.0)])
def test_wilson_intervals_of_twenty_answers(hits, low, high):
    interval = share_interval([True] * hits + [False] * (20 - hits))
    assert (round(interval["low"], 2), round(interval["high"], 2)) == (low, high)


def test_one_against_nine_is_no_chance_and_no_disagreement_is():
    assert share_change([True] + [False] * 9, [False] + [True] * 9) == {"better": 9, "worse": 1, "p": 0.021484}
    assert share_change([True, False], [True, False])["p"] == 1.0
    assert (share_change([], []), share_interval([])) == (None, None)


def test_few_conversations_have_no_interval_however_many_samples_they_are():
    few = pair_losses([3, 8] * 20, [(1.0, 2)] * 40, [(0.5, 2)] * 40)
    assert few == [Pair(20.0, 10.0, 40), Pair(20.0, 10.0, 40)]
    assert loss_change(few) == {"change": -0.25, "low": None, "high": None, "conversations": 2}
    assert change_bounds(pairs(FEWEST - 1)) is None
    assert change_bounds(pairs(FEWEST)) is not None


def test_equal_models_have_no_difference():
    assert change_bounds([pair._replace(after=pair.before) for pair in pairs(20)]) == (0.0, 0.0)


def test_intervals_hold_the_truth_as_often_as_they_say():
    truth, held = -0.2, 0
    for seed in range(100):
        low, high = change_bounds(pairs(60, truth, noise=0.5, seed=seed))
        held += low <= truth <= high
    assert held >= 88, "95 % intervals; a right one misses 13 of 100 once in a thousand trials"


def test_longer_conversations_weigh_more():
    change = loss_change([Pair(10.0, 20.0, 10), Pair(1.0, 0.0, 90)])
    assert change["change"] == 0.09
