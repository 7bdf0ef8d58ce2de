"""Which trajectories contradict themselves, and which only look so."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.data import consistency
from sft.data.consistency import CHECKS, check_consistency
from sft.data.conversation import Conversation

ROOT = Path(__file__).parents[2]
LABELLED = [json.loads(line) for line in (ROOT / "tests/labelled/consistency.jsonl").read_text("utf-8").splitlines()]
TOOLS = [{"type": "function", "function": {"name": "get_order", "description": "An order."}}]


def conversation(row: dict[str, Any]) -> Conversation:
    return Conversation(row["conversation"]["messages"], row["conversation"].get("tools"))


def called(
    arguments: dict[str, Any], *results: str, request: str = "Where is it?", answer: str = "Here."
) -> Conversation:
    """One call a result, each with the same arguments."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": request}]
    for result in results:
        call = {"type": "function", "function": {"name": "get_order", "arguments": arguments}}
        messages += [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": result}]
    return Conversation([*messages, {"role": "assistant", "content": answer}], TOOLS)


def answered(answer: str, request: str = "Go on.", reasoning: str = "") -> Conversation:
    message: dict[str, Any] = {"role": "assistant", "content": answer}
    if reasoning:
        message["reasoning_content"] = reasoning
    return Conversation([{"role": "user", "content": request}, message], None)


@pytest.mark.parametrize("row", LABELLED, ids=lambda row: row["id"])
def test_a_labelled_row_gets_its_verdict(row: dict[str, Any]) -> None:
    rejection = check_consistency(conversation(row))
    assert (rejection and rejection.reason) == row["expect"], rejection


def test_the_labelled_set_is_large_has_hard_negatives_and_two_halves() -> None:
    for half in ("choose", "prove"):
        verdicts = [row["expect"] for row in LABELLED if row["half"] == half]
        assert len(verdicts) >= 30
        assert 0.5 <= verdicts.count(None) / len(verdicts) <= 0.75
    assert len({row["id"] for row in LABELLED}) == len(LABELLED)


def test_every_rule_has_positives_and_no_two_rules_speak_on_one_of_them() -> None:
    reasons = set()
    for row in LABELLED:
        found = [rejection.reason for check in CHECKS if (rejection := check(conversation(row)))]
        assert found == ([row["expect"]] if row["expect"] else []), row["id"]
        reasons.update(found)
    assert len(reasons) == len(CHECKS)
    documented = [line.split()[0] for line in (consistency.__doc__ or "").splitlines() if line.startswith("    ")]
    assert sorted(documented) == sorted(reasons)


def test_the_evidence_of_a_repeated_call_shows_call_and_result() -> None:
    rejection = check_consistency(called({"order": "4711"}, '{"eta": "Monday"}', '{"eta": "Monday"}'))
    assert rejection is not None
    assert rejection.evidence == """messages[3]: again get_order({"order": "4711"}), again '{"eta": "Monday"}'"""


@pytest.mark.parametrize(
    "results", [("open, 2 items", "shipped, 2 items"), ("[]", "[]"), ("still processing", "still processing")]
)
def test_a_call_may_be_repeated_while_the_result_is_new_empty_or_pending(results: tuple[str, str]) -> None:
    assert check_consistency(called({"order": "x"}, *results)) is None


def test_results_that_come_out_of_order_are_paired_by_id() -> None:
    def turn(result_of: dict[str, str], *ids: str) -> list[dict[str, Any]]:
        calls = [
            {"type": "function", "id": one, "function": {"name": "get_order", "arguments": {"n": one[0]}}}
            for one in ids
        ]
        results = [{"role": "tool", "tool_call_id": one, "content": text} for one, text in result_of.items()]
        return [{"role": "assistant", "content": "", "tool_calls": calls}, *results]

    start, end = {"role": "user", "content": "Both?"}, {"role": "assistant", "content": "Fine."}
    first = turn({"b1": "beta was sent", "a1": "alpha was sent"}, "a1", "b1")
    assert check_consistency(Conversation([start, *first, *turn({"a2": "beta was sent"}, "a2"), end], TOOLS)) is None
    assert (
        check_consistency(Conversation([start, *first, *turn({"a2": "alpha was sent"}, "a2"), end], TOOLS)) is not None
    )


@pytest.mark.parametrize(
    ("result", "is_error"),
    [
        ('{"error": "no such order"}', True),
        ('{"success": false}', True),
        ('{"status": "failed"}', True),
        ('{"output": "{\\"error\\": \\"no such order\\"}"}', True),
        ('{"detail": "Not Found"}', True),
        ("Error: no such order", True),
        ("KeyError: 'order'", True),
        ("Traceback (most recent call last):\n  ...", True),
        ('{"error": null, "status": "ok"}', False),
        ('{"errors_today": 3}', False),
        ("Errors were found in 3 files", False),
        ("[1, 2]", False),
        ("{broken", False),
    ],
)
def test_what_counts_as_an_error(result: str, is_error: bool) -> None:
    rejection = check_consistency(called({}, result, answer="The order has been cancelled."))
    assert (rejection is not None) == is_error


@pytest.mark.parametrize(
    ("name", "value", "request_", "is_invented"),
    [
        ("order_id", "ORD-88231", "Where is it?", True),
        ("order_id", "ORD-88231", "Where is ord 88231?", False),
        ("order_id", 88231, "Where is 88,231?", False),
        ("orderNumber", "0088231", "Where is 88231?", False),
        ("order_id", "latest", "Where is it?", False),
        ("order_id", "2025-05-03", "Where is it?", False),
        ("gene_id", "P04637", "Where is p53?", False),
        ("email", "ana@acme.org", "Tell Ana.", False),
        ("email", "boss@acme.org", "Tell her.", True),
        ("note", "boss@acme.org", "Tell her.", False),
        ("anything", "3f2b8c1e-0d4a-4f6b-9c7e-5a1d2e3f4b5c", "Number 3?", True),
    ],
)
def test_which_arguments_are_invented(name: str, value: Any, request_: str, is_invented: bool) -> None:
    rejection = check_consistency(called({"inner": [{name: value}]}, "found it", request=request_))
    assert (rejection is not None) == is_invented


def test_an_identifier_in_the_reasoning_is_still_invented() -> None:
    row = called({"order_id": "ORD-88231"}, "found it")
    row.messages[1]["reasoning_content"] = "I take ORD-88231."
    rejection = check_consistency(row)
    assert rejection is not None
    assert rejection.reason == "invented-id"


@pytest.mark.parametrize(
    "answer",
    [
        "```python\nprint(1)\n```",
        "~~~sh\nls\n~~~",
        "Use ```python inline``` so.",
        "```\nprint(1)",
        '{"a": 1}',
        "[1] A footnote that begins like a list",
        "The word is the",
    ],
)
def test_a_whole_answer_is_not_truncated(answer: str) -> None:
    assert check_consistency(answered(answer)) is None


@pytest.mark.parametrize(
    "text", ["9" * 5000, "[" * 100_000, '{"a":' * 20_000, "```py\n" * 5000, "User: a\n" * 5000, "I'll check " * 5000]
)
def test_hostile_text_gets_a_verdict(text: str) -> None:
    for row in (answered(text, text, text), called({"order_id": "ORD-12345"}, text, text, request=text, answer=text)):
        check_consistency(row)


TEXT = st.text(max_size=80) | st.sampled_from(
    ['{"a": ', "```py\nx", "User: hi\n\nAssistant: ho", "\\boxed{3}", "[insert x]"]
)


@given(TEXT, TEXT, TEXT, st.dictionaries(TEXT, TEXT | st.integers(), max_size=3))
def test_every_conversation_gets_a_verdict_and_always_the_same(
    request_: str, answer: str, result: str, arguments: dict[str, Any]
) -> None:
    row = called(arguments, result, result, request=request_, answer=answer)
    assert check_consistency(row) == check_consistency(row)
    assert check_consistency(answered(answer, request_, result)) == check_consistency(
        answered(answer, request_, result)
    )


SENTENCES = st.lists(st.sampled_from(["It rains.", "Rome is old.", "All is well.", "See page 3."]), min_size=1)


@given(SENTENCES)
def test_plain_sentences_are_consistent(sentences: list[str]) -> None:
    assert check_consistency(answered(" ".join(sentences))) is None
