"""Search: exactly what a comparison with every kept conversation finds, at every threshold, however it is split up."""

import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.filters.dedup import search as module
from sft.filters.dedup.search import Search
from tests.support.similarity import similarity

THRESHOLD = 0.8


def signature_of(asked, answered, key=0):
    """The signature of two sets of numbers."""
    sides = [sorted(number * 2654435761 % 2**32 for number in set(side)) for side in (asked, answered)]
    return np.array([key, 0, *map(len, sides), *sides[0], *sides[1]], "<u4").tobytes()


def find(signatures, threshold=THRESHOLD, groups=None, at_once=5):
    """Return {number: (kept, similarity)}, and the first that each stays together with."""
    with tempfile.TemporaryDirectory() as folder:
        search = Search(Path(folder) / "search", threshold)
        for begin in range(0, len(signatures), at_once):
            search.add(signatures[begin : begin + at_once])
        duplicates, together = search.find(None if groups is None else np.array(groups, np.int32))
    columns = (column.tolist() for column in duplicates)
    return {number: (kept, value) for number, kept, value in zip(*columns, strict=True)}, together.tolist()


def compare_all(signatures, threshold=THRESHOLD, groups=None):
    """Return what `find` must return first: each conversation compared with all that are kept before it."""
    kept, found = [], {}
    for number, signature in enumerate(signatures):
        others = [other for other in kept if groups is None or groups[other] != groups[number]]
        similar = ((other, similarity(signatures[other], signature)) for other in others)
        first = next(((other, value) for other, value in similar if value >= threshold), None)
        if first is None:
            kept.append(number)
        else:
            found[number] = first
    return found


def draw(seed, number, kinds, vocabulary, longest):
    """Signatures of two keys, each an edited copy of one of a few pairs of sides; some sides have one shingle."""
    drawn = random.Random(seed)

    def side():
        return drawn.sample(range(vocabulary), drawn.choice([1, drawn.randrange(14, longest)]))

    def edited(numbers):
        kept = set(numbers)
        for _ in range(drawn.randrange(1 + len(numbers) // 4) if len(numbers) > 1 else 0):
            kept.discard(drawn.choice(sorted(kept)))
            kept.update(drawn.sample(range(vocabulary), drawn.randrange(2)))
        return kept or {0}

    bases = [(side(), side()) for _ in range(kinds)]
    chosen = (drawn.choice(bases) for _ in range(number))
    return [signature_of(edited(asked), edited(answered), drawn.randrange(2)) for asked, answered in chosen]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    number=st.sampled_from([0, 1, 2, 80]),
    kinds=st.sampled_from([1, 5, 20]),
    vocabulary=st.sampled_from([60, 300, 5000]),
    threshold=st.sampled_from([0.3, 0.5, 0.7, 0.8, 0.9, 1.0]),
    is_grouped=st.booleans(),
    sizes=st.sampled_from([(1 << 24, 1 << 17, 1 << 22, 1 << 14, 0), (500, 100, 200, 7, 1 << 30)]),
)
def test_it_finds_what_a_comparison_with_all_kept_ones_finds(
    seed, number, kinds, vocabulary, threshold, is_grouped, sizes
):
    signatures = draw(seed, number, kinds, vocabulary, longest=50)
    groups = [random.Random(seed + place).randrange(3) for place in range(number)] if is_grouped else None
    names = ("TASK_NUMBERS", "BLOCK_NUMBERS", "PARTITION_NUMBERS", "WALK_AT_ONCE", "COMPILE_FROM")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFT_WORKERS", "1")
        for name, size in zip(names, sizes, strict=True):
            patch.setattr(module, name, size)
        assert find(signatures, threshold, groups)[0] == compare_all(signatures, threshold, groups)


def test_workers_change_nothing(monkeypatch):
    signatures = draw(3, 300, 20, 300, longest=50)
    monkeypatch.setattr(module, "TASK_NUMBERS", 3000)
    monkeypatch.setattr(module, "PARTITION_NUMBERS", 3000)
    found = []
    for workers in ("1", "2"):
        monkeypatch.setenv("SFT_WORKERS", workers)
        found.append(find(signatures))
    assert found[0] == found[1]
    assert len(found[0][0]) > 50


def test_nothing_is_a_duplicate_of_a_dropped_conversation():
    """Each is similar to the next only: every other one is kept."""
    chain = [signature_of(range(place, place + 100), range(50)) for place in range(0, 40, 10)]
    assert similarity(chain[0], chain[1]) > THRESHOLD > similarity(chain[0], chain[2])
    assert find(chain)[0] == {1: (0, 90 / 110), 3: (2, 90 / 110)}


def test_a_similarity_of_exactly_the_threshold_is_enough():
    assert find([signature_of(range(81), range(81)), signature_of(range(9, 90), range(81))])[0] == {1: (0, 0.8)}
    assert find([signature_of(range(81), range(81)), signature_of(range(10, 90), range(81))])[0] == {}


def test_both_sides_and_the_key_must_be_similar():
    one, other = range(50), range(50, 100)
    assert find([signature_of(one, other), signature_of(one, one)])[0] == {}
    assert find([signature_of(one, other), signature_of(other, other)])[0] == {}
    assert find([signature_of(one, other), signature_of(one, other, key=1)])[0] == {}
    assert find([signature_of(one, other), signature_of(one, other)])[0] == {1: (0, 1.0)}


def test_the_earliest_similar_one_is_the_evidence():
    """The third is similar to both kept ones before it."""
    signatures = [signature_of(range(start, start + 100), [0]) for start in (0, 16, 8)]
    assert similarity(*signatures[:2]) < THRESHOLD
    assert find(signatures)[0] == {2: (0, 92 / 108)}


def test_conversations_of_one_group_stay_together_directly_or_through_others_and_others_drop_theirs():
    """Group 1 has a chain; group 2 one conversation like its second, and one like no other."""
    chain = [signature_of(range(place, place + 100), range(50)) for place in range(0, 30, 10)]
    alone = signature_of(range(500, 600), range(50))
    found, together = find([*chain, chain[1], alone], groups=[1, 1, 1, 2, 2])
    assert found == {3: (0, 90 / 110)}
    assert [together[number] for number in (0, 1, 2, 4)] == [0, 0, 0, 4]


def count_comparisons(signatures):
    """Return how many postings are left to compare."""
    with tempfile.TemporaryDirectory() as folder:
        search = Search(Path(folder) / "search", THRESHOLD)
        search.add(signatures)
        search.find()
        return sum(path.stat().st_size // 4 for path in (Path(folder) / "search").glob("shared-*/places"))


@pytest.mark.parametrize("free", [15, 20, 40])
def test_texts_of_one_template_do_not_meet_unless_they_are_duplicates(free):
    """63 shingles that all share, on both sides, and some that no other has."""
    signatures = [
        signature_of(*([*range(63), *range(1000 * n + side, 1000 * n + side + free)] for side in (100, 500)))
        for n in range(1, 200)
    ]
    assert count_comparisons(signatures) == 0
    assert count_comparisons([*signatures, signatures[0]]) > 0


def test_a_long_question_that_all_share_is_not_searched_by():
    """The answers are found by their own few shingles."""
    signatures = [signature_of([*range(400), n + 1000], range(100 * n, 100 * n + 20)) for n in range(5, 200)]
    assert count_comparisons(signatures) == 0
