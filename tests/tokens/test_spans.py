"""Spans: where an answer ends; tests/templates compares both ways to find spans."""

import re

import pytest

from sft.tokens.spans import Stops

STOPS = Stops(re.compile("<end>|<eos>"))
NONE = "no stop token in it; if another token ends it, name that in prep.stop_tokens"


@pytest.mark.parametrize(
    ("turn", "end"),
    [
        ("ab<end>", 7),
        ("ab<end>\n<eos>", 7),  # some templates close the conversation with another one
        ("ab", NONE),
        ("<end>ab", NONE),
        ("ab<end>c<end>", "2 of <end> in it, expected 1"),
        ("ab<end><end>", "2 of <end> in it, expected 1"),
        ("ab<end>c<eos>", "text between <end> and <eos>, expected none"),
    ],
)
def test_an_answer_ends_behind_its_one_stop_token(turn, end):
    assert STOPS.end_of(turn, 1) == end
