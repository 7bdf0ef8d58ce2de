"""Spans: where an answer ends; tests/templates compares both ways to find spans."""

import re

import pytest

from sft.tokens.spans import Stops

STOPS = Stops(re.compile("<end>|<eos>"))


@pytest.mark.parametrize(
    ("turn", "end"),
    [
        ("ab<end>", 7),
        ("ab<end>\n<eos>", 7),  # some templates close the conversation with another one
        ("ab", "no stop token in it, expected 1"),
        ("<end>ab", "no stop token in it, expected 1"),
        ("ab<end>c<end>", "2 of <end> in it, expected 1"),
        ("ab<end><end>", "2 of <end> in it, expected 1"),
        ("ab<end>c<eos>", "1 of <end> in it, expected 1"),
    ],
)
def test_an_answer_ends_behind_its_one_stop_token(turn, end):
    assert STOPS.end_of(turn, 1) == end
