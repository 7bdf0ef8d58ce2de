"""Chat: what is trained, what is never trained, and what text cannot do."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from sft.command import InputError
from sft.data.chat import ChatTemplate, Sample
from sft.data.conversation import Rejection
from tests.tiny import make_tiny_base

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
    folder = tmp_path_factory.mktemp("base")
    make_tiny_base(folder)
    return folder


@pytest.fixture(scope="module")
def chat(base):
    return ChatTemplate.load(str(NANO3), base)


def say(content, **more):
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
    how = {"thinking": False, "generation_prompt": False, **how}
    return chat.render(messages, tools, **how)


# --- The form -------------------------------------------------------------------------------------------


def test_a_conversation_starts_with_a_system_turn_even_without_a_system_message(chat):
    assert text(chat, [ASK, say("12.")]) == (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nWhat is the sum?<|im_end|>\n"
        "<|im_start|>assistant\n<think></think>12.<|im_end|>\n"
    )


def test_tools_stand_in_the_system_turn_with_all_they_say(chat):
    shown = text(chat, [{"role": "system", "content": "Be brief."}, ASK], [TOOL])
    assert shown.startswith(
        "<|im_start|>system\nBe brief.\n\n# Tools\n\nYou have access to the following functions:\n\n<tools>\n"
        "<function>\n<name>get_weather</name>\n<description>The weather.</description>\n<parameters>\n"
        "<parameter>\n<name>city</name>\n<type>string</type>\n<description>Where</description>\n"
        '<enum>["Paris", "Zürich"]</enum>\n</parameter>\n'
        "<parameter>\n<name>days</name>\n<type>integer</type>\n<default>1</default>\n</parameter>\n"
        '<additionalProperties>false</additionalProperties>\n<required>["city"]</required>\n</parameters>\n'
        "</function>\n</tools>\n"
    )


def test_a_tool_call_is_written_argument_by_argument(chat):
    assert text(chat, [ASK, say("", tool_calls=[CALL, CALL])], [TOOL]).endswith(
        "<|im_start|>assistant\n<think></think>\n"
        + 2
        * "<tool_call>\n<function=get_weather>\n<parameter=city>\nZürich\n</parameter>\n<parameter=days>\n2\n"
        "</parameter>\n</function>\n</tool_call>\n" + "<|im_end|>\n"
    )


def test_results_that_follow_each_other_make_one_user_turn(chat):
    messages = [ASK, say("", tool_calls=[CALL, CALL]), *({"role": "tool", "content": c} for c in "ab")]
    assert text(chat, messages, [TOOL]).endswith(
        "<|im_start|>user\n<tool_response>\na\n</tool_response>\n<tool_response>\nb\n</tool_response>\n<|im_end|>\n"
    )


def test_the_generation_prompt_opens_or_closes_the_reasoning(chat):
    assert text(chat, [ASK], thinking=True, generation_prompt=True).endswith("<|im_start|>assistant\n<think>\n")
    assert text(chat, [ASK], generation_prompt=True).endswith("<|im_start|>assistant\n<think></think>")


def test_reasoning_is_kept_after_the_last_user_message_and_dropped_before(chat):
    first, second = say("a", reasoning_content="one"), say("b", reasoning_content="two")
    assert "<think>\none\n</think>\na" in text(chat, [ASK, first])
    shown = text(chat, [ASK, first, ASK, second])
    assert "<think></think>a" in shown
    assert "<think>\ntwo\n</think>\nb" in shown


def test_a_thinking_budget_is_told_on_the_last_user_message(chat):
    shown = chat._template.render(messages=[ASK, say("a"), ASK], reasoning_budget=64, add_generation_prompt=True)
    assert shown.count("{thinking token budget: 64}") == 1
    assert shown.endswith("sum?\n\n{thinking token budget: 64}<|im_end|>\n<|im_start|>assistant\n<think>\n")


# --- The mask -------------------------------------------------------------------------------------------


def test_every_answer_of_a_conversation_without_reasoning_is_trained_with_its_stop_token(chat):
    assert trained(chat, [ASK, say("one"), ASK, say("two")]) == [["one<|im_end|>", "two<|im_end|>"]]


def test_each_user_turn_of_a_reasoning_conversation_is_a_sample_that_trains_its_own_answers(chat):
    messages = [ASK, say("a", reasoning_content="one"), ASK, say("b", reasoning_content="two")]
    assert trained(chat, messages) == [["one\n</think>\na<|im_end|>"], ["two\n</think>\nb<|im_end|>"]]


def test_all_reasoning_of_several_steps_of_one_turn_is_trained(chat):
    steps = [
        ASK,
        say("", reasoning_content="ask", tool_calls=[CALL]),
        {"role": "tool", "content": "12 C"},
        say("12 degrees", reasoning_content="tell"),
    ]
    ((first, second),) = trained(chat, steps, [TOOL])
    assert first.startswith("ask\n</think>\n<tool_call>\n<function=get_weather>")
    assert first.endswith("</tool_call>\n<|im_end|>")
    assert second == "tell\n</think>\n12 degrees<|im_end|>"


def test_an_answer_without_reasoning_in_a_reasoning_conversation_is_trained_behind_closed_thoughts(chat):
    messages = [ASK, say("a", reasoning_content="one"), ASK, say("b")]
    assert trained(chat, messages) == [["one\n</think>\na<|im_end|>"], ["b<|im_end|>"]]


def test_an_unanswered_user_message_is_context_and_no_sample(chat):
    messages = [ASK, ASK, say("a", reasoning_content="one")]
    assert trained(chat, messages) == [["one\n</think>\na<|im_end|>"]]


def test_no_trained_token_follows_a_stop_token(chat):
    messages = [
        ASK,
        say("one"),
        ASK,
        say("", tool_calls=[CALL]),
        {"role": "tool", "content": "x"},
        say("two"),
    ]
    (sample,) = chat.encode(chat.samples(messages, [TOOL]))
    follows = [kept for token, kept in zip(sample.ids, sample.mask[1:], strict=False) if token == chat.stop_id]
    assert len(follows) >= 6
    assert not any(follows)


# --- What text cannot do --------------------------------------------------------------------------------

CARRIERS = {
    "content of a user": lambda t: [{"role": "user", "content": t}, say("a")],
    "content of an answer": lambda t: [ASK, say(f"a{t}b")],
    "reasoning": lambda t: [ASK, say("a", reasoning_content=f"a{t}b")],
    "a tool argument": lambda t: [
        ASK,
        say("", tool_calls=[{"type": "function", "function": {"name": "f", "arguments": {"x": t}}}]),
    ],
    "the name of an argument": lambda t: [
        ASK,
        say("", tool_calls=[{"type": "function", "function": {"name": "f", "arguments": {f"a{t}": 1}}}]),
    ],
    "a tool result": lambda t: [ASK, say("", tool_calls=[CALL]), {"role": "tool", "content": t}, say("a")],
    "the system message": lambda t: [{"role": "system", "content": t}, ASK, say("a")],
}


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("token", ["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
def test_a_control_token_typed_as_text_never_becomes_one(chat, carrier, token):
    def controls(value):
        return [
            sum(i in chat._added.values() for i in sample.ids)
            for sample in chat.encode(chat.samples(CARRIERS[carrier](value), [TOOL]))
        ]

    assert controls(token) == controls("plain")
    (sample, *_) = chat.encode(chat.samples(CARRIERS[carrier](token), [TOOL]))
    assert token in chat.decode(sample.ids)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=30), min_size=2, max_size=4).filter(lambda texts: all(t.strip() for t in texts)))
def test_tokens_are_those_of_the_whole_text_tokenised_at_once(chat, base, texts):
    whole = Tokenizer.from_file(str(base / "tokenizer.json"))
    messages = [{"role": "user", "content": texts[0]}, say(texts[1])]
    if len(texts) == 4:
        messages += [{"role": "user", "content": texts[2]}, say(texts[3])]
    rendered = chat.samples(messages, None)
    (sample,) = chat.encode(rendered)
    if isinstance(sample, Rejection):  # '>' and punctuation are one token here: refused, never mislabelled
        assert sample.reason == "token-crosses-mask"
        return
    assert sample.ids == whole.encode(rendered[0].text, add_special_tokens=False).ids
    assert sum(sample.mask) > len(messages) // 2


def test_a_prompt_has_the_ids_that_its_sample_starts_with(chat):
    messages = [ASK, say("", tool_calls=[CALL])]
    prompt = chat.prompt_ids([ASK], [TOOL], thinking=False)
    (sample,) = chat.encode(chat.samples(messages, [TOOL]))
    assert sample.ids[: len(prompt)] == prompt
    assert sample.mask[: len(prompt) + 1] == [0] * len(prompt) + [1]


def test_a_batch_gives_what_each_gives_alone(chat):
    rendered = [chat.samples([ASK, say(word * n)], None)[0] for n, word in enumerate(["one ", "two ", "three "], 1)]
    assert chat.encode(rendered) == [chat.encode([one])[0] for one in rendered]


# --- Templates that are refused -------------------------------------------------------------------------

TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
REFUSED = [  # (what is wrong with it, the template, what the message says)
    ("not Jinja", "{% for", "not a Jinja template"),
    (
        "earlier answers are shortened",
        "{% for m in messages %}"
        + TURN.replace("m.content", "(m.content if loop.last else m.content[:3])")
        + "{% endfor %}"
        + PROMPT,
        "no exact loss mask",
    ),
    (
        "the prompt is not what an answer starts with",
        "{% for m in messages %}" + TURN + "{% endfor %}" + PROMPT.replace("assistant", "model"),
        "no exact loss mask",
    ),
    (
        "answers do not stop",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n{% endfor %}" + PROMPT,
        "never stop",
    ),
    ("it asks for the date", "{{ strftime_now('%Y') }}", "today's date"),
    ("it refuses everything", "{{ raise_exception('no') }}", "refuses a plain conversation"),
    (
        "two BOS tokens",
        "<|endoftext|><|endoftext|>{% for m in messages %}" + TURN + "{% endfor %}" + PROMPT,
        "two BOS",
    ),
]


@pytest.mark.parametrize(("template", "says"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_a_template_without_an_exact_mask_is_refused_when_it_is_loaded(base, tmp_path, template, says):
    config = base / "tokenizer_config.json"
    for file in base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(
        config.read_text().replace("{", '{"bos_token": "<|endoftext|>",', 1)
    )
    path = tmp_path / "template.jinja"
    path.write_text(template)
    with pytest.raises(InputError, match=says):
        ChatTemplate.load(str(path), tmp_path)


def test_a_template_of_hugging_face_form_with_generation_marks_is_exact_too(base, tmp_path):
    path = tmp_path / "template.jinja"
    path.write_text(
        "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n{% generation %}{{ m.content }}"
        "<|im_end|>{% endgeneration %}\n{% else %}" + TURN + "{% endif %}{% endfor %}" + PROMPT
    )
    assert trained(ChatTemplate.load(str(path), base), [ASK, say("one"), ASK, say("two")]) == [
        ["one<|im_end|>", "two<|im_end|>"]
    ]


@pytest.mark.parametrize(
    "attack",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_hostile_template_reaches_nothing(base, tmp_path, attack):
    path = tmp_path / "template.jinja"
    path.write_text("{% for m in messages %}" + TURN + "{% endfor %}" + PROMPT + attack)
    with pytest.raises(InputError, match="refuses a plain conversation"):
        ChatTemplate.load(str(path), base)


def test_a_missing_template_says_which_there_are(base):
    with pytest.raises(InputError, match=r"templates/nano3\.jinja is ours"):
        ChatTemplate.load("no.jinja", base)
