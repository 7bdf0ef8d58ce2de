# ruff: noqa: RUF001, RUF002 (DeepSeek's tokens have a bar and blocks of their own)
"""Calls that answers have as text: in the markup that a family of models has for them, or without tags.

    <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>                      Hermes, Qwen
    <tool_call><function=f><parameter=a>1</parameter></function></tool_call>         Qwen 3 Coder, Nemotron 3
    <function=f>{"a": 1}</function>                                                  Llama 3.1
    <tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>             GLM 4.5
    <function_calls><invoke name="f"><parameter name="a">1</parameter></invoke></function_calls>    Claude, MiniMax M2
    <｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜>                      DeepSeek
    <|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{"a": 1}<|tool_call_end|>           Kimi K2
    [TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}], or after <functioncall>      Mistral, Glaive, Granite
    {"name": "f", "parameters": {"a": 1}} and nothing else, or in a fence            Llama 3
    [get_weather(city="Paris", days=2), now()]                                       ToolACE, Llama 3.2

Markup is read at the end of an answer, results between tags. Text that only speaks of these forms is left as it is.
"""

import contextlib
import re
from collections.abc import Iterable, Mapping, Set
from typing import Any, NamedTuple

from sft.formats.argument_text import typed_arguments
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
NO_SCHEMAS: Mapping[str, Any] = {}
SEP = r"(?:<｜tool▁sep｜>|<\|tool_call_argument_begin\|>)"
# What a call is in; what may be around calls: space, and tags; what begins one of both.
CALL = re.compile(
    r"<tool_call>\s*+(?!<)(?P<body>.*?)</tool_call>"
    r"|<function=(?P<function>[^<>\n]+)>(?P<inside>.*?)</function>"
    r'|<invoke name="(?P<invoke>[^"<>\n]+)">(?P<within>.*?)</invoke>'
    r"|(?:<｜tool▁call▁begin｜>|<\|tool_call_begin\|>)(?P<named>.*?)(?:<｜tool▁call▁end｜>|<\|tool_call_end\|>)",
    re.DOTALL,
)
OPEN = r"<(?:\w+:)?(?:tool_calls?|function_calls)>|<｜tool▁calls▁begin｜>|<\|tool_calls_section_begin\|>"
CLOSE = r"</(?:\w+:)?(?:tool_calls?|function_calls)>|<｜tool▁calls▁end｜>|<\|tool_calls_section_end\|>"
BETWEEN = re.compile(rf"\s+|(?P<open>{OPEN})|(?P<close>{CLOSE})")
MARKUP = re.compile(
    rf'{OPEN}|<function=(?=[^<>\n]+>)|<invoke name="|<｜tool▁call▁begin｜>|<\|tool_call_begin\|>|<｜DSML｜'
)
MAX_OPEN_TAGS = 2  # so that no text takes long
# What is before the name of a tool in a call, and not in a sentence: a tag, a quote, =, functions.
BEFORE_NAME = r"(?:[>=\[:\"']\s*+|\.)"
# Arguments; a name and JSON, as DeepSeek and Kimi have them.
PARAMETER = re.compile(
    r'\s*<parameter(?:=| name=")(?P<name>[^<>"\n]+)"?>\n?(?P<text>.*?)\n?</parameter>\s*'
    r"|\s*<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>\n?(?P<value>.*?)\n?</arg_value>\s*",
    re.DOTALL,
)
NAMED = re.compile(
    rf"\s*(?:function{SEP}|functions\.)?(?P<name>[^\s<]+?)(?::\d+)?\s*(?:{SEP}|\n)(?P<arguments>.*)", re.DOTALL
)
GLM_NAME = re.compile(r"[\w.-]+(?=\s|<|$)")


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


# In markup


class MarkedCalls(NamedTuple):
    """An answer that ends with calls."""

    before: str
    """The text before them."""
    calls: list[Any]


