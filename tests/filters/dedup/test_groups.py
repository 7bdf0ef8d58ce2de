"""Clusters: what is alike is found, directly or through others, whatever the order and the size of blocks."""

import random
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.filters.dedup import groups
from sft.filters.dedup.groups import buckets, fewest_same, find_clusters
from sft.filters.dedup.near import NUMBERS_BYTES, SIGNATURE_BYTES, SLOTS, NearDuplicates

THRESHOLD = 0.8


def random_sketches(number, seed=0):
    drawn = random.Random(seed)
    return [drawn.randbytes(SIGNATURE_BYTES) for _ in range(number)]


def chain():
    """Signatures of which each is similar to the next only."""
    sketch = bytearray(random_sketches(1)[0])
    made = []
    for step in range(4):
        made.append(bytes(sketch))
        for slot in range(step * 20, step * 20 + 20):
            sketch[NUMBERS_BYTES + slot] ^= 1
    return made


def found(sketches, at_once=3):
    rows = np.frombuffer(b"".join(sketches), np.uint8).reshape(-1, SIGNATURE_BYTES)
    with tempfile.TemporaryDirectory() as folder:
        parts = (rows[begin : begin + at_once] for begin in range(0, len(rows), at_once))
        first = find_clusters(parts, THRESHOLD, Path(folder)).tolist()
        assert list(Path(folder).iterdir()) == []
        return first


def test_clusters_join_what_is_alike_through_others():
    alone = random_sketches(1, seed=5)
    assert found([*chain(), *alone, chain()[2]]) == [0, 0, 0, 0, 4, 0]


def test_nothing_has_no_clusters():
    assert found([]) == []
    assert found(random_sketches(1)) == [0]


def test_both_sides_and_the_numbers_must_be_alike():
    (one,) = random_sketches(1)
    other = random_sketches(1, seed=1)[0]
    asked, answered = NUMBERS_BYTES, NUMBERS_BYTES + SLOTS
    assert found([one, one[:answered] + other[answered:]]) == [0, 1]
    assert found([one, one[:asked] + other[asked:answered] + one[answered:]]) == [0, 1]
    assert found([one, other[:NUMBERS_BYTES] + one[NUMBERS_BYTES:]]) == [0, 1]
    assert found([one, one]) == [0, 0]


@settings(deadline=None)
@given(order=st.permutations(range(7)))
def test_who_is_in_a_cluster_does_not_depend_on_the_order(order):
    sketches = [*chain(), *random_sketches(3, seed=9)]
    result = found([sketches[place] for place in order])
    chained = [place for place, which in enumerate(order) if which < 4]
    assert {result[place] for place in chained} == {min(chained)}
    assert all(result[place] == place for place in range(7) if place not in chained)


def test_it_finds_what_the_index_of_a_single_source_finds():
    """Slots that differ from 0 to 23 of 128 on each side: on both sides of the threshold."""
    drawn = random.Random(3)
    sketches = []
    for base in random_sketches(30, seed=4):
        for _ in range(4):
            sketch = bytearray(base)
            for side in range(2):
                for slot in drawn.sample(range(SLOTS), drawn.randrange(24)):
                    sketch[NUMBERS_BYTES + side * SLOTS + slot] ^= 1
            sketches.append(bytes(sketch))
    index, alike = NearDuplicates(THRESHOLD), 0
    result = found(sketches, at_once=50)
    for place, sketch in enumerate(sketches):
        for other in index.similar(sketch)[0]:
            assert result[place] == result[int(other)]
            alike += 1
        index.add(str(place), sketch)
    assert alike > 20
    assert len(set(result)) > 30


def test_blocks_of_buckets_change_nothing(monkeypatch):
    sketches = [sketch for seed in range(20) for sketch in random_sketches(2, seed=seed) * 3]
    whole = found(sketches)
    monkeypatch.setattr(groups, "BLOCK_ROWS", 4)
    assert found(sketches) == whole == [place // 6 * 6 + place % 2 for place in range(120)]
    keys = np.repeat(np.arange(5, dtype=np.uint64), 3)
    assert [rows.tolist() for rows, _ in buckets(keys)] == [list(range(first, first + 3)) for first in range(0, 15, 3)]


def test_as_many_slots_must_be_the_same_as_the_similarity_of_the_index_says():
    assert [fewest_same(threshold) for threshold in (0.0, 0.8, 1.0)] == [1, 103, SLOTS]
