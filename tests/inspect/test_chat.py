"""chat: what is typed is checked before anything is loaded; answers are streamed and follow the dialogue."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from sft.cli import InputError
from sft.evaluation.generate import load_model
from sft.inspect import chat
from sft.inspect.chat import FINAL
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
    tokenizer = AutoTokenizer.from_pretrained(FINAL)
    pieces = []
    stream = chat.stream_to(pieces.append, tokenizer, [EOS])
    stream.put(torch.tensor([tokenizer("a prompt").input_ids]))
    for token in [*tokenizer("The sum is twelve.").input_ids, EOS]:
        stream.put(torch.tensor([token]))
    stream.end()
    assert [piece for piece in pieces if piece] == ["The ", "sum ", "is ", "twelve."]


def test_an_answer_is_what_was_streamed_and_says_the_same_twice(folder):
    tokenizer, model = AutoTokenizer.from_pretrained(FINAL), load_model(FINAL)
    ask = [{"role": "user", "content": "What is the sum?"}]
    for _ in range(2):
        pieces = []
        text, ended = chat.answer(model, tokenizer, ask, None, pieces.append, thinking=False, max_new_tokens=12)
        assert "".join(pieces) == text
        assert ended == (len(tokenizer(text).input_ids) < 12)
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
        return reply, reply != "Bye."

    (folder / "tools.json").write_text(json.dumps(TOOLS))
    monkeypatch.setattr(chat, "answer", scripted)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Weather?\n\n22 degrees\n<|im_end|>\nThanks\n"))
    chat.main(FINAL, None, Path("tools.json"), thinking=False, max_new_tokens=5)
    shown, noted = capsys.readouterr()
    assert noted.splitlines()[-1] == "⟨cut after 5 tokens⟩"
    assert shown.count("user> ") == 4, "a control token asks again"
    assert shown.count("tool> ") == 2, "an empty line asks again"
    assert "\x1b" not in shown
    assert "get_weather" in asked[0]
    assert "22 degrees" in asked[1]
    assert asked[1].index("Weather?") < asked[1].index("<function=get_weather>\n</function>") < asked[1].index("22 deg")
    assert asked[2].endswith("<think></think>")


def test_one_prompt_is_answered_once(folder, capsys):
    chat.main(FINAL, "What is the sum?", None, thinking=True, max_new_tokens=4)
    assert "user>" not in capsys.readouterr().out


def test_reasoning_is_given_back_as_the_model_wrote_it(folder, monkeypatch):
    asked, replies = [], iter(["so\n</think>\n<tool_call>\n<function=f>\n</function>\n</tool_call>", "Done."])

    def scripted(_model, tokenizer, messages, _tools, _write, **how):
        asked.append(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        return next(replies), True

    monkeypatch.setattr(chat, "answer", scripted)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Ask\n22\n"))
    chat.main(FINAL, None, None, thinking=True, max_new_tokens=5)
    assert asked[1].startswith(asked[0] + "so\n</think>\n<tool_call>\n<function=f>")


def test_what_cannot_be_asked_is_named(folder, monkeypatch):
    def ask(prompt):
        chat.main(FINAL, prompt, None, thinking=False, max_new_tokens=2)

    with pytest.raises(InputError, match=r"^PROMPT: '<\|im_end\|>' is a control token"):
        ask("a<|im_end|>b")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    with pytest.raises(InputError, match=r"^stdin: .*0xe9"):
        ask(None)
    template = folder / "models/final/chat_template.jinja"
    template.write_text("{{ raise_exception('no') }}")
    with pytest.raises(InputError, match=r"^chat template: .*no$"):
        ask("x")
    template.unlink()
    with pytest.raises(InputError, match=r"^models/final: .*chat_template\.jinja"):
        ask("x")


def test_tools_are_read_in_every_form_of_the_filter_stage(folder):
    plain = {"name": "get_weather", "input_schema": {"type": "object", "properties": {}}}
    (folder / "tools.json").write_text(json.dumps([plain]))
    assert chat.read_tools(Path("tools.json")) == TOOLS


@pytest.mark.parametrize("content", ["{", "{}", "[1]", "[]", "[{}]", '[{"function": 5}]', "[" * 100_000, "\udcff"])
def test_a_file_that_holds_no_tools_is_named(folder, content):
    (folder / "tools.json").write_text(content, errors="surrogateescape")
    with pytest.raises(InputError, match=r"^TOOLS=tools\.json: "):
        chat.main(FINAL, "x", Path("tools.json"), thinking=False, max_new_tokens=4)


def test_make_hands_over_a_prompt_as_it_is_typed(tmp_path):
    shell, prompt = tmp_path / "shell", '--it costs $5,\nisn\'t "it"?'
    shell.write_text('#!/bin/sh\n[ -z "${CHAT_PROMPT+x}" ] || printf "%s|%s" "$4" "$CHAT_PROMPT"\n')
    shell.chmod(0o755)
    command = ["make", "-s", "chat", f"PROMPT={prompt}", f"SHELL={shell}"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert '--prompt="$CHAT_PROMPT"' in shown
    assert shown.endswith(f"|{prompt}")


def test_a_folder_without_a_model_is_refused_before_torch_is_loaded(tmp_path):
    absent = "import runpy, sys; sys.modules['torch'] = sys.modules['transformers'] = None; "
    code = absent + "sys.argv[1:] = ['--model', 'nope']; runpy.run_module('sft.inspect.chat', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: nope: expected a Hugging Face folder")
    assert done.stderr.count("\n") == 1
