"""JSON that a field of a row holds as text, and the literals of Python that some data sets have in its place."""

import ast
import json
import re
import warnings
from typing import Any

from sft import strict_json

PYTHON = re.compile(r"'|\b(?:True|False|None)\b")
MAX_LITERAL_CHARS = 100_000  # Python's parser takes about a hundred times as many bytes


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

    Raises:  ValueError: neither; the message is that of JSON.

    >>> parse_text('{"a": true}'), parse_text("{'a': True, 'b': None}")
    ({'a': True}, {'a': True, 'b': None})
    """
    try:
        return strict_json.parse(text)
    except ValueError:
        if PYTHON.search(text) and len(text) <= MAX_LITERAL_CHARS and text.lstrip()[:1] in ("{", "["):
            try:
                return _python_literal(text)
            except (ValueError, TypeError, SyntaxError, Warning, RecursionError, MemoryError):
                pass
        raise


def _python_literal(text: str) -> Any:
    """Return the value of a literal of Python that JSON can hold, under the limits of strict_json."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an escape that Python does not know
        tree = ast.parse(text.strip(), mode="eval")
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            keys = [key.value for key in node.keys if isinstance(key, ast.Constant) and type(key.value) is str]
            if len(set(keys)) < len(node.keys):
                raise ValueError("a key twice, or one that is no text")
        elif isinstance(node, ast.Tuple | ast.Set):
            raise ValueError("JSON has neither tuples nor sets")
    return strict_json.parse(json.dumps(ast.literal_eval(tree), allow_nan=False))
