"""Rules about actions: what is an error, an invention or a superfluous call, and what is not."""

from typing import Any

import pytest

from sft.conversation import Conversation
from sft.filters.rules.consistency import check_consistency
from tests.filters.rules.test_consistency import TOOLS, called


def test_the_evidence_of_a_repeated_call_shows_call_and_result() -> None:
    rejection = check_consistency(called({"order": "4711"}, '{"eta": "Monday"}', '{"eta": "Monday"}'))
    assert rejection is not None
    assert rejection.evidence == """messages[3]: again get_order({"order": "4711"}), again '{"eta": "Monday"}'"""


@pytest.mark.parametrize(
    "results", [("open, 2 items", "shipped, 2 items"), ("[]", "[]"), ("still processing", "still processing")]
)
def test_a_call_may_be_repeated_while_the_result_is_new_empty_or_pending(results: tuple[str, str]) -> None:
    assert check_consistency(called({"order": "x"}, *results)) is None


def test_results_in_another_order_are_paired_by_id() -> None:
    def turn(result_of: dict[str, str], *ids: str) -> list[dict[str, Any]]:
        calls = [
            {"type": "function", "id": call_id, "function": {"name": "get_order", "arguments": {"n": call_id[0]}}}
            for call_id in ids
        ]
        results = [{"role": "tool", "tool_call_id": call_id, "content": text} for call_id, text in result_of.items()]
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
