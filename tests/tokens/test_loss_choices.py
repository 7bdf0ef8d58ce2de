"""Loss choices: what `prep.train_answers` and `prep.train_reasoning` leave out is shown, not trained, and counted."""

import json

import numpy as np
import pytest

from sft.packing.over_length import windows_of
from sft.tokens.prepare import prepare_rows
from sft.tokens.reasoning import Controlled, Shares
from sft.tokens.render import ChatTemplate, Settings
from tests.support.families import write_family
from tests.support.project import ROOT, chat_records, tool_records
from tests.support.tokenizers import ADDED_TOKENS, REASONING_AND_TOOLS, write_tokenizer
from tests.tokens.test_prepare import filtered

ASK, KEPT = {"role": "user", "content": "What is 1 + 1?"}, Shares(0.0, 0.0, [2], 1)
CHOICES = [
    Settings(train_answers=a, train_reasoning=r) for a in ("all", "last") for r in ("all", "except-cut-ends", "none")
]


def answer(content, reasoning):
    return {"role": "assistant", "content": content, "reasoning_content": reasoning}


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """nano3.jinja with a tokenizer that has tokens for tags, with one that spells them, and Qwen3."""
    spelled = write_tokenizer(tmp_path_factory.mktemp("base"))
    tagged = write_tokenizer(tmp_path_factory.mktemp("tagged"), ADDED_TOKENS + REASONING_AND_TOOLS)
    qwen3 = write_family("qwen3", tmp_path_factory.mktemp("qwen3"))

    def load(name, settings):
        folder = {"spelled": spelled, "tagged": tagged, "qwen3": qwen3}[name]
        template = qwen3 / "chat_template.jinja" if name == "qwen3" else ROOT / "templates/nano3.jinja"
        return ChatTemplate.load(str(template), folder, settings=settings)

    return load


def trained_text(chat, messages, cut=()):
    (sample,) = chat.encode(chat.render_samples(messages, None, cut=frozenset(cut)))
    return chat.decode([token for token, is_trained in zip(sample.ids, sample.mask, strict=True) if is_trained])


@pytest.mark.parametrize(
    ("name", "reasoning", "cut", "expected"),
    [
        ("spelled", "all", [1], "k think.\n</think>\nIt is </think>.<|im_end|>"),
        ("spelled", "except-cut-ends", [], "k think.\n</think>\nIt is </think>.<|im_end|>"),
        ("spelled", "except-cut-ends", [1], "k think.\nIt is </think>.<|im_end|>"),
        ("spelled", "none", [], "\nIt is </think>.<|im_end|>"),
        ("tagged", "except-cut-ends", [1], "k think.\nIt is </think>.<|im_end|>"),
        ("tagged", "none", [], "\nIt is </think>.<|im_end|>"),
        ("qwen3", "none", [], "\n\nIt is </think>.<|im_end|>"),
    ],
)
def test_reasoning_and_what_closes_it_are_shown_and_not_trained(load, name, reasoning, cut, expected):
    """The reasoning is a part of the tag, and the answer has the tag once more."""
    messages = [ASK, answer("It is </think>.", "k think.")]
    assert trained_text(load(name, Settings(train_reasoning=reasoning)), messages, cut) == expected


def test_of_the_answers_that_would_be_trained_the_last_one_is(load):
    turns = [ASK, answer("One.", "So."), ASK, answer("Two.", "Why."), ASK, {**answer("Three.", "No."), "loss": False}]
    row = filtered([{"messages": turns}], row_0=json.dumps(turns))
    chat = load("spelled", Settings(train_answers="last"))
    (sample,) = prepare_rows(chat, row, KEPT).samples.to_pylist()
    trained = [token for token, is_trained in zip(sample["ids"], sample["mask"], strict=True) if is_trained]
    assert chat.decode(trained) == "Why.\n</think>\nTwo.<|im_end|>"


@pytest.mark.parametrize("name", ["spelled", "tagged"])
@pytest.mark.parametrize("settings", CHOICES[1:], ids=str)
def test_what_is_trained_is_a_part_of_what_is_trained_without_a_choice_and_the_rest_is_counted(load, settings, name):
    rows, shares = filtered([*chat_records(8), *tool_records(8)]), Shares(0.1, 0.6, [2], 1)
    every, some = (prepare_rows(load(name, each), rows, shares) for each in (Settings(), settings))
    lost = every.counts["rows"]["trained"] - some.counts["rows"]["trained"]
    assert every.rejected == some.rejected == []
    assert some.counts["rows"]["trained"] == sum(map(sum, some.samples["mask"].to_pylist()))
    if settings.train_answers == "last":
        assert len(some.samples) == some.counts["rows"]["out"]
        assert some.counts["rows"]["earlier_answers"] == some.counts["rows"]["untrained_turns"] > 0
        assert lost > some.counts["rows"]["masked"]
        return
    assert some.samples["ids"] == every.samples["ids"]
    assert some.samples["turn_ends"] == every.samples["turn_ends"]
    pairs = zip(*(np.concatenate(each.samples["mask"].to_pylist()) for each in (some, every)), strict=True)
    assert all(after <= before for after, before in pairs)
    assert lost == some.counts["rows"]["masked"] > 0


@pytest.mark.parametrize("reasoning", ["Because. " * 8, "Because it is so.\n" * 60])
def test_the_windows_of_an_answer_without_its_reasoning_have_it_as_context(load, reasoning):
    chat = load("spelled", Settings(train_reasoning="none"))
    messages = [ASK, answer("It is two. " * 60, reasoning.strip())]
    (sample,) = chat.encode(chat.render_samples(messages, None))
    ((_, _, windows),) = windows_of(chat, Controlled(messages, "kept", None, 0), None, 160)
    trained = [token for window in windows for token in window.ids[window.mask == 1].tolist()]
    assert trained == [token for token, is_trained in zip(sample.ids, sample.mask, strict=True) if is_trained]
    first = chat.decode(windows[0].ids.tolist())
    assert "Because" in first
    assert first.count("<think>") == 1, "a window that begins in the reasoning opens it"
    assert (ASK["content"] in first) == (len(reasoning) < 100)
