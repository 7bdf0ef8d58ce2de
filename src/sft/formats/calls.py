"""Calls of tools in any published form -> the OpenAI form: {type, function: {name, arguments: object}, id?}."""

import json
from typing import Any

from sft import strict_json
from sft.conversation import Message, excerpt
from sft.formats.flags import UnfitRowError
from sft.formats.json_text import parsed_or_same
from sft.formats.marked_calls import split_calls
from sft.formats.not_read import NotRead, holds_something, says_something
from sft.formats.parts import Json, read_id, respell, text_of
from sft.formats.reasoning import as_list, give_reasoning, reasoning_of, split_reasoning
from sft.formats.spellings import CALL_KEYS, ID, PLAIN_CALL_KEYS, PLAIN_FUNCTION_KEYS
from sft.formats.tools import parse_or_reject


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
