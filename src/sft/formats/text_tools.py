"""Tools that the system message lists as text.

Between tags, as Hermes and Qwen have them; or as JSON after a sentence that says so, as ToolACE, Llama 3 and Glaive
have them, if the message says how calls are written or an answer calls one of them.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
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
# Where a list of tools may begin, and how many of these places are tried; what follows a part of a longer list.
LIST_START, MAX_STARTS = re.compile(r"""\[\s*\{|\{\s*["'](?:name|description|parameters|type|function)["']\s*:"""), 16
PART_END = re.compile(r"""\s*(?:[\]}]|,\s*[\[{"'])""")
# What is between a sentence and the list, and around it: a fence of Markdown, or tags.
BEFORE_LIST, TOOL_WORD = " \t\r\n:.-", re.compile(r"\b(?:functions?|tools?|apis?)\b", re.IGNORECASE)
OPENING, CLOSING = re.compile(r"(?:```\w*|<[\w-]+>)$"), re.compile(r"\s*(?:```|</[\w-]+>)")
# How calls are written: [func1(name=value), ...] or {"name": function name, ...}; and that an answer has nothing else.
CALL_FORM = re.compile(r"""\[\s*func\w*\([\w ]+=|\{"name": function name""", re.IGNORECASE)
NOTHING_ELSE = re.compile(r"\b(?:no|any) other text\b|\bdecide to return the function call", re.IGNORECASE)
SENTENCE = re.compile(r".+?(?:[.!?](?=\s)|$)\s*", re.MULTILINE)
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
    if "parameters" not in text or not (lists := list(_find_lists(text))):
        return None
    values = [value for found, _, _ in lists for value in found]
    names = {_function(tool)["name"] for tool in values}
    answers = (turn["content"] for turn in turns if turn["role"] == "assistant" and "tool_calls" not in turn)
    says_how = CALL_FORM.search(text) is not None
    if not says_how and not any(calls_one_of(answer, names) for answer in answers):
        return None
    for _, begin, end in reversed(lists):
        text = _without_list(text, begin, end)
    return with_types(values, PYTHON_TYPES), _without_forms(text) if says_how else text


def _find_lists(text: str) -> Iterator[tuple[list[Any], int, int]]:
    """Yield JSON in a text that is tools, in lists or one after the other, and where it is. No part of other JSON."""
    place = 0
    for _ in range(MAX_STARTS):
        if (start := LIST_START.search(text, place)) is None:
            return
        values, begin, end = list[Any](), start.start(), start.start()
        place = begin + 1  # not JSON: what is in it may be
        with contextlib.suppress(ValueError, RecursionError):
            while text[begin : begin + 1] in ("[", "{"):
                _, stop = DECODER.raw_decode(text, begin)
                value = strict_json.parse(text[begin:stop])
                place = max(place, stop)
                items = value if isinstance(value, list) else [value]
                if not items or not all(map(_may_be_tool, items)):
                    break
                values, end = [*values, *items], stop
                begin = _skip(text, stop)
        if any(map(_is_tool, values)) and PART_END.match(text, end) is None:
            yield values, start.start(), end


def _function(tool: Json) -> Json:
    function: Json = tool["function"] if isinstance(tool.get("function"), dict) else tool
    return function


def _may_be_tool(value: Any) -> bool:
    """Return whether a value may be a tool: a name, and a schema of parameters or none. An example of a call is not."""
    if not isinstance(value, dict):
        return False
    function = _function(value)
    name, parameters = function.get("name"), function.get("parameters", {})
    if not isinstance(name, str) or not name or "arguments" in function or not isinstance(parameters, dict):
        return False
    return not parameters or _is_schema(parameters)


def _is_tool(value: Json) -> bool:
    """Return whether what may be a tool has parameters, or says what it does."""
    function = _function(value)
    return "parameters" in function and (function["parameters"] != {} or "description" in function)


def _is_schema(parameters: Json) -> bool:
    """Return whether parameters are a JSON schema, or described by name."""
    if isinstance(parameters.get("properties"), dict) or parameters.get("type") in ("object", "dict"):
        return True
    words = ("type", "param_type", "description")
    return all(isinstance(value, dict) and any(word in value for word in words) for value in parameters.values())


def _without_list(text: str, begin: int, end: int) -> str:
    """Return a text without a list, what is around it, and the sentence that introduces it."""
    opening, closing = OPENING.search(text[:begin].rstrip()[-40:]), CLOSING.match(text, end)
    if opening and closing:
        begin, end = len(text[:begin].rstrip()) - len(opening[0]), closing.end()
    sentence = len(text[:begin].rstrip(BEFORE_LIST))
    start = max((stop.end() for stop in SENTENCE_END.finditer(text, 0, sentence)), default=0)
    introduces = text[:begin].rstrip().endswith((":", "-")) or TOOL_WORD.search(text, start, sentence)
    return _around(text, start if introduces else begin, end + len(text[end:]) - len(text[end:].lstrip(" .\n")))


def _without_forms(text: str) -> str:
    """Return a text without the sentences that say how calls are written."""
    kept = ""
    for sentence in SENTENCE.finditer(text):
        if not CALL_FORM.search(sentence[0]) and not NOTHING_ELSE.search(sentence[0]):
            kept += sentence[0]
        elif "\n" in sentence[0] and not kept.endswith("\n"):
            kept = kept.rstrip() + "\n"
    return kept.strip()


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
