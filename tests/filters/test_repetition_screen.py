"""The screen: a text that it excludes has no loop, whatever its script, spaces and edges of words and lines."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.conversation import Conversation
from sft.filters import repetition
from sft.filters.repetition import check_repetition, check_repetitions, find_line_loop, find_loop, find_word_loop
from sft.filters.repetition_screen import OTHER_SPACES, Screened, screen
from tests.filters.test_repetition import LIMITS, LOOP, PROSE, assistant

PIECES = st.sampled_from(
    [
        "wait",
        "The sum is",
        "é",
        "漢字",
        "漢字漢字" * 4,
        "42",
        "7",
        "“so”",
        "—",
        "x",
        "done. ",
        "really? ",
        "。",
        "\n",
        " ",
        "\u00a0",
        "\u3000",
        "\t",
        "  ",
        "ab" * 30,
        "! ",
        "\ud800",
        "Wait",
        "\r",
        "\x1c",
        "तब। ",
        "ещё раз ",
    ]
)
TEXTS = st.builds(
    lambda units, between: between.join(unit * times for unit, times in units),
    st.lists(st.tuples(st.lists(PIECES, min_size=1, max_size=9).map("".join), st.integers(1, 40)), max_size=4),
    st.sampled_from(["", " ", "\n", ". ", PROSE]),
)


def screen_one(*texts):
    return screen(texts, [0] * len(texts), 1, LIMITS, 2)


def test_every_space_that_splits_words_is_known():
    assert sorted(OTHER_SPACES) == [chr(code) for code in range(0x80, sys.maxunicode + 1) if chr(code).isspace()]


@pytest.mark.parametrize(
    ("text", "lines", "words"),
    [
        ("", False, False),
        (PROSE, False, False),
        (LOOP * 12, True, True),
        (PROSE + LOOP * 12 + PROSE, True, True),
        (LOOP.replace(".", "") * 12, False, True),
        ((PROSE + PROSE.upper()) * 2, True, False),
        ("short line\n" * 90, False, True),
        ("    an indented line of a program which says very much about very little\n" * 2 * 3, True, True),
        ("漢字かな" * 50, False, True),
        ("漢字かなも。" * 50, False, True),
        ("漢字かなも長い行にする為に書いた文章です。" * 5, True, True),
        ("\n".join(f"{PROSE}{number}" for number in range(3)), False, False),
    ],
)
def test_few_texts_need_a_close_check(text, lines, words):
    screened = screen_one(text)
    assert (bool(screened.lines[0]), bool(screened.words[0])) == (lines, words)


def test_lines_of_one_group_are_counted_over_its_texts():
    screened = screen([PROSE + LOOP * 3] * 6 + [PROSE], [0, 0, 0, 1, 1, 2, 3], 4, LIMITS, 2)
    assert screened.together.tolist() == [True, False, False, False]
    assert not screened.lines.any()


def test_no_text_is_screened_without_an_error():
    assert [len(part) for part in screen([], [], 1, LIMITS, 2)] == [0, 0, 1]
    assert check_repetitions([], LIMITS) == []


@settings(deadline=None, max_examples=150)
@given(st.lists(TEXTS, max_size=4))
def test_an_excluded_text_has_no_loop(texts):
    screened = screen_one(*texts)
    for place, text in enumerate(texts):
        assert screened.lines[place] or not find_line_loop(text, LIMITS)
        assert screened.words[place] or not find_word_loop(text, LIMITS)
        flags = bool(screened.lines[place]), bool(screened.words[place])
        assert find_loop(text, LIMITS, *flags) == find_loop(text, LIMITS)
    assert screened.together[0] or not find_line_loop("\n".join(texts), LIMITS, 2)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(TEXTS, min_size=1, max_size=3), min_size=1, max_size=5), st.sampled_from([1, 1 << 18]))
def test_a_batch_gets_the_verdicts_that_each_gets_unscreened(spoken, block):
    def call(text):
        return {"type": "function", "function": {"name": "note", "arguments": {"text": text}}}

    many = [
        Conversation([assistant(text, tool_calls=[call(text[::-1])]) for text in texts] + [assistant(texts[0])], None)
        for texts in spoken
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repetition, "BLOCK_CHARS", block)
        found = check_repetitions(many, LIMITS)
        patch.setattr(repetition, "screen", check_all)
        assert found == [check_repetition(one, LIMITS) for one in many]


def check_all(texts, groups, number, limits, together):
    return Screened(*(np.ones(places, np.bool_) for places in (len(texts), len(texts), number)))
