"""Render: what is trained, what is never trained, and what content cannot do; nano3.jinja, construct by construct."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.cli import InputError
from sft.conversation import Rejection
from sft.tokens import render
from sft.tokens.render import ChatTemplate, Settings
from sft.tokens.tokenizer import Sample
from tests.support.tiny_model import ADDED_TOKENS
from tests.support.tokenizers import REASONING_AND_TOOLS, plain_ids, write_tokenizer

NANO3 = Path(__file__).parents[2] / "templates" / "nano3.jinja"
ASK = {"role": "user", "content": "What is the sum?"}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": " The weather. ",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Where", "enum": ["Paris", "Zürich"]},
                "days": {"type": "integer", "default": 1},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}}}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def chats(base, tmp_path_factory):
    """nano3.jinja with a tokenizer that spells tags as text, and with one that has tokens for them."""
    tagged = write_tokenizer(tmp_path_factory.mktemp("tagged"), ADDED_TOKENS + REASONING_AND_TOOLS)
    return {"plain": ChatTemplate.load(str(NANO3), base), "reasoning": ChatTemplate.load(str(NANO3), tagged)}


@pytest.fixture(scope="module")
def chat(chats):
    return chats["plain"]


def answer(content, **more):
    return {"role": "assistant", "content": content, **more}


def trained(chat, messages, tools=None):
    """Return the trained text of each sample of a conversation, turn by turn."""
    rendered = chat.render_samples(messages, tools)
    assert not isinstance(rendered, Rejection), rendered
    samples = chat.encode(rendered)
    texts = []
    for sample in samples:
        assert isinstance(sample, Sample), sample
        assert len(sample.ids) == len(sample.mask)
        parts, current = [], []
        for token, kept in zip(sample.ids, sample.mask, strict=True):
            if kept:
                current.append(token)
            elif current:
                parts, current = [*parts, current], []
        texts.append([chat.decode(part) for part in [*parts, *([current] if current else [])]])
    return texts


def text(chat, messages, tools=None, **options):
    return chat.render(messages, tools, **{"thinking": False, **options})


def result(content):
    return {"role": "tool", "content": content}


# --- The text of nano3.jinja -----------------------------------------------------------------------------------


SYSTEM = "<|im_start|>system\n<|im_end|>\n"
ASKED = "<|im_start|>user\nWhat is the sum?<|im_end|>\n"


def test_a_conversation_starts_with_a_system_turn_even_without_a_system_message(chat):
    assert text(chat, [ASK, answer("12.")]) == (
        SYSTEM + ASKED + "<|im_start|>assistant\n<think></think>12.<|im_end|>\n"
    )


def test_a_system_message_is_in_the_system_turn(chat):
    assert text(chat, [{"role": "system", "content": " Be brief. "}, ASK]) == (
        "<|im_start|>system\n Be brief. <|im_end|>\n" + ASKED
    )


def test_a_system_message_in_the_middle_is_a_turn_of_its_own(chat):
    messages = [ASK, answer("a"), {"role": "system", "content": "Now in verse."}, ASK]
    assert text(chat, messages) == (
        SYSTEM + ASKED + "<|im_start|>assistant\n<think></think>a<|im_end|>\n"
        "<|im_start|>system\nNow in verse.<|im_end|>\n" + ASKED
    )


def test_tools_are_in_the_system_turn_with_all_their_fields(chat):
    shown = text(chat, [{"role": "system", "content": "Be brief."}, ASK], [TOOL])
    assert shown == (
        "<|im_start|>system\nBe brief.\n\n# Tools\n\nYou have access to the following functions:\n\n<tools>\n"
        "<function>\n<name>get_weather</name>\n<description>The weather.</description>\n<parameters>\n"
        "<parameter>\n<name>city</name>\n<type>string</type>\n<description>Where</description>\n"
        '<enum>["Paris", "Zürich"]</enum>\n</parameter>\n'
        "<parameter>\n<name>days</name>\n<type>integer</type>\n<default>1</default>\n</parameter>\n"
        '<additionalProperties>false</additionalProperties>\n<required>["city"]</required>\n</parameters>\n'
        "</function>\n</tools>\n\nTo call a function, answer with nothing but:\n\n<tool_call>\n"
        "<function=FUNCTION_NAME>\n<parameter=PARAMETER_NAME>\nvalue\n</parameter>\n</function>\n</tool_call>\n\n"
        "Give every required parameter, lists and objects written as JSON; one block for each call.<|im_end|>\n" + ASKED
    )


def test_schemas_in_schemas_are_json_and_a_tool_without_parameters_has_none(chat):
    nested = {"type": "array", "items": {"type": "object", "properties": {"größe": {"enum": [1, None]}}}}
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": {"properties": {"rows": nested}}, "strict": True}},
        {"type": "function", "function": {"name": "g"}},
    ]
    shown = text(chat, [ASK], tools)
    assert (
        "<tools>\n<function>\n<name>f</name>\n<parameters>\n<parameter>\n<name>rows</name>\n<type>array</type>\n"
        '<items>{"type": "object", "properties": {"größe": {"enum": [1, null]}}}</items>\n</parameter>\n'
        "</parameters>\n<strict>true</strict>\n</function>\n"
        "<function>\n<name>g</name>\n<parameters>\n</parameters>\n</function>\n</tools>"
    ) in shown


CALLED = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nZürich\n</parameter>\n<parameter=days>\n2\n"
    "</parameter>\n</function>\n</tool_call>\n"
)


@pytest.mark.parametrize(
    ("turn", "written"),
    [
        (answer("", tool_calls=[CALL]), "<think></think>\n" + CALLED),
        (answer("", tool_calls=[CALL, CALL]), "<think></think>\n" + CALLED + CALLED),
        (answer("Let me see.", tool_calls=[CALL]), "<think></think>Let me see.\n" + CALLED),
        (answer(" \n Let me see.\n", tool_calls=[CALL]), "<think></think>Let me see.\n" + CALLED),
        (answer("", reasoning_content="r", tool_calls=[CALL]), "<think>\nr\n</think>\n" + CALLED),
        (answer("Now.", reasoning_content="r", tool_calls=[CALL]), "<think>\nr\n</think>\nNow.\n" + CALLED),
        (answer("Now.", reasoning_content="r"), "<think>\nr\n</think>\nNow."),
        (answer("", reasoning_content="r"), "<think>\nr\n</think>"),
        (answer("  four = 4\n"), "<think></think>  four = 4"),
    ],
)
def test_an_answer_is_its_reasoning_its_text_and_its_calls(chat, turn, written):
    assert text(chat, [ASK, turn], [TOOL]).endswith("<|im_start|>assistant\n" + written + "<|im_end|>\n")


def test_arguments_that_are_not_text_are_written_as_json(chat):
    arguments = {"rows": [1, "ü", None], "how": {"a": True}, "fast": False, "none": None, "share": 0.5, "text": "[1]"}
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    shown = text(chat, [ASK, answer("", tool_calls=[call])])
    assert '<parameter=rows>\n[1, "ü", null]\n</parameter>\n<parameter=how>\n{"a": true}\n</parameter>\n' in shown
    assert "<parameter=fast>\nfalse\n</parameter>\n<parameter=none>\nnull\n</parameter>\n" in shown
    assert "<parameter=share>\n0.5\n</parameter>\n<parameter=text>\n[1]\n</parameter>\n</function>" in shown


def test_results_that_follow_each_other_make_one_user_turn(chat):
    messages = [ASK, answer("", tool_calls=[CALL, CALL]), result("a"), result("b")]
    assert text(chat, messages, [TOOL]).endswith(
        "<|im_start|>user\n<tool_response>\na\n</tool_response>\n<tool_response>\nb\n</tool_response>\n<|im_end|>\n"
    )


def test_the_generation_prompt_opens_or_closes_the_reasoning(chat):
    assert text(chat, [ASK], thinking=True, generation_prompt=True) == SYSTEM + ASKED + (
        "<|im_start|>assistant\n<think>\n"
    )
    assert text(chat, [ASK], generation_prompt=True) == SYSTEM + ASKED + "<|im_start|>assistant\n<think></think>"


def test_reasoning_is_kept_after_the_last_user_message_and_dropped_before(chat):
    first, second = answer("a", reasoning_content="one"), answer("b", reasoning_content="two")
    called = answer("", reasoning_content="zero", tool_calls=[CALL])
    assert "<think>\nzero\n</think>\n<tool_call>" in text(chat, [ASK, called, result("x"), first])
    assert "<think>\none\n</think>\na<|im_end|>" in text(chat, [ASK, called, result("x"), first])
    shown = text(chat, [ASK, called, result("x"), first, ASK, second])
    assert "zero" not in shown
    assert "<|im_start|>assistant\n<think></think>\n<tool_call>" in shown
    assert "<|im_start|>assistant\n<think></think>\na<|im_end|>" in shown
    assert "<think>\ntwo\n</think>\nb" in shown


def test_a_thinking_budget_is_written_in_the_last_user_message(chat):
    shown = text(chat, [ASK, answer("a"), ASK], thinking=True, budget=64, generation_prompt=True)
    assert shown.count("{thinking token budget: 64}") == 1
    assert shown.endswith("sum?\n\n{thinking token budget: 64}<|im_end|>\n<|im_start|>assistant\n<think>\n")


# --- The mask -------------------------------------------------------------------------------------------


def test_every_answer_of_a_conversation_without_reasoning_is_trained_with_its_stop_token(chat):
    assert trained(chat, [ASK, answer("one"), ASK, answer("two")]) == [["one<|im_end|>", "two<|im_end|>"]]


def test_each_user_turn_of_a_reasoning_conversation_is_a_sample_that_trains_its_own_answers(chat):
    messages = [ASK, answer("a", reasoning_content="one"), ASK, answer("b", reasoning_content="two")]
    assert trained(chat, messages) == [["one\n</think>\na<|im_end|>"], ["two\n</think>\nb<|im_end|>"]]


def test_all_reasoning_of_several_steps_of_one_turn_is_trained(chat):
    steps = [
        ASK,
        answer("", reasoning_content="ask", tool_calls=[CALL]),
        {"role": "tool", "content": "12 C"},
        answer("12 degrees", reasoning_content="tell"),
    ]
    ((first, second),) = trained(chat, steps, [TOOL])
    assert first.startswith("ask\n</think>\n<tool_call>\n<function=get_weather>")
    assert first.endswith("</tool_call>\n<|im_end|>")
    assert second == "tell\n</think>\n12 degrees<|im_end|>"


def test_an_answer_without_reasoning_in_a_reasoning_conversation_is_trained_behind_closed_thoughts(chat):
    messages = [ASK, answer("a", reasoning_content="one"), ASK, answer("b")]
    assert trained(chat, messages) == [["one\n</think>\na<|im_end|>"], ["b<|im_end|>"]]


def test_a_conversation_that_reasons_in_its_last_answer_only_is_one_sample(chat):
    messages = [ASK, answer("a"), ASK, answer("b"), ASK, THINKS]
    assert trained(chat, messages) == [["a<|im_end|>", "b<|im_end|>", "why\n</think>\nb<|im_end|>"]]


def test_a_sample_ends_where_the_template_would_rewrite_what_it_trains(chat):
    messages = [ASK, answer("a"), ASK, THINKS, ASK, answer("c"), ASK, answer("d")]
    assert trained(chat, messages) == [
        ["a<|im_end|>", "why\n</think>\nb<|im_end|>"],
        ["c<|im_end|>", "d<|im_end|>"],
    ]


def test_an_answer_without_reasoning_is_not_trained_behind_reasoning_that_its_prompt_has_and_the_sample_lacks(chat):
    steps = [ASK, answer("", reasoning_content="r", tool_calls=[CALL], loss=False), result("12 C"), answer("12 C")]
    assert trained(chat, [*steps, ASK, answer("b")], [TOOL]) == [["12 C<|im_end|>"], ["b<|im_end|>"]]


def test_an_unanswered_user_message_is_context_and_no_sample(chat):
    messages = [ASK, ASK, answer("a", reasoning_content="one")]
    assert trained(chat, messages) == [["one\n</think>\na<|im_end|>"]]


def test_no_trained_token_follows_a_stop_token(chat):
    messages = [
        ASK,
        answer("one"),
        ASK,
        answer("", tool_calls=[CALL]),
        {"role": "tool", "content": "x"},
        answer("two"),
    ]
    (sample,) = chat.encode(chat.render_samples(messages, [TOOL]))
    follows = [kept for token, kept in zip(sample.ids, sample.mask[1:], strict=False) if token == chat.stop_id]
    assert len(follows) >= 6
    assert not any(follows)


def test_turn_ends_are_behind_each_trained_stop_token(chat):
    messages = [ASK, answer("one"), ASK, answer("", tool_calls=[CALL]), result("x"), answer("two")]
    (sample,) = chat.encode(chat.render_samples(messages, [TOOL]))
    trained_stops = [
        index + 1
        for index, (token, kept) in enumerate(zip(sample.ids, sample.mask, strict=True))
        if kept and token == chat.stop_id
    ]
    assert sample.turn_ends == trained_stops
    assert len(sample.turn_ends) == 3
    for end, number in zip(sample.turn_ends, (2, 4, 6), strict=True):
        (short,) = chat.encode(chat.render_samples(messages[:number], [TOOL]))
        assert sample.ids[:end] == short.ids[:end], "a cut there is the conversation that ends with this turn"
        assert sample.mask[:end] == short.mask[:end]


def test_a_turn_that_says_loss_false_is_rendered_and_not_trained(chat):
    messages = [ASK, answer("one", loss=False), ASK, answer("two", loss=True)]
    assert trained(chat, messages) == [["two<|im_end|>"]]
    (sample,) = chat.encode(chat.render_samples(messages, None))
    plain = [{key: value for key, value in message.items() if key != "loss"} for message in messages]
    assert sample.ids == chat.encode(chat.render_samples(plain, None))[0].ids
    assert len(sample.turn_ends) == 1


def test_a_user_turn_in_which_nothing_is_trained_makes_no_sample(chat):
    messages = [ASK, answer("a", reasoning_content="one", loss=False), ASK, answer("b", reasoning_content="two")]
    assert trained(chat, messages) == [["two\n</think>\nb<|im_end|>"]]


@pytest.mark.parametrize("messages", [[ASK], [ASK, answer("a", loss=False), ASK, answer("b", loss=False)]])
def test_a_conversation_in_which_nothing_is_trained_is_rejected(chat, messages):
    assert chat.render_samples(messages, None).reason == "nothing-trained"


def test_a_greeting_before_the_first_user_message_is_trained_with_the_first_user_turn(chat):
    messages = [answer("Hello."), ASK, answer("a", reasoning_content="one"), ASK, answer("b", reasoning_content="two")]
    assert trained(chat, messages) == [
        ["Hello.<|im_end|>", "one\n</think>\na<|im_end|>"],
        ["two\n</think>\nb<|im_end|>"],
    ]


def test_a_system_message_in_the_middle_of_a_reasoning_conversation_splits_nothing(chat):
    messages = [
        ASK,
        answer("a", reasoning_content="one"),
        {"role": "system", "content": "Now in verse."},
        ASK,
        answer("b", reasoning_content="two"),
    ]
    assert trained(chat, messages) == [["one\n</think>\na<|im_end|>"], ["two\n</think>\nb<|im_end|>"]]
    second = chat.encode(chat.render_samples(messages, None))[1]
    assert "<|im_start|>system\nNow in verse.<|im_end|>\n<|im_start|>user" in chat.decode(second.ids)


def test_the_budget_is_in_every_sample_with_reasoning_and_never_trained(chat):
    messages = [ASK, answer("a", reasoning_content="one"), ASK, answer("b")]
    first, second = chat.render_samples(messages, None, 32)
    assert first.text.count("{thinking token budget: 32}") == 1
    assert "budget" not in second.text
    assert trained(chat, messages) == [["one\n</think>\na<|im_end|>"], ["b<|im_end|>"]]


# --- What content cannot do --------------------------------------------------------------------------------


def call_with(**arguments):
    return answer("", tool_calls=[{"type": "function", "function": {"name": "get_weather", "arguments": arguments}}])


CARRIERS = {
    "content of a user": lambda t: ([{"role": "user", "content": t}, answer("a")], [TOOL]),
    "content of an answer": lambda t: ([ASK, answer(f"a{t}b")], [TOOL]),
    "reasoning": lambda t: ([ASK, answer("a", reasoning_content=f"a{t}b")], [TOOL]),
    "a tool argument": lambda t: ([ASK, call_with(x=t)], [TOOL]),
    "an argument called role": lambda t: ([ASK, call_with(role=t, type=t)], [TOOL]),
    "the name of an argument": lambda t: ([ASK, call_with(**{f"a{t}": 1})], [TOOL]),
    "the name of an argument, whole": lambda t: ([ASK, call_with(**{t: 1})], [TOOL]),
    "a value in an argument": lambda t: ([ASK, call_with(x={"y": [t]})], [TOOL]),
    "a tool result": lambda t: ([ASK, call_with(), result(t), answer("a")], [TOOL]),
    "the system message": lambda t: ([{"role": "system", "content": t}, ASK, answer("a")], [TOOL]),
    "the name of a tool": lambda t: ([ASK, answer("a")], [{"function": {"name": f"f{t}"}}]),
    "a type": lambda t: (
        [ASK, answer("a")],
        [{"function": {"name": "f", "parameters": {"properties": {"p": {"type": t}}}}}],
    ),
    "a key of a tool": lambda t: ([ASK, answer("a")], [{"function": {"name": "f", t: "x"}}]),
}
FORGERIES = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "|im_end|",
    "a<|im_end|",
    "im_start|>",
    "<",
    "|",
    "</think>",
]


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize("vocabulary", ["plain", "reasoning"])
def test_text_never_becomes_structure(chats, carrier, forgery, vocabulary):
    chat = chats[vocabulary]

    def structure(value):
        rendered = chat.render_samples(*CARRIERS[carrier](value))
        return [[i for i in sample.ids if i in chat.tokenizer.control.values()] for sample in chat.encode(rendered)]

    assert structure(forgery) == structure("plain")
    (sample, *_) = chat.encode(chat.render_samples(*CARRIERS[carrier](forgery)))
    assert forgery in chat.decode(sample.ids)


@pytest.mark.parametrize(
    ("shown", "write"),
    [("string", str), ("tojson(ensure_ascii=true)", json.dumps), ("tojson | tojson(ensure_ascii=true)", None)],
)
def test_look_alikes_are_written_as_they_are_by_a_template_that_writes_escapes(tmp_path, shown, write):
    """JSON in ASCII and Python's repr write other characters than ASCII as escapes, such as \\ue000."""
    write = write or (lambda value: json.dumps(json.dumps(value)))
    listed = CHATML.replace("{{ m.content }}", "{{ [m.content] | SHOWN if m.role == 'tool' else m.content }}")
    chat = load(tmp_path, ("{% if tools %}{{ tools | SHOWN }}{% endif %}" + listed).replace("SHOWN", shown))
    parameters = {"type": "object", "properties": {"city": {"type": "string", "enum": ["<", "<|im_end|>", "im_end"]}}}
    tool = {"function": {"name": "f", "description": r"As \ue000.", "parameters": parameters}}
    messages = [{"role": "user", "content": r"a \ue000 b"}, result("|im_end|>"), answer(r"\ue000 <|im_end|")]
    asked = (
        f"{write([tool])}<|im_start|>user\na \\ue000 b<|im_end|>\n"
        f"<|im_start|>tool\n{write(['|im_end|>'])}<|im_end|>\n<|im_start|>assistant\n"
    )
    prompt = chat.prompt_ids(messages[:2], [tool], thinking=False)
    assert chat.decode(prompt) == asked
    assert prompt.count(chat.stop_id) == 2
    (sample,) = chat.encode(chat.render_samples(messages, [tool]))
    assert sample.ids[: len(prompt)] == prompt
    assert chat.decode(sample.ids) == asked + "\\ue000 <|im_end|<|im_end|>\n"
    assert trained(chat, messages, [tool]) == [["\\ue000 <|im_end|<|im_end|>"]]


