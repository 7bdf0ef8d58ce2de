"""Tools, calls and results written as text between tags, as the Hermes and Qwen data sets have them.

`<tools>` in the system message, `<tool_call>{"name": ..., "arguments": ...}</tool_call>` at the end of an answer, and
`<tool_response>` in the message that answers it. Text that only speaks of these tags is left as it is.
"""

import contextlib
import json
import re
from typing import Any

from sft import strict_json
from sft.conversation import Message
from sft.formats.json_text import PYTHON, parse_text, python_to_json
from sft.formats.not_read import NotRead
from sft.formats.tools import read_tools

Json = dict[str, Any]
TAG = re.compile(r"</?tools?(?:_call|_response)?>")
SENTENCE_END = re.compile(r"[.!?:]\s+|\n+")
FORM_TEXT = "messages[].content: how to write calls, around <tools>"  # counted as not read
BETWEEN = re.compile(r"[\s,]*")
DECODER = json.JSONDecoder()


def split_tools(turns: list[Message], not_read: NotRead) -> list[Json] | None:
    """Return the tools that the system message lists, and remove them from it; None if it lists none.

    With them go the sentences from the first to the last tag: they say how calls are written, and the template of the
    model being trained says it in its own way.
    """
    for index, turn in enumerate(turns):
        if turn["role"] != "system" or "</tools>" not in (text := turn["content"]):
            continue
        listed = (piece.rpartition("<tools>")[2].strip() for piece in text.split("</tools>")[:-1])
        if not (values := next((found for piece in listed if (found := _json_values(piece))), None)):
            continue
        tools = read_tools(values, not_read)
        tags = [tag.span() for tag in TAG.finditer(text)]
        starts = [end.end() for end in SENTENCE_END.finditer(text, 0, tags[0][0])]
        stop = SENTENCE_END.search(text, tags[-1][1])
        end = stop.end() if stop else len(text)
        kept = (text[: starts[-1] if starts else 0].rstrip() + "\n\n" + text[end:].lstrip()).strip()
        not_read.add(FORM_TEXT)
        if kept:
            turn["content"] = kept
        else:
            del turns[index]
        return tools
    return None


def _json_values(text: str) -> list[Any]:
    """Return the tools of a list or an object, or of objects one after the other, as JSON or as Python writes them;
    empty if it is neither."""
    values, place = list[Any](), 0
    if not text.startswith(("[", "{")):
        return []
    with contextlib.suppress(ValueError):
        value = parse_text(text)
        return value if isinstance(value, list) else [value]
    try:
        text = python_to_json(text) if PYTHON.search(text) and not _is_json_first(text) else text
        while place < len(text):
            _, end = DECODER.raw_decode(text, place)
            value = strict_json.parse(text[place:end])  # its limits hold here, too
            values += value if isinstance(value, list) else [value]
            place = _skip(text, end)
    except (ValueError, RecursionError):
        return []
    return values


def _is_json_first(text: str) -> bool:
    """Return whether a text begins with a value of JSON."""
    try:
        return DECODER.raw_decode(text)[1] > 0
    except (ValueError, RecursionError):
        return False


def _skip(text: str, place: int) -> int:
    match = BETWEEN.match(text, place)
    return match.end() if match else place


def split_calls(text: str) -> tuple[str, list[Any]] | None:
    """Return the text before the calls at the end of an answer, and the calls; None if it does not end with calls.

    >>> split_calls('I look. <tool_call>{"name": "now", "arguments": {}}</tool_call>')
    ('I look.', [{'name': 'now', 'arguments': {}}])
    """
    before, tag, _ = text.partition("<tool_call>")
    if not tag or "</tool_call>" in before or (contents := _between(text[len(before) :], "tool_call")) is None:
        return None
    calls = list[Any]()
    for content in contents:
        try:
            value = parse_text(content)
        except ValueError:
            return None
        calls += value if isinstance(value, list) else [value]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        return None
    return before.rstrip(), calls


def split_results(text: str) -> list[str] | None:
    """Return the results in a text of nothing but results; None for other text."""
    return _between(text, "tool_response")


def _between(text: str, tag: str) -> list[str] | None:
    """Return what is between pairs of a tag; None if other text does, too.

    >>> _between("<a>1</a> <a>2</a>", "a"), _between("<a>1</a> so", "a")
    (['1', '2'], None)
    """
    *pieces, end = text.split(f"</{tag}>")
    contents = [piece.strip().split(f"<{tag}>") for piece in pieces]
    if end.strip() or not contents or any(len(parts) != 2 or parts[0] for parts in contents):
        return None
    return [parts[1].strip() for parts in contents]
