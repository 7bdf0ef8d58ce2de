"""Calls as Python writes them, [get_weather(city="Paris", days=2), now()], as ToolACE and Llama 3.2 have them."""

import re
from collections.abc import Set
from typing import Any

from sft.formats.json_text import TOKEN, parse_text

Json = dict[str, Any]
ARGUMENT = re.compile(r"\s*([A-Za-z_][\w-]*)\s*=\s*")
SEPARATOR = re.compile(r"\s*,\s*")


def split_bracket_calls(text: str, names: Set[str]) -> list[Json]:
    """Return the calls that a text is; none if it is another, or if one calls what is not in `names`.

    Arguments have names, and values of JSON or of Python.

    >>> split_bracket_calls("[f(a=1, b=['x'])]", {"f"}), split_bracket_calls("[f(a=1)]", {"g"})
    ([{'name': 'f', 'arguments': {'a': 1, 'b': ['x']}}], [])
    """
    text = text.strip()
    if not text.startswith("[") or not text.endswith(")]"):
        return []
    calls, place = list[Json](), 1
    try:
        while place < len(text) - 1:
            if calls:
                place = _end(SEPARATOR.match(text, place))
            name = text[place : text.index("(", place)].strip()
            if name not in names:
                return []
            arguments, place = _arguments(text, text.index("(", place) + 1)
            calls.append({"name": name, "arguments": arguments})
    except ValueError:
        return []
    return calls


def begins_as_calls(text: str, names: Set[str]) -> bool:
    """Return whether a text in brackets begins with a call of one of `names`, whether it can be read or not.

    >>> begins_as_calls("[f(1)]", {"f"}), begins_as_calls("[f] (1)", {"f"})
    (True, False)
    """
    text = text.strip()
    return text.startswith("[") and text.endswith("]") and text[1:].partition("(")[0].strip() in names


def _arguments(text: str, place: int) -> tuple[Json, int]:
    """Return the arguments that begin at a place, and where their call ends. Raises ValueError: it is other text."""
    arguments: Json = {}
    while text[place : place + 1] != ")":
        if arguments:
            place = _end(SEPARATOR.match(text, place))
        if (argument := ARGUMENT.match(text, place)) is None or argument[1] in arguments:
            raise ValueError(f"no argument at character {place}")
        end = _value_end(text, argument.end())
        (arguments[argument[1]],) = parse_text(f"[{text[argument.end() : end]}]")
        place = end
    return arguments, place + 1


def _value_end(text: str, place: int) -> int:
    """Return where the value at a place ends: before the comma or the parenthesis that follows it."""
    depth = 0
    while (token := TOKEN.match(text, place)) is not None:
        depth += (token[0] in ("[", "{")) - (token["close"] is not None)
        if depth < 0 or (depth == 0 and token[0] == ","):
            break
        place = token.end()
    return place


def _end(match: re.Match[str] | None) -> int:
    if match is None:
        raise ValueError("no comma")
    return match.end()