nasty = st.one_of(
    st.text(max_size=20),
    st.lists(st.sampled_from([*ADDED_TOKENS, "<", "|im_end|>", "e\u0301", "\u200d", "\ufeff", " ", "\n"])).map("".join),
)


@settings(max_examples=200)
@given(st.lists(nasty.filter(str.strip), min_size=2, max_size=4), st.booleans())
def test_tokens_are_those_of_the_whole_text_and_decode_to_it(chat, texts, reasoned):
    more = {"reasoning_content": texts[1]} if reasoned else {}
    messages = [{"role": "user", "content": texts[0]}, answer(texts[1], **more)]
    if len(texts) == 4:
        messages += [{"role": "user", "content": texts[2]}, answer(texts[3])]
    for rendered, sample in zip(samples := chat.render_samples(messages, None), chat.encode(samples), strict=True):
        if isinstance(sample, Rejection):  # '>' and punctuation are one token here: rejected, never mislabeled
            assert sample.reason == "token-crosses-mask"
            continue
        plain = rendered.text.replace(rendered.guard, "")
        assert chat.decode(sample.ids) == plain
        if not any(token in text for token in ADDED_TOKENS for text in texts):
            assert sample.ids == plain_ids(chat.tokenizer, plain)
        kept = [i for i, mark in zip(sample.ids, sample.mask, strict=True) if mark]
        spans = [rendered.text[start:end].replace(rendered.guard, "") for start, end in rendered.spans]
        assert chat.decode(kept) == "".join(spans)
        assert len(sample.turn_ends) == len(spans) > 0


