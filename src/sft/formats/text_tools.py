"""Tools that the system message lists as text.

Between tags, as Hermes and Qwen have them; or as JSON after a sentence that says so, as ToolACE, Llama 3 and Glaive
have them, if the message says how calls are written or an answer calls one of them.
"""

import contextlib
import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

from sft import strict_json
from sft.conversation import Message
from sft.formats.json_text import PYTHON, parse_text, python_to_json
from sft.formats.not_read import NotRead
from sft.formats.spellings import PYTHON_TYPES
from sft.formats.text_calls import calls_one_of
from sft.formats.tools import read_tools, with_types

Json = dict[str, Any]
TAG = re.compile(r"</?tools?(?:_call|_response)?>")
SENTENCE_END = re.compile(r"[.!?:]\s+|\n+")
FORM_TEXT = "messages[].content: how to write calls, around the tools"  # counted as not read
# Where a list of tools may begin, how many of these places are tried, and what is between a sentence and the list.
LIST_START, MAX_STARTS = re.compile(r"""\[\s*\{|\{\s*["'](?:name|type|function)["']\s*:"""), 8
BEFORE_LIST = re.compile(r"[\s:.\-]*$")
# A line that says how calls are written: [func1(name=value), ...] or {"name": function name, ...}.
FORM_LINE = re.compile(
    r"""^.*(?:\[\s*func\w*\([\w ]+=|\{"name": function name|\b(?:no|any) other text\b).*$\n?""",
    re.MULTILINE | re.IGNORECASE,
)
BETWEEN = re.compile(r"[\s,]*")
DECODER = json.JSONDecoder()


def split_tools(turns: list[Message], not_read: NotRead) -> list[Json] | None:
    """Return the tools that the system message lists, and remove them from it; None if it lists none.

    With them goes what says how calls are written: the template of the model being trained says it in its own way.
    """
    for index, turn in enumerate(turns):
        if turn["role"] != "system":
            continue
        found = (
            _tagged_tools(turn["content"]) if "</tools>" in turn["content"] else _listed_tools(turns, turn["content"])
        )
        if found is None:
            continue
        tools = read_tools(found[0], not_read)
        not_read.add(FORM_TEXT)
        if found[1]:
            turn["content"] = found[1]
        else:
            del turns[index]
        return tools
    return None


def _tagged_tools(text: str) -> tuple[list[Any], str] | None:
    """Return the tools between tags, and the text without the sentences from the first to the last tag."""
    listed = (piece.rpartition("<tools>")[2].strip() for piece in text.split("</tools>")[:-1])
    if not (values := next((found for piece in listed if (found := _json_values(piece))), None)):
        return None
    tags = [tag.span() for tag in TAG.finditer(text)]
    starts = [end.end() for end in SENTENCE_END.finditer(text, 0, tags[0][0])]
    stop = SENTENCE_END.search(text, tags[-1][1])
    return values, _around(text, starts[-1] if starts else 0, stop.end() if stop else len(text))


def _listed_tools(turns: Sequence[Message], text: str) -> tuple[list[Any], str] | None:
    """Return tools in JSON, with JSON's names of types, and the text without them and the sentence before them."""
    if "parameters" not in text or (found := _find_list(text)) is None:
        return None
    values, begin, end = found
    names = {tool.get("function", tool)["name"] for tool in values}
    answers = (turn["content"] for turn in turns if turn["role"] == "assistant" and "tool_calls" not in turn)
    if not FORM_LINE.search(text) and not any(calls_one_of(answer, names) for answer in answers):
        return None
    introduced = BEFORE_LIST.search(text, 0, begin)
    sentence = introduced.start() if introduced else begin
    starts = [end.end() for end in SENTENCE_END.finditer(text, 0, sentence)]
    rest = _around(text, starts[-1] if starts else 0, end + len(text[end:]) - len(text[end:].lstrip(" .\n")))
    return with_types(values, PYTHON_TYPES), FORM_LINE.sub("", rest).strip()


def _find_list(text: str) -> tuple[list[Any], int, int] | None:
    """Return the first JSON in a text that is tools: in a list, or one after the other; and where it is."""
    for start in itertools.islice(LIST_START.finditer(text), MAX_STARTS):
        values, place, end = list[Any](), start.start(), start.start()
        with contextlib.suppress(ValueError, RecursionError):
            while text[place : place + 1] in ("[", "{"):
                _, stop = DECODER.raw_decode(text, place)
                value = strict_json.parse(text[place:stop])
                values, end = [*values, *(value if isinstance(value, list) else [value])], stop
                place = _skip(text, stop)
        if values and all(map(_is_tool, values)):
            return values, start.start(), end
    return None


def _is_tool(value: Any) -> bool:
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("parameters"), dict):
        return False
    return isinstance(function.get("name"), str) and function["name"] != ""


def _around(text: str, begin: int, end: int) -> str:
    """Return a text without what is between two places."""
    return (text[:begin].rstrip() + "\n\n" + text[end:].lstrip()).strip()


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
