"""Templates of the families: which conversations each renders exactly, and what is trained; the page docs/reference.

python -m tests.templates.test_families    writes docs/reference/chat-templates.md
"""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.cli import InputError
from sft.conversation import Rejection
from sft.tokens.render import ChatTemplate, Settings
from tests.support.families import FAMILIES, TEMPLATES, load_family, write_family
from tests.support.project import ROOT

PAGE = ROOT / "docs" / "reference" / "chat-templates.md"
ASK, MORE = {"role": "user", "content": "What is the sum?"}, {"role": "user", "content": "And then?"}
SYSTEM = {"role": "system", "content": "Use short words."}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
    },
}


def answer(content: str, reasoning: str = "", calls: int = 0) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [
            {"id": f"abcd0000{i}", "type": "function", "function": {"name": "add", "arguments": {"x": i}}}
            for i in range(calls)
        ]
    return message


def result(content: str, number: int = 0) -> dict[str, Any]:
    return {"role": "tool", "content": content, "tool_call_id": f"abcd0000{number}"}


SHAPES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = {
    "one turn": ([ASK, answer("Twelve.")], None),
    "system": ([SYSTEM, ASK, answer("Twelve.")], None),
    "system between": ([ASK, answer("Twelve."), SYSTEM, MORE, answer("More.")], None),
    "several turns": ([ASK, answer("Twelve."), MORE, answer("More."), ASK, answer("Again.")], None),
    "tool": ([ASK, answer("", calls=1), result("12"), answer("Twelve.")], [TOOL]),
    "parallel calls": ([ASK, answer("", calls=2), result("12"), result("13", 1), answer("Both.")], [TOOL]),
    "words and call": ([ASK, answer("Let me add.", calls=1), result("12"), answer("Twelve.")], [TOOL]),
    "JSON result": ([ASK, answer("", calls=1), result('{"sum": "12\\n"}'), answer("Twelve.")], [TOOL]),
    "reasoning last": ([ASK, answer("Twelve."), MORE, answer("More.", "Count on.")], None),
    "reasoning each": ([ASK, answer("Twelve.", "7 and 5."), MORE, answer("More.", "Count on.")], None),
    "empty answer": ([ASK, answer(""), MORE, answer("More.")], None),
    "blank ends": (
        [{"role": "user", "content": " Größe?\n"}, answer("  ja \u200d👨 \n"), MORE, answer("\nMore.")],
        None,
    ),
}


@pytest.fixture(scope="session")
def chats(tmp_path_factory):
    """Return the template of each family."""
    return {name: load_family(name, tmp_path_factory.mktemp(name)) for name in FAMILIES}


def outcome(chat: ChatTemplate, shape: str) -> str:
    """Return how a shape is rendered: the number of samples, or the reason of the rejection."""
    rendered = chat.render_samples(*SHAPES[shape])
    if isinstance(rendered, Rejection):
        return rendered.reason
    encoded = [each for each in chat.encode(rendered) if isinstance(each, Rejection)]
    return encoded[0].reason if encoded else str(len(rendered))


def page(chats: dict[str, ChatTemplate]) -> str:
    """Return docs/reference/chat-templates.md."""
    lines = [
        "# Chat templates",
        "",
        "What each family of models makes of twelve conversations: the number of samples that `prep` writes, each with",
        "an exact loss mask, or why it rejects such rows. The templates are our own, written like the published ones",
        "(`tests/templates`); a newer version of a published one may do more or less. `prep` prints what it finds.",
        "",
        f"| template | stop tokens | arguments, reasoning | {' | '.join(SHAPES)} |",
        f"|---|---|---|{'---|' * len(SHAPES)}",
    ]
    for name, chat in chats.items():
        stops = [token for token, number in chat.tokenizer.control.items() if number in chat.stop_ids]
        cells = [outcome(chat, shape).removeprefix("template-") for shape in SHAPES]
        shown = " ".join(f"`{token.replace('|', chr(92) + '|')}`" for token in stops)
        lines.append(f"| {name} | {shown} | {chat.form.arguments}, {chat.form.reasoning} | {' | '.join(cells)} |")
    lines += [
        "",
        "Reasons: `refuses`: the template raises an error; `drops-text`: a trained turn lacks some of its text;",
        "`drops-context`: what the turn answers to is not in the text; `mismatch`: an answer does not start with its",
        "generation prompt, as where the prompt opens the reasoning and the answer has none (`deepseek-r1`,",
        "`minimax-m2`).",
        "",
        "Arguments of calls are given as an object or as JSON text, reasoning under the first key that the template",
        "writes, or inline as `<think>`. `spliced`: the template cuts reasoning out of every answer, so prep writes",
        "it, with its tags, into the answer that is trained, each in a sample of its own. Stop tokens are `eos_token`,",
        "those of `generation_config.json` and of `prep.stop_tokens`, and the control token that the template writes",
        "behind an answer.",
        "",
    ]
    return "\n".join(lines)


