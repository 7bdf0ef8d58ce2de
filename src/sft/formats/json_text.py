"""JSON that a field of a row holds as text, and the literals of Python that some data sets have in its place."""

import ast
import json
import re
import warnings
from typing import Any

from sft import strict_json

STARTS = ("{", "[")
PYTHON = re.compile(r"'|\b(?:True|False|None)\b")
WORDS = {"True": "true", "False": "false", "None": "null"}
# A text in quotes; space; a word or a number; a bracket, comma or colon. Possessive, so that no text takes long.
TOKEN = re.compile(
    r"""(?P<text>u?(?:'[^'\\\n\r]*+(?:\\.[^'\\\n\r]*+)*+'|"[^"\\\n\r]*+(?:\\.[^"\\\n\r]*+)*+"))"""
    r"|\s++|(?P<word>[-+.\w]++)|(?P<close>[\]}])|[\[{,:]"
)
NUMBER = re.compile(r"-?\d[-+.\deE]*")


def parsed_or_same(value: Any, starts: str = "{[") -> Any:
    """Return what a text is as JSON, if it begins with one of some characters and is JSON; any other value as it is.

    >>> parsed_or_same(' {"a": 1}'), parsed_or_same("{a"), parsed_or_same("[1]", "{"), parsed_or_same(3)
    ({'a': 1}, '{a', '[1]', 3)
    """
    if type(value) is str and value.lstrip()[:1] in starts and value.strip():
        try:
            return parse_text(value)
        except ValueError:
            return value
    return value


def parse_text(text: str) -> Any:
    """Return the value of a text: of JSON or, if it has single quotes or Python's words, of a literal of Python.

    `None` alone is null: what Python writes for a field that is not there.

    Raises:  ValueError: neither; the message says why it is not the one and not the other.

    >>> parse_text('{"a": true}'), parse_text("{'a': True, 'b': None}")
    ({'a': True}, {'a': True, 'b': None})
    """
    try:
        return strict_json.parse(text)
    except ValueError as error:
        if text.strip() == "None":
            return None
        if not text.lstrip().startswith(STARTS) or not PYTHON.search(text):
            raise
        try:
            return strict_json.parse(python_to_json(text))
        except ValueError as fault:
            raise ValueError(f"not JSON: {error}; not a literal of Python: {fault}") from None


def python_to_json(text: str) -> str:
    """Return literals of Python as JSON: texts get its quotes, words its names, and a comma before a bracket goes.

    What JSON has no word for stays as it is, so that a reader of JSON finds it: two texts in a row, a key twice.

    Raises:  ValueError: a tuple, a comment, a call, or an escape that Python does not know.

    >>> python_to_json("{'a': [True, 'it\\\\'s',]}")
    '{"a":[true,"it\\'s"]}'
    """
    pieces, place = list[str](), 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an escape that Python does not know
        while place < len(text):
            if (token := TOKEN.match(text, place)) is None:
                raise ValueError(f"{text[place : place + 20]!r} at character {place}")
            place = token.end()
            if (quoted := token["text"]) is not None:
                pieces.append(json.dumps(_unquoted(quoted)))
            elif (word := token["word"]) is not None:
                if word not in WORDS and not NUMBER.fullmatch(word):
                    raise ValueError(f"{word[:20]!r} at character {token.start()}")
                pieces.append(WORDS.get(word, word))
            elif token["close"] and pieces[-1:] == [","] and pieces[-2:-1] not in (["["], ["{"], [","], [":"]):
                pieces[-1] = token[0]
            elif not token[0].isspace():
                pieces.append(token[0])
            elif pieces[-1:] and pieces[-1][-1] not in "[{,:":
                pieces.append(" ")
    return "".join(pieces)


def _unquoted(quoted: str) -> str:
    """Return the text that Python has in quotes. Raises ValueError: an escape that it does not know."""
    if "\\" not in quoted:
        return quoted[2:-1] if quoted[0] == "u" else quoted[1:-1]
    try:
        return str(ast.literal_eval(quoted))
    except (SyntaxError, SyntaxWarning, DeprecationWarning, ValueError):
        raise ValueError(f"an escape that Python does not know in {quoted[:40]}") from None
