"""Messages of a model -> turns: reasoning, text and calls of one answer, in keys, parts, text or Harmony's channels.

Calls take the OpenAI form: {type, function: {name, arguments: object}, id?}. Reasoning is found by key, as parts, or
between `<think>` or other tags.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from sft import strict_json
from sft.conversation import THINK_TAGS, Message, excerpt
from sft.formats.flags import UnfitRowError
from sft.formats.json_text import parsed_or_same
from sft.formats.not_read import NotRead, holds_something, says_something
from sft.formats.parts import Json, read_id, read_part, respell, text_of
from sft.formats.spellings import (
    CALL_KEYS,
    CHANNEL,
    ID,
    PLAIN_CALL_KEYS,
    PLAIN_FUNCTION_KEYS,
    REASONING_KEYS,
    RECIPIENT,
)
from sft.formats.text_calls import split_calls
from sft.formats.tools import parse_or_reject

INLINE_REASONING = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)
# Other tags around a thought at the start of an answer, in small letters -> what ends it.
THOUGHT_ENDS = {
    "<thinking>": "</thinking>",
    "<think>": "</think>",
    "<seed:think>": "</seed:think>",
    "[think]": "[/think]",
    "<|begin_of_thought|>": "<|end_of_thought|>",
}
THOUGHT_TAG = re.compile(r"(?!<think>)((?i:<thinking>|<think>|<seed:think>)|\[THINK\]|<\|begin_of_thought\|>)")
THOUGHT_START = re.compile(r"\s*" + THOUGHT_TAG.pattern)
SOLUTION = re.compile(r"\s*<\|begin_of_solution\|>(.*)<\|end_of_solution\|>\s*", re.DOTALL)


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


# Calls


def call_turn(message: Json, content: Any, not_read: NotRead) -> Message:
    """Return the turn of a message that is a call: as its own keys, or as JSON in its text, perhaps after a thought."""
    turn: Message = {"role": "assistant", "content": ""}
    call: Json = {key: message[key] for key in ("id", "name", "arguments") if key in message}
    if "name" in message:
        value = parsed_or_same(content, "{")
        if type(value) is dict and "type" not in value:
            call.setdefault("arguments", value)
            if parsed_or_same(call["arguments"], "{") != value:
                raise UnfitRowError("malformed-row", f"content and arguments differ: {excerpt(content)}")
        else:
            turn["content"] = text_of(content, "content", not_read)
        give_reasoning(turn, reasoning_of(message, [], not_read))
        return turn | {"tool_calls": [read_call(call, not_read)]}
    text = text_of(content, "content", not_read) if type(content) is not dict else json.dumps(content)
    thought, answer = split_reasoning(text)
    give_reasoning(turn, reasoning_of(message, [thought] if thought else [], not_read))
    text = text if answer is None else answer
    if (marked := split_calls(text)) is not None:
        turn["content"], calls = marked
    else:
        calls = as_list(parse_or_reject(text, "a call as JSON, and no text before it"))
    if len(calls) == 1 and type(calls[0]) is dict and calls[0].keys().isdisjoint(ID):
        calls = [{**calls[0], **{key: call.pop(key) for key in ("id",) if key in call}}]
    not_read.add_keys("messages[].", call, ())
    return turn | {"tool_calls": [read_call(call, not_read) for call in calls]}


def calls_of_part(keys: Json, not_read: NotRead) -> list[Json]:
    """Return the calls of a part of an answer: one in its own keys, or one or several in its text or value."""
    call = {key: item for key, item in keys.items() if key not in ("type", "text")}
    if "text" not in keys:
        return [read_call(call, not_read)]
    value = parse_or_reject(keys["text"], "a call as JSON") if type(keys["text"]) is str else keys["text"]
    calls = as_list(value)
    if len(calls) == 1 and type(calls[0]) is dict:
        calls = [{**call, **calls[0]}]
    else:
        not_read.add_keys("messages[].content[].", call, ())
    return [read_call(each, not_read) for each in calls]


def calls_of(message: Json, not_read: NotRead) -> list[Json]:
    """Return the calls in the keys of an answer, OpenAI's of today or of before."""
    calls = message.get("tool_calls")
    if not calls:
        calls = [message["function_call"]] if holds_something(message.get("function_call")) else []
    elif says_something(message.get("function_call")):
        not_read.add("messages[].function_call")
    if type(calls) is str:
        calls = as_list(parse_or_reject(calls, "tool_calls") or [])
    if type(calls) is not list:
        raise UnfitRowError("malformed-row", f"tool_calls: expected a list, found {excerpt(calls)}")
    return [read_call(call, not_read) for call in calls]


