"""Fast nano3: the samples of the template, whatever the conversation; unsupported ones are left to the template."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.conversation import Rejection
from sft.tokens.fast_nano3 import SHA256, FastNano3
from sft.tokens.render import ChatTemplate, Settings
from sft.tokens.segments import Segments
from sft.tokens.tokenizer import SafeTokenizer, iter_samples
from tests.support.tiny_model import ADDED_TOKENS
from tests.support.tokenizers import REASONING_AND_TOOLS, write_tokenizer

NANO3 = Path(__file__).parents[2] / "templates" / "nano3.jinja"
_ASK = {"role": "user", "content": " Ask <|im_end|> \n"}
_CALL = {
    "id": "1",
    "type": "function",
    "function": {"name": "f", "arguments": {"a": "<tool_call>", "b": [1, "é"], "c": None, "d": 0.5, "<think>": " x "}},
}
_FIELD = {"type": ["string", "null"], "description": " What ", "enum": ["a", 1], "default": {"<|im_end|>": [None]}}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "description": " Does. ",
            "parameters": {
                "type": "object",
                "properties": {"a": _FIELD, "b": True},
                "required": ["a"],
                "$defs": {"x": 1},
            },
            "strict": True,
        },
    },
    {"type": "function", "function": {"name": "g"}},
]


def _answer(content: str, reasoning: str = "", *calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    thought = {"reasoning_content": reasoning} if reasoning else {}
    return {
        "role": "assistant",
        "content": content,
        **thought,
        **({"tool_calls": list(calls)} if calls else {}),
        **more,
    }


_SYSTEM, _RESULT = {"role": "system", "content": " Be </think> brief. "}, {"role": "tool", "content": "<tool_response>"}
_DIALOGUES: list[list[dict[str, Any]]] = [
    [_ASK, _answer("a")],
    [_ASK, _answer(" a \n"), _ASK, _answer("")],
    [_ASK, _answer(" a ", " r\n"), _ASK, _answer("", "s")],
    [_ASK, _answer(" a ", "r"), _ASK, _answer("b"), _SYSTEM, _ASK, _answer("c", "t")],
    [_ASK, _answer("", "", _CALL), _RESULT, _answer("a")],
    [
        _ASK,
        _answer(" look ", "r", _CALL, _CALL),
        _RESULT,
        _RESULT,
        _answer("", "s", _CALL),
        _RESULT,
        _answer("a", "t"),
        _ASK,
        _answer("b"),
    ],
    [_answer("hello"), _ASK, _ASK, _answer("a", loss=False), _ASK, _answer("<|im_start|>b")],
    [_ASK, _answer("a", "r", loss=False), _ASK, _answer("b", "s")],
    [_ASK, _answer(" ", "r"), _ASK, _answer("b", "", _CALL)],
]
PROBES: list[tuple[list[dict[str, Any]], list[dict[str, Any]] | None, int | None]] = [
    ([*system, *dialogue], tools, budget)
    for dialogue in _DIALOGUES
    for system, tools, budget in (
        ([], None, None),
        ([_SYSTEM], _TOOLS, 64),
        ([{"role": "system", "content": ""}], _TOOLS, None),
    )
]


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    added = {
        "plain": ADDED_TOKENS,
        "reasoning": ADDED_TOKENS + REASONING_AND_TOOLS,
        "brackets": (*ADDED_TOKENS, "[INST]"),
    }
    folders = {name: write_tokenizer(tmp_path_factory.mktemp(name), tokens) for name, tokens in added.items()}
    return {name: ChatTemplate.load(str(NANO3), folder) for name, folder in folders.items()}


def both(chat, messages, tools, budget):
    """Return the samples of the faster way, None if it leaves them to the template, and those of the template."""
    segments = Segments()
    fast = None
    if chat._fast.add_samples(segments, messages, tools, budget):
        fast = list(iter_samples(segments.encode(chat.tokenizer.encoder)))
    rendered = chat.render_by_prompts(messages, tools, budget)
    return fast, rendered if isinstance(rendered, Rejection) else chat.encode(rendered)


def test_the_digest_is_that_of_the_template():
    """If you change templates/nano3.jinja, change fast_nano3.py too, or prep is about ten times slower."""
    assert hashlib.sha256(NANO3.read_bytes()).hexdigest() == SHA256


def test_it_is_used_with_every_tokenizer_whose_control_tokens_are_plain(chats):
    assert all(chat.is_fast for chat in chats.values())
    compared = 0
    for chat in chats.values():
        for probe in PROBES:
            fast, rendered = both(chat, *probe)
            assert fast in (None, rendered)
            compared += fast is not None
    assert compared >= 60


TEXT = st.lists(
    st.one_of(
        st.sampled_from(
            ["the sum", " ", "\n", "<|im_end|>", "<think>", "</think>", "im_end|>", "<|im_", "<", "é", "{", "[INST]"]
        ),
        st.text(max_size=4),
    ),
    max_size=4,
).map("".join)
VALUE = st.recursive(
    st.one_of(TEXT, st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(TEXT, inner, max_size=2)),
    max_leaves=4,
)
CALL = st.fixed_dictionaries(
    {
        "id": TEXT,
        "type": st.just("function"),
        "function": st.fixed_dictionaries({"name": TEXT, "arguments": st.dictionaries(TEXT, VALUE, max_size=2)}),
    }
)
ANSWER = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": TEXT},
    optional={
        "reasoning_content": st.one_of(TEXT.filter(str.strip), TEXT.filter(str.strip), TEXT),
        "tool_calls": st.lists(CALL, max_size=2),
        "loss": st.booleans(),
    },
)
OTHER = st.fixed_dictionaries({"role": st.sampled_from(["user", "user", "system", "tool"]), "content": TEXT})
SCHEMA = st.one_of(
    VALUE,
    st.fixed_dictionaries(
        {},
        optional={
            "type": VALUE,
            "properties": st.dictionaries(
                TEXT,
                st.one_of(
                    VALUE,
                    st.fixed_dictionaries(
                        {}, optional={"type": VALUE, "description": VALUE, "enum": VALUE, "x": VALUE}
                    ),
                ),
                max_size=2,
            ),
            "required": VALUE,
            "$defs": VALUE,
        },
    ),
)
TOOL = st.fixed_dictionaries(
    {
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {"name": TEXT}, optional={"description": TEXT, "parameters": SCHEMA, "strict": VALUE}
        ),
    }
)


@settings(max_examples=600)
@given(
    st.sampled_from(["plain", "reasoning", "brackets"]),
    st.lists(st.one_of(ANSWER, OTHER), min_size=1, max_size=6),
    st.one_of(st.none(), st.lists(TOOL, max_size=2)),
    st.one_of(st.none(), st.integers(1, 512)),
)
def test_any_conversation_gets_the_ids_masks_and_turn_ends_of_the_template(chats, which, messages, tools, budget):
    fast, rendered = both(chats[which], messages, tools, budget)
    assert fast is None or fast == rendered


def test_most_conversations_need_no_template(chats):
    ask, result = {"role": "user", "content": "a"}, {"role": "tool", "content": "b"}
    answer = {"role": "assistant", "content": "c"}
    thought = answer | {"reasoning_content": "d"}
    calls = thought | {"tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
    for messages in (
        [ask, answer, ask, answer],
        [ask, thought, ask, answer, ask, thought],
        [ask, calls, result, result, thought, ask, calls, result, answer],
        [answer, ask, answer],
        [ask, answer | {"loss": False}, ask, answer],
    ):
        fast, rendered = both(chats["reasoning"], messages, None, None)
        assert fast == rendered != []


def test_reasoning_of_an_earlier_turn_that_is_trained_makes_a_sample_of_that_turn(chats):
    ask = {"role": "user", "content": "a"}
    greeting = {"role": "assistant", "content": "c", "reasoning_content": "d"}
    fast, rendered = both(chats["reasoning"], [greeting, ask, greeting], None, None)
    assert fast == rendered
    assert len(rendered) == 2


def test_values_of_unexpected_types_are_left_to_the_template(chats):
    ask = {"role": "user", "content": "a"}
    for answer in (
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        {"role": "assistant", "content": "", "tool_calls": ["f"]},
        {"role": "assistant", "content": "a", "reasoning_content": " \n"},
    ):
        segments = Segments()
        assert not chats["plain"]._fast.add_samples(segments, [ask, answer], None, None)
        assert vars(segments) == vars(Segments())


@pytest.mark.parametrize(
    "token", ["<parameter=", "<function=f>", "a\n<", "[1]", "</parameter>", "<name>", '"x"', "1.5"]
)
def test_a_tokenizer_whose_control_tokens_could_be_made_of_text_is_left_to_the_template(tmp_path, token):
    tokenizer = SafeTokenizer(write_tokenizer(tmp_path, (*ADDED_TOKENS, token)))
    assert FastNano3(SafeTokenizer(write_tokenizer(tmp_path / "plain"))).supports(["<|im_end|>"], "")
    assert not FastNano3(tokenizer).supports(["<|im_end|>"], "")


def test_another_template_is_rendered_by_jinja(tmp_path):
    base = write_tokenizer(tmp_path / "base")
    (tmp_path / "mine.jinja").write_text(NANO3.read_text().replace("Give every", "Always give every"))
    assert not ChatTemplate.load(str(tmp_path / "mine.jinja"), base).is_fast


def test_a_template_whose_turns_another_stop_token_may_end_is_rendered_by_jinja(tmp_path):
    base = write_tokenizer(tmp_path, ADDED_TOKENS + REASONING_AND_TOOLS)
    assert ChatTemplate.load(str(NANO3), base, settings=Settings(("<|endoftext|>",))).is_fast
    assert not ChatTemplate.load(str(NANO3), base, settings=Settings(("</tool_call>",))).is_fast