def split_calls(text: str, schemas: Mapping[str, Any] = NO_SCHEMAS) -> MarkedCalls | None:
    """Return the text before the calls at the end of an answer, and the calls; None if it does not end with calls.

    Args:  schemas: those of the tools by name, for arguments that are written without quotes.

    >>> split_calls('I look. <tool_call>{"name": "now", "arguments": {}}</tool_call>')
    MarkedCalls(before='I look.', calls=[{'name': 'now', 'arguments': {}}])
    """
    if (first := MARKUP.search(text)) is None or re.search(CLOSE, text[: first.start()]):
        return None
    place, end, calls, open_tags = first.start(), len(text.rstrip()), list[Any](), 0
    while place < end:
        if (call := CALL.match(text, place)) is not None:
            if (found := _calls_in(call, schemas)) is None:
                return None
            calls += found
            place = call.end()
        elif (tag := BETWEEN.match(text, place)) is not None:
            open_tags += (tag["open"] is not None) - (tag["close"] is not None)
            place = tag.end()
        else:
            return None
        if open_tags > MAX_OPEN_TAGS:
            return None
    if not calls or open_tags:
        return None
    return MarkedCalls(text[: first.start()].rstrip(), calls)


def find_markup(text: str, names: Iterable[str]) -> int | None:
    """Return where the markup of a call of one of some tools begins; None if there is none.

    >>> [find_markup(text, ["f"]) for text in ("So: <tool_call>f", "<function=f>", "So: <tool_call>", "f")]
    [4, 0, None, None]
    >>> find_markup("Models write <tool_call> before what f is given.", ["f"])
    """
    if (found := MARKUP.search(text)) is None:
        return None
    name = rf"{BEFORE_NAME}(?:{'|'.join(map(re.escape, names))})(?![\w-])"
    return found.start() if re.compile(name).search(text, found.end() - 1) else None


def split_results(text: str) -> list[str] | None:
    """Return the results in a text of nothing but <tool_response>...</tool_response>; None for other text.

    >>> split_results("<tool_response>1</tool_response> <tool_response>2</tool_response>"), split_results("1")
    (['1', '2'], None)
    """
    *pieces, end = text.split("</tool_response>")
    contents = [piece.strip().split("<tool_response>") for piece in pieces]
    if end.strip() or not contents or any(len(parts) != 2 or parts[0] for parts in contents):
        return None
    return [parts[1].strip() for parts in contents]


def _calls_in(found: re.Match[str], schemas: Mapping[str, Any]) -> list[Any] | None:
    """Return the calls in one element of markup; None if it is no call."""
    name, inside = found["function"] or found["invoke"], found["inside"] or found["within"] or ""
    if (body := found["body"]) is not None:
        if (calls := _json_calls(body)) is not None:
            return calls
        if (match := GLM_NAME.match(body)) is None:
            return None
        name, inside = match[0], body[match.end() :]
    elif (named := found["named"]) is not None:
        if (match := NAMED.fullmatch(named)) is None or (value := _json(match["arguments"])) is None:
            return None
        return [{"name": match["name"], "arguments": value}]
    if inside.lstrip().startswith("{"):
        value = _json(inside)
        return None if value is None else [{"name": name, "arguments": value}]
    texts = _texts(inside)
    return None if texts is None else [{"name": name, "arguments": typed_arguments(texts, schemas.get(name))}]


def _json_calls(text: str) -> list[Any] | None:
    """Return the calls that a text is in JSON, one or a list, perhaps in a fence of Markdown; None for other text."""
    value = _json(text)
    calls = value if isinstance(value, list) else [value]
    return (
        calls if calls and all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls) else None
    )


def _json(text: str) -> Any:
    """Return the value of JSON, perhaps in a fence of Markdown; None for other text."""
    try:
        return parse_text(unfenced(text))
    except ValueError:
        return None


def _texts(text: str) -> dict[str, str] | None:
    """Return the arguments in elements, a text each; None if there is another text, or one of them twice."""
    texts: dict[str, str] = {}
    place, end = 0, len(text.rstrip())
    while place < end:
        if (match := PARAMETER.match(text, place)) is None:
            return None
        name, value = (match["name"], match["text"]) if match["key"] is None else (match["key"].strip(), match["value"])
        if name in texts:
            return None
        texts[name], place = value, match.end()
    return texts