def read_call(call: Any, not_read: NotRead) -> Json:
    """Return a call, an object or JSON text, in OpenAI form. Raises UnfitRowError: no name, or other arguments."""
    if type(call) is str:
        call = parse_or_reject(call, "a tool call")
    if type(call) is dict and not call.keys() <= PLAIN_CALL_KEYS:
        call = respell(call, CALL_KEYS, "messages[].tool_calls[].", not_read)
    function = call.get("function", call) if type(call) is dict else None
    if type(function) is str:
        is_object = function.lstrip().startswith("{")
        function = parse_or_reject(function, "a function") if is_object else {**call, "name": function}
    if function is not call and type(function) is dict and not function.keys() <= PLAIN_FUNCTION_KEYS:
        function = respell(function, CALL_KEYS, "messages[].tool_calls[].function.", not_read)
    if type(function) is not dict or type(function.get("name")) is not str or not function["name"]:
        raise UnfitRowError("malformed-row", f"tool call: expected a function with a name, found {excerpt(call)}")
    name, arguments = function["name"], function.get("arguments")
    if type(arguments) is str and arguments != "":
        try:
            arguments = strict_json.parse(arguments)  # in quotes of its own, only JSON is what the model wrote
        except ValueError as error:
            raise UnfitRowError("arguments-not-json", f"{name}: {error}: {excerpt(arguments)}") from None
    if arguments is None or arguments == "":
        arguments = {}
    if type(arguments) is list and len(arguments) == 1:  # some models wrap the object in a list
        arguments = arguments[0]
    if type(arguments) is not dict:
        raise UnfitRowError("arguments-not-object", f"{name}: found {excerpt(arguments)}")
    normal: Json = {"type": "function", "function": {"name": name, "arguments": arguments}}
    if (call_id := call.get("id")) is not None:
        normal["id"] = read_id(call_id, f"{name}: id")
    return normal


# Reasoning


def reasoning_of(message: Json, thoughts: list[str], not_read: NotRead) -> str:
    """Return the reasoning that the keys and parts of a message give. Raises UnfitRowError: they differ."""
    found: dict[str, str] = {"thinking parts": "\n\n".join(thoughts).strip()} if thoughts else {}
    for key in REASONING_KEYS:
        if (value := message.get(key)) is None:
            continue
        if type(value) is not str:
            value = thoughts_of(value, key, not_read)
        if value.strip():
            found[key] = value.strip()
    if len(found) > 1 and len(set(found.values())) > 1:
        raise UnfitRowError("malformed-row", f"{' and '.join(found)} differ")
    return next(iter(found.values()), "")


def thoughts_of(value: Any, key: str, not_read: NotRead) -> str:
    """Return the text of reasoning that is a list of texts, or of parts of reasoning."""
    parts = as_list(value)
    if not all(type(part) is str or (type(part) is dict and says_something(part)) for part in parts):
        raise UnfitRowError("malformed-row", f"{key}: expected text or parts of reasoning, found {excerpt(value)}")
    return "\n\n".join(
        part if type(part) is str else read_part({"type": "reasoning", **part}, not_read)[1] for part in parts
    )


def give_reasoning(turn: Message, reasoning: str) -> None:
    """Add reasoning and remove inline reasoning from the content. Unpaired tags stay, for sft.filters.structure."""
    if "</think>" in turn["content"]:
        thought, answer = split_reasoning(turn["content"])
        if answer is not None and (not reasoning or thought in ("", reasoning)):
            reasoning, turn["content"] = reasoning or thought, answer
    if reasoning:
        turn["reasoning_content"] = reasoning


def with_think_tags(text: str) -> str:
    """Return an answer that begins with a thought between other tags with `<think>` around it.

    Raises:  UnfitRowError: a thought that has no end, or another one after it.
    """
    if (start := THOUGHT_START.match(text)) is None:
        return text
    end = THOUGHT_ENDS[start[1].lower()]
    thought, *answers = re.split(re.escape(end), text[start.end() :], maxsplit=1, flags=re.IGNORECASE)
    answer = answers[0] if answers else ""
    if not answers or THOUGHT_TAG.search(thought) or THOUGHT_START.match(answer):
        raise UnfitRowError("think-tags", f"{start[1]} without one {end} after it: {excerpt(text)}")
    if solution := SOLUTION.fullmatch(answer):
        answer = solution[1]
    return f"<think>{thought}</think>{answer}"


def split_reasoning(text: str) -> tuple[str, str | None]:
    """Return thought and answer of `<think>thought</think>answer`; answer None if it is not that.

    The first tag may be missing: many templates write it into the prompt.

    >>> split_reasoning("<think>Count.</think>2"), split_reasoning("Count.</think>2"), split_reasoning("2")
    (('Count.', '2'), ('Count.', '2'), ('', None))
    """
    inline = INLINE_REASONING.fullmatch(text)
    if inline is None and "<think>" not in text and (parts := text.split("</think>"))[1:]:
        thought, answer = parts[0], "</think>".join(parts[1:])
    elif inline is not None:
        thought, answer = inline[1], inline[2]
    else:
        return "", None
    if THINK_TAGS.search(thought + answer):
        return "", None
    return thought.strip(), answer.lstrip()


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, another value as its only item."""
    return value if type(value) is list else [value]
