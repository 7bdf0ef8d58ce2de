"""nano3.jinja against an independent renderer of the same format: `renderers` (PyPI, Apache-2.0), Nemotron 3.

Token for token, on every construct, with our paragraph about tool calls in place of theirs. `DIFFERENCES` lists all
that differs, with the reason. Their mask (`sampled_mask`) marks a turn from its header on; ours begins behind the
generation prompt.
"""

import json
from pathlib import Path

import pytest
from renderers.configs import Nemotron3RendererConfig
from renderers.nemotron3 import Nemotron3Renderer
from tokenizers import Tokenizer

from sft.tokens.render import ChatTemplate
from tests.support.tiny_model import ADDED_TOKENS
from tests.support.tokenizers import REASONING_AND_TOOLS, plain_ids, write_tokenizer

NANO3 = Path(__file__).parents[2] / "templates" / "nano3.jinja"
CITY = {"type": "string", "description": " Where ", "enum": ["Paris", "Bern"]}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": " The weather.\nNow. ",
        "parameters": {
            "type": "object",
            "properties": {
                "city": CITY,
                "days": {"type": "integer", "default": 1, "minimum": 0},
                "where": {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]},
                "hours": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
            },
            "required": ["city", "days"],
            "$defs": {"x": {"type": "null"}},
        },
        "returns": {"type": "string"},
    },
}
BARE = {"type": "function", "function": {"name": "now"}}
ASK = {"role": "user", "content": "What is the sum?"}
SYSTEM = {"role": "system", "content": " Be brief. "}


def call(name="get_weather", **arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def answer(content, reasoning=None, *calls):
    return (
        {"role": "assistant", "content": content}
        | ({"reasoning_content": reasoning} if reasoning else {})
        | ({"tool_calls": list(calls)} if calls else {})
    )


def result(content):
    return {"role": "tool", "content": content}


PARIS = call(city="Paris", days=2)
SAME = {  # construct: (messages, tools)
    "a question": ([ASK], None),
    "no system message": ([ASK, answer("12")], None),
    "a system message": ([SYSTEM, ASK, answer("12")], None),
    "an empty system message": ([{"role": "system", "content": ""}, ASK, answer("12")], [BARE]),
    "tools without a system message": ([ASK, answer("12")], [WEATHER, BARE]),
    "tools with a system message": ([SYSTEM, ASK, answer("12")], [WEATHER]),
    "a tool without the function wrapper": ([ASK, answer("12")], [BARE["function"]]),
    "non-ASCII": ([{"role": "user", "content": "Zürich, 東京 👩‍👩‍👧?"}, answer("Jå", "Grüße")], None),
    "two turns": ([ASK, answer("12"), ASK, answer("Yes")], None),
    "an answer with blanks around": ([ASK, answer("  12 \n"), ASK, answer(" Yes")], None),
    "a user message with blanks around": ([{"role": "user", "content": "  a \n"}, answer("12")], None),
    "reasoning": ([ASK, answer("12", "7 + 5")], None),
    "reasoning and no answer": ([ASK, answer("", "7 + 5")], None),
    "reasoning of an earlier turn": ([ASK, answer("12", "7 + 5"), ASK, answer("Yes", "same")], None),
    "reasoning of an earlier turn only": ([ASK, answer("12", "7 + 5"), ASK, answer("Yes")], None),
    "an unanswered question behind reasoning": ([ASK, answer("12", "7 + 5"), ASK], None),
    "a call": ([ASK, answer("", None, PARIS)], [WEATHER]),
    "a call without arguments": ([ASK, answer("", None, call("now"))], [BARE]),
    "a call with text": ([ASK, answer("Let me see.", None, PARIS)], [WEATHER]),
    "a call with reasoning": ([ASK, answer("", "look", PARIS)], [WEATHER]),
    "a call with reasoning and text": ([ASK, answer("Now.\n", "look", PARIS)], [WEATHER]),
    "parallel calls and merged results": (
        [ASK, answer("", None, PARIS, call("now")), result("12 C"), result("noon"), answer("12 C at noon")],
        [WEATHER, BARE],
    ),
    "several steps with reasoning": (
        [
            ASK,
            answer("", "look", PARIS),
            result("12 C"),
            answer("So.", "again", call("now")),
            result("noon"),
            answer("b", "tell"),
        ],
        [WEATHER, BARE],
    ),
    "several steps of an earlier turn": (
        [ASK, answer("", "look", PARIS), result("12 C"), answer("b", "tell"), ASK, answer("Yes", "sure")],
        [WEATHER],
    ),
    "a call with text of an earlier turn": (
        [ASK, answer("Now.", "look", PARIS), result("12 C"), answer("b"), ASK],
        [WEATHER],
    ),
    "lists and objects as arguments": (
        [ASK, answer("", None, call(hours=[[1, 2], []], where={"lat": 1.5, "name": "Zürich"}, city="a\nb"))],
        [WEATHER],
    ),
    "an empty result": ([ASK, answer("", None, PARIS), result(""), answer("b")], [WEATHER]),
    "two questions in a row": ([ASK, ASK, answer("12", "7 + 5")], None),
}


def tool(field):
    return [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"p": field}}}}]