def test_a_prompt_has_the_ids_that_its_sample_starts_with(chat):
    messages = [ASK, answer("", tool_calls=[CALL])]
    prompt = chat.prompt_ids([ASK], [TOOL], thinking=False)
    (sample,) = chat.encode(chat.render_samples(messages, [TOOL]))
    assert sample.ids[: len(prompt)] == prompt
    assert sample.mask[: len(prompt) + 1] == [0] * len(prompt) + [1]


def test_a_batch_gives_what_each_gives_alone(chat):
    rendered = [
        chat.render_samples([ASK, answer(word * n)], None)[0] for n, word in enumerate(["one ", "two ", "three "], 1)
    ]
    assert chat.encode(rendered) == [chat.encode([each])[0] for each in rendered]


# --- Other templates ------------------------------------------------------------------------------------

# Small templates in the manner of published ones: what each does with turns is what theirs does.
TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = "{% for m in messages %}" + TURN + "{% endfor %}" + PROMPT
# Qwen3: reasoning only behind the last user message, there also empty reasoning, but only in the last turn.
QWEN3 = """\
{%- set ns = namespace(last=-1) -%}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor -%}
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif -%}
{%- for m in messages -%}
  {%- if m.role == 'tool' %}<|im_start|>user
<tool_response>
{{ m.content }}
</tool_response><|im_end|>
{% elif m.role != 'assistant' %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% else %}<|im_start|>assistant
{% if loop.index0 > ns.last and (loop.last or m.reasoning_content) %}<think>
{{ m.reasoning_content | default('') | trim }}
</think>

{% endif %}{{ m.content | trim }}
  {%- for call in m.tool_calls or [] %}
<tool_call>
{{ call.function | tojson }}
</tool_call>
  {%- endfor %}<|im_end|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""
LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{{- '<|start|>system<|end|>\n\nToday Date: ' + date_string + '<|eot|>' }}
{%- for m in messages %}
    {%- if m.tool_calls %}
        {%- if m.tool_calls | length != 1 %}{{- raise_exception('only single tool-calls at once') }}{%- endif %}
        {%- set call = m.tool_calls[0].function %}
        {{- '<|start|>assistant<|end|>\n\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson + '}<|eot|>' }}
    {%- elif m.role == 'tool' %}
        {{- '<|start|>ipython<|end|>\n\n' + m.content | tojson + '<|eot|>' }}
    {%- else %}
        {{- '<|start|>' + m.role + '<|end|>\n\n' + m.content | trim + '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>\n\n' }}{%- endif %}"""
