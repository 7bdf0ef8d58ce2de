"""Repetition: loops are found in reasoning, answers and trajectories; what repeats for a reason is kept."""

import pytest

from sft.data.conversation import Conversation
from sft.data.repetition import RepetitionLimits, check_repetition

LIMITS = RepetitionLimits()
SENTENCE = "The model walks around the lake and thinks about the weather of the coming day. "


def said(answer: str, reasoning: str = "") -> Conversation:
    thought = {"reasoning_content": reasoning} if reasoning else {}
    return Conversation(
        [{"role": "user", "content": "Tell me."}, {"role": "assistant", "content": answer, **thought}], None
    )


@pytest.mark.parametrize(
    "loop",
    [
        SENTENCE * 12,
        "It begins well, with a few words on what follows. " + SENTENCE * 12,
        f"{SENTENCE}\n" * 12,
        "one two three four five six seven eight nine ten " * 20,
        "哈哈哈哈" * 300,
        "a" * 3000,
    ],
)
def test_a_loop_is_refused_where_it_stands(loop):
    in_answer, in_reasoning = check_repetition(said(loop), LIMITS), check_repetition(said("Yes.", loop), LIMITS)
    assert in_answer is not None
    assert in_reasoning is not None
    assert (in_answer.reason, in_reasoning.reason) == ("repetition-answer", "repetition-reasoning")
    assert in_answer.evidence


@pytest.mark.parametrize(
    "text",
    [
        SENTENCE,
        "\n".join(f"| row {n} | {n * n} | {'even' if n % 2 == 0 else 'odd'} |" for n in range(12)),
        "\n".join(f"{n}. step {word}" for n, word in enumerate("mix bake cool cut serve wash dry store".split(), 1)),
        '{"a": 1, "b": [1, 2, 3], "c": {"d": 4, "e": 5}}',
        "for i in range(3):\n    print(i)\nfor j in range(3):\n    print(j)\n",
        "Row, row, row your boat,\nGently down the stream,\nMerrily, merrily, merrily, merrily,\nLife is but a dream.",
    ],
)
def test_text_that_repeats_for_a_reason_is_kept(text):
    assert check_repetition(said(text, text), LIMITS) is None


def test_what_users_repeat_is_not_judged():
    conversation = Conversation(
        [{"role": "user", "content": SENTENCE * 20}, {"role": "assistant", "content": "Enough of that."}], None
    )
    assert check_repetition(conversation, LIMITS) is None


def test_an_agent_that_does_the_same_again_and_again_is_refused():
    call = {"type": "function", "function": {"name": "look", "arguments": {"place": "the kitchen of the old house"}}}
    turn = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "There is nothing here."},
    ]
    messages = [{"role": "user", "content": "Find the key."}, *turn * 12, {"role": "assistant", "content": "No key."}]
    rejection = check_repetition(Conversation(messages, None), LIMITS)
    assert rejection is not None
    assert rejection.reason == "repetition-trajectory"


def test_looser_limits_keep_more():
    once = said(SENTENCE * 12)
    loose = RepetitionLimits(line_repeats=50, ngram_repeats=200, turn_repeats=50)
    assert check_repetition(once, LIMITS) is not None
    assert check_repetition(once, loose) is None
