"""Blend: shares and epochs in trained tokens, whole epochs first, parts drawn without replacement."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.command import InputError
from sft.data.blend import check_asked, describe_mixture, draw_part, mixture_by_domain, plan_epochs, plan_repeats

NOTHING = {"a": None, "b": None}
SIZES = {"a": [(f"a{n}", 10) for n in range(100)], "b": [(f"b{n}", 30) for n in range(100)]}


def seen(times: dict[str, dict[str, int]], source: str) -> int:
    sizes = dict(SIZES[source])
    return sum(sizes[conversation] * number for conversation, number in times[source].items())


def test_where_nothing_is_asked_every_conversation_is_seen_once():
    times = plan_repeats(SIZES, NOTHING, NOTHING, seed=1)
    assert {number for own in times.values() for number in own.values()} == {1}
    assert sum(map(len, times.values())) == 200


def test_two_and_a_half_epochs_are_two_of_everything_and_a_drawn_half_once_more():
    times = plan_repeats(SIZES, NOTHING, {"a": 2.5, "b": None}, seed=1)["a"]
    assert sorted(times.values()) == [2] * 50 + [3] * 50


def test_less_than_an_epoch_is_a_part_of_which_nothing_comes_twice():
    times = plan_repeats(SIZES, NOTHING, {"a": 0.3, "b": None}, seed=1)["a"]
    assert sorted(times.values()) == [0] * 70 + [1] * 30


def test_shares_are_of_trained_tokens_and_the_scarcest_source_is_used_once_and_whole():
    times = plan_repeats(SIZES, {"a": 0.5, "b": 0.5}, NOTHING, seed=1)
    assert set(times["a"].values()) == {1}
    assert seen(times, "a") == 1000
    assert sorted(times["b"].values()) == [0] * 67 + [1] * 33, "990 tokens are nearer to 1000 than 1020"


def test_a_larger_part_contains_the_smaller_and_another_seed_draws_another():
    small, large, other = (draw_part(SIZES["a"], tokens, seed, True) for tokens, seed in ((200, 1), (700, 1), (200, 2)))
    assert (len(small), len(large), len(other)) == (20, 70, 20)
    assert small < large
    assert small != other


def test_the_smallest_part_of_a_source_is_one_conversation():
    assert sum(plan_repeats(SIZES, NOTHING, {"a": 0.0001, "b": None}, seed=1)["a"].values()) == 1


@pytest.mark.parametrize(
    ("shares", "epochs", "message"),
    [
        ({"a": 0.5, "b": None}, NOTHING, "a have a share, b have none"),
        ({"a": 0.5, "b": 0.4}, NOTHING, "add up to 0.9, not to 1: a 0.5, b 0.4"),
        ({"a": 0.5, "b": 0.500002}, NOTHING, "not to 1"),
        ({"a": 0.5, "b": 0.5}, {"a": 2.0, "b": None}, "a have a share and epochs"),
    ],
)
def test_shares_that_do_not_make_a_blend_are_refused(shares, epochs, message):
    with pytest.raises(InputError, match=message):
        check_asked(shares, epochs)


def test_shares_may_miss_1_by_what_floating_point_loses():
    check_asked(dict.fromkeys("abcdefghij", 0.1), dict.fromkeys("abcdefghij"))
    assert plan_epochs({"a": 5, "b": 5}, {"a": 0.5, "b": 0.5 + 9e-7}, NOTHING)["b"] == 1.0


def test_a_share_of_a_source_with_nothing_to_train_on_is_refused_by_name():
    with pytest.raises(InputError, match="b have a share, but nothing of them is left"):
        plan_epochs({"a": 5, "b": 0}, {"a": 0.5, "b": 0.5}, NOTHING)


def test_the_mixture_sets_what_was_asked_beside_what_came_of_it_by_source_and_domain():
    rows = describe_mixture(
        {"a": 100, "b": 300},
        {"a": {"tokens": 500, "trained_tokens": 200}, "b": {"tokens": 900, "trained_tokens": 290}},
        {"a": "chat", "b": "chat"},
        {"a": 2.0, "b": 1.0},
    )
    assert [row["asked_share"] for row in rows] == [0.4, 0.6]
    assert [row["achieved_share"] for row in rows] == [0.408163, 0.591837]
    assert mixture_by_domain(rows) == {
        "chat": {"asked_share": 1.0, "tokens": 1400, "trained_tokens": 490, "achieved_share": 1.0}
    }


CONVERSATIONS = st.lists(st.integers(1, 50), min_size=1, max_size=30).map(
    lambda sizes: [(f"c{n}", tokens) for n, tokens in enumerate(sizes)]
)


@given(CONVERSATIONS, st.floats(0.01, 5))
def test_what_is_seen_is_within_half_a_conversation_of_what_was_asked(conversations, epochs):
    (times,) = plan_repeats({"a": conversations}, {"a": None}, {"a": epochs}, seed=1).values()
    sizes = dict(conversations)
    longest, total = max(sizes.values()), sum(sizes.values())
    found = sum(sizes[conversation] * number for conversation, number in times.items())
    assert times.keys() == sizes.keys()
    assert set(times.values()) <= {int(epochs), int(epochs) + 1}
    assert abs(found - epochs * total) <= longest / 2 + 1e-6 or sum(times.values()) == 1


@given(CONVERSATIONS, CONVERSATIONS, st.floats(0.05, 0.95))
def test_shares_never_repeat_and_use_some_source_up(first, second, share):
    times = plan_repeats({"a": first, "b": second}, {"a": share, "b": 1 - share}, NOTHING, seed=1)
    assert {number for own in times.values() for number in own.values()} <= {0, 1}
    assert any(set(own.values()) == {1} for own in times.values())


@given(st.permutations(SIZES["a"][:20]))
def test_the_order_of_reading_draws_nobody_else(shuffled):
    asked = {"a": None}, {"a": 1.4}, 3
    assert plan_repeats({"a": shuffled}, *asked) == plan_repeats({"a": SIZES["a"][:20]}, *asked)