# Mistral: no generation prompt, an eos without a newline, a system message before the last question.
MISTRAL = """\
{{- bos_token }}
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {%- set system = messages[0].role == 'system' and loop.index0 == ns.last %}
        {{- '[INST]' + (messages[0].content + '\n\n' if system else '') + m.content + '[/INST]' }}
    {%- elif m.role == 'assistant' %}{{- m.content + eos_token }}
    {%- endif %}
{%- endfor %}"""
# SmolLM3: the reasoning mode is in the system turn.
MODED = "<|im_start|>system\n{{ '/think' if enable_thinking else '/no_think' }}<|im_end|>\n" + CHATML.replace(
    "{{ m.content }}",
    "{% if m.role == 'assistant' %}{{ '<think>\n' ~ m.reasoning_content ~ '</think>\n' if m.reasoning_content else "
    "'<think>\n\n</think>\n' }}{% endif %}{{ m.content }}",
)


def load(folder, template, added=ADDED_TOKENS, **named):
    path = folder / "template.jinja"
    path.write_text(template, encoding="utf-8")
    return ChatTemplate.load(str(path), write_tokenizer(folder / "tokenizer", added, **named))


THINKS = answer("b", reasoning_content="why")


def test_chatml_is_one_sample_with_every_answer(tmp_path):
    chat = load(tmp_path, CHATML)
    assert trained(chat, [ASK, answer("one"), ASK, answer("two")]) == [["one<|im_end|>", "two<|im_end|>"]]


