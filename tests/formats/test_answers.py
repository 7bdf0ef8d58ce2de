"""Answers: a thought, then text, then calls; in another order the row is rejected."""

import pytest

from sft.formats.answers import assistant_turns
from sft.formats.flags import UnfitRowError
from sft.formats.not_read import NotRead

TEXT, CALL = {"type": "text", "text": "a"}, {"type": "tool_use", "name": "f", "input": {}}


def read(*parts):
    message = {"role": "assistant", "content": list(parts)}
    return assistant_turns(message, message["content"], NotRead())


def test_parts_in_order_are_one_turn():
    (turn,) = read({"type": "thinking", "thinking": "t"}, TEXT, CALL)
    assert (turn["reasoning_content"], turn["content"], len(turn["tool_calls"])) == ("t", "a", 1)


@pytest.mark.parametrize("parts", [(CALL, TEXT), (TEXT, {"type": "thinking", "thinking": "t"})])
def test_parts_in_another_order_reject_the_row(parts):
    with pytest.raises(UnfitRowError, match="after"):
        read(*parts)
