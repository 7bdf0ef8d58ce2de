"""Tools, calls and results between tags: read where they are whole, left alone where they are not."""

import json

import pytest

from sft.conversation import Conversation
from sft.formats.messages import normalize
from sft.formats.not_read import NotRead
from sft.formats.text_calls import split_calls, split_results
from sft.formats.text_tools import split_tools

TOOL = {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object"}}}
HERMES = (
    "You are a function calling AI model. You are provided with function signatures within <tools></tools> XML tags. "
    "You may call one or more functions.\n<tools>\n{tools}\n</tools>\nFor each call return a JSON object within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n{{'name': <name>}}\n</tool_call>"
)
QWEN = (
    "Be kind.\n\n# Tools\nSignatures within <tools></tools> XML tags:\n<tools>\n{tools}\n</tools>\n\nAnswer in German."
)
CALL = '<tool_call>\n{"name": "now", "arguments": {"zone": "CET"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "rest"),
    [(HERMES, "You are a function calling AI model."), (QWEN, "Be kind.\n\n# Tools\n\nAnswer in German.")],
    ids=["Hermes", "Qwen"],
)
@pytest.mark.parametrize(
    "listed",
    [
        json.dumps([TOOL]),
        json.dumps(TOOL),
        f"{json.dumps(TOOL)}\n{json.dumps(TOOL)}",
        str([TOOL]),
        f"{TOOL}\n{TOOL}",
        f"{TOOL},{TOOL}",
    ],
)
def test_tools_leave_the_system_text_with_what_says_how_to_call_them(text, rest, listed):
    turns = [{"role": "system", "content": text.format(tools=listed)}]
    not_read = NotRead()
    tools = split_tools(turns, not_read)
    assert tools is not None
    assert tools[0] == TOOL
    assert turns == [{"role": "system", "content": rest}]
    not_read.end_row("a:1", True)
    assert [count for count, _ in not_read.counts.values()] == [1]


@pytest.mark.parametrize(
    "text", ["", "Tools: <tools></tools>", "<tools>none</tools>", "<tools>[{cut</tools>", "<tools> {"]
)
def test_text_that_lists_no_tool_stays(text):
    turns = [{"role": "system", "content": text}]
    assert split_tools(turns, NotRead()) is None
    assert turns == [{"role": "system", "content": text}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CALL, ("", 1)),
        ("<tool_call>\n{'arguments': {'zone': 'CET'}, 'name': 'now'}\n</tool_call>", ("", 1)),
        (f"I look.\n{CALL}\n{CALL}\n", ("I look.", 2)),
        (f"{CALL} It is late.", None),
        ("<tool_call>now()</tool_call>", None),
        ("<tool_call>{}</tool_call>", None),
        (f"Write </tool_call>. {CALL}", None),
        ("<tool_call><tool_call></tool_call>", None),
        ("No tag", None),
    ],
)
def test_calls_are_read_at_the_end_of_an_answer(text, expected):
    found = split_calls(text)
    assert (found and (found[0], len(found[1]))) == expected


def test_results_are_read_where_there_is_nothing_else():
    assert split_results("<tool_response>\n1\n</tool_response>\n<tool_response>2</tool_response>") == ["1", "2"]
    assert split_results("So: <tool_response>1</tool_response>") is None
    assert split_results("") is None


def test_long_runs_of_tags_and_spaces_take_no_time():
    for text in ("<tool_call>" * 50_000, CALL * 5_000 + "x", "<tools>" * 50_000 + "</tools>" * 50_000, " " * 200_000):
        split_calls(text)
        split_results(text)
        split_tools([{"role": "system", "content": text}], NotRead())