def test_marks_of_generation_change_nothing(tmp_path):
    marked = CHATML.replace("{{ m.content }}<|im_end|>", "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}")
    assert "endgeneration" in marked
    chat = load(tmp_path, marked)
    assert trained(chat, [ASK, answer("one"), ASK, answer("two")]) == [["one<|im_end|>", "two<|im_end|>"]]


def test_a_template_that_writes_empty_reasoning_in_the_last_turn_only_makes_a_sample_of_each_user_turn(tmp_path):
    chat = load(tmp_path, QWEN3)
    assert trained(chat, [ASK, answer("one"), ASK, answer("two")]) == [["one<|im_end|>"], ["two<|im_end|>"]]
    assert trained(chat, [ASK, THINKS]) == [["<think>\nwhy\n</think>\n\nb<|im_end|>"]]
    first, second = chat.encode(chat.render_samples([ASK, THINKS, ASK, THINKS], None))
    assert "<|im_start|>assistant\n<think>\nwhy" in chat.decode(first.ids)
    assert "<|im_start|>assistant\nb<|im_end|>" in chat.decode(second.ids), "reasoning of the turn before is dropped"


def test_such_a_template_makes_a_sample_of_each_step_where_steps_have_no_reasoning(tmp_path):
    chat = load(tmp_path, QWEN3, ADDED_TOKENS + REASONING_AND_TOOLS)
    steps = [ASK, answer("", tool_calls=[CALL]), result("12 C"), answer("It is 12 C.")]
    called = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}}\n</tool_call><|im_end|>'
    assert trained(chat, steps, [TOOL]) == [[called], ["It is 12 C.<|im_end|>"]]
    reasoned = [turn | {"reasoning_content": "r"} if turn["role"] == "assistant" else turn for turn in steps]
    ((first, second),) = trained(chat, reasoned, [TOOL])
    assert first == "<think>\nr\n</think>\n\n" + called
    assert second == "<think>\nr\n</think>\n\nIt is 12 C.<|im_end|>"


LLAMA_TOKENS = ("<|begin|>", "<|start|>", "<|end|>", "<|eot|>")
LLAMA_NAMES = {"bos_token": "<|begin|>", "eos_token": "<|eot|>", "pad_token": "<|eot|>"}


def test_a_template_in_the_manner_of_llama_3_is_exact_with_its_one_bos_and_its_fixed_date(tmp_path):
    chat = load(tmp_path, LLAMA3, LLAMA_TOKENS, **LLAMA_NAMES)
    (sample,) = chat.encode(chat.render_samples([ASK, answer("one"), ASK, answer("two")], None))
    assert chat.decode(sample.ids).startswith("<|begin|><|start|>system<|end|>\n\nToday Date: 26 Jul 2024<|eot|>")
    assert sample.ids.count(chat.tokenizer.control["<|begin|>"]) == 1
    assert trained(chat, [ASK, answer("one"), ASK, answer("two")]) == [["one<|eot|>", "two<|eot|>"]]


