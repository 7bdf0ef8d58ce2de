"""tool_calls: what is a call, what is a fault, and how an answer is graded."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sft.evaluation.tool_calls import (
    Call,
    Verdict,
    grade,
    opening,
    parse_tool_calls,
    think_balanced,
)

PRICE = """<tool_call>
<function=price>
<parameter=symbol>
ACME
</parameter>
<parameter=days>
5
</parameter>
</function>
</tool_call>
"""
NOW = "<tool_call>\n<function=now>\n</function>\n</tool_call>\n"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "price",
            "parameters": {
                "type": "object",
                "properties": {"symbol": {"type": "string"}, "days": {"type": "integer"}, "note": {}},
                "required": ["symbol"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]


def reference(name, arguments):
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


REFERENCE = [reference("price", {"symbol": "ACME", "days": 5})]
PIECES = st.text(alphabet="\n <>/=ab", max_size=40)
LINES = st.lists(st.sampled_from([*PRICE.split("\n"), "x"])).map("\n".join)
PRICE_CALL = Call("price", {"symbol": "ACME", "days": "5"})


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (PRICE, [PRICE_CALL]),
        (PRICE.rstrip("\n"), [PRICE_CALL]),
        ("<think></think>\n" + PRICE, [PRICE_CALL]),
        ("<think>\nA price, by " + NOW + "?\n</think>\n" + PRICE, [PRICE_CALL]),
        ("Let me see.\n" + PRICE + NOW, [PRICE_CALL, Call("now", {})]),
        (PRICE + "\n \n" + NOW + "\n\n", [PRICE_CALL, Call("now", {})]),
    ],
)
def test_calls_in_the_form_are_read_with_reasoning_and_text_before_them(text, calls):
    assert parse_tool_calls(text) == calls


@pytest.mark.parametrize(
    "value",
    [
        "",
        "two\nlines",
        "</think>",
        "inline </parameter> here",
        " </parameter>",
        "<tool_call>",
        "</function>",
        "a\r\u2028b",
    ],
)
def test_a_value_ends_at_the_first_line_that_is_the_closing_tag_and_nowhere_else(value):
    text = f"<tool_call>\n<function=f>\n<parameter=a>\n{value}\n</parameter>\n</function>\n</tool_call>\n"
    assert parse_tool_calls(text) == [Call("f", {"a": value})]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no-call"),
        ("It is noon.", "no-call"),
        ("<think>\n" + PRICE, "reasoning-not-closed"),
        ("<think>" + PRICE + "</think>", "no-call"),
        (PRICE.replace("<tool_call>\n", ""), "tag-out-of-place"),
        ("Sure: " + PRICE, "tag-out-of-place"),
        ("I use <tool_call>.\n" + PRICE, "tag-out-of-place"),
        (PRICE + "Done.", "text-after-call"),
        (PRICE.replace("\n", " "), "tag-out-of-place"),
        (PRICE.replace("<function=price>", "<function=>"), "no-function-in-call"),
        (PRICE.replace("<function=price>", '{"name": "price"}'), "no-function-in-call"),
        ("<tool_call>", "no-function-in-call"),
        (PRICE.replace("<parameter=days>", "<function=days>"), "function-in-function"),
        (PRICE.replace("\n</parameter>", ""), "parameter-not-closed"),
        (PRICE.replace("ACME\n", ""), "parameter-without-value"),
        (PRICE.replace("days", "symbol"), "parameter-twice"),
        (PRICE.replace("</function>\n", ""), "call-not-closed"),
        (PRICE.removesuffix("</tool_call>\n"), "call-not-closed"),
        (PRICE.replace("<parameter=days>", "<parameter=days"), "call-not-closed"),
    ],
)
def test_everything_else_is_a_fault_with_its_name(text, fault):
    assert parse_tool_calls(text) == fault
    assert grade(text, TOOLS, REFERENCE) == Verdict(False, False, False, False, fault)


@given(PIECES | LINES)
@example(PRICE)
def test_any_text_gives_calls_or_a_fault_and_a_verdict_whose_claims_imply_each_other(text):
    verdict = grade(text, TOOLS, REFERENCE)
    claims = [verdict.well_formed, verdict.known_function, verdict.fits, verdict.exact]
    assert claims == sorted(claims, reverse=True)
    assert verdict.exact == (verdict.fault == "")
    assert verdict.well_formed == isinstance(parse_tool_calls(text), list)


@pytest.mark.parametrize(
    ("text", "fault", "passed"),
    [
        (PRICE, "", 4),
        (PRICE.replace("price", "cost"), "unknown-function", 1),
        (PRICE.replace("symbol", "ticker"), "arguments-do-not-fit", 2),
        (PRICE.replace("\n5\n", "\nfive\n"), "arguments-do-not-fit", 2),
        (PRICE + NOW, "other-number-of-calls", 3),
        (NOW, "other-function", 3),
        (PRICE.replace("\n5\n", "\n6\n"), "other-arguments", 3),
        (PRICE.replace("<parameter=days>\n5\n</parameter>\n", ""), "other-arguments", 3),
    ],
)
def test_an_answer_passes_as_far_as_it_is_right(text, fault, passed):
    assert grade(text, TOOLS, REFERENCE) == Verdict(*(n < passed for n in range(4)), fault)


def test_an_argument_without_a_type_equals_the_reference_as_text_or_as_value():
    text = PRICE.replace("days", "note")
    for value in ("5", 5):
        assert grade(text, TOOLS, [reference("price", {"symbol": "ACME", "note": value})]).exact
    assert not grade(text, TOOLS, [reference("price", {"symbol": "ACME", "note": [5]})]).exact


def test_a_function_without_parameters_takes_what_the_filter_stage_lets_it_take():
    tools = [{"type": "function", "function": {"name": "now"}}]
    assert grade(NOW, tools, [reference("now", {})]).exact


@pytest.mark.parametrize(
    ("text", "balanced"),
    [
        ("", True),
        ("<think></think>hello", True),
        ("<think>a</think>b<think>c</think>", True),
        ("<think>a", False),
        ("a</think>", False),
        ("<think><think>a</think></think>", False),
        ("</think><think>", False),
    ],
)
def test_think_tags_open_and_close_in_turn(text, balanced):
    assert think_balanced(text) == balanced


def test_only_what_stands_at_the_very_end_of_a_prompt_opens_the_answer():
    assert opening("<|im_start|>user\n<think>\n<|im_end|>\n<|im_start|>assistant\n<think>\n") == "<think>\n"
    assert opening("<|im_start|>user\n<think></think><|im_end|>\n<|im_start|>assistant\n") == ""
