"""Messages of a model -> turns: text, reasoning and calls of one answer, in keys, in parts or in Harmony's channels."""

from collections.abc import Sequence
from typing import Any

from sft.conversation import Message, excerpt
from sft.formats.calls import calls_of, calls_of_part, read_call
from sft.formats.flags import UnfitRowError
from sft.formats.not_read import NotRead, says_something
from sft.formats.parts import Json, read_part, text_of
from sft.formats.reasoning import as_list, give_reasoning, reasoning_of, thoughts_of, with_think_tags
from sft.formats.spellings import CHANNEL, RECIPIENT


def assistant_turns(message: Json, content: Any, not_read: NotRead) -> Sequence[Message]:
    """Return the turn of an answer: a thought, then text, then calls.

    Raises:  UnfitRowError: they come in another order, or something else is in it.
    """
    texts, thoughts, calls = "", [], []
    if type(content) is str:
        texts = content
    elif type(content) is list:
        for part in content:
            kind, text, keys = read_part(part, not_read)
            if kind == "call":
                calls += calls_of_part(keys, not_read)
            elif kind == "result":
                raise UnfitRowError("malformed-row", f"a tool result in an answer: {excerpt(part)}")
            elif calls and text.strip():
                raise UnfitRowError("malformed-row", f"{kind} after a call in one answer: {excerpt(part)}")
            elif kind == "text":
                texts += text
            elif texts.strip():
                raise UnfitRowError("malformed-row", f"reasoning after the text of its answer: {excerpt(part)}")
            else:
                thoughts.append(text)
    else:
        texts = text_of(content, "content", not_read)
    if says_something(refusal := message.get("refusal")):
        if texts or type(refusal) is not str:
            not_read.add("messages[].refusal")
        else:
            texts = refusal
    texts = with_think_tags(texts)
    turn: Message = {"role": "assistant", "content": texts}
    if len(message) > 2 or content is None or thoughts or "</think>" in texts:
        give_reasoning(turn, reasoning_of(message, thoughts, not_read))
    if len(message) > 2 or content is None:
        calls += calls_of(message, not_read)
    if calls:
        turn["tool_calls"] = calls
    return (turn,)


def channel_turns(message: Json, not_read: NotRead) -> Sequence[Message]:
    """Return the turns of an answer in Harmony's form: a thought, a call for a recipient, or the answer.

    Raises:  UnfitRowError: an unknown channel or recipient.
    """
    rest = {key: item for key, item in message.items() if key not in (CHANNEL, RECIPIENT)}
    content, channel, recipient = rest.get("content"), message.get(CHANNEL), message.get(RECIPIENT)
    if says_something(recipient) and recipient not in ("all", "assistant"):
        name = str(recipient).removeprefix("functions.")
        if channel not in (None, "", "analysis", "commentary") or not name or _has_calls(rest):
            raise UnfitRowError("unknown-channel", f"recipient {excerpt(recipient)} in the channel {excerpt(channel)}")
        call = read_call({"name": name, "arguments": text_of(content, "content", not_read)}, not_read)
        turn: Message = {"role": "assistant", "content": "", "tool_calls": [call]}
        give_reasoning(turn, reasoning_of(rest, [], not_read))
        not_read.add_keys("messages[].", {"refusal": rest.get("refusal")}, ())
        return (turn,)
    if channel == "analysis":
        if _has_calls(rest):
            raise UnfitRowError("unknown-channel", f"calls in the channel analysis: {excerpt(message)}")
        return (thought_turn(rest, content, not_read),)
    if channel in (None, "", "final", "commentary"):  # in commentary: calls, or words for the user before them
        return assistant_turns(rest, content, not_read)
    raise UnfitRowError("unknown-channel", f"{CHANNEL} is {excerpt(channel)}; known: analysis, commentary, final")


def _has_calls(message: Json) -> bool:
    return says_something(message.get("tool_calls")) or says_something(message.get("function_call"))


def thought_turn(message: Json, content: Any, not_read: NotRead) -> Message:
    """Return the turn of a reasoning item, which the answer that follows completes."""
    summary, text = message.get("summary"), content
    parts = [part for value in (summary, text) if says_something(value) for part in as_list(value)]
    thought = reasoning_of(message, [thoughts_of(parts, "reasoning", not_read)] if parts else [], not_read)
    if not thought and says_something(message.get("encrypted_content")):
        raise UnfitRowError("unreadable-reasoning", "a reasoning item has encrypted_content only")
    not_read.add_keys("messages[].", {key: message.get(key) for key in ("encrypted_content", "refusal")}, ())
    turn: Message = {"role": "assistant", "content": "", "is_thought": True}
    return turn | {"reasoning_content": thought} if thought else turn
