"""Calls that answers have as text without tags: after a mark, as bare JSON, or as Python writes them.

`[TOOL_CALLS]` or `<functioncall>` before JSON (Mistral, Glaive, Granite); an answer of nothing but JSON (Llama 3), also
in a fence of Markdown, or of [get_weather(city="Paris", days=2), now()] (ToolACE, Llama 3.2). Text that only speaks of
these forms is left as it is. sft.formats.marked_calls has calls between tags.
"""

import contextlib
import re
from collections.abc import Set
from typing import Any

from sft.formats.json_text import TOKEN, parse_text

Json = dict[str, Any]
# What some models write before calls in text, and after them; the keys of a call in text.
CALL_MARK = re.compile(
    r"(?:\[TOOL_CALLS\]|<function_?calls?>|<\|python_tag\|>|<\|tool_call\|>|<TOOLCALL>|<tool_calls>)(?=\s*[\[{])"
)
CALL_END = re.compile(r"(?:</function_?calls?>|</TOOLCALL>|</tool_calls>)\s*$")
FENCE = re.compile(r"\s*```\w*+((?:(?!```).)*+)```\s*", re.DOTALL)
ARGUMENT_KEYS = {"arguments", "parameters"}
BARE_KEYS = {"name", "id", "type"} | ARGUMENT_KEYS
ARGUMENT = re.compile(r"\s*([A-Za-z_][\w-]*)\s*=\s*")
SEPARATOR, BRACKET = re.compile(r"\s*,\s*"), re.compile(r"\s*\(")


def unfenced(text: str) -> str:
    """Return what is in the only fence of Markdown that a text is; another text as it is.

    >>> unfenced("```json\\n[1]\\n```"), unfenced("[1]")
    ('[1]', '[1]')
    """
    fenced = FENCE.fullmatch(text)
    return fenced[1].strip() if fenced else text


def bare_calls(text: str) -> list[Json]:
    """Return the calls that a text is; none if it is another."""
    with contextlib.suppress(ValueError):
        value = parse_text(unfenced(text))
        calls = value if type(value) is list else [value]
        if all(type(call) is dict and type(call.get("name")) is str and call.keys() <= BARE_KEYS for call in calls):
            has_arguments = any(not ARGUMENT_KEYS.isdisjoint(call) for call in calls)
            return calls if has_arguments else []  # a name alone may be any object
    return []


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
            name, place = _called(text, place, names)
            arguments, place = _arguments(text, place)
            calls.append({"name": name, "arguments": arguments})
    except ValueError:
        return []
    return calls


def calls_one_of(text: str, names: Set[str]) -> bool:
    """Return whether a text is calls, or begins with one, of some names in any of the forms without tags.

    >>> calls_one_of("[f(a=1)]", {"f"}), calls_one_of('{"name": "f", "arguments": {}}', {"f"}), calls_one_of("f", {"f"})
    (True, True, False)
    """
    mark = CALL_MARK.search(text)
    text = CALL_END.sub("", text[mark.end() :] if mark else text)
    calls = bare_calls(text) if text.lstrip().startswith(("{", "[")) else []
    return begins_as_calls(text, names) or (bool(calls) and all(call["name"] in names for call in calls))


def begins_as_calls(text: str, names: Set[str]) -> bool:
    """Return whether a text in brackets begins with a call of one of `names`, whether it can be read or not.

    >>> begins_as_calls("[f(1)]", {"f"}), begins_as_calls("[f] (1)", {"f"})
    (True, False)
    """
    text = text.strip()
    with contextlib.suppress(ValueError):
        return text.startswith("[") and text.endswith("]") and _called(text, 1, names)[0] in names
    return False


def _called(text: str, place: int, names: Set[str]) -> tuple[str, int]:
    """Return the longest of some names that is called at a place, and where its arguments begin. Raises ValueError."""
    start = len(text) - len(text[place:].lstrip())
    for name in sorted(names, key=len, reverse=True):
        if text.startswith(name, start) and (bracket := BRACKET.match(text, start + len(name))):
            return name, bracket.end()
    raise ValueError(f"no call at character {place}")


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
