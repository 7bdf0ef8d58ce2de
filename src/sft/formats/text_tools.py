"""Tools that the system message lists as text between tags, as the Hermes and Qwen data sets have them."""

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
