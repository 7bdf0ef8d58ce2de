# ruff: noqa: RUF001 (DeepSeek's tokens have a bar and blocks of their own)
"""Calls in text: what templates of families write is read back, and calls as Python writes them; the rest is left."""

import pytest

from sft.conversation import Conversation, Rejection
from sft.formats.messages import normalize
from sft.formats.text_calls import split_bracket_calls, split_calls
from tests.support.families import load_family
from tests.templates.test_families import ASK, TOOL, answer

ONE = {"name": "add", "arguments": {"x": 1}}
FUNCTION = "<function=add>\n<parameter=x>\n1\n</parameter>\n</function>"
SCHEMAS = {"add": TOOL["function"]["parameters"]}


@pytest.mark.parametrize(
    "name", ["chatml", "qwen2.5", "qwen3.5", "glm4.5", "minimax-m2", "kimi-k2", "deepseek-v3", "granite", "mistral-v3"]
)
def test_what_a_template_writes_is_read_back(tmp_path, name):
    chat = load_family(name, tmp_path)
    messages = [ASK, answer("", calls=2)]
    empty = chat.render([ASK, answer("@@")], [TOOL], thinking=True, generation_prompt=False)
    prompt, stop = empty.split("@@")
    text = chat.render(messages, [TOOL], thinking=True, generation_prompt=False)
    text = text.removeprefix(prompt.rstrip()).rstrip().removesuffix(stop.strip())
    outcome = normalize({"messages": [ASK, {"role": "assistant", "content": text}], "tools": [TOOL]})
    assert isinstance(outcome, Conversation), (text, outcome)
    calls = [call["function"] for call in outcome.messages[1]["tool_calls"]]
    assert calls == [{"name": "add", "arguments": {"x": number}} for number in (0, 1)], text


@pytest.mark.parametrize(
    ("text", "before", "calls"),
    [
        (f"I add.\n<tool_call>\n{FUNCTION}\n</tool_call>\n<tool_call>{FUNCTION}</tool_call>", "I add.", [ONE, ONE]),
        (f"{FUNCTION}\n{FUNCTION}", "", [ONE, ONE]),
        ('<function=add>{"x": 1}</function>', "", [ONE]),
        ("<function=now></function>", "", [{"name": "now", "arguments": {}}]),
        (
            "<function=say>\n<parameter=text>\n 1\n<b>\n\n</parameter>\n</function>",
            "",
            [{"name": "say", "arguments": {"text": " 1\n<b>\n"}}],
        ),
        ('<tool_call>\n```json\n{"name": "add", "arguments": {"x": 1}}\n```\n</tool_call>', "", [ONE]),
        (
            '<function_calls>\n<invoke name="add">\n<parameter name="x">1</parameter>\n</invoke>\n</function_calls>',
            "",
            [ONE],
        ),
        ('<｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{"x": 1}\n```<｜tool▁call▁end｜>', "", [ONE]),
        (
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>"
            '{"x": 1}<|tool_call_end|><|tool_calls_section_end|>',
            "",
            [ONE],
        ),
    ],
)
def test_forms(text, before, calls):
    assert split_calls(text, SCHEMAS) == (before, calls)


@pytest.mark.parametrize(
    "text",
    [
        f"{FUNCTION} So.",
        f"<tool_call>{FUNCTION}",
        f"{FUNCTION}</tool_call>",
        "<function=add>x=1</function>",
        "<function=add><parameter=x>1</parameter><parameter=x>2</parameter></function>",
        "<tool_call>add\n<arg_key>x</arg_key></tool_call>",
        '<tool_call>{"name": "add", "arguments": {"x": 1}</tool_call>',
        '<tool_call>{"name": "add"}',
    ],
)
def test_a_call_that_cannot_be_read_is_rejected_if_the_row_has_its_tool(text):
    messages = [ASK, {"role": "assistant", "content": text}]
    assert split_calls(text) is None
    outcome = normalize({"messages": messages, "tools": [TOOL]})
    assert isinstance(outcome, Rejection)
    assert outcome.reason == "call-as-text"
    assert isinstance(normalize({"messages": messages, "tools": [{"name": "other"}]}), Conversation)
    assert isinstance(normalize({"messages": messages}), Conversation)