DIFFERENCES = {  # construct: (messages, tools, ours, theirs)
    # Theirs escapes in enumerations what it leaves readable elsewhere; the published template does not.
    "non-ASCII in an enumeration": ([ASK], tool({"enum": ["Zürich"]}), '["Zürich"]', '["Z\\u00fcrich"]'),
    "non-ASCII in a schema": ([ASK], tool({"items": {"enum": ["Zürich"]}}), '["Zürich"]', '["Z\\u00fcrich"]'),
    # Theirs, as the published template, writes Python where the schema and the parsers of calls know JSON.
    "a list of types": ([ASK], tool({"type": ["string", "null"]}), '["string", "null"]', "['string', 'null']"),
    "a default of true": ([ASK], tool({"default": True}), "<default>true<", "<default>True<"),
    "a default of null": ([ASK], tool({"default": None}), "<default>null<", "<default>None<"),
    "an argument of false": ([ASK, answer("", None, call(now=False))], None, "=now>\nfalse\n", "=now>\nFalse\n"),
    "an argument of null": ([ASK, answer("", None, call(now=None))], None, "=now>\nnull\n", "=now>\nNone\n"),
    # Before a call, theirs keeps blanks in this turn and drops them in later ones: a row that NVIDIA's code loses.
    "blanks before text and a call": (
        [ASK, answer("\n Now.", None, PARIS)],
        None,
        "<think></think>Now.\n",
        "<think></think>\n Now.\n",
    ),
    # Reasoning in normal form has no blanks around it; in any other form ours takes them off.
    "blanks around reasoning": (
        [ASK, answer("12", " 7 + 5\n")],
        None,
        "<think>\n7 + 5\n</think>",
        "<think>\n 7 + 5\n\n</think>",
    ),
}


class TheirTokenizer:
    """The tokenizer interface of `renderers`."""

    unk_token_id = None
    name_or_path = ""

    def __init__(self, folder):
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def encode(self, text, add_special_tokens=True):
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def convert_tokens_to_ids(self, token):
        return self.tokenizer.token_to_id(token)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("base"), ADDED_TOKENS + REASONING_AND_TOOLS)


@pytest.fixture(scope="module")
def chat(folder):
    return ChatTemplate.load(str(NANO3), folder)


@pytest.fixture(scope="module")
def theirs(folder, chat):
    tokenizer = TheirTokenizer(folder)
    return {
        thinking: Nemotron3Renderer(tokenizer, Nemotron3RendererConfig(enable_thinking=thinking))
        for thinking in (True, False)
    }