def test_the_page_is_what_the_templates_do(chats):
    assert PAGE.read_text(encoding="utf-8") == page(chats)


def test_every_template_is_in_the_table():
    assert {path.stem for path in TEMPLATES.glob("*.jinja")} == set(FAMILIES)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("deepseek-r1", "minimax-m2")])
def test_plain_conversations_are_one_exact_sample_each_answer_trained_with_its_stop_token(chats, name):
    chat = chats[name]
    rendered = chat.render_samples(*SHAPES["several turns"])
    assert not isinstance(rendered, Rejection)
    turns = []
    for sample in chat.encode(rendered):
        assert not isinstance(sample, Rejection)
        assert {sample.ids[end - 1] for end in sample.turn_ends} <= set(chat.stop_ids)
        for end in sample.turn_ends:
            start = end
            while sample.mask[start - 1]:
                start -= 1
            turns.append(chat.decode(sample.ids[start : end - 1]).rpartition(">")[2].strip())
    assert turns == ["Twelve.", "More.", "Again."]


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("gpt-oss", "2026-01-31"),
        ("granite", "January 31, 2026"),
        ("smollm3", "31 January 2026"),
        ("llama3", "31 Jan 2026"),
    ],
)
def test_a_template_that_writes_the_date_writes_that_of_the_params(tmp_path, name, written):
    folder = write_family(name, tmp_path)
    template = str(folder / "chat_template.jinja")
    texts = []
    for date in ("2026-01-31", "2026-02-01"):
        chat = ChatTemplate.load(template, folder, settings=Settings(date=date))
        rendered = chat.render_samples(*SHAPES["one turn"])
        assert not isinstance(rendered, Rejection)
        texts.append([sample.text for sample in rendered])
    assert all(written in text for text in texts[0])
    assert not any(written in text for text in texts[1])
    if name == "llama3":  # it has a date of its own for when it gets none
        assert written not in str(ChatTemplate.load(template, folder).render_samples(*SHAPES["one turn"]))
        return
    with pytest.raises(InputError, match=r"set prep\.date"):
        ChatTemplate.load(template, folder)


TEXT = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "sum",
                " ",
                "\n",
                "<think>",
                "</think>",
                "<tool_response>",
                "ASSISTANT:",
                "<|im_end|>",
                "<|assistant|>",
                "é",
            ]
        ),
        st.text(max_size=3),
    ),
    max_size=3,
).map("".join)
ANSWERS = st.one_of(
    TEXT.map(answer),
    st.tuples(TEXT, TEXT.filter(str.strip)).map(lambda pair: answer(*pair)),
)
STEPS = st.tuples(TEXT, st.sampled_from(["", "why"]), st.integers(1, 2), TEXT).map(
    lambda drawn: [answer(*drawn[:3]), *(result(drawn[3], number) for number in range(drawn[2]))]
)
TURNS = st.tuples(
    TEXT.map(lambda text: {"role": "user", "content": text}), st.lists(STEPS, max_size=2), ANSWERS, st.booleans()
).map(
    lambda turn: [
        turn[0],
        *(message for step in turn[1] for message in step),
        turn[2] | ({} if turn[3] else {"loss": False}),
    ]
)
CONVERSATIONS = st.tuples(
    st.sampled_from([[], [], [SYSTEM]]),
    st.lists(TURNS, min_size=1, max_size=4),
    st.sampled_from([[], [], [SYSTEM, MORE, answer("x")]]),
).map(lambda parts: [*parts[0], *(message for turn in parts[1] for message in turn), *parts[2]])


@settings(max_examples=400)
@given(st.sampled_from(list(FAMILIES)), CONVERSATIONS, st.booleans())
def test_one_render_gives_the_samples_of_the_reference(chats, name, messages, has_tools):
    """The reference renders the prompt and the end of each turn; where it is used, both are the same anyway."""
    chat, tools = chats[name], [TOOL] if has_tools else None
    rendered, expected = chat.render_samples(messages, tools), chat.render_by_prompts(messages, tools)
    if isinstance(rendered, Rejection) and rendered.reason.startswith("template-drops-"):
        return  # the text is also that of another message, so the reference does not see that it is missing
    assert rendered == expected


def main() -> None:
    """Write the page."""
    with tempfile.TemporaryDirectory() as folder:
        chats = {name: load_family(name, Path(folder, name)) for name in FAMILIES}
        PAGE.write_text(page(chats), encoding="utf-8")


if __name__ == "__main__":
    main()
