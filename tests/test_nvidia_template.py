"""bench/peers/nvidia_template.py reports what is equal and what differs; a stand-in replaces NVIDIA's checkout."""

import sys

import pytest
from bench.peers import nvidia_template

from tests.support.project import ROOT

MODULE = """
def validate_conversation(messages, tools):
    return ("lost" not in messages[0]["content"], "we lose this")
def split_system_user_chunks(chunks):
    return chunks
def create_masked_messages(messages, tokenizer, tools):
    text = tokenizer.apply_chat_template(messages, tokenize=False, tools=tools, enable_thinking=False)
    start = text.index("<think></think>") + len("<think></think>")
    chunks = [{"role": "user", "content": text[:start]}, {"role": "assistant", "content": text[start:]}]
    return [(chunks, messages)]
"""


@pytest.fixture
def checkout(tmp_path):
    for name, text in (
        (nvidia_template.CODE, MODULE),
        (nvidia_template.TEMPLATE, (ROOT / "templates/nano3.jinja").read_text(encoding="utf-8")),
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def turns(*texts, **more):
    roles = ["user", "assistant"] * len(texts)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return {"messages": [*messages[:-1], {**messages[-1], **more}]}


def test_what_is_equal_what_they_lose_and_what_differs_is_told_apart(checkout, monkeypatch, capsys):
    given = {
        "alike": turns("What is the sum?", "12."),
        "lost": turns("What is lost?", "12."),
        "two turns": turns("What?", "12.", "Sure?", "Yes."),  # their stand-in trains the second question
        "silent": turns("What?", "12.", "Sure?", "Yes.", loss=False),
    }
    monkeypatch.setattr(
        nvidia_template,
        "conversations",
        lambda corpus, number: ((name, nvidia_template.normalize(record)) for name, record in given.items()),
    )
    monkeypatch.setattr(sys, "argv", ["nvidia_template", str(checkout)])
    nvidia_template.main()
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("4 conversations; equal in ids and mask: 1, 1 sequences, ")
    assert sorted(line.strip() for line in others) == [
        "1 other ids: silent",  # ours ends with the last trained turn
        "1 other masks: two turns",
        "1 they lose: we lose this: lost",
    ]
