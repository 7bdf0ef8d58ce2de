"""Splits: exact counts, stable sides, nobody on two sides."""

from hypothesis import given
from hypothesis import strategies as st

from sft.data.splits import SPLITS, split_conversations

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
