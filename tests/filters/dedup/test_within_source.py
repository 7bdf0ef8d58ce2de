"""Duplicates within a source: the row, and a reason with the conversation that is kept."""

import numpy as np
import pyarrow as pa
import pytest

from sft.filters.dedup.within_source import SourceDuplicates
from tests.filters.dedup.test_signatures import ANSWER, talk
from tests.support.similarity import signature

THRESHOLD = 0.8
FIRST, NEAR, OTHER = talk(), talk(answer=ANSWER + " Vets know this."), talk("Why is that?", ANSWER)


def find(folder, conversations, threshold=THRESHOLD, at_once=3):
    """Row i has the number 2 * i + 1: numbers need not follow each other."""
    duplicates = SourceDuplicates(folder / "duplicates", threshold)
    for begin in range(0, len(conversations), at_once):
        block = conversations[begin : begin + at_once]
        numbers = 2 * np.arange(begin, begin + len(block)) + 1
        signatures = pa.array([signature(each) for each in block], pa.binary())
        duplicates.add(numbers, pa.array([each.id for each in block]), signatures)
    return {(number - 1) // 2: (rejection.reason, rejection.evidence) for number, rejection in duplicates.find()}


def test_equal_and_near_duplicates_name_the_kept_conversation_and_the_similarity(tmp_path):
    equal = ("duplicate", f"the same conversation came before: {FIRST.id}")
    near = ("near-duplicate", f"0.86 similar to {FIRST.id}, which came before")
    assert find(tmp_path, [FIRST, OTHER, NEAR, FIRST, NEAR]) == {2: near, 3: equal, 4: near}


def test_without_a_threshold_only_equal_conversations_are_duplicates(tmp_path):
    found = find(tmp_path, [FIRST, OTHER, NEAR, FIRST, NEAR], threshold=None)
    assert found == {
        3: ("duplicate", f"the same conversation came before: {FIRST.id}"),
        4: ("duplicate", f"the same conversation came before: {NEAR.id}"),
    }


@pytest.mark.parametrize("threshold", [None, THRESHOLD])
@pytest.mark.parametrize("conversations", [[], [FIRST]], ids=["none", "one"])
def test_one_row_or_none_has_no_duplicate(tmp_path, threshold, conversations):
    assert find(tmp_path, conversations, threshold) == {}


def test_a_table_without_rows_adds_nothing(tmp_path):
    duplicates = SourceDuplicates(tmp_path / "duplicates", THRESHOLD)
    duplicates.add(np.empty(0, np.int64), pa.array([], pa.string()), pa.array([], pa.binary()))
    assert list(duplicates.find()) == []