@pytest.mark.parametrize("speaker", ["tool", "user"])
def test_a_conversation_between_tags_is_the_one_without_them(speaker):
    messages = [
        {"role": "system", "content": HERMES.format(tools=json.dumps([TOOL]))},
        {"role": "user", "content": "How late is it?"},
        {"role": "assistant", "content": f"<think>\nI look.\n</think>\n{CALL}\n{CALL}"},
        {"role": speaker, "content": "<tool_response>\n9\n</tool_response>\n<tool_response>\n8\n</tool_response>"},
        {"role": "assistant", "content": "Nine."},
    ]
    outcome = normalize({"messages": messages})
    assert isinstance(outcome, Conversation)
    call = {"type": "function", "function": {"name": "now", "arguments": {"zone": "CET"}}}
    assert outcome.tools == [TOOL]
    assert outcome.messages == [
        {"role": "system", "content": "You are a function calling AI model."},
        messages[1],
        {"role": "assistant", "content": "", "reasoning_content": "I look.", "tool_calls": [call, call]},
        {"role": "tool", "content": "9"},
        {"role": "tool", "content": "8"},
        messages[4],
    ]


def test_tags_in_a_conversation_without_tools_are_text():
    messages = [{"role": "user", "content": "Show a call."}, {"role": "assistant", "content": CALL}]
    outcome = normalize({"messages": messages})
    assert isinstance(outcome, Conversation)
    assert outcome.messages == messages


LISTED = {
    "name": "Get Time (v2)",
    "description": "d",
    "parameters": {"type": "dict", "properties": {"zone": {"type": "str"}}},
}
READ = {
    "name": "Get Time (v2)",
    "description": "d",
    "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}},
}
TOOLACE = (
    "Be kind.\nIf you call one, you MUST put it in the format of [func_name1(params_name1=params_value1...), "
    "func_name2(params)]\nYou SHOULD NOT include any other text in the response.\n"
    "Here is a list of functions in JSON format.\n{tools}\n"
)


def listing(system, answer):
    messages = [("system", system), ("user", "Time?"), ("assistant", answer)]
    return normalize({"messages": [{"role": role, "content": content} for role, content in messages]})


@pytest.mark.parametrize(
    ("system", "answer", "rest"),
    [
        (TOOLACE, '[Get Time (v2)(zone="CET")]', "Be kind."),
        (
            "Be kind. Use these if required -\n{tools}",
            '<functioncall> {"name": "Get Time (v2)", "arguments": \'{"zone": "CET"}\'}',
            "Be kind.",
        ),
        (
            "Here are functions:\n{tools}\nAnswer in German.",
            '{"name": "Get Time (v2)", "parameters": {"zone": "CET"}}',
            "Answer in German.",
        ),
    ],
    ids=["ToolACE", "Glaive", "Llama 3"],
)
@pytest.mark.parametrize("listed", [json.dumps([LISTED]), json.dumps(LISTED, indent=4) + "\n" + json.dumps(LISTED)])
def test_tools_listed_in_the_system_message_are_tools(system, answer, rest, listed):
    outcome = listing(system.replace("{tools}", listed), answer)
    assert isinstance(outcome, Conversation), outcome
    assert outcome.tools[0] == {"type": "function", "function": READ}
    assert outcome.messages[0] == {"role": "system", "content": rest}
    call = {"type": "function", "function": {"name": "Get Time (v2)", "arguments": {"zone": "CET"}}}
    assert outcome.messages[2] == {"role": "assistant", "content": "", "tool_calls": [call]}


def test_an_answer_without_a_call_has_the_tools_of_its_message():
    outcome = listing(TOOLACE.replace("{tools}", json.dumps([LISTED])), "Which zone?")
    assert (len(outcome.tools), outcome.messages[2]["content"]) == (1, "Which zone?")


@pytest.mark.parametrize(
    ("system", "answer"),
    [
        ("Explain this API: {tools}", "It has one function, Get Time (v2)."),  # nobody calls it
        ("Explain this API: {tools}", '[other(zone="CET")]'),
        ("Use func1(x=1) if needed: [1, 2]", "Fine."),
        ('Return [func1(a=1)] and no other text. {"name": "x", "parameters": 3}', "Fine."),
    ],
)
def test_json_that_is_no_list_of_tools_stays_text(system, answer):
    text = system.replace("{tools}", json.dumps([LISTED]))
    outcome = listing(text, answer)
    assert (outcome.tools, outcome.messages[0]["content"], outcome.messages[2]["content"]) == (None, text, answer)


