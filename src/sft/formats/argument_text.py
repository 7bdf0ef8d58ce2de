"""Arguments that are written as text without quotes, as in calls of the form of XML, in the types of their schema."""

import json
from collections.abc import Mapping
from typing import Any, NoReturn

# The published template writes Python's words for these values.
PYTHON_WORDS = {"True": True, "False": False, "None": None}
# JSON's types other than strings. A whole float is an integer, a boolean is none.
NOT_TEXT = {"array": list, "boolean": bool, "integer": int, "null": type(None), "number": int | float, "object": dict}


def typed_arguments(texts: Mapping[str, str], schema: Any) -> dict[str, Any]:
    """Return arguments in types that the JSON schema of their function allows."""
    properties = _properties(schema)
    return {name: coerce(text, properties.get(name, {})) for name, text in texts.items()}


def coerce(text: str, schema: Any) -> Any:
    """Return the value of an argument in a type that its schema allows, else its text.

    A schema that allows strings only: the text. One that allows other types: the text as JSON, if that has one of
    them. One without types: the text as JSON, if it is JSON.

    >>> coerce("5", {"type": "integer"}), coerce("5", {"type": "string"}), coerce("five", {"type": "integer"})
    (5, '5', 'five')
    """
    types = _types(schema)
    if types == {"string"}:
        return text
    try:
        value = PYTHON_WORDS[text] if text in PYTHON_WORDS else json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        return text
    return value if not types or any(_is_type(value, name) for name in types & NOT_TEXT.keys()) else text


def _properties(schema: Any) -> Mapping[str, Any]:
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return properties if isinstance(properties, dict) else {}


def _types(schema: Any) -> set[str]:
    """Return the JSON types that a schema allows; none if it has no types."""
    if not isinstance(schema, dict):
        return set()
    if "type" in schema:
        named = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        return {name for name in named if isinstance(name, str)}
    if isinstance(schema.get("enum"), list) and all(isinstance(value, str) for value in schema["enum"]):
        return {"string"}
    lists = [schema[key] for key in ("anyOf", "oneOf") if isinstance(schema.get(key), list)]
    choices = [_types(choice) for listed in lists for choice in listed]
    return set().union(*choices) if all(choices) else set()


def _is_type(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, NOT_TEXT[name]) or (name == "integer" and isinstance(value, float) and value.is_integer())


def _reject_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")
