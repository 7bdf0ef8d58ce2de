"""Chat: what is trained, what is never trained, and what text cannot do; our template, construct by construct."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.cli import InputError
from sft.conversation import Rejection
from sft.tokens.render import ChatTemplate
from sft.tokens.tokenizer import Sample
from tests.support.tiny_model import ADDED_TOKENS
from tests.support.tokenizers import REASONING_AND_TOOLS, write_tokenizer

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
    """Our template with a tokenizer that spells tags as text, and with one that has tokens for them."""
    tagged = write_tokenizer(tmp_path_factory.mktemp("tagged"), ADDED_TOKENS + REASONING_AND_TOOLS)
    return {"plain": ChatTemplate.load(str(NANO3), base), "reasoning": ChatTemplate.load(str(NANO3), tagged)}


@pytest.fixture(scope="module")
def chat(chats):
    return chats["plain"]


def echo(content, **more):
    return {"role": "assistant", "content": content, **more}


def trained(chat, messages, tools=None):
    """The trained text of each sample of a conversation, turn by turn."""
    rendered = chat.samples(messages, tools)
    assert not isinstance(rendered, Rejection), rendered
    samples = chat.encode(rendered)
    texts = []
    for sample in samples:
        assert isinstance(sample, Sample), sample
        assert len(sample.ids) == len(sample.mask)
        runs, current = [], []
        for token, kept in zip(sample.ids, sample.mask, strict=True):
            if kept:
                current.append(token)
            elif current:
                runs, current = [*runs, current], []
        texts.append([chat.decode(run) for run in [*runs, *([current] if current else [])]])
    return texts


def text(chat, messages, tools=None, **how):
    return chat.render(messages, tools, **{"thinking": False, **how})


def result(content):
    return {"role": "tool", "content": content}


# --- The form of ours -----------------------------------------------------------------------------------


SYSTEM = "<|im_start|>system\n<|im_end|>\n"
ASKED = "<|im_start|>user\nWhat is the sum?<|im_end|>\n"


def test_a_conversation_starts_with_a_system_turn_even_without_a_system_message(chat):
    assert text(chat, [ASK, echo("12.")]) == (SYSTEM + ASKED + "<|im_start|>assistant\n<think></think>12.<|im_end|>\n")


def test_a_system_message_stands_in_the_system_turn(chat):
    assert text(chat, [{"role": "system", "content": " Be brief. "}, ASK]) == (
        "<|im_start|>system\n Be brief. <|im_end|>\n" + ASKED
    )


def test_a_system_message_in_the_middle_is_a_turn_of_its_own(chat):
    messages = [ASK, echo("a"), {"role": "system", "content": "Now in verse."}, ASK]
    assert text(chat, messages) == (
        SYSTEM + ASKED + "<|im_start|>assistant\n<think></think>a<|im_end|>\n"
        "<|im_start|>system\nNow in verse.<|im_end|>\n" + ASKED
    )


def test_tools_stand_in_the_system_turn_with_all_they_say(chat):
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
        (echo("", tool_calls=[CALL]), "<think></think>\n" + CALLED),
        (echo("", tool_calls=[CALL, CALL]), "<think></think>\n" + CALLED + CALLED),
        (echo("Let me see.", tool_calls=[CALL]), "<think></think>Let me see.\n" + CALLED),
        (echo(" \n Let me see.\n", tool_calls=[CALL]), "<think></think>Let me see.\n" + CALLED),
        (echo("", reasoning_content="r", tool_calls=[CALL]), "<think>\nr\n</think>\n" + CALLED),
        (echo("Now.", reasoning_content="r", tool_calls=[CALL]), "<think>\nr\n</think>\nNow.\n" + CALLED),
        (echo("Now.", reasoning_content="r"), "<think>\nr\n</think>\nNow."),
        (echo("", reasoning_content="r"), "<think>\nr\n</think>"),
        (echo("  four = 4\n"), "<think></think>  four = 4"),
    ],
)
def test_an_answer_is_its_reasoning_its_text_and_its_calls(chat, turn, written):
    assert text(chat, [ASK, turn], [TOOL]).endswith("<|im_start|>assistant\n" + written + "<|im_end|>\n")


def test_arguments_that_are_not_text_are_written_as_json(chat):
    arguments = {"rows": [1, "ü", None], "how": {"a": True}, "fast": False, "none": None, "share": 0.5, "text": "[1]"}
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    shown = text(chat, [ASK, echo("", tool_calls=[call])])
    assert '<parameter=rows>\n[1, "ü", null]\n</parameter>\n<parameter=how>\n{"a": true}\n</parameter>\n' in shown
    assert "<parameter=fast>\nfalse\n</parameter>\n<parameter=none>\nnull\n</parameter>\n" in shown
    assert "<parameter=share>\n0.5\n</parameter>\n<parameter=text>\n[1]\n</parameter>\n</function>" in shown


def test_results_that_follow_each_other_make_one_user_turn(chat):
    messages = [ASK, echo("", tool_calls=[CALL, CALL]), result("a"), result("b")]
    assert text(chat, messages, [TOOL]).endswith(
        "<|im_start|>user\n<tool_response>\na\n</tool_response>\n<tool_response>\nb\n</tool_response>\n<|im_end|>\n"
    )


def test_the_generation_prompt_opens_or_closes_the_reasoning(chat):
    assert text(chat, [ASK], thinking=True, generation_prompt=True) == SYSTEM + ASKED + (
        "<|im_start|>assistant\n<think>\n"
    )
    assert text(chat, [ASK], generation_prompt=True) == SYSTEM + ASKED + "<|im_start|>assistant\n<think></think>"


def test_reasoning_is_kept_after_the_last_user_message_and_dropped_before(chat):
    first, second = echo("a", reasoning_content="one"), echo("b", reasoning_content="two")
    called = echo("", reasoning_content="zero", tool_calls=[CALL])
    assert "<think>\nzero\n</think>\n<tool_call>" in text(chat, [ASK, called, result("x"), first])
    assert "<think>\none\n</think>\na<|im_end|>" in text(chat, [ASK, called, result("x"), first])
    shown = text(chat, [ASK, called, result("x"), first, ASK, second])
    assert "zero" not in shown
    assert "<|im_start|>assistant\n<think></think>\n<tool_call>" in shown
    assert "<|im_start|>assistant\n<think></think>\na<|im_end|>" in shown
    assert "<think>\ntwo\n</think>\nb" in shown


def test_a_thinking_budget_is_told_on_the_last_user_message(chat):
    shown = text(chat, [ASK, echo("a"), ASK], thinking=True, budget=64, generation_prompt=True)
    assert shown.count("{thinking token budget: 64}") == 1
    assert shown.endswith("sum?\n\n{thinking token budget: 64}<|im_end|>\n<|im_start|>assistant\n<think>\n")


# --- The mask -------------------------------------------------------------------------------------------


def test_every_answer_of_a_conversation_without_reasoning_is_trained_with_its_stop_token(chat):
    assert trained(chat, [ASK, echo("one"), ASK, echo("two")]) == [["one<|im_end|>", "two<|im_end|>"]]


def test_each_user_turn_of_a_reasoning_conversation_is_a_sample_that_trains_its_own_answers(chat):
    messages = [ASK, echo("a", reasoning_content="one"), ASK, echo("b", reasoning_content="two")]
    assert trained(chat, messages) == [["one\n</think>\na<|im_end|>"], ["two\n</think>\nb<|im_end|>"]]


def test_all_reasoning_of_several_steps_of_one_turn_is_trained(chat):
    steps = [
        ASK,
        echo("", reasoning_content="ask", tool_calls=[CALL]),
        {"role": "tool", "content": "12 C"},
        echo("12 degrees", reasoning_content="tell"),
    ]
    ((first, second),) = trained(chat, steps, [TOOL])
    assert first.startswith("ask\n</think>\n<tool_call>\n<function=get_weather>")
    assert first.endswith("</tool_call>\n<|im_end|>")
    assert second == "tell\n</think>\n12 degrees<|im_end|>"


def test_an_answer_without_reasoning_in_a_reasoning_conversation_is_trained_behind_closed_thoughts(chat):
    messages = [ASK, echo("a", reasoning_content="one"), ASK, echo("b")]
    assert trained(chat, messages) == [["one\n</think>\na<|im_end|>"], ["b<|im_end|>"]]


def test_an_unanswered_user_message_is_context_and_no_sample(chat):
    messages = [ASK, ASK, echo("a", reasoning_content="one")]
    assert trained(chat, messages) == [["one\n</think>\na<|im_end|>"]]


def test_no_trained_token_follows_a_stop_token(chat):
    messages = [
        ASK,
        echo("one"),
        ASK,
        echo("", tool_calls=[CALL]),
        {"role": "tool", "content": "x"},
        echo("two"),
    ]
    (sample,) = chat.encode(chat.samples(messages, [TOOL]))
    follows = [kept for token, kept in zip(sample.ids, sample.mask[1:], strict=False) if token == chat.stop_id]
    assert len(follows) >= 6
    assert not any(follows)


def test_turn_ends_stand_behind_each_trained_stop_token(chat):
    messages = [ASK, echo("one"), ASK, echo("", tool_calls=[CALL]), result("x"), echo("two")]
    (sample,) = chat.encode(chat.samples(messages, [TOOL]))
    trained_stops = [
        index + 1
        for index, (token, kept) in enumerate(zip(sample.ids, sample.mask, strict=True))
        if kept and token == chat.stop_id
    ]
    assert sample.turn_ends == trained_stops
    assert len(sample.turn_ends) == 3
    for end, number in zip(sample.turn_ends, (2, 4, 6), strict=True):
        (short,) = chat.encode(chat.samples(messages[:number], [TOOL]))
        assert sample.ids[:end] == short.ids[:end], "a cut there is the conversation that ends with this turn"
        assert sample.mask[:end] == short.mask[:end]


def test_a_turn_that_says_loss_false_is_rendered_and_not_trained(chat):
    messages = [ASK, echo("one", loss=False), ASK, echo("two", loss=True)]
    assert trained(chat, messages) == [["two<|im_end|>"]]
    (sample,) = chat.encode(chat.samples(messages, None))
    plain = [{key: value for key, value in message.items() if key != "loss"} for message in messages]
    assert sample.ids == chat.encode(chat.samples(plain, None))[0].ids
    assert len(sample.turn_ends) == 1


def test_a_user_turn_in_which_nothing_is_trained_makes_no_sample(chat):
    messages = [ASK, echo("a", reasoning_content="one", loss=False), ASK, echo("b", reasoning_content="two")]
    assert trained(chat, messages) == [["two\n</think>\nb<|im_end|>"]]


@pytest.mark.parametrize("messages", [[ASK], [ASK, echo("a", loss=False), ASK, echo("b", loss=False)]])
def test_a_conversation_in_which_nothing_is_trained_is_refused(chat, messages):
    assert chat.samples(messages, None).reason == "nothing-trained"


def test_a_greeting_before_the_first_user_message_is_trained_with_the_first_user_turn(chat):
    messages = [echo("Hello."), ASK, echo("a", reasoning_content="one"), ASK, echo("b", reasoning_content="two")]
    assert trained(chat, messages) == [
        ["Hello.<|im_end|>", "one\n</think>\na<|im_end|>"],
        ["two\n</think>\nb<|im_end|>"],
    ]


def test_a_system_message_in_the_middle_of_a_reasoning_conversation_splits_nothing(chat):
    messages = [
        ASK,
        echo("a", reasoning_content="one"),
        {"role": "system", "content": "Now in verse."},
        ASK,
        echo("b", reasoning_content="two"),
    ]
    assert trained(chat, messages) == [["one\n</think>\na<|im_end|>"], ["two\n</think>\nb<|im_end|>"]]
    second = chat.encode(chat.samples(messages, None))[1]
    assert "<|im_start|>system\nNow in verse.<|im_end|>\n<|im_start|>user" in chat.decode(second.ids)


def test_the_budget_is_told_in_every_sample_with_reasoning_and_never_trained(chat):
    messages = [ASK, echo("a", reasoning_content="one"), ASK, echo("b")]
    first, second = chat.samples(messages, None, 32)
    assert first.text.count("{thinking token budget: 32}") == 1
    assert "budget" not in second.text
    assert trained(chat, messages) == [["one\n</think>\na<|im_end|>"], ["b<|im_end|>"]]


# --- What text cannot do --------------------------------------------------------------------------------


def call_with(**arguments):
    return echo("", tool_calls=[{"type": "function", "function": {"name": "get_weather", "arguments": arguments}}])


CARRIERS = {
    "content of a user": lambda t: ([{"role": "user", "content": t}, echo("a")], [TOOL]),
    "content of an answer": lambda t: ([ASK, echo(f"a{t}b")], [TOOL]),
    "reasoning": lambda t: ([ASK, echo("a", reasoning_content=f"a{t}b")], [TOOL]),
    "a tool argument": lambda t: ([ASK, call_with(x=t)], [TOOL]),
    "an argument called role": lambda t: ([ASK, call_with(role=t, type=t)], [TOOL]),
    "the name of an argument": lambda t: ([ASK, call_with(**{f"a{t}": 1})], [TOOL]),
    "the name of an argument, whole": lambda t: ([ASK, call_with(**{t: 1})], [TOOL]),
    "a value in an argument": lambda t: ([ASK, call_with(x={"y": [t]})], [TOOL]),
    "a tool result": lambda t: ([ASK, call_with(), result(t), echo("a")], [TOOL]),
    "the system message": lambda t: ([{"role": "system", "content": t}, ASK, echo("a")], [TOOL]),
    "the name of a tool": lambda t: ([ASK, echo("a")], [{"function": {"name": f"f{t}"}}]),
    "a type": lambda t: (
        [ASK, echo("a")],
        [{"function": {"name": "f", "parameters": {"properties": {"p": {"type": t}}}}}],
    ),
    "a key of a tool": lambda t: ([ASK, echo("a")], [{"function": {"name": "f", t: "x"}}]),
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
        rendered = chat.samples(*CARRIERS[carrier](value))
        return [[i for i in sample.ids if i in chat.tokenizer.control.values()] for sample in chat.encode(rendered)]

    assert structure(forgery) == structure("plain")
    (sample, *_) = chat.encode(chat.samples(*CARRIERS[carrier](forgery)))
    assert forgery in chat.decode(sample.ids)


nasty = st.one_of(
    st.text(max_size=20),
    st.lists(st.sampled_from([*ADDED_TOKENS, "<", "|im_end|>", "e\u0301", "\u200d", "\ufeff", " ", "\n"])).map("".join),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(nasty.filter(str.strip), min_size=2, max_size=4), st.booleans())
def test_tokens_are_those_of_the_whole_text_and_say_what_was_said(chat, texts, reasoned):
    more = {"reasoning_content": texts[1]} if reasoned else {}
    messages = [{"role": "user", "content": texts[0]}, echo(texts[1], **more)]
    if len(texts) == 4:
        messages += [{"role": "user", "content": texts[2]}, echo(texts[3])]
    for rendered, sample in zip(samples := chat.samples(messages, None), chat.encode(samples), strict=True):
        if isinstance(sample, Rejection):  # '>' and punctuation are one token here: refused, never mislabelled
            assert sample.reason == "token-crosses-mask"
            continue
        said = rendered.text.replace(rendered.guard, "")
        assert chat.decode(sample.ids) == said
        if not any(token in text for token in ADDED_TOKENS for text in texts):
            assert sample.ids == chat.tokenizer.whole_ids(said)
        kept = [i for i, mark in zip(sample.ids, sample.mask, strict=True) if mark]
        spans = [rendered.text[start:end].replace(rendered.guard, "") for start, end in rendered.spans]
        assert chat.decode(kept) == "".join(spans)
        assert len(sample.turn_ends) == len(spans) > 0


def test_a_prompt_has_the_ids_that_its_sample_starts_with(chat):
    messages = [ASK, echo("", tool_calls=[CALL])]
    prompt = chat.prompt_ids([ASK], [TOOL], thinking=False)
    (sample,) = chat.encode(chat.samples(messages, [TOOL]))
    assert sample.ids[: len(prompt)] == prompt
    assert sample.mask[: len(prompt) + 1] == [0] * len(prompt) + [1]


def test_a_batch_gives_what_each_gives_alone(chat):
    rendered = [chat.samples([ASK, echo(word * n)], None)[0] for n, word in enumerate(["one ", "two ", "three "], 1)]
    assert chat.encode(rendered) == [chat.encode([one])[0] for one in rendered]


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
# SmolLM3: the mode of reasoning stands in the system turn.
MODED = "<|im_start|>system\n{{ '/think' if enable_thinking else '/no_think' }}<|im_end|>\n" + CHATML.replace(
    "{{ m.content }}",
    "{% if m.role == 'assistant' %}{{ '<think>\n' ~ m.reasoning_content ~ '</think>\n' if m.reasoning_content else "
    "'<think>\n\n</think>\n' }}{% endif %}{{ m.content }}",
)


def load(folder, template, added=ADDED_TOKENS, **named):
    path = folder / "template.jinja"
    path.write_text(template, encoding="utf-8")
    return ChatTemplate.load(str(path), write_tokenizer(folder / "tokenizer", added, **named))


THINKS = echo("b", reasoning_content="why")


def test_chatml_is_one_sample_with_every_answer(tmp_path):
    chat = load(tmp_path, CHATML)
    assert trained(chat, [ASK, echo("one"), ASK, echo("two")]) == [["one<|im_end|>", "two<|im_end|>"]]


def test_marks_of_generation_change_nothing(tmp_path):
    marked = CHATML.replace("{{ m.content }}<|im_end|>", "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}")
    assert "endgeneration" in marked
    chat = load(tmp_path, marked)
    assert trained(chat, [ASK, echo("one"), ASK, echo("two")]) == [["one<|im_end|>", "two<|im_end|>"]]


def test_a_template_that_writes_empty_reasoning_in_the_last_turn_only_makes_a_sample_of_each_user_turn(tmp_path):
    chat = load(tmp_path, QWEN3)
    assert trained(chat, [ASK, echo("one"), ASK, echo("two")]) == [["one<|im_end|>"], ["two<|im_end|>"]]
    assert trained(chat, [ASK, THINKS]) == [["<think>\nwhy\n</think>\n\nb<|im_end|>"]]
    first, second = chat.encode(chat.samples([ASK, THINKS, ASK, THINKS], None))
    assert "<|im_start|>assistant\n<think>\nwhy" in chat.decode(first.ids)
    assert "<|im_start|>assistant\nb<|im_end|>" in chat.decode(second.ids), "reasoning of the turn before is dropped"


def test_such_a_template_makes_a_sample_of_each_step_where_steps_have_no_reasoning(tmp_path):
    chat = load(tmp_path, QWEN3, ADDED_TOKENS + REASONING_AND_TOOLS)
    steps = [ASK, echo("", tool_calls=[CALL]), result("12 C"), echo("It is 12 C.")]
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
    (sample,) = chat.encode(chat.samples([ASK, echo("one"), ASK, echo("two")], None))
    assert chat.decode(sample.ids).startswith("<|begin|><|start|>system<|end|>\n\nToday Date: 26 Jul 2024<|eot|>")
    assert sample.ids.count(chat.tokenizer.control["<|begin|>"]) == 1
    assert trained(chat, [ASK, echo("one"), ASK, echo("two")]) == [["one<|eot|>", "two<|eot|>"]]


def test_what_such_a_template_refuses_or_leaves_out_is_a_refused_row(tmp_path):
    chat = load(tmp_path, LLAMA3, LLAMA_TOKENS, **LLAMA_NAMES)
    called = [ASK, echo("", tool_calls=[CALL]), result("12 C"), echo("12 C")]
    assert trained(chat, called)[0][1] == "12 C<|eot|>"
    assert chat.samples([ASK, echo("", tool_calls=[CALL, CALL])], None) == Rejection(
        "template-refuses", "only single tool-calls at once"
    )
    lost = {
        "messages[1].content is": [ASK, echo("Let me see.", tool_calls=[CALL])],
        "messages[1].reasoning_content is": [ASK, THINKS],
    }
    for evidence, messages in lost.items():
        refused = chat.samples(messages, None)
        assert (refused.reason, evidence in refused.evidence) == ("template-drops-text", True)
    assert chat.samples([ASK, echo("a")], [TOOL]).evidence.startswith("tools: get_weather is not")
    assert load(tmp_path, CHATML).samples(called, None).evidence.startswith("messages[1].tool_calls[0] is not")


def test_a_template_without_generation_prompt_is_exact(tmp_path):
    tokens, names = ("<s>", "</s>", "[INST]", "[/INST]"), {"bos_token": "<s>", "eos_token": "</s>"}
    chat = load(tmp_path, MISTRAL, tokens, **names)
    assert trained(chat, [ASK, echo("one"), ASK, echo("two")]) == [["one</s>", "two</s>"]]
    system = {"role": "system", "content": "Be brief."}
    assert trained(chat, [system, ASK, echo("one"), ASK, echo("two")]) == [["one</s>"], ["two</s>"]]


def test_a_template_that_says_the_mode_at_the_start_makes_samples_of_one_mode_each(tmp_path):
    chat = load(tmp_path, MODED)
    assert trained(chat, [ASK, THINKS, ASK, THINKS]) == [["<think>\nwhy</think>\nb<|im_end|>"] * 2]
    mixed = chat.encode(chat.samples([ASK, THINKS, ASK, echo("c")], None))
    assert [("/no_think" in chat.decode(sample.ids)) for sample in mixed] == [False, True]


def test_the_controls_reach_a_template_by_name_and_as_nvidia_passes_them(tmp_path):
    shown = "{{ [enable_thinking, chat_template_kwargs.enable_thinking, chat_template_kwargs.reasoning_budget] }}"
    chat = load(tmp_path, CHATML + "{% if messages[0].role == 'tool' %}" + shown + "{% endif %}")
    assert text(chat, [result("x")], thinking=True, budget=5).endswith("[True, True, 5]")
    assert text(chat, [result("x")]).endswith("[False, False, Undefined]")


# --- Templates that are refused -------------------------------------------------------------------------

REFUSED = [  # (what is wrong with it, the template, what the message says)
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
    (
        "the prompt opens reasoning that answers do not have, as DeepSeek-R1's does",
        CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif"),
        "does not start with its generation prompt",
    ),
    ("answers do not stop", CHATML.replace("<|im_end|>", ""), "would never stop"),
    ("answers stop twice", CHATML.replace("<|im_end|>", "<|im_end|><|im_end|>"), "2 of <|im_end|> in it"),
    ("it leaves the answer out", CHATML.replace("m.content", "m.content[:3]"), "leaves out what an answer says"),
    ("it asks for the date", "{{ strftime_now('%Y') }}", "today's date"),
    ("it refuses everything", "{{ raise_exception('no') }}", "refuses a plain conversation"),
    ("two BOS tokens", "<|endoftext|><|endoftext|>" + CHATML, "two BOS"),
    ("it takes for ever", "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}", "CPU time"),
    ("it takes all memory", "{{ 'a' * messages | length * 9999999999 }}", "of memory"),
]


@pytest.mark.parametrize(("template", "says"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_a_template_without_an_exact_mask_is_refused_when_it_is_loaded(tmp_path, monkeypatch, template, says):
    monkeypatch.setattr("sft.tokens.template.CPU_SECONDS", 0.2)
    with pytest.raises(InputError) as refused:
        load(tmp_path, template, bos_token="<|endoftext|>")
    assert says in str(refused.value)
    assert "template.jinja" in str(refused.value)


def test_a_template_that_turns_hostile_on_a_row_ends_in_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr("sft.tokens.template.CPU_SECONDS", 0.2)
    chat = load(tmp_path, CHATML + "{% if messages | length > 5 %}{{ 'a' * 10000000000 }}{% endif %}")
    assert trained(chat, [ASK, echo("one")]) == [["one<|im_end|>"]]
    with pytest.raises(InputError, match="used more than 1024 MiB of memory"):
        chat.samples([ASK, echo("one")] * 3, None)
    with pytest.raises(InputError, match="memory"):
        chat.prompt_ids([ASK, echo("one")] * 3, None, thinking=False)


def test_a_tokenizer_whose_pieces_are_not_the_whole_is_refused(tmp_path):
    folder = write_tokenizer(tmp_path)
    settings = (folder / "tokenizer.json").read_text()
    token = '"content": "<|im_end|>",\n      "single_word": false,\n      "lstrip": false,\n      "rstrip": false'
    assert token in settings
    (folder / "tokenizer.json").write_text(settings.replace(token, token.replace('"rstrip": false', '"rstrip": true')))
    with pytest.raises(InputError, match="gives other ids"):
        ChatTemplate.load(str(NANO3), folder)


def test_a_tokenizer_without_a_stop_token_is_refused(tmp_path):
    with pytest.raises(InputError, match="eos_token is 'stop', which is not a control token"):
        load(tmp_path, CHATML, eos_token="stop")


def test_a_missing_template_says_which_there_are(base):
    with pytest.raises(InputError, match=r"templates/nano3\.jinja is ours"):
        ChatTemplate.load("no.jinja", base)
