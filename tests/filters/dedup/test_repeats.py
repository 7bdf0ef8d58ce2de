"""Repeats: what an index of all rows would refuse is refused, whatever is looked at together."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.filters.dedup import repeats
from sft.filters.dedup.near import NUMBERS_BYTES, SIGNATURE_BYTES, SLOTS, NearDuplicates, check_near_duplicate
from sft.filters.dedup.repeats import ID_BYTES, Repeats, mark_shared

THRESHOLD = 0.8


def made_up(number, seed=0, kinds=8):
    """(id, sketch) of rows of which many resemble an earlier one, or equal it."""
    drawn = random.Random(seed)
    bases = [drawn.randbytes(SIGNATURE_BYTES) for _ in range(kinds)]
    rows = []
    for _ in range(number):
        sketch = bytearray(drawn.choice(bases) if drawn.random() < 0.7 else drawn.randbytes(SIGNATURE_BYTES))
        for side in range(2):
            for slot in drawn.sample(range(SLOTS), drawn.choice((0, 5, 15, 25, 40))):
                sketch[NUMBERS_BYTES + side * SLOTS + slot] ^= 1
        rows.append((drawn.randbytes(ID_BYTES), bytes(sketch)))
        if drawn.random() < 0.2:
            rows.append(drawn.choice(rows))
    return rows


def found(folder, rows, near, at_once=7):
    """Row i has the number 2 * i + 1: numbers need not follow each other."""
    kept = Repeats(folder, near)
    for begin in range(0, len(rows), at_once):
        some = rows[begin : begin + at_once]
        numbers = 2 * np.arange(begin, begin + len(some)) + 1
        kept.add(numbers, b"".join(one for one, _ in some), b"".join(sketch for _, sketch in some))
    return {(number - 1) // 2: rejection for number, rejection in kept.find()}


@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 1000), keys=st.sampled_from([64, repeats.KEYS_AT_ONCE]))
def test_it_refuses_what_an_index_of_all_rows_refuses(tmp_path_factory, seed, keys):
    rows = made_up(120, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeats, "KEYS_AT_ONCE", keys)
        patch.setattr(repeats, "ROWS_AT_ONCE", 10)
        refused = found(tmp_path_factory.mktemp("repeats") / "files", rows, THRESHOLD)
    index = NearDuplicates(THRESHOLD)
    expected = {
        number: rejection
        for number, (conversation_id, sketch) in enumerate(rows)
        if (rejection := check_near_duplicate(index, conversation_id.hex(), sketch)) is not None
    }
    assert refused == expected
    assert list(refused) == sorted(refused)
    assert {rejection.reason for rejection in expected.values()} == {"duplicate", "near-duplicate"}


def test_without_a_threshold_only_equal_ones_repeat_each_other(tmp_path):
    rows = made_up(100)
    refused = found(tmp_path / "files", rows, None)
    first = {conversation_id: number for number, (conversation_id, _) in reversed(list(enumerate(rows)))}
    assert set(refused) == {number for number, (one, _) in enumerate(rows) if first[one] != number}
    assert len(refused) > 5
    number, rejection = next(iter(refused.items()))
    assert rejection.evidence == f"the same conversation came before: {rows[number][0].hex()}"


@pytest.mark.parametrize("near", [None, THRESHOLD])
def test_nothing_repeats_nothing(tmp_path, near):
    assert found(tmp_path / "none", [], near) == {}
    empty = Repeats(tmp_path / "empty", near)
    empty.add(np.empty(0, np.int64), b"", b"")
    assert list(empty.find()) == []
    assert found(tmp_path / "one", made_up(1, kinds=1)[:1], near) == {}


@pytest.mark.parametrize("at_once", [8, 16, 1 << 21])
def test_keys_that_stand_twice_are_marked_and_marks_stay(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(repeats, "KEYS_AT_ONCE", at_once)
    np.array([7, 5, 7, 9, 5, 7, 2**64 - 1, 8, 0, 2**64 - 1], np.uint64).tofile(tmp_path / "keys")
    shares = np.array([0, 0, 0, 1, 0, 0, 0, 0, 0, 0], np.bool_)
    mark_shared(tmp_path / "keys", shares)
    assert shares.tolist() == [True, True, True, True, True, True, True, False, False, True]
