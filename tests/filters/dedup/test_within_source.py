"""Duplicates within a source: rejected as by an index of all rows; what that index finds, at every size."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.filters.dedup import within_source
from sft.filters.dedup.signatures import NUMBERS_BYTES, RECALL, SIGNATURE_BYTES, SLOTS, banding
from sft.filters.dedup.signatures import signature as signature_of
from sft.filters.dedup.within_source import ID_BYTES, RECENT, SignatureIndex, Similar, SourceDuplicates, mark_shared
from tests.filters.dedup.test_signatures import ANSWER, talk

THRESHOLD = 0.8


def made_up(number, seed=0, kinds=8):
    """(id, signature) of rows; many resemble an earlier row or equal it."""
    drawn = random.Random(seed)
    bases = [drawn.randbytes(SIGNATURE_BYTES) for _ in range(kinds)]
    rows = []
    for _ in range(number):
        signature = bytearray(drawn.choice(bases) if drawn.random() < 0.7 else drawn.randbytes(SIGNATURE_BYTES))
        for side in range(2):
            for slot in drawn.sample(range(SLOTS), drawn.choice((0, 5, 15, 25, 40))):
                signature[NUMBERS_BYTES + side * SLOTS + slot] ^= 1
        rows.append((drawn.randbytes(ID_BYTES), bytes(signature)))
        if drawn.random() < 0.2:
            rows.append(drawn.choice(rows))
    return rows


def find(folder, rows, near, at_once=7):
    """Row i has the number 2 * i + 1: numbers need not follow each other."""
    duplicates = SourceDuplicates(folder, near)
    for begin in range(0, len(rows), at_once):
        block = rows[begin : begin + at_once]
        numbers = 2 * np.arange(begin, begin + len(block)) + 1
        duplicates.add(numbers, *map(b"".join, zip(*block, strict=True)))
    return {(number - 1) // 2: rejection for number, rejection in duplicates.find()}


@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 1000), keys=st.sampled_from([64, within_source.KEYS_AT_ONCE]))
def test_it_rejects_what_an_index_of_all_rows_rejects(tmp_path_factory, seed, keys):
    rows = made_up(120, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(within_source, "KEYS_AT_ONCE", keys)
        patch.setattr(within_source, "ROWS_AT_ONCE", 10)
        rejected = find(tmp_path_factory.mktemp("duplicates") / "files", rows, THRESHOLD)
    index = SignatureIndex(THRESHOLD)
    expected = {
        number: rejection
        for number, (conversation_id, signature) in enumerate(rows)
        if (rejection := index.check(conversation_id.hex(), signature)) is not None
    }
    assert rejected == expected
    assert list(rejected) == sorted(rejected)
    assert {rejection.reason for rejection in expected.values()} == {"duplicate", "near-duplicate"}


def test_without_a_threshold_only_equal_conversations_are_duplicates(tmp_path):
    rows = made_up(100)
    rejected = find(tmp_path / "files", rows, None)
    first = {conversation_id: number for number, (conversation_id, _) in reversed(list(enumerate(rows)))}
    assert set(rejected) == {number for number, (row_id, _) in enumerate(rows) if first[row_id] != number}
    assert len(rejected) > 5
    number, rejection = next(iter(rejected.items()))
    assert rejection.evidence == f"the same conversation came before: {rows[number][0].hex()}"


@pytest.mark.parametrize("near", [None, THRESHOLD])
def test_one_row_or_none_has_no_duplicate(tmp_path, near):
    assert find(tmp_path / "none", [], near) == {}
    empty = SourceDuplicates(tmp_path / "empty", near)
    empty.add(np.empty(0, np.int64), b"", b"")
    assert list(empty.find()) == []
    assert find(tmp_path / "one", made_up(1, kinds=1)[:1], near) == {}


@pytest.mark.parametrize("at_once", [8, 16, 1 << 21])
def test_keys_of_two_rows_are_marked_and_marks_stay(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(within_source, "KEYS_AT_ONCE", at_once)
    np.array([7, 5, 7, 9, 5, 7, 2**64 - 1, 8, 0, 2**64 - 1], np.uint64).tofile(tmp_path / "keys")
    shares_key = np.array([0, 0, 0, 1, 0, 0, 0, 0, 0, 0], np.bool_)
    mark_shared(tmp_path / "keys", shares_key)
    assert shares_key.tolist() == [True, True, True, True, True, True, True, False, False, True]


def random_signatures(number, seed=0):
    drawn = random.Random(seed)
    return [drawn.randbytes(SIGNATURE_BYTES) for _ in range(number)]


def similar_by(share, signature, seed=0):
    """Another signature that has this share of the slots of each side in common."""
    changed = bytearray(signature)
    for side in (0, 1):
        for slot in random.Random(seed + side).sample(range(SLOTS), SLOTS - round(share * SLOTS)):
            changed[NUMBERS_BYTES + side * SLOTS + slot] ^= 1
    return bytes(changed)


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_bands_find_what_is_as_similar_as_the_threshold(threshold):
    slots, bands = banding(threshold)
    assert slots * bands <= SLOTS
    assert 1 - (1 - threshold ** (2 * slots)) ** bands >= RECALL
    signatures = random_signatures(300)
    index = SignatureIndex(threshold)
    for number, signature in enumerate(signatures):
        index.add(str(number), signature)
    found = [
        index.find(similar_by(min(1, threshold + 0.01), signature, seed)) for seed, signature in enumerate(signatures)
    ]
    assert sum(match is not None and match.id == str(number) for number, match in enumerate(found)) >= RECALL * 300


def test_every_candidate_is_compared():
    signature = random_signatures(1)[0]
    index = SignatureIndex(THRESHOLD)
    index.add("one", signature)
    below = [index.find(similar_by(0.7, signature, seed)) for seed in range(50)]
    above = [index.find(similar_by(0.85, signature, seed)) for seed in range(50)]
    assert below == [None] * 50
    assert all(match and match.similarity == pytest.approx(0.85, abs=0.01) for match in above)


def test_both_sides_must_be_similar():
    one, other = random_signatures(2)
    half = NUMBERS_BYTES + SLOTS
    index = SignatureIndex(THRESHOLD)
    index.add("one", one)
    assert index.find(one) == Similar("one", 1.0)
    assert index.find(one[:half] + other[half:]) is None
    assert index.find(one[:NUMBERS_BYTES] + other[NUMBERS_BYTES:half] + one[half:]) is None
    assert index.find(other[:NUMBERS_BYTES] + one[NUMBERS_BYTES:]) is None


def test_an_index_finds_after_sorting_what_it_found_before():
    signatures = random_signatures(2 * RECENT + 100)
    index = SignatureIndex(THRESHOLD)
    for number, signature in enumerate(signatures):
        index.add(f"{number:032x}", signature)
    for number in (0, RECENT - 1, RECENT, 2 * RECENT - 1, 2 * RECENT, 2 * RECENT + 99):
        assert index.find(similar_by(0.9, signatures[number])) == Similar(
            f"{number:032x}", pytest.approx(0.9, abs=0.01)
        )
    assert index.find(random_signatures(1, seed=1)[0]) is None


def test_the_earliest_of_several_is_kept():
    signature = random_signatures(1)[0]
    index = SignatureIndex(THRESHOLD)
    for name, share in (("first", 0.9), ("second", 1.0)):
        index.add(name, similar_by(share, signature))
    assert index.find(signature) == Similar("first", pytest.approx(0.9, abs=0.01))


def test_nothing_is_compared_with_a_rejected_conversation():
    near = signature_of(talk(answer=ANSWER + " Vets know this."))
    index = SignatureIndex(THRESHOLD)
    assert index.check("a" * 32, signature_of(talk())) is None
    rejected = index.check("b" * 32, near)
    assert rejected is not None
    assert (rejected.reason, rejected.evidence) == ("near-duplicate", f"0.84 similar to {'a' * 32}, which came before")
    assert index.check("c" * 32, near) == rejected


def test_an_id_of_more_than_32_characters_is_an_error():
    with pytest.raises(ValueError, match="32 characters"):
        SignatureIndex(THRESHOLD).add("x" * 33, bytes(SIGNATURE_BYTES))
