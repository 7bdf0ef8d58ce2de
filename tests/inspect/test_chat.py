"""chat: answers are streamed, follow the dialogue so far, and know the tools."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from sft.cli import InputError
from sft.evaluation.generate import load_model
from sft.inspect import chat
from tests.support.tiny_model import EOS, make_tiny_base

ROOT = Path(__file__).parents[2]
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    make_tiny_base(tmp_path / "models/final")
    shutil.copyfile(ROOT / "templates/nano3.jinja", tmp_path / "models/final/chat_template.jinja")
    return tmp_path


def test_text_is_passed_on_word_by_word_without_the_prompt_and_the_end(folder):
    tokenizer = chat.AutoTokenizer.from_pretrained(chat.FINAL)
    pieces = []
    stream = chat.Stream(tokenizer, [EOS], pieces.append)
    stream.put(torch.tensor([tokenizer("a prompt").input_ids]))
    for token in [*tokenizer("The sum is twelve.").input_ids, EOS]:
        stream.put(torch.tensor([token]))
    stream.end()
    assert [piece for piece in pieces if piece] == ["The ", "sum ", "is ", "twelve."]


def test_an_answer_is_what_was_streamed_and_says_the_same_twice(folder):
    tokenizer, model = chat.AutoTokenizer.from_pretrained(chat.FINAL), load_model(chat.FINAL)
    ask = [{"role": "user", "content": "What is the sum?"}]
    for _ in range(2):
        pieces = []
        text = chat.answer(model, tokenizer, ask, None, pieces.append, thinking=False, max_new_tokens=12)
        assert "".join(pieces) == text
        assert len(tokenizer(text).input_ids) > 1


def test_a_dialogue_goes_on_and_a_call_asks_for_its_result(folder, monkeypatch, capsys):
    asked, replies = (
        [],
        iter(["<tool_call>\n<function=get_weather>\n</function>\n</tool_call>", "Sunny.\x1b[2J", "Bye."]),
    )

    def scripted(_model, tokenizer, messages, tools, write, **how):
        prompt = tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, enable_thinking=how["thinking"], tokenize=False
        )
        asked.append(prompt)
        reply = next(replies)
        write(reply)
        return reply

    (folder / "tools.json").write_text(json.dumps(TOOLS))
    monkeypatch.setattr(chat, "answer", scripted)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Weather?\n\n22 degrees\nThanks\n"))
    chat.main(chat.FINAL, None, Path("tools.json"), thinking=False, max_new_tokens=5)
    shown = capsys.readouterr().out
    assert shown.count("user> ") == 3
    assert shown.count("tool> ") == 2, "an empty line asks again"
    assert "\x1b" not in shown
    assert "get_weather" in asked[0]
    assert "22 degrees" in asked[1]
    assert asked[1].index("Weather?") < asked[1].index("<function=get_weather>\n</function>") < asked[1].index("22 deg")
    assert asked[2].endswith("<think></think>")


def test_one_prompt_is_answered_once(folder, capsys):
    chat.main(chat.FINAL, "What is the sum?", None, thinking=True, max_new_tokens=4)
    assert "user>" not in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{", "{}", "[1]"])
def test_a_file_that_holds_no_tools_is_named(folder, content):
    (folder / "tools.json").write_text(content)
    with pytest.raises(InputError, match=r"^TOOLS=tools\.json: "):
        chat.main(chat.FINAL, "x", Path("tools.json"), thinking=False, max_new_tokens=4)