def test_what_such_a_template_rejects_or_drops_is_a_rejected_row(tmp_path):
    chat = load(tmp_path, LLAMA3, LLAMA_TOKENS, **LLAMA_NAMES)
    called = [ASK, answer("", tool_calls=[CALL]), result("12 C"), answer("12 C")]
    assert trained(chat, called)[0][1] == "12 C<|eot|>"
    assert chat.render_samples([ASK, answer("", tool_calls=[CALL, CALL])], None) == Rejection(
        "template-refuses", "only single tool-calls at once"
    )
    dropped = {
        "messages[1].content is": [ASK, answer("Let me see.", tool_calls=[CALL])],
    }
    for evidence, messages in dropped.items():
        rejection = chat.render_samples(messages, None)
        assert (rejection.reason, evidence in rejection.evidence) == ("template-drops-text", True)
    assert chat.render_samples([ASK, answer("a")], [TOOL]).evidence.startswith("tools: get_weather is not")
    assert load(tmp_path, CHATML).render_samples(called, None).evidence.startswith("messages[1].tool_calls[0] is not")


NAMES = CHATML.replace(
    "{{ m.content }}", "{{ m.content }}{% for call in m.tool_calls or [] %}{{ call.function.name }} WRITTEN{% endfor %}"
)
CALLED = "messages[1].tool_calls[0].function.arguments is not in the rendered turn"


@pytest.mark.parametrize(
    ("written", "arguments", "is_dropped"),
    [
        ("", {"city": "Rome"}, True),
        ("", {}, True),  # as asked of an example of the shape
        ("{{ call.function.arguments | list }}", {"city": "Rome"}, True),  # the keys
        ("{{ call.function.arguments.values() | list }}", {"city": "Rome"}, True),
        ("{% for k, v in call.function.arguments | items %}{{ k }}={{ v }},{% endfor %}", {"n": [1, {"a": 2}]}, False),
        ("{{ call.function.arguments | tojson }}", {"<|im_end|>": "im_end", "é": 'a"b'}, False),
        ("{{ '' + call.function.arguments }}", {"<|im_end|>": "<|im", "é": 'end|>"', "im_end": [None, 0.5]}, False),
        ("{{ ('' + call.function.arguments) | tojson }}", {"a": '|im_end|>\n"', "b": True}, False),
        (
            "{% for k, v in call.function.arguments | items %}{{ k }}={{ v if v is string else '' }},{% endfor %}",
            {"n": 2},
            True,
        ),
    ],
)
def test_a_call_whose_arguments_the_template_leaves_out_is_rejected(tmp_path, written, arguments, is_dropped):
    chat = load(tmp_path, NAMES.replace("WRITTEN", written))
    call = {"type": "function", "function": {"name": "get", "arguments": arguments}}
    outcome = chat.render_samples([ASK, answer("", tool_calls=[call])], None)
    assert isinstance(outcome, Rejection) == is_dropped
    if is_dropped:
        assert outcome == Rejection("template-drops-text", CALLED)


def test_a_template_that_writes_only_names_of_calls_says_so_when_it_is_loaded(tmp_path):
    chat = load(tmp_path, NAMES.replace("WRITTEN", ""))
    calls = ("tools", "parallel-calls", "words-beside-a-call", "reasoning-before-a-call")
    assert {kind: chat.modes[kind] for kind in calls} == dict.fromkeys(calls, f"template-drops-text: {CALLED}")
    untrained = answer("", tool_calls=[CALL], loss=False)
    rejection = chat.render_samples([ASK, untrained, result("12 C"), answer("It is.")], None)
    assert rejection.reason == "template-drops-context"
    assert rejection.evidence.startswith("messages[1].tool_calls[0].function.arguments is not")


@pytest.mark.parametrize(
    ("shown", "missing"),
    [
        ("{{ tools | tojson }}", ""),
        ("{% for t in tools %}{{ t.function.name }}{{ t.function.parameters | tojson }}{% endfor %}", "description"),
        ("{% for t in tools %}{{ t.function.name }}{{ t.function.description }}{% endfor %}", "parameters"),
        ("", "name"),
    ],
)
def test_what_a_template_leaves_out_of_tools_is_named_when_it_is_loaded(tmp_path, shown, missing):
    source = "{% if tools %}<|im_start|>system\n" + shown + "<|im_end|>\n{% endif %}"
    chat = load(tmp_path, source + NAMES.replace("WRITTEN", "{{ call.function.arguments | tojson }}"))
    fault = f"template-drops-context: tools: the {missing} of a tool is not in the rendered text"
    found = chat.modes.get("tools", "")
    assert found == (fault if missing not in ("", "name") else found)
    assert bool(found) == bool(missing)


ROLES = (
    """\
{% for m in messages %}{% if m.role == 'system' and loop.first %}<|im_start|>system
{{ m.content }}<|im_end|>
{% elif m.role in ('user', 'assistant') %}<|im_start|>{{ m.role }}
{{ m.content }}{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}<|im_end|>
{% endif %}{% endfor %}"""
    + PROMPT
)


@pytest.mark.parametrize(
    ("messages", "tools", "missing"),
    [
        (
            [ASK, answer("a"), {"role": "system", "content": "In German."}, ASK, answer("b")],
            None,
            "messages[2].content",
        ),
        ([ASK, answer("a"), {"role": "system", "content": "sum"}, ASK, answer("b")], None, "messages[2].content"),
        ([ASK, answer("", tool_calls=[CALL]), result("12 C"), answer("It is.")], None, "messages[2].content"),
        ([ASK, answer("", tool_calls=[CALL]), result("a"), answer("a")], None, "messages[2].content"),
        ([ASK, answer("a")], [TOOL], "tools: "),
        ([ASK, answer("get_weather")], [TOOL], "tools: "),
    ],
)
def test_a_row_of_which_the_template_leaves_out_context_is_rejected(tmp_path, messages, tools, missing):
    """Also where the text that is left out is part of another message."""
    chat = load(tmp_path, ROLES)
    rejection = chat.render_samples(messages, tools)
    assert (rejection.reason, missing in rejection.evidence) == ("template-drops-context", True)
    assert trained(chat, [{"role": "system", "content": "Brief."}, ASK, answer("a")]) == [["a<|im_end|>"]]


