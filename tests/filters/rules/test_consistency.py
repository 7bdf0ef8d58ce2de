"""Consistency: which conversations contradict themselves, and which only seem to."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.conversation import Conversation
from sft.filters.rules import consistency
from sft.filters.rules.consistency import CHECKS, check_consistency

ROOT = Path(__file__).parents[3]
LABELLED = [json.loads(line) for line in (ROOT / "tests/labelled/consistency.jsonl").read_text("utf-8").splitlines()]
TOOLS = [{"type": "function", "function": {"name": "get_order", "description": "An order."}}]


def conversation(row: dict[str, Any]) -> Conversation:
    return Conversation(row["conversation"]["messages"], row["conversation"].get("tools"))


def called(
    arguments: dict[str, Any], *results: str, request: str = "Where is it?", answer: str = "Here."
) -> Conversation:
    """A call for each result, all with the same arguments."""
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


def test_every_rule_has_rows_and_no_row_is_rejected_by_two() -> None:
    reasons = set()
    for row in LABELLED:
        found = [rejection.reason for check in CHECKS if (rejection := check(conversation(row)))]
        assert found == ([row["expect"]] if row["expect"] else []), row["id"]
        reasons.update(found)
    assert len(reasons) == len(CHECKS)
    documented = [line.split()[0] for line in (consistency.__doc__ or "").splitlines() if line.startswith("    ")]
    assert sorted(documented) == sorted(reasons)


@pytest.mark.parametrize(
    "text", ["9" * 5000, "[" * 100_000, '{"a":' * 20_000, "```py\n" * 5000, "User: a\n" * 5000, "I'll check " * 5000]
)
def test_hostile_text_gets_a_verdict(text: str) -> None:
    for row in (answered(text, text, text), called({"order_id": "ORD-12345"}, text, text, request=text, answer=text)):
        check_consistency(row)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("```py\nx", "```py is never closed"),
        ("```py\nx\n```", ""),
        ("```py\nx\n```\n  ``` js \ny", "``` js is never closed"),
        ("```\nx\n```py\ny", ""),  # the second may be inside the first
        ("```py\nx\n```py\ny", ""),
        ("```py\nx ``` y", ""),
        ("say ```py\nx", ""),
        ("```md\nx", ""),
        ("```py\n", ""),
        ("````py\n```\nx\n```", "````py is never closed"),
        ("```py\nx\n````", ""),
        ("~~~py\n```\nx\n```", "~~~py is never closed"),
        ("~~~\nx\n~~~\n```py\nx", "```py is never closed"),
    ],
)
def test_a_code_block_is_truncated_if_no_fence_closes_it(text: str, fault: str) -> None:
    rejection = check_consistency(answered(text))
    assert (rejection.evidence.split(": ")[1].split(";")[0] if rejection else "") == fault


@pytest.mark.parametrize(
    ("answer", "is_wrong"),
    [
        ("\u6f22" * 10, True),
        ("\u6f22" * 9, False),
        ("\u0436" * 30, True),
        ("\u0436" * 29, False),
        ("\u0436" * 30 + " `" + "x" * 30 + "` $" + "x" * 30 + "$ https://" + "x" * 30, True),
        ("\u0436" * 30 + "x" * 30, False),
        ("\u00e9" * 60, False),
    ],
)
def test_a_language_is_known_by_its_letters_outside_code(answer: str, is_wrong: bool) -> None:
    rejection = check_consistency(answered(answer, "What is the answer, and how do you know that it is right?"))
    assert (rejection is not None and rejection.reason == "wrong-language") == is_wrong


def test_calls_are_checked_without_a_list_of_tools() -> None:
    repeated = called({"order_id": "1"}, "It was sent.", "It was sent.")
    rejection = check_consistency(Conversation(repeated.messages, None))
    assert rejection is not None
    assert rejection.reason == "repeated-call"


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