def their_text(chat, theirs, messages, tools, *, thinking=False, generation_prompt=False):
    """Return what they render, as text, with our paragraph about calls in place of theirs."""
    renderer = theirs[thinking]
    ids = renderer.render_ids(messages, tools=tools, add_generation_prompt=generation_prompt)
    text = renderer._tokenizer.decode(ids)
    if not tools:
        return text
    ours = chat.render([ASK], [BARE], thinking=False).partition("\n</tools>")[2].partition("<|im_end|>")[0]
    before, _, rest = text.partition("\n</tools>")
    theirs_ends, after = rest.partition("</IMPORTANT>")[1:]
    assert ours
    assert theirs_ends
    return before + "\n</tools>" + ours + after


@pytest.mark.parametrize("construct", SAME)
@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("generation_prompt", [True, False])
def test_the_structure_is_theirs(chat, theirs, construct, thinking, generation_prompt):
    messages, tools = SAME[construct]
    shown = chat.render(messages, tools, thinking=thinking, generation_prompt=generation_prompt)
    assert shown == their_text(chat, theirs, messages, tools, thinking=thinking, generation_prompt=generation_prompt)


# Each a sample of its own: their mask does not split a conversation.
ONE_SAMPLE = [name for name, (messages, tools) in SAME.items() if not tools and messages[-1]["role"] == "assistant"]
ONE_SAMPLE = [name for name in ONE_SAMPLE if "of an earlier turn" not in name]


@pytest.mark.parametrize("construct", ONE_SAMPLE)
def test_ids_are_theirs_and_so_is_the_mask_but_for_what_the_generation_prompt_gives(chat, theirs, construct):
    messages, _ = SAME[construct]
    (sample,) = chat.encode(chat.render_samples(messages, None))
    their = theirs[True].render(messages)
    assert sample.ids == their.token_ids
    openings = [plain_ids(chat.tokenizer, text) for text in ("<think>\n", "<think></think>")]
    expected = [int(kept) for kept in their.sampled_mask]
    for start in [i for i, kept in enumerate(expected) if kept and not expected[i - 1]]:
        (given,) = [opening for opening in openings if sample.ids[start : start + len(opening)] == opening]
        expected[start : start + len(given)] = [0] * len(given)
    assert sample.mask == expected
    assert sum(expected) > 0


@pytest.mark.parametrize("construct", DIFFERENCES)
def test_the_differences_are_these(chat, theirs, construct):
    messages, tools, ours, other = DIFFERENCES[construct]
    shown = chat.render(messages, tools, thinking=False)
    expected = their_text(chat, theirs, messages, tools)
    assert ours in shown
    assert other in expected
    assert shown == expected.replace(other, ours)


def test_a_system_message_in_the_middle_is_an_error_there_and_a_turn_here(chat, theirs):
    messages = [ASK, answer("a"), SYSTEM, ASK]
    with pytest.raises(ValueError, match="beginning"):
        theirs[True].render(messages)
    assert "a<|im_end|>\n<|im_start|>system\n Be brief. <|im_end|>\n" in chat.render(messages, None, thinking=True)


def test_arguments_as_json_text_are_parsed_there_and_in_normal_form_here(chat, theirs):
    written = {"type": "function", "function": {"name": "f", "arguments": json.dumps({"x": "1"})}}
    assert "<parameter=x>\n1\n" in their_text(chat, theirs, [ASK, answer("", None, written)], None)
    assert chat.render_samples([ASK, answer("", None, written)], None).reason == "template-refuses"


def test_text_that_looks_like_structure_is_structure_there_and_text_here(chat, theirs):
    messages = [{"role": "user", "content": "a<|im_end|>b"}, answer("12")]
    (sample,) = chat.encode(chat.render_samples(messages, None))
    stop = chat.stop_id
    assert (theirs[True].render_ids(messages).count(stop), sample.ids.count(stop)) == (4, 3)
    assert chat.decode(sample.ids) == theirs[True]._tokenizer.decode(theirs[True].render_ids(messages))
