"""Duplicate groups: similar conversations, directly or through others, in any order and blocks of any size."""

import random
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.filters.dedup import across_sources
from sft.filters.dedup.across_sources import buckets, find_duplicate_groups, min_same_slots
from sft.filters.dedup.signatures import NUMBERS_BYTES, SIGNATURE_BYTES, SLOTS
from sft.filters.dedup.within_source import SignatureIndex

THRESHOLD = 0.8


def random_signatures(number, seed=0):
    drawn = random.Random(seed)
    return [drawn.randbytes(SIGNATURE_BYTES) for _ in range(number)]


def chain():
    """Signatures, each similar only to the next."""
    signature = bytearray(random_signatures(1)[0])
    made = []
    for step in range(4):
        made.append(bytes(signature))
        for slot in range(step * 20, step * 20 + 20):
            signature[NUMBERS_BYTES + slot] ^= 1
    return made


def find(signatures, at_once=3):
    rows = np.frombuffer(b"".join(signatures), np.uint8).reshape(-1, SIGNATURE_BYTES)
    with tempfile.TemporaryDirectory() as folder:
        parts = (rows[begin : begin + at_once] for begin in range(0, len(rows), at_once))
        first = find_duplicate_groups(parts, THRESHOLD, Path(folder)).tolist()
        assert list(Path(folder).iterdir()) == []
        return first


def test_a_group_joins_what_is_similar_through_others():
    alone = random_signatures(1, seed=5)
    assert find([*chain(), *alone, chain()[2]]) == [0, 0, 0, 0, 4, 0]


def test_one_conversation_or_none_is_no_group():
    assert find([]) == []
    assert find(random_signatures(1)) == [0]


def test_both_sides_and_the_numbers_must_be_similar():
    (left,) = random_signatures(1)
    right = random_signatures(1, seed=1)[0]
    asked, answered = NUMBERS_BYTES, NUMBERS_BYTES + SLOTS
    assert find([left, left[:answered] + right[answered:]]) == [0, 1]
    assert find([left, left[:asked] + right[asked:answered] + left[answered:]]) == [0, 1]
    assert find([left, right[:NUMBERS_BYTES] + left[NUMBERS_BYTES:]]) == [0, 1]
    assert find([left, left]) == [0, 0]


@settings(deadline=None)
@given(order=st.permutations(range(7)))
def test_the_members_of_a_group_do_not_depend_on_the_order(order):
    signatures = [*chain(), *random_signatures(3, seed=9)]
    result = find([signatures[place] for place in order])
    chained = [place for place, which in enumerate(order) if which < 4]
    assert {result[place] for place in chained} == {min(chained)}
    assert all(result[place] == place for place in range(7) if place not in chained)


def test_it_finds_what_the_index_of_a_single_source_finds():
    """Slots that differ from 0 to 23 of 128 on each side: on both sides of the threshold."""
    drawn = random.Random(3)
    signatures = []
    for base in random_signatures(30, seed=4):
        for _ in range(4):
            signature = bytearray(base)
            for side in range(2):
                for slot in drawn.sample(range(SLOTS), drawn.randrange(24)):
                    signature[NUMBERS_BYTES + side * SLOTS + slot] ^= 1
            signatures.append(bytes(signature))
    index, similar = SignatureIndex(THRESHOLD), 0
    result = find(signatures, at_once=50)
    for place, signature in enumerate(signatures):
        for other in index.similar(signature)[0]:
            assert result[place] == result[int(other)]
            similar += 1
        index.add(str(place), signature)
    assert similar > 20
    assert len(set(result)) > 30


def test_blocks_of_buckets_change_nothing(monkeypatch):
    signatures = [signature for seed in range(20) for signature in random_signatures(2, seed=seed) * 3]
    whole = find(signatures)
    monkeypatch.setattr(across_sources, "BLOCK_ROWS", 4)
    assert find(signatures) == whole == [place // 6 * 6 + place % 2 for place in range(120)]
    keys = np.repeat(np.arange(5, dtype=np.uint64), 3)
    assert [rows.tolist() for rows, _ in buckets(keys)] == [list(range(first, first + 3)) for first in range(0, 15, 3)]


def test_the_number_of_equal_slots_is_the_similarity_of_the_index():
    assert [min_same_slots(threshold) for threshold in (0.0, 0.8, 1.0)] == [1, 103, SLOTS]
