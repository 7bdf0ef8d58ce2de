"""The pipeline: a batch of rows gets the outcomes that the filters give each row, one after the other."""

import json
import random

import pytest
from bench import filters

from sft.conversation import Conversation, Rejection
from sft.filters.ends import apply_ends
from sft.filters.narrative import check_narrative
from sft.filters.pipeline import Kept, Pipeline
from sft.filters.repetition import check_repetitions
from sft.filters.rules.consistency import check_consistency
from sft.filters.structure import check_structure
from sft.formats.messages import normalize
from sft.formats.raw_files import Row
from tests.support.contamination import check_contamination
from tests.support.similarity import signature

ITEMS = [
    ("labelled", f"{row['id']}/{number}", text)
    for row in filters.rows("contamination")
    for number, text in enumerate(row["items"])
]


@pytest.fixture(scope="module")
def rows():
    """Every labelled conversation as a row, shuffled; and rows without a conversation."""
    records = [row["record"] for row in filters.rows("conversations") if "record" in row]
    for name in ("repetition", "narrative", "consistency", "contamination"):
        records += [row["conversation"] for row in filters.rows(name)]
    for row in filters.rows("duplicates"):
        records += [row["a"], row["b"]]
    random.Random(1).shuffle(records)
    made = [Row(f"a.jsonl:{number}", record) for number, record in enumerate(records, 1)]
    return [Row("b:1", None, "not valid JSON", "{"), *made, Row("b:2", {"meta": {"refuse": "no-answer"}})]


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline(filters.params(), ITEMS)


def alone(row):
    """Apply one filter after the other to one row."""
    if row.record is None:
        return Rejection("malformed-row", row.fault)
    if "refuse" in (row.record.get("meta") or {}):
        return Rejection(row.record["meta"]["refuse"], json.dumps(row.record["meta"]))
    conversation = normalize(row.record)
    if isinstance(conversation, Rejection):
        return conversation
    params = filters.params()
    conversation = apply_ends(conversation, params.ends).conversation
    checks = (
        check_structure,
        lambda conversation: check_repetitions([conversation], filters.params().repetition)[0],
        lambda conversation: check_narrative(conversation, filters._narrative_patterns()),
        check_consistency,
        lambda conversation: check_contamination(conversation, filters._labelled_items(), params.contamination.ratio),
    )
    for check in checks:
        if rejection := check(conversation):
            return rejection
    return Kept(conversation, conversation.id, signature(conversation), 0)


def test_a_batch_gets_the_outcomes_of_one_filter_after_the_other(rows, pipeline):
    expected = [alone(row) for row in rows]
    assert pipeline.apply(rows) == expected
    reasons = {outcome.reason for outcome in expected if isinstance(outcome, Rejection)}
    assert len(reasons) >= 40
    assert sum(isinstance(outcome, Kept) for outcome in expected) > 200


def test_the_outcome_of_a_row_depends_on_no_other_row_and_no_order(rows, pipeline):
    whole = dict(zip((row.location for row in rows), pipeline.apply(rows), strict=True))
    shuffled = random.Random(2).sample(rows, len(rows))
    for start in range(0, len(rows), 7):
        few = shuffled[start : start + 7]
        assert pipeline.apply(few) == [whole[row.location] for row in few]
    assert pipeline.apply([]) == []


def test_a_filter_that_is_off_rejects_nothing(rows):
    off = {"repetition": None, "narrative": None, "consistency": False, "contamination": None}
    outcomes = Pipeline(filters.params().model_copy(update=off), ITEMS).apply(rows)
    for row, outcome in zip(rows, outcomes, strict=True):
        conversation = normalize(row.record) if row.record and "refuse" not in (row.record.get("meta") or {}) else None
        if isinstance(conversation, Conversation):
            conversation = apply_ends(conversation, filters.params().ends).conversation
            rejected = check_structure(conversation)
            assert outcome == (rejected or Kept(conversation, conversation.id, signature(conversation), 0))


def test_without_a_threshold_of_near_duplicates_nothing_is_signed(rows):
    params, kept = filters.params(), Pipeline(filters.params(), ITEMS).apply(rows)
    unsigned = Pipeline(params.model_copy(update={"near_duplicates": None}), ITEMS).apply(rows)
    assert unsigned == [each._replace(signature=None) if isinstance(each, Kept) else each for each in kept]
    assert any(isinstance(each, Kept) and each.signature for each in kept)