def test_reasoning_of_earlier_turns_may_be_left_out(chat):
    assert len(trained(chat, [ASK, THINKS | {"loss": False}, ASK, answer("b")])) == 1


def test_arguments_are_given_as_text_to_a_template_that_takes_text(tmp_path):
    assert load(tmp_path, ROLES).form.arguments == "object"
    written = ROLES.replace("call.function | tojson", "call.function.name + '(' + call.function.arguments + ')'")
    chat = load(tmp_path, written)
    assert chat.form.arguments == "text"
    (called, _), *_ = trained(chat, [ASK, answer("", tool_calls=[CALL]), ASK, answer("a")])
    assert called == 'get_weather({"city": "Zürich", "days": 2})<|im_end|>'
    printed = ROLES.replace("call.function | tojson", "call.function.name ~ call.function.arguments")
    assert load(tmp_path, printed).form.arguments == "text", "an object would be written as Python writes it"


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_given_under_the_key_that_the_template_reads_or_inline(tmp_path, key):
    read = CHATML.replace("{{ m.content }}", "{% if m." + key + " %}({{ m." + key + " }}){% endif %}{{ m.content }}")
    chat = load(tmp_path, read)
    assert chat.form.reasoning == key
    assert trained(chat, [ASK, THINKS]) == [["(why)b<|im_end|>"]]
    chat = load(tmp_path, CHATML, ADDED_TOKENS + REASONING_AND_TOOLS)
    assert chat.form.reasoning == "inline"
    assert trained(chat, [ASK, THINKS]) == [["<think>\nwhy\n</think>\n\nb<|im_end|>"]]
    (sample,) = chat.encode(chat.render_samples([ASK, answer("</think>", reasoning_content="</think>")], None))
    assert sample.ids.count(chat.tokenizer.control["</think>"]) == 1, "content is no tag"


def test_a_template_whose_prompt_opens_reasoning_renders_conversations_that_reason(tmp_path):
    chat = load(tmp_path, CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif"))
    assert trained(chat, [ASK, THINKS]) == [["why\n</think>\n\nb<|im_end|>"]]
    assert chat.render_samples([ASK, answer("a")], None).reason == "template-mismatch"
    assert chat.modes["plain"].startswith("template-mismatch")


def test_an_answer_is_trained_up_to_the_stop_token_that_the_template_writes(tmp_path):
    folder = write_tokenizer(tmp_path / "tokenizer", (*ADDED_TOKENS, "<|call|>"), eos_token="<|endoftext|>")
    (tmp_path / "template.jinja").write_text(
        ROLES.replace("{% endfor %}<|im_end|>", "{% endfor %}{{ '<|call|>' if m.tool_calls else '<|im_end|>' }}")
    )
    path, called = str(tmp_path / "template.jinja"), [ASK, answer("", tool_calls=[CALL]), ASK, answer("a")]
    written = '{"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}}<|call|>'
    assert ChatTemplate.load(path, folder).render_samples(called, None).reason == "no-stop-token"
    named = ChatTemplate.load(path, folder, settings=Settings(stop_tokens=("<|call|>",)))
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 2, 3]}')
    for chat in (named, ChatTemplate.load(path, folder)):
        assert trained(chat, called) == [[written, "a<|im_end|>"]]
        assert sorted(chat.stop_ids) == [0, 2, 3]
    with pytest.raises(InputError, match=r"prep\.stop_tokens: 'stop'"):
        ChatTemplate.load(path, folder, settings=Settings(stop_tokens=("stop",)))


def test_shapes_are_forgotten_and_asked_again(tmp_path, base, monkeypatch):
    (tmp_path / "template.jinja").write_text(CHATML)
    chat = ChatTemplate.load(str(tmp_path / "template.jinja"), base)
    chat._support.clear()  # of loading
    conversations = [[ASK, answer("a")] * number for number in (1, 2, 3, 1)]
    expected = [chat.render_samples(messages, None) for messages in conversations]
    assert len(chat._support) == 3
    monkeypatch.setattr(render, "MAX_SHAPES", 2)
    chat._support.clear()
    assert [chat.render_samples(messages, None) for messages in conversations] == expected
    assert len(chat._support) == 2


def test_a_template_that_writes_the_date_gets_that_of_the_params(tmp_path):
    folder = write_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "template.jinja").write_text("{{ strftime_now('%d %B %Y') }} {{ date_string }}" + CHATML)
    with pytest.raises(InputError, match=r"set prep\.date, such as '2026-01-31'"):
        ChatTemplate.load(str(tmp_path / "template.jinja"), folder)
    chat = ChatTemplate.load(str(tmp_path / "template.jinja"), folder, settings=Settings(date="2026-01-05"))
    assert text(chat, [ASK]).startswith("05 January 2026 05 Jan 2026<|im_start|>")


CUTS = TURN.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")


@pytest.mark.parametrize(("opens", "first"), [("<think>\n", ""), ("", "<think>\n")])
@pytest.mark.parametrize("tokens", [(), ("<think>", "</think>")])
def test_a_template_that_cuts_reasoning_out_gets_it_in_the_answer_that_is_trained(tmp_path, opens, first, tokens):
    prompt = PROMPT.replace("assistant\n", "assistant\n" + opens)
    assert prompt.count(opens) >= 1
    chat = load(tmp_path, "{% for m in messages %}" + CUTS + "{% endfor %}" + prompt, (*ADDED_TOKENS, *tokens))
    other = answer("\ue000\ue001", reasoning_content="</thi\ue002nk>")
    assert trained(chat, [ASK, THINKS, ASK, other]) == [
        [f"{first}why\n</think>\n\nb<|im_end|>"],
        [f"{first}</thi\ue002nk>\n</think>\n\n\ue000\ue001<|im_end|>"],
    ]
    assert "why" not in text(chat, [ASK, THINKS, ASK])