NO_ARGUMENTS = {"description": "d", "name": "now"}
EXAMPLE = '{"name": "Get Time (v2)", "parameters": {"zone": "PST"}}'
CALLED = '[Get Time (v2)(zone="CET")]'


@pytest.mark.parametrize(
    ("system", "names", "rest"),
    [
        ("Here: " + json.dumps([NO_ARGUMENTS, LISTED]), ["now", LISTED["name"]], "Be kind."),
        ("Here: " + json.dumps(NO_ARGUMENTS) + "\n" + json.dumps(LISTED), ["now", LISTED["name"]], "Be kind."),
        (
            f"One:\n{json.dumps([LISTED])}\nTwo:\n{json.dumps([{**LISTED, 'name': 'b'}])}",
            [LISTED["name"], "b"],
            "Be kind.",
        ),
        (f"Here:\n```json\n{json.dumps([LISTED])}\n```", [LISTED["name"]], "Be kind."),
        (f"<api>\n{json.dumps([LISTED])}\n</api>", [LISTED["name"]], "Be kind."),
        (f"Call as {EXAMPLE}!\nTools: {json.dumps(LISTED)}", [LISTED["name"]], f"Be kind. Call as {EXAMPLE}!"),
        (
            f"Use [func1(a=b)]. Add no other text. Stay calm.\nHere: {json.dumps(LISTED)} Rhyme.",
            [LISTED["name"]],
            "Be kind. Stay calm.\n\nRhyme.",
        ),
    ],
    ids=["list", "lines", "two lists", "fence", "tags", "example", "one line"],
)
def test_tools_are_read_whole_and_the_rest_of_the_message_stays(system, names, rest):
    outcome = listing(f"Be kind. {system}", CALLED)
    assert [tool["function"]["name"] for tool in outcome.tools] == names
    assert outcome.messages[0]["content"] == rest
    assert "tool_calls" in outcome.messages[2]


@pytest.mark.parametrize(
    "system",
    [
        f"Tools: [{{cut, {json.dumps(LISTED)}]",
        f"Tools: [{json.dumps(LISTED)}, {{cut]",
        f'Tools: {{"tools": [{json.dumps(LISTED)}]}}',
        f"Answer as {EXAMPLE}.",
    ],
    ids=["end of a list", "start of a list", "part of an object", "example of a call"],
)
def test_a_part_of_other_json_is_no_list_of_tools(system):
    outcome = listing(system, CALLED)
    assert (outcome.tools, outcome.messages[0]["content"], outcome.messages[2]["content"]) == (None, system, CALLED)


def test_a_schema_of_the_answer_is_no_tool():
    system = f"Return JSON and no other text: {json.dumps([LISTED])}"
    assert listing(system, '{"zone": "CET"}').tools is None


def test_a_list_of_results_that_names_its_calls_in_order_is_a_result_each():
    calls = "[f(a=1), g()]"
    results = [{"name": "f", "results": 1}, {"name": "g", "results": {"x": "é"}}]
    tools = [{"name": name, "parameters": {"type": "object", "properties": {}}} for name in ("f", "g")]

    def read(content):
        roles = [("user", "Go."), ("assistant", calls), ("tool", content), ("assistant", "Done.")]
        outcome = normalize({"tools": tools, "messages": [{"role": role, "content": text} for role, text in roles]})
        return [turn["content"] for turn in outcome.messages if turn["role"] == "tool"]

    assert read(json.dumps(results)) == ['{"name": "f", "results": 1}', '{"name": "g", "results": {"x": "é"}}']
    assert len(read(json.dumps(results[::-1]))) == len(read(json.dumps(results[:1]))) == len(read("[1, 2]")) == 1
