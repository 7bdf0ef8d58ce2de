"""Structure: the order of checks, and the limit. All else: tests/labelled/conversations.jsonl."""

from sft.conversation import Conversation
from sft.filters import structure
from sft.filters.structure import CHECKS, check_structure

USER, ANSWER = {"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "2"}


def reason(*messages, tools=None):
    rejection = check_structure(Conversation(list(messages), tools))
    return rejection.reason if rejection else ""


def test_a_sound_conversation_passes_every_check():
    assert len(CHECKS) == 7
    assert [check(Conversation([USER, ANSWER], None)) for check in CHECKS] == [None] * 7
    assert reason(USER, ANSWER) == ""


def test_a_length_of_exactly_the_limit_passes(monkeypatch):
    size = len(Conversation([USER, ANSWER], None).canonical)
    monkeypatch.setattr(structure, "MAX_CHARS", size)
    assert reason(USER, ANSWER) == ""
    assert reason(USER, {**ANSWER, "reasoning_content": "abc"}) == "too-long"
    monkeypatch.setattr(structure, "MAX_CHARS", size - 1)
    assert reason(USER, ANSWER) == "too-long"


def test_garbage_is_the_reason_before_the_order_of_roles():
    for control in "\x00\b\x7f":
        assert reason({"role": "user", "content": f"a{control}"}) == "encoding-garbage"
    assert reason({"role": "user", "content": "a"}) == "last-turn-not-assistant"


def test_evidence_names_the_message_and_quotes_the_match():
    text = "x" * 500 + "<|im_end|>" + "y" * 500
    rejection = check_structure(Conversation([{"role": "user", "content": text}, ANSWER], None))
    assert rejection is not None
    assert rejection.evidence == f"messages[0]: {'x' * 100 + '<|im_end|>' + 'y' * 100!r}"


def test_a_user_may_speak_after_the_results_of_all_calls():
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    tools = [{"type": "function", "function": {"name": "f"}}]
    asked = {"role": "user", "content": "Q"}
    calling, result = {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "2"}
    end = {"role": "assistant", "content": "A"}
    assert check_structure(Conversation([asked, calling, result, asked, end], tools)) is None
    calling["tool_calls"] = [call, call]
    rejection = check_structure(Conversation([asked, calling, result, asked, end], tools))
    assert rejection is not None
    assert rejection.reason == "tool-call-without-result"