def test_reasoning_is_not_spliced_into_an_answer_that_is_written_twice(tmp_path):
    twice = CUTS.replace("[-1] }}", "[-1] * 2 }}")
    assert "reasoning" in load(tmp_path, "{% for m in messages %}" + twice + "{% endfor %}" + PROMPT).modes


def test_a_template_without_generation_prompt_is_exact(tmp_path):
    tokens, names = ("<s>", "</s>", "[INST]", "[/INST]"), {"bos_token": "<s>", "eos_token": "</s>"}
    chat = load(tmp_path, MISTRAL, tokens, **names)
    assert trained(chat, [ASK, answer("one"), ASK, answer("two")]) == [["one</s>", "two</s>"]]
    system = {"role": "system", "content": "Be brief."}
    assert trained(chat, [system, ASK, answer("one"), ASK, answer("two")]) == [["one</s>"], ["two</s>"]]


def test_a_template_that_writes_the_mode_at_the_start_makes_samples_of_one_mode_each(tmp_path):
    chat = load(tmp_path, MODED)
    assert trained(chat, [ASK, THINKS, ASK, THINKS]) == [["<think>\nwhy</think>\nb<|im_end|>"] * 2]
    mixed = chat.encode(chat.render_samples([ASK, THINKS, ASK, answer("c")], None))
    assert [("/no_think" in chat.decode(sample.ids)) for sample in mixed] == [False, True]


def test_the_controls_reach_a_template_by_name_and_as_nvidia_passes_them(tmp_path):
    shown = "{{ [enable_thinking, chat_template_kwargs.enable_thinking, chat_template_kwargs.reasoning_budget] }}"
    chat = load(tmp_path, CHATML + "{% if messages[0].role == 'tool' %}" + shown + "{% endif %}")
    assert text(chat, [result("x")], thinking=True, budget=5).endswith("[True, True, 5]")
    assert text(chat, [result("x")]).endswith("[False, False, Undefined]")


# --- Templates that fail -------------------------------------------------------------------------

INVALID = [  # (what is wrong with it, the template, what the message names)
    ("not Jinja", "{% for", "not a Jinja template"),
    (
        "an answer changes what was before",
        "{{ messages | length }}" + CHATML,
        "no exact loss mask",
    ),
    (
        "the prompt is not what an answer starts with",
        CHATML.replace("<|im_start|>assistant\n{% endif", "<|im_start|>model\n{% endif"),
        "does not start with its generation prompt",
    ),
    ("answers do not stop", CHATML.replace("<|im_end|>", ""), "would never stop"),
    ("answers stop twice", CHATML.replace("<|im_end|>", "<|im_end|><|im_end|>"), "2 of <|im_end|> in it"),
    (
        "it drops the answer",
        CHATML.replace("m.content", "m.content[:3]"),
        "messages[1].content is not in the rendered turn",
    ),
    ("it uses the date", "{{ strftime_now('%Y') }}", "today's date"),
    ("it rejects everything", "{{ raise_exception('no') }}", "a plain conversation of two turns (no)"),
    ("two BOS tokens", "<|endoftext|><|endoftext|>" + CHATML, "two BOS"),
    ("it never ends", "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}", "CPU time"),
    ("it takes all memory", "{{ 'a' * messages | length * 9999999999 }}", "of memory"),
]


@pytest.mark.parametrize(("template", "fault"), [case[1:] for case in INVALID], ids=[case[0] for case in INVALID])
def test_a_template_without_an_exact_mask_fails_when_it_is_loaded(tmp_path, monkeypatch, template, fault):
    monkeypatch.setattr("sft.tokens.template.CPU_SECONDS", 0.2)
    with pytest.raises(InputError) as error:
        load(tmp_path, template, bos_token="<|endoftext|>")
    assert fault in str(error.value)
    assert "template.jinja" in str(error.value)


@pytest.mark.parametrize("written", ["m.content[0].text", "m.content | tojson"])
def test_a_template_that_does_not_write_content_as_it_is_fails_with_that_reason(tmp_path, written):
    with pytest.raises(InputError, match=r"template\.jinja: it does not write the content of an answer"):
        load(tmp_path, CHATML.replace("m.content", written), eos_token="<|endoftext|>")


def test_a_template_that_turns_hostile_on_a_row_ends_in_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr("sft.tokens.template.CPU_SECONDS", 0.2)
    chat = load(tmp_path, CHATML + "{% if messages | length > 5 %}{{ 'a' * 10000000000 }}{% endif %}")
    assert trained(chat, [ASK, answer("one")]) == [["one<|im_end|>"]]
    with pytest.raises(InputError, match=r"template\.jinja: .*1024 MiB of memory"):
        chat.render_samples([ASK, answer("one")] * 3, None)
    with pytest.raises(InputError, match=r"template\.jinja: .*memory"):
        chat.prompt_ids([ASK, answer("one")] * 3, None, thinking=False)


def test_a_tokenizer_that_gives_other_ids_for_segments_is_an_error(tmp_path):
    folder = write_tokenizer(tmp_path)
    settings = (folder / "tokenizer.json").read_text()
    token = '"content": "<|im_end|>",\n      "single_word": false,\n      "lstrip": false,\n      "rstrip": false'
    assert token in settings
    (folder / "tokenizer.json").write_text(settings.replace(token, token.replace('"rstrip": false', '"rstrip": true')))
    with pytest.raises(InputError, match=r"nano3\.jinja: .*other ids"):
        ChatTemplate.load(str(NANO3), folder)


def test_a_tokenizer_without_a_stop_token_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"tokenizer_config\.json: eos_token: .*'stop'"):
        load(tmp_path, CHATML, eos_token="stop")


def test_a_missing_template_is_named_with_the_available_ones(base):
    with pytest.raises(InputError, match=r"^no\.jinja: .*templates/nano3\.jinja"):
        ChatTemplate.load("no.jinja", base)
