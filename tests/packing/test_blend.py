"""Blend: shares and epochs count trained tokens; whole epochs first, parts drawn without replacement."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.cli import InputError
from sft.packing.blend import (
    check_shares,
    describe_limits,
    draw_part,
    mixture_by_domain,
    mixture_by_source,
    plan_copies,
    plan_epochs,
)

NOTHING = {"a": None, "b": None}
TOKENS, HASHES = np.full(100, 10), np.array(random.Random(1).sample(range(10**6), 100), np.uint64)


def test_two_and_a_half_epochs_are_two_of_everything_and_a_drawn_half_once_more():
    assert sorted(plan_copies(TOKENS, HASHES, 2.5)) == [2] * 50 + [3] * 50


def test_less_than_an_epoch_is_a_part_of_which_nothing_comes_twice():
    assert sorted(plan_copies(TOKENS, HASHES, 0.3)) == [0] * 70 + [1] * 30


def test_an_epoch_is_everything_once_and_none_is_nothing():
    assert plan_copies(TOKENS, HASHES, 1.0).tolist() == [1] * 100
    assert plan_copies(TOKENS[:0], HASHES[:0], 1.0).tolist() == []


def test_shares_are_of_trained_tokens_and_the_scarcest_source_is_used_once_and_whole():
    assert plan_epochs({"a": 1000, "b": 3000}, {"a": 0.5, "b": 0.5}, NOTHING) == {"a": 1.0, "b": pytest.approx(1 / 3)}


def test_the_scarcest_source_is_repeated_as_often_as_allowed_and_shares_hold():
    repeated = plan_epochs({"a": 1000, "b": 30_000}, {"a": 0.5, "b": 0.5}, NOTHING, max_epochs=12.5)
    assert repeated == {"a": 12.5, "b": pytest.approx(12.5 / 30)}


PUBLIC_ROWS = {
    "chat": 437_000,  # by its bytes
    "structured": 4_969,
    "python": 1_821_200,
    "mcq": 174_155,
    "rqa": 52_179,
    "swe": 51_029,
    "interactive": 19_028,
    "tool_calling": 316_094,
}
REPORT_SHARES = {
    **{"chat": 0.3939, "structured": 0.02, "python": 0.3285, "mcq": 0.1425, "rqa": 0.0427, "swe": 0.0434},
    **{"interactive": 0.0016, "tool_calling": 0.0274},
}


def test_the_shares_of_the_technical_report_use_nearly_all_rows_but_those_of_sources_that_are_named():
    epochs = plan_epochs(PUBLIC_ROWS, REPORT_SHARES, dict.fromkeys(PUBLIC_ROWS), max_epochs=5)
    left = {name for name, seen in epochs.items() if seen < 0.95}
    assert left == {"python", "interactive", "tool_calling"}
    text = describe_limits(epochs, 5)
    assert text.startswith("limited by structured (pack.max_epochs 5); used in part: interactive 0.104, python 0.224,")


def test_a_part_ends_at_the_conversation_that_comes_nearest():
    assert sum(plan_copies(np.full(100, 30), HASHES, 1 / 3)) == 33, "990 tokens are nearer to 1000 than 1020"
    assert draw_part(np.array([10, 30, 10]), np.array([3, 1, 2], np.uint64), 34, True).tolist() == [1]
    assert draw_part(np.array([10, 30, 10]), np.array([3, 1, 2], np.uint64), 35, True).tolist() == [1, 2]


def test_a_larger_part_contains_the_smaller_and_other_hashes_draw_others():
    small, large, other = (
        set(draw_part(TOKENS, hashes, tokens, True).tolist())
        for tokens, hashes in ((200, HASHES), (700, HASHES), (200, HASHES[::-1]))
    )
    assert (len(small), len(large), len(other)) == (20, 70, 20)
    assert small < large
    assert small != other


def test_the_smallest_part_of_a_source_is_one_conversation():
    assert sum(plan_copies(TOKENS, HASHES, 0.0001)) == 1
    assert sum(plan_copies(TOKENS, HASHES, 2.0001)) == 200


@pytest.mark.parametrize(
    ("shares", "epochs", "place"),
    [
        ({"a": 0.5, "b": None}, NOTHING, "fetch.sources: share: .* a, .* b"),
        ({"a": 0.5, "b": 0.4}, NOTHING, r"fetch.sources: share: .* 0\.9 \(a 0\.5, b 0\.4\)"),
        ({"a": 0.5, "b": 0.500002}, NOTHING, r"fetch.sources: share: .* 1\.000002 "),
        ({"a": 0.5, "b": 0.5}, {"a": 2.0, "b": None}, "fetch.sources: a: .*share and epochs"),
    ],
)
def test_shares_that_do_not_make_a_blend_are_refused(shares, epochs, place):
    with pytest.raises(InputError, match=place):
        check_shares(shares, epochs)


def test_shares_may_miss_1_by_what_floating_point_loses():
    check_shares(dict.fromkeys("abcdefghij", 0.1), dict.fromkeys("abcdefghij"))
    assert plan_epochs({"a": 5, "b": 5}, {"a": 0.5, "b": 0.5 + 9e-7}, NOTHING)["b"] == 1.0


def test_the_share_of_an_excluded_source_goes_to_the_others():
    shares, epochs = {"a": 0.5, "b": 0.25, "c": 0.25}, dict.fromkeys("abc")
    seen = plan_epochs({"a": 0, "b": 10, "c": 20}, shares, epochs, without={"a"})
    assert seen == {"a": 0.0, "b": 1.0, "c": 0.5}
    assert describe_limits(seen, 1.0) == "limited by b (pack.max_epochs 1); used in part: c 0.5 epochs"


def test_a_share_of_a_source_with_nothing_to_train_on_is_refused_by_name():
    with pytest.raises(InputError, match=r"fetch\.sources: share: .* b\."):
        plan_epochs({"a": 5, "b": 0}, {"a": 0.5, "b": 0.5}, NOTHING)


def test_the_mixture_has_requested_and_achieved_shares_by_source_and_domain():
    rows = mixture_by_source(
        {"a": 100, "b": 300},
        {
            "a": {"samples": 5, "tokens": 500, "trained_tokens": 200},
            "b": {"samples": 9, "tokens": 900, "trained_tokens": 290},
        },
        {"a": "chat", "b": "chat"},
        {"a": 2.0, "b": 1.0},
    )
    assert [row["asked_share"] for row in rows] == [0.4, 0.6]
    assert [row["achieved_share"] for row in rows] == [0.408163, 0.591837]
    assert mixture_by_domain(rows) == {
        "chat": {"asked_share": 1.0, "samples": 14, "tokens": 1400, "trained_tokens": 490, "achieved_share": 1.0}
    }


CONVERSATIONS = st.lists(st.integers(1, 50), min_size=1, max_size=30).map(
    lambda sizes: (np.array(sizes), np.array(random.Random(len(sizes)).sample(range(999), len(sizes)), np.uint64))
)


@given(CONVERSATIONS, st.floats(0.01, 5))
def test_trained_tokens_are_within_half_a_conversation_of_the_requested_epochs(conversations, epochs):
    sizes, _ = conversations
    times = plan_copies(*conversations, epochs)
    assert set(times.tolist()) <= {int(epochs), int(epochs) + 1}
    assert abs(sizes @ times - epochs * sizes.sum()) <= sizes.max() / 2 + 1e-6 or times.sum() == 1


@given(CONVERSATIONS, CONVERSATIONS, st.floats(0.05, 0.95))
def test_shares_never_repeat_and_use_some_source_up(first, second, share):
    both = {"a": first, "b": second}
    totals = {name: int(source[0].sum()) for name, source in both.items()}
    epochs = plan_epochs(totals, {"a": share, "b": 1 - share}, NOTHING)
    times = {name: set(plan_copies(*source, epochs[name]).tolist()) for name, source in both.items()}
    assert times["a"] | times["b"] <= {0, 1}
    assert {1} in times.values()


@given(st.permutations(range(20)))
def test_the_order_of_rows_draws_the_same_conversations(shuffled):
    order = np.array(shuffled)
    assert (
        plan_copies(TOKENS[order], HASHES[order], 1.4).tolist()
        == plan_copies(TOKENS[:20], HASHES[:20], 1.4)[order].tolist()
    )
