"""Completeness: which text of a conversation a rendered sample does not contain.

A template may drop text without an error: a system message in the middle, the results of tools, words beside a call.
A model trained on that would learn to act on what it cannot see, so such conversations are rejected. Reasoning of
earlier turns may be dropped: templates do that on purpose.
"""

import json
from collections.abc import Collection, Iterator
from typing import Any

from sft.conversation import Message, Tools

HEAD_CHARS = 32


def missing_in_turn(message: Message, turn: str, guard: str = "") -> str:
    """Return the field of a trained message that its rendered turn does not contain, or "".

    `guard` is the character inside look-alikes of control tokens (sft.tokens.tokenizer).
    """
    for field in ("reasoning_content", "content"):
        if _find(message.get(field, ""), turn, 0) is None:
            return field
    bare = turn.replace(guard, "")
    for index, call in enumerate(message.get("tool_calls", ())):
        if call["function"]["name"] not in turn:
            return f"tool_calls[{index}]"
        if not _has_arguments(call, bare, guard):
            return f"tool_calls[{index}].function.arguments"
    return ""


def missing_context(messages: list[Message], tools: Tools, text: str, trained: Collection[int], guard: str = "") -> str:
    """Return the place of a message or tool that a rendered sample does not contain, or "".

    Looks for messages in their order first, so that the text of one is not found in another. `trained` turns are
    checked by `missing_in_turn`.
    """
    place, bare = 0, text.replace(guard, "")
    for index, message in enumerate(messages):
        end = place
        if index in trained:
            content = message["content"].strip()
            end = max(end, text.find(content, place) + len(content))
        else:
            fields = {"content": message["content"]}
            for number, call in enumerate(message.get("tool_calls", ())):
                fields[f"tool_calls[{number}]"] = call["function"]["name"]
            for field, value in fields.items():
                found = _find(value, text, place)
                if found is None and _find(value, text, 0) is None:
                    return f"messages[{index}].{field}"
                end = max(end, found or 0)
            for number, call in enumerate(message.get("tool_calls", ())):
                if not _has_arguments(call, bare, guard):
                    return f"messages[{index}].tool_calls[{number}].function.arguments"
        place = end
    for tool in tools or ():
        if _find(tool["function"]["name"], text, 0) is None:
            return f"tools: {tool['function']['name']}"
    return ""


def missing_in_tool(tool: dict[str, Any], text: str) -> str:
    """Return the part of a tool that a text does not contain, or ""."""
    function = tool["function"]
    parts = {
        "name": [function["name"]],
        "description": [function["description"]],
        "parameters": list(function["parameters"]["properties"]),
    }
    return next((part for part, texts in parts.items() if any(_find(each, text, 0) is None for each in texts)), "")


def _has_arguments(call: dict[str, Any], text: str, guard: str) -> bool:
    """Return whether a text without guards contains the keys and values of the arguments of a call, the guard aside.

    Arguments that are given as JSON text have the guard at other places.
    """
    return all([_has_scalar(each, text, guard) for each in _scalars(call["function"]["arguments"])])


def _scalars(value: Any) -> Iterator[Any]:
    """Yield the keys, texts, numbers, booleans and nulls of a JSON value."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _scalars(item)
    elif isinstance(value, list):
        for item in value:
            yield from _scalars(item)
    else:
        yield value


def _has_scalar(value: Any, text: str, guard: str) -> bool:
    """Return whether a text contains a scalar as it is, as in JSON (also JSON text in JSON), or as Python writes it."""
    if not isinstance(value, str):  # `true` or `True`, `null` or `None`
        return any(_has_word(form, text) for form in dict.fromkeys((json.dumps(value), str(value))))
    if value in text or (value := value.replace(guard, "").strip()) in text:
        return True
    once = {json.dumps(value, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True)}
    twice = {json.dumps(each, ensure_ascii=ascii_only)[1:-1] for each in once for ascii_only in (False, True)}
    return any(each in text for each in (*once, *twice, repr(value)[1:-1]))


def _has_word(word: str, text: str) -> bool:
    """Return whether a text contains a word that is no part of a longer one: not the 2 of `12`, or of `forecast_2`."""
    place = text.find(word)
    while place >= 0:
        around = text[max(place - 1, 0) : place] + text[place + len(word) : place + len(word) + 1]
        if not any(character.isalnum() or character == "_" for character in around):
            return True
        place = text.find(word, place + 1)
    return False


def _find(value: str, text: str, start: int) -> int | None:
    """Return the end of a value in a text, as it is or as in JSON, blanks at its ends aside; None: it is not there."""
    value = value.strip()
    place = text.find(value[:HEAD_CHARS], start)  # mostly the right place; comparing there is faster than searching
    if place >= 0 and not text.startswith(value, place):
        place = text.find(value, start)
    if place < 0:
        value = json.dumps(value, ensure_ascii=False)[1:-1]
        place = text.find(value, start)
    return None if place < 0 else place + len(value)
