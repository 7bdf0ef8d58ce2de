"""Splits: exact counts, stable sides, nobody on two sides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.command import InputError
from sft.data.splits import SPLITS, by_precedence, held_out, settle_duplicates, split_conversations

IDS = [f"conversation-{n}" for n in range(1000)]


def counts(assigned: dict[str, str]) -> dict[str, int]:
    return {split: sum(side == split for side in assigned.values()) for split in SPLITS}


def test_one_percent_of_a_thousand_is_ten_each():
    assert counts(split_conversations({"a": IDS}, 0.01, 0.01, seed=1)) == {
        "training": 980,
        "validation": 10,
        "test": 10,
    }


def test_every_split_of_three_conversations_has_one():
    assert counts(split_conversations({"a": IDS[:3]}, 0.01, 0.01, seed=1)) == {
        "training": 1,
        "validation": 1,
        "test": 1,
    }


def test_two_conversations_are_all_for_training():
    assert counts(split_conversations({"a": IDS[:2]}, 0.01, 0.01, seed=1))["training"] == 2


def test_each_source_has_its_own_share_held_out():
    assigned = split_conversations({"a": IDS[:500], "b": IDS[500:520]}, 0.02, 0.02, seed=1)
    assert counts({i: assigned[i] for i in IDS[:500]})["validation"] == 10
    assert counts({i: assigned[i] for i in IDS[500:520]})["validation"] == 1


def test_a_conversation_in_two_sources_is_on_one_side():
    assigned = split_conversations({"a": IDS[:100], "b": IDS[50:150]}, 0.1, 0.1, seed=1)
    assert len(assigned) == 150
    assert sum(counts(assigned).values()) == 150


def test_another_seed_holds_out_others():
    held = [
        {i for i, side in split_conversations({"a": IDS}, 0.01, 0.01, seed=seed).items() if side == "test"}
        for seed in (1, 2)
    ]
    assert held[0] != held[1]


@given(st.permutations(IDS[:40]))
def test_the_order_of_reading_changes_nothing(shuffled):
    assert split_conversations({"a": shuffled}, 0.1, 0.1, seed=3) == split_conversations(
        {"a": IDS[:40]}, 0.1, 0.1, seed=3
    )


@given(st.sets(st.sampled_from(IDS), min_size=30, max_size=60))
def test_few_change_sides_when_a_conversation_is_added(ids):
    before = split_conversations({"a": sorted(ids - {IDS[0]})}, 0.1, 0.1, seed=3)
    after = split_conversations({"a": sorted(ids | {IDS[0]})}, 0.1, 0.1, seed=3)
    assert sum(before[i] != after[i] for i in before) <= 4


def test_counts_are_exact_at_a_hundred_rows_and_at_18_million():
    assert counts(split_conversations({"a": IDS[:100]}, 0.01, 0.01, seed=1)) == {
        "training": 98,
        "validation": 1,
        "test": 1,
    }
    assert held_out(18_000_000, 0.01, 0.01) == {"validation": 180_000, "test": 180_000}


@given(st.integers(3, 60), st.floats(0.001, 0.98), st.floats(0.001, 0.98))
def test_every_split_of_three_or_more_has_some_whatever_the_shares(number, validation, share):
    found = counts(split_conversations({"a": IDS[:number]}, validation, share * (1 - validation), seed=1))
    assert min(found.values()) >= 1
    assert sum(found.values()) == number


def test_a_group_is_on_one_side_and_counts_stay_exact():
    groups = {IDS[n]: IDS[n - n % 3] for n in range(300)}
    assigned = split_conversations({"a": IDS}, 0.05, 0.05, 1, groups)
    assert counts(assigned) == {"training": 900, "validation": 50, "test": 50}
    sides = [{assigned[i] for i in IDS[n : n + 3]} for n in range(0, 300, 3)]
    assert all(len(side) == 1 for side in sides)
    assert {"validation"} in sides
    assert {"test"} in sides


def test_groups_too_large_for_a_share_still_leave_no_split_empty():
    groups = {IDS[n]: IDS[n - n % 10] for n in range(30)}
    assert counts(split_conversations({"a": IDS[:30]}, 0.01, 0.01, 1, groups)) == dict.fromkeys(SPLITS, 10)


def test_fewer_than_three_groups_are_all_for_training():
    groups = {IDS[n]: IDS[n - n % 10] for n in range(20)}
    assert counts(split_conversations({"a": IDS[:20]}, 0.1, 0.1, 1, groups))["training"] == 20


@given(st.lists(st.integers(1, 6), min_size=3, max_size=12), st.sampled_from([0.01, 0.2, 0.4]))
def test_groups_of_any_size_are_whole_and_no_split_is_empty(sizes, share):
    groups = {f"{group}-{n}": f"{group}-0" for group, size in enumerate(sizes) for n in range(size)}
    assigned = split_conversations({"a": groups}, share, share, 1, groups)
    assert assigned.keys() == groups.keys()
    assert all(assigned[i] == assigned[group] for i, group in groups.items())
    assert min(counts(assigned).values()) >= 1


def test_the_first_source_keeps_what_several_have_and_the_others_lose_it_with_a_reason():
    conversations = [("b", "x"), ("b", "y"), ("a", "x"), ("a", "like y"), ("a", "z")]
    lost, groups = settle_duplicates(conversations, {"y": "1", "like y": "1"})
    assert [(one.source, one.conversation, one.reason, one.kept, one.kept_source) for one in lost] == [
        ("a", "x", "duplicate", "x", "b"),
        ("a", "like y", "near-duplicate", "y", "b"),
    ]
    assert groups == {}


def test_near_duplicates_inside_the_first_source_are_kept_together():
    conversations = [("a", "x"), ("a", "like x"), ("b", "also like x"), ("c", "also like x")]
    lost, groups = settle_duplicates(conversations, dict.fromkeys(("x", "like x", "also like x"), "1"))
    assert [(one.source, one.reason, one.kept) for one in lost] == [
        ("b", "near-duplicate", "x"),
        ("c", "near-duplicate", "x"),
    ]
    assert groups == {"like x": "x"}


def test_precedence_comes_first_and_all_others_follow_by_name_whatever_their_order():
    for order in ("abc", "cab"):
        assert by_precedence(order, []) == ["a", "b", "c"]
        assert by_precedence(order, ["c", "a"]) == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("precedence", "fault"),
    [(["chat"], "'chat' is no source. Did you mean 'chats'"), (["chats", "chats"], "'chats' stands there twice")],
)
def test_precedence_that_names_no_source_or_one_twice_is_refused(precedence, fault):
    with pytest.raises(InputError, match=fault):
        by_precedence(["calls", "chats"], precedence)
