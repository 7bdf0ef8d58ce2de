"""terminal: no text of the data acts on it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.inspect.terminal import ASIDE, JOINERS, MARKED, Screen, aside, paged, visible

SRC = Path(__file__).parents[2] / "src"


@given(st.text())
def test_whatever_comes_in_what_goes_out_is_printable(text):
    shown = visible(text)
    assert all(character.isprintable() or character in JOINERS for character in shown)
    assert len(shown) >= len(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", "␛]0;title␇"),
        ("\x9b31m", "⟨U+009B⟩31m"),  # the same escape sequence in one byte
        ("a\rb\bc", "a␍b␈c"),
        ("\u202eabc\u200b", "⟨U+202E⟩abc⟨U+200B⟩"),
        ("a\u00a0b\u3000c", "a␣b␣c"),
        ("\U000e0041", "⟨U+E0041⟩"),  # invisible letters: how prompts are smuggled
        ("می\u200cرود 👩\u200d🚀 déjà vu", "می\u200cرود 👩\u200d🚀 déjà vu"),
    ],
)
def test_what_would_act_or_hide_is_named_and_what_is_text_stays(text, shown):
    assert visible(text) == shown


def test_data_cannot_forge_our_brackets():
    brackets = "".join((*MARKED, *ASIDE))
    assert len(brackets) == 4
    assert not set(visible(brackets)) & set(MARKED)
    assert aside("stop") not in visible(aside("stop"))


def test_markup_and_emoji_codes_in_data_are_printed_as_they_stand(capsys):
    Screen().print("[bold]x[/] :warning: [/]")
    assert capsys.readouterr().out == "[bold]x[/] :warning: [/]\n"


@pytest.mark.parametrize(("settings", "plain"), [({}, False), ({"NO_COLOR": "1"}, True), ({"TERM": "dumb"}, True)])
def test_a_screen_knows_whether_colors_show(monkeypatch, settings, plain):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", **settings}.items():
        monkeypatch.setenv(name, value)
    assert Screen().plain is plain


def test_a_pipe_is_plain_and_not_paged(capsys):
    with paged() as screen:
        assert screen.plain
        screen.print("a line")
    assert capsys.readouterr().out == "a line\n"


def test_a_reader_that_leaves_is_no_error(tmp_path):
    code = "from sft.inspect.terminal import Screen\nfor _ in range(100_000): Screen().print('line')"
    command = f'set -o pipefail; {sys.executable} -c "{code}" | head -1'
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout, done.stderr) == (0, "line\n", "")