@pytest.mark.parametrize(
    "text",
    [
        "Models write `<tool_call>` before a call. To add a stop word, see the address book.",
        'Use re.findall(r"<tool_call>(.*?)</tool_call>", text)  # add more',
        '```xml\n<invoke name="Booking" partnerLink="x"/>\n```\nThen add the port.',
        "`<function_calls>` is an element of yours. I will add it.",
        '`<tool_call>{"name": "get_time", "arguments": {}}</tool_call>` is how Qwen does it; add the tags.',
        '`<tool_call>{"name": "add_two", "arguments": {}}</tool_call>` is how Qwen does it.',
    ],
)
def test_text_about_markup_is_left_as_it_is_though_it_has_the_name_of_a_tool(text):
    outcome = normalize({"messages": [ASK, {"role": "assistant", "content": text}], "tools": [TOOL]})
    assert isinstance(outcome, Conversation), outcome
    assert outcome.messages[1] == {"role": "assistant", "content": text}


def test_a_result_of_a_call_in_text_needs_the_tools_of_its_row():
    outcome = normalize(
        {"messages": [ASK, {"role": "assistant", "content": FUNCTION}, {"role": "tool", "content": "1"}]}
    )
    assert isinstance(outcome, Rejection)
    assert outcome.reason == "call-as-text"
    assert "the row has no tools" in outcome.evidence


@pytest.mark.parametrize("opening", ["<tool_call>", "<function=add>", "<function=add><parameter=x>", "```json\n"])
def test_no_text_takes_long(opening):
    for text in (opening * 20_000, opening + " \n" * 50_000, opening + "<" * 100_000 + "</tool_call>"):
        normalize({"messages": [ASK, {"role": "assistant", "content": text}], "tools": [TOOL]})


NAMES = {"f", "Market Trends API", "a.b"}


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("[f()]", [("f", {})]),
        (" [f(a=1)]\n", [("f", {"a": 1})]),
        (
            '[f(a="x, (y)]", b=[1, {"c": \'d\'}]), a.b(x=True, y=null)]',
            [("f", {"a": "x, (y)]", "b": [1, {"c": "d"}]}), ("a.b", {"x": True, "y": None})],
        ),
        (
            "[f(a=\"x, (y)]\", b=[1, {'c': 'd'}]), a.b(x=True)]",
            [("f", {"a": "x, (y)]", "b": [1, {"c": "d"}]}), ("a.b", {"x": True})],
        ),
        (
            '[Market Trends API(trend_type="MARKET", country=None)]',
            [("Market Trends API", {"trend_type": "MARKET", "country": None})],
        ),
        ("[f(a=-1.5), f(a=2)]", [("f", {"a": -1.5}), ("f", {"a": 2})]),
    ],
)
def test_calls_are_read_exactly(text, calls):
    found = [(call["name"], call["arguments"]) for call in split_bracket_calls(text, NAMES)]
    assert found == calls


@pytest.mark.parametrize(
    "text",
    [
        "[g(a=1)]",
        "[f(1)]",
        "[f(a=1)",
        "f(a=1)",
        "[f(a=1) f(a=2)]",
        "[f(a=1,)]",
        "[f(a=1, a=2)]",
        "[f(a=x)]",
        "So: [f()]",
        "[f()] So.",
        "[]",
        "[f(a=)]",
        "[f(a=1 2)]",
        "[f(a='x' 'y')]",
        "[f(" + "a=[" * 50_000 + ")]",
        "[" + "f()," * 50_000 + ")]",
    ],
    ids=lambda text: text[:20],
)
def test_other_text_is_left_alone(text):
    assert split_bracket_calls(text, NAMES) == []


def test_an_answer_of_nothing_but_calls_calls_the_tools_of_its_row():
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "[f(a=1)]"}]
    record = {"messages": [*messages, {"role": "tool", "content": "2"}], "tools": [{"name": "f"}]}
    outcome = normalize(record)
    assert isinstance(outcome, Conversation)
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    assert outcome.messages[1] == {"role": "assistant", "content": "", "tool_calls": [call]}


@pytest.mark.parametrize("text", ["[f(1)]", "[f(a=1,)]", "[f(a='it's')]", "[f(a=1)]\n[f(a=2)]"])
def test_an_answer_of_calls_that_cannot_be_read_is_rejected(text):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": text}]
    outcome = normalize({"messages": messages, "tools": [{"name": "f"}]})
    assert isinstance(outcome, Rejection)
    assert outcome.reason == "call-as-text"


def test_a_call_in_json_without_arguments_stays_beside_one_with_them():
    content = '[{"name": "f", "arguments": {}}, {"name": "g"}]'
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": content}]
    outcome = normalize({"messages": messages, "tools": [{"name": "f"}, {"name": "g"}]})
    assert isinstance(outcome, Conversation)
    assert [call["function"]["name"] for call in outcome.messages[1]["tool_calls"]] == ["f", "g"]
