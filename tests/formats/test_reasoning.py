"""Reasoning of an answer: keys and parts agree, and tags in the text are one spelling."""

import pytest

from sft.formats.flags import UnfitRowError
from sft.formats.not_read import NotRead
from sft.formats.reasoning import give_reasoning, reasoning_of, with_think_tags


def test_two_keys_with_other_reasoning_reject_the_row():
    assert reasoning_of({"reasoning": " a ", "thinking": "a"}, [], NotRead()) == "a"
    with pytest.raises(UnfitRowError, match="differ"):
        reasoning_of({"reasoning": "a", "thinking": "b"}, [], NotRead())


@pytest.mark.parametrize("text", ["<thinking>a</thinking>b", "[THINK]a[/THINK]b", "<think>a</think>b"])
def test_a_thought_between_other_tags_is_one_between_ours(text):
    assert with_think_tags(text) == "<think>a</think>b"


def test_inline_reasoning_leaves_the_text():
    turn = {"role": "assistant", "content": "<think>a</think>\n\nb"}
    give_reasoning(turn, "")
    assert turn == {"role": "assistant", "content": "b", "reasoning_content": "a"}
