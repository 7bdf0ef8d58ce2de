"""Screens: what they stop holds no loop, whatever the script, the spaces and the edges of words and lines."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.quality import repetition
from sft.quality.repetition import LONGEST_WORD, WORDS_WITHOUT_NUMBERS, find_line_loop, find_run, find_word_loop
from sft.quality.screens import (
    count_digits,
    count_distinct,
    hash_sequences,
    hash_words,
    is_other_space,
    most_equal,
    repeats_itself,
    repeats_lines,
    repeats_words,
)
from tests.quality.test_repetition import LIMITS, LOOP, PROSE

LETTERS = np.frombuffer(WORDS_WITHOUT_NUMBERS, np.uint8)


def numbers_of(text):
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)


def words_of(text):
    """Which words of a text are the same: of each the place of the first that equals it."""
    hashes = hash_words(numbers_of(text), LETTERS, LONGEST_WORD).tolist()
    return [hashes.index(number) for number in hashes]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("", []),
        ("  ", []),
        ("One two, ONE 2 two.", [0, 1, 0, 1]),
        ("a\u00a0b\u3000a\u2003b\u2028a\u0085b\u205fa\u1680b", [0, 1] * 4),
        ("é e É é", [0, 1, 2, 0]),
        ("漢字漢字", [0]),
        ("漢字" * 10, [0, 1] * 10),
        ("漢字" * 9 + "漢 漢", [0, 1]),
        ("x" * 40, [0]),
        ("é" + "x" * 18 + " é", [0, 1]),
        ("é" + "x" * 19, [0, *[1] * 19]),
        ("no\u00a0\u00a0no", [0, 0]),
        ("\ud800 \ud800", [0, 0]),
    ],
)
def test_words_are_parted_as_where_they_are_looked_at_closely(text, same):
    assert words_of(text) == same
    plain = repetition._words(repetition._plain(text, WORDS_WITHOUT_NUMBERS))
    assert [plain.index(word) for word in plain] == same


def test_every_character_is_white_space_for_both_or_for_none():
    disagreeing = [
        code
        for code in itertools.chain(range(0x80, 0xD800), range(0xE000, 0x11000))
        if chr(code).isspace() != is_other_space(numbers_of(chr(code) + "xx"), 0)
    ]
    assert disagreeing == []


@pytest.mark.parametrize(
    ("text", "often"),
    [
        ("Is it so, then, really? " * 4, 4),
        ("Is it so, then, really? " * 3 + "Is it so, then, really?", 4),
        ("Is it so, then, really?\n" * 3, 3),
        ("short line\n" * 9, 0),
        ("sixteen letters.\n" * 3, 3),
        ("fifteen letters\n" * 3, 0),
        ("é" * 15 + "\n" + "é" * 15, 0),
        (("é" * 16 + "\n") * 2, 2),
        ("    an indented line\nan indented line\n    an indented line\n    an indented line", 3),
        ("    an indented line\nan indented line\n", 0),
    ],
)
def test_lines_are_counted(text, often):
    assert [repeats for repeats in range(2, 7) if repeats_lines(numbers_of(text), 16, repeats)] == list(
        range(2, often + 1)
    )


def test_words_that_come_back_are_seen_only_where_there_are_few():
    def seen(text, repeats=5):
        return repeats_words(numbers_of(text), LETTERS, LONGEST_WORD, 60, 0.6, 6, repeats)

    assert seen(LOOP * 12)
    assert seen(PROSE + LOOP * 12 + PROSE)
    assert not seen(PROSE)
    assert not seen(LOOP * 12, 13)
    assert not seen((PROSE + LOOP) * 12)


def test_numbers_are_counted():
    table, marks = np.empty(256, np.uint64), np.full(256, -1)
    many = np.arange(1000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert most_equal(np.concatenate([many, many[:7], many[:2]])) == (9, 3)
    assert most_equal(many[:0]) == (0, 0)
    assert [count_distinct(np.repeat(many[:60], 3), table, marks, mark) for mark in (1, 2)] == [60, 60]
    assert len(set(hash_sequences(np.array([1, 2, 1, 2, 1, 2], np.uint64), 3).tolist())) == 2
    assert len(hash_sequences(many[:2], 3)) == 0
    assert count_digits(numbers_of("a 1 22 ٣")) == 3


def test_what_stands_there_again_is_seen_at_its_step():
    text = "x" * 10 + "ab" * 60 + "y" * 10
    assert repeats_itself(numbers_of(text), 10, 60, 32)
    assert not repeats_itself(numbers_of(text), 200, 60, 32)
    assert not repeats_itself(numbers_of("ab" * 40), 10, 60, 32)


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
    ]
)


@settings(deadline=None, max_examples=150)
@given(
    units=st.lists(st.tuples(st.lists(PIECES, min_size=1, max_size=9).map("".join), st.integers(1, 40)), max_size=4),
    between=st.sampled_from(["", " ", "\n", ". ", PROSE]),
)
def test_with_screens_the_same_loops_are_found(units, between):
    text = between.join(unit * times for unit, times in units)
    found = []
    for unscreened in (0, 10**9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(repetition, "UNSCREENED", unscreened)
            found.append(
                (
                    find_line_loop(text, LIMITS),
                    find_line_loop(text, LIMITS, 2),
                    find_word_loop(text, LIMITS),
                    find_run(text, LIMITS),
                )
            )
    assert found[0] == found[1]
