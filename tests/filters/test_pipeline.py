"""Checks: together rows are told what each is told alone, by every filter; the first "no" is the reason."""

import json
import random

import pytest
from bench import filters

from sft.conversation import Conversation, Rejection, normalise
from sft.filters.contamination import check_contamination
from sft.filters.dedup.signatures import signature
from sft.filters.narrative import check_narrative
from sft.filters.pipeline import Checks, Kept
from sft.filters.repetition import check_repetition
from sft.filters.rules.consistency import check_consistency
from sft.filters.structure import check_structure
from sft.formats.raw_files import Row

ITEMS = [
    ("labelled", f"{row['id']}/{number}", text)
    for row in filters.rows("contamination")
    for number, text in enumerate(row["items"])
]


@pytest.fixture(scope="module")
def rows():
    """Every labelled conversation, as a row, in an order that mixes the sets; and rows that hold none."""
    records = [row["record"] for row in filters.rows("conversations") if "record" in row]
    for name in ("repetition", "narrative", "consistency", "contamination"):
        records += [row["conversation"] for row in filters.rows(name)]
    for row in filters.rows("duplicates"):
        records += [row["a"], row["b"]]
    random.Random(1).shuffle(records)
    made = [Row(f"a.jsonl:{number}", record) for number, record in enumerate(records, 1)]
    return [Row("b:1", None, "not valid JSON", "{"), *made, Row("b:2", {"meta": {"refuse": "no-answer"}})]


@pytest.fixture(scope="module")
def checks():
    return Checks(filters.params(), ITEMS)


def alone(row):
    """What one filter after the other says, each on its own."""
    if row.record is None:
        return Rejection("malformed-row", row.fault)
    if "refuse" in (row.record.get("meta") or {}):
        return Rejection(row.record["meta"]["refuse"], json.dumps(row.record["meta"]))
    conversation = normalise(row.record)
    if isinstance(conversation, Rejection):
        return conversation
    params = filters.params()
    asked = (
        lambda one: check_structure(one, params.max_chars, params.max_message_chars),
        lambda one: check_repetition(one, filters._repetition_limits()),
        lambda one: check_narrative(one, filters._narrative_patterns()),
        check_consistency,
        lambda one: check_contamination(one, filters._labelled_items(), params.contamination.ratio),
    )
    for check in asked:
        if rejection := check(conversation):
            return rejection
    return Kept(conversation, conversation.id, signature(conversation), 0)


def test_together_rows_are_told_what_one_filter_after_the_other_says_of_each(rows, checks):
    expected = [alone(row) for row in rows]
    assert checks.examine(rows) == expected
    reasons = {outcome.reason for outcome in expected if isinstance(outcome, Rejection)}
    assert len(reasons) >= 40
    assert sum(isinstance(outcome, Kept) for outcome in expected) > 200


def test_what_a_row_becomes_depends_on_no_other_row_and_no_order(rows, checks):
    whole = dict(zip((row.location for row in rows), checks.examine(rows), strict=True))
    shuffled = random.Random(2).sample(rows, len(rows))
    for start in range(0, len(rows), 7):
        few = shuffled[start : start + 7]
        assert checks.examine(few) == [whole[row.location] for row in few]
    assert checks.examine([]) == []


def test_a_filter_that_is_off_refuses_nothing(rows):
    off = {"repetition": None, "narrative": None, "consistency": False, "contamination": None}
    outcomes = Checks(filters.params().model_copy(update=off), ITEMS).examine(rows)
    for row, outcome in zip(rows, outcomes, strict=True):
        conversation = normalise(row.record) if row.record and "refuse" not in (row.record.get("meta") or {}) else None
        if isinstance(conversation, Conversation):
            refused = check_structure(conversation, filters.params().max_chars)
            assert outcome == (refused or Kept(conversation, conversation.id, signature(conversation), 0))
