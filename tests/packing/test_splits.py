"""Splits: exact counts, stable splits, no conversation in two splits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.cli import InputError
from sft.hashing import keyed_hash, keyed_hashes
from sft.packing.splits import (
    SPLITS,
    NearDuplicates,
    by_precedence,
    held_out_counts,
    join_groups,
    resolve_duplicates,
    split_groups,
)


def split(sizes: list[int], validation: float, test: float, seed: int = 1) -> list[str]:
    """Return the split of groups with these numbers of conversations."""
    hashes = keyed_hashes(seed, (f"group-{number}" for number in range(len(sizes))))
    return [SPLITS[place] for place in split_groups(np.array(sizes, np.int32), hashes, validation, test)]


def counts(sides: list[str], sizes: list[int] | None = None) -> dict[str, int]:
    sizes = sizes or [1] * len(sides)
    return {name: sum(size for side, size in zip(sides, sizes, strict=True) if side == name) for name in SPLITS}


def test_one_percent_of_a_thousand_is_ten_each():
    assert counts(split([1] * 1000, 0.01, 0.01)) == {"training": 980, "validation": 10, "test": 10}


def test_every_split_of_three_conversations_has_one():
    assert counts(split([1] * 3, 0.01, 0.01)) == {"training": 1, "validation": 1, "test": 1}


def test_two_conversations_are_all_for_training():
    assert split([1] * 2, 0.01, 0.01) == ["training"] * 2
    assert split([], 0.01, 0.01) == []


def test_another_seed_holds_out_other_conversations():
    assert split([1] * 1000, 0.01, 0.01, seed=1) != split([1] * 1000, 0.01, 0.01, seed=2)


@given(st.permutations(range(40)))
def test_the_order_of_reading_changes_nothing(shuffled):
    order = np.array(shuffled)
    hashes = keyed_hashes(3, map(str, range(40)))
    ones = np.ones(40, np.int32)
    assert split_groups(ones, hashes[order], 0.1, 0.1).tolist() == split_groups(ones, hashes, 0.1, 0.1)[order].tolist()


@given(st.integers(30, 60))
def test_few_conversations_change_splits_when_one_is_added(number):
    before, after = split([1] * number, 0.1, 0.1), split([1] * (number + 1), 0.1, 0.1)
    assert sum(old != new for old, new in zip(before, after, strict=False)) <= 4


@given(st.lists(st.text(max_size=5), min_size=2, max_size=9, unique=True), st.integers(0, 3))
def test_hashes_as_numbers_are_in_the_order_of_the_hashes(texts, seed):
    hashes = keyed_hashes(seed, texts)
    assert [texts[place] for place in np.argsort(hashes)] == sorted(texts, key=lambda text: keyed_hash(seed, text))


def test_counts_are_exact_at_a_hundred_rows_and_at_18_million():
    assert counts(split([1] * 100, 0.01, 0.01)) == {"training": 98, "validation": 1, "test": 1}
    assert held_out_counts(18_000_000, 0.01, 0.01) == {"validation": 180_000, "test": 180_000}


@given(st.integers(3, 60), st.floats(0.001, 0.98), st.floats(0.001, 0.98))
def test_every_split_of_three_or_more_has_some_whatever_the_shares(number, validation, share):
    split_counts = counts(split([1] * number, validation, share * (1 - validation)))
    assert min(split_counts.values()) >= 1
    assert sum(split_counts.values()) == number


def test_a_group_is_in_one_split_and_counts_stay_exact():
    sizes = [3] * 100 + [1] * 700
    sides = split(sizes, 0.05, 0.05)
    assert counts(sides, sizes) == {"training": 900, "validation": 50, "test": 50}
    assert {"validation", "test"} <= set(sides[:100])


def test_groups_too_large_for_a_share_still_leave_no_split_empty():
    assert counts(split([10] * 3, 0.01, 0.01), [10] * 3) == dict.fromkeys(SPLITS, 10)


def test_fewer_than_three_groups_are_all_for_training():
    assert split([10] * 2, 0.1, 0.1) == ["training"] * 2


@given(st.lists(st.integers(1, 6), min_size=3, max_size=12), st.sampled_from([0.01, 0.2, 0.4]))
def test_groups_of_any_size_leave_no_split_empty(sizes, share):
    assert min(counts(split(sizes, share, share)).values()) >= 1


def resolve(id_number: list[int], kept_instead: list[int], together: list[int]) -> tuple[list[int], list[int]]:
    """Resolve duplicates among conversations with these ids; the others have an entry for each id."""
    near_duplicates = NearDuplicates(*(np.array(each) for each in (kept_instead, [1.0] * len(together), together)))
    choice = resolve_duplicates(np.array(id_number), near_duplicates)
    return choice.kept_instead.tolist(), choice.kept_with.tolist()


def test_the_first_source_keeps_duplicates_and_the_others_drop_them():
    """Ids 0 and 1 of the first source; the second has 0, 2, which is like 1, and 3."""
    kept_instead, kept_with = resolve([0, 1, 0, 2, 3], kept_instead=[-1, -1, 1, -1], together=[0, 1, 2, 3])
    assert kept_instead == [-1, -1, 0, 1, -1]
    assert [kept_with[kept] for kept in (0, 1, 4)] == [0, 1, 4], "each alone"


def test_near_duplicates_inside_a_source_are_kept_together():
    """Ids 0 and 1 of source 0 are alike; id 2, like id 1, is in sources 1 and 2."""
    kept_instead, kept_with = resolve([0, 1, 2, 2], kept_instead=[-1, -1, 1], together=[0, 0, 2])
    assert kept_instead == [-1, -1, 1, 1]
    assert kept_with[:2] == [0, 0]


def test_a_dropped_conversation_names_its_equal_before_an_earlier_near_duplicate():
    """Ids 0 and 1 of source 0 are alike; source 1 has id 1."""
    assert resolve([0, 1, 1], kept_instead=[-1, -1], together=[0, 0])[0] == [-1, -1, 1]


def test_the_equal_of_a_dropped_conversation_is_dropped_too():
    """Id 1 of source 1 is like id 0 of source 0; source 2 has id 1, and id 2, which only resembles the dropped one."""
    assert resolve([0, 1, 1, 2], kept_instead=[-1, 0, -1], together=[0, 1, 2])[0] == [-1, 0, 0, -1]


def test_precedence_comes_first_and_all_others_follow_by_name_whatever_their_order():
    for order in ("abc", "cab"):
        assert by_precedence(order, []) == ["a", "b", "c"]
        assert by_precedence(order, ["c", "a"]) == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("precedence", "place"),
    [(["chat"], r"pack\.precedence: .*'chat'.*'chats'"), (["chats", "chats"], r"pack\.precedence: 'chats' .* twice")],
)
def test_precedence_with_an_unknown_source_or_one_twice_is_an_error(precedence, place):
    with pytest.raises(InputError, match=place):
        by_precedence(["calls", "chats"], precedence)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_groups_are_joined_where_they_share_a_member_however_many_are_between(pairs):
    """As a search does that walks from each member to all that it shares a group with."""
    first, second = (np.array([pair[place] for pair in pairs], np.int32) for place in (0, 1))
    expected = list(range(len(pairs)))
    for member in range(len(pairs)):
        reached, found = set(), {member}
        while found - reached:
            reached |= found
            found = {a for a, p in enumerate(pairs) if any(p[0] == pairs[b][0] or p[1] == pairs[b][1] for b in reached)}
        expected[member] = min(reached)
    assert join_groups(first, second).tolist() == expected


def test_groups_that_form_one_long_chain_are_joined_in_a_few_steps():
    chain, members = np.arange(1 << 17, dtype=np.int32), 1 << 17
    for order in (chain, np.random.default_rng(7).permutation(chain).astype(np.int32)):
        assert not join_groups(order // 2, (order + 1) // 2).any()
    assert len(np.unique(join_groups(chain, chain))) == members
