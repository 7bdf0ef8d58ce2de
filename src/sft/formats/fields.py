"""What a source calls its fields, which of its rows are wanted, and what to write where it does not fit.

Pure functions on raw objects: `lookup` reads a dotted path, `rename` gives fields the names that a format
knows, `is_wanted` compares a field with the values of `where`, and `advise` finds the lines of params.yaml
with which rows of unknown fields would be read.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sft import strict_json

Json = dict[str, Any]

# What a question and its answer are called, the likeliest name first.
QUESTIONS = ("prompt", "instruction", "question", "query", "problem", "input", "user")
ANSWERS = ("completion", "output", "response", "answer", "solution", "assistant")
# What some publish beside an instruction, and mean to be read with it; empty in many rows.
CONTEXTS = ("input", "context")
NESTED = 4  # levels down to which fields are looked at
SHOWN_CHARS = 500
KINDS = {str: "text", dict: "object", bool: "true or false", type(None): "null"}


def lookup(record: Json, path: str) -> Any:
    """Return a field by its name or its dotted path; None where it is not.

    >>> lookup({"data": {"turns": [1]}}, "data.turns"), lookup({"a.b": 2}, "a.b"), lookup({}, "a.b")
    ([1], 2, None)
    """
    if path in record:
        return record[path]
    value: Any = record
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def rename(record: Json, fields: Mapping[str, str]) -> Json:
    """Give the fields (ours -> theirs) the names that the format knows; a field that is not there is null.

    >>> rename({"id": 1, "chat": {"turns": []}}, {"messages": "chat.turns"})
    {'id': 1, 'chat': {'turns': []}, 'messages': []}
    """
    if not fields:
        return record
    return {**record, **{ours: lookup(record, theirs) for ours, theirs in fields.items()}}


def is_wanted(value: Any, wanted: Sequence[str]) -> bool:
    """Say whether a value, an item of a list, or a part of a text with commas is one of those wanted.

    >>> is_wanted("a, b", ["b"]), is_wanted(["a"], ["b"]), is_wanted(True, ["true"]), is_wanted(None, ["a"])
    (True, False, True, False)
    """
    if isinstance(value, list):
        return any(is_wanted(item, wanted) for item in value)
    if value is None:
        return False
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text in wanted or any(part.strip() in wanted for part in text.split(","))


def listed(record: Json) -> str:
    """Name the fields of a record and what they hold, for a message."""
    shown = ", ".join(f"{name} ({KINDS.get(type(value), type(value).__name__)})" for name, value in record.items())
    return shown[:SHOWN_CHARS] or "no fields"


def advise(records: Sequence[Json]) -> str:
    """Return the lines of params.yaml with which the first record that can be read is; empty if none can."""
    return next((lines for record in records if (lines := _advise(record))), "")


def _advise(record: Json) -> str:
    found = list(_paths(record))
    named = {path.rpartition(".")[2].lower(): path for path, value in reversed(found) if value}
    question, answer = (next((named[name] for name in names if name in named), "") for names in (QUESTIONS, ANSWERS))
    if question and isinstance(lookup(record, answer), str) and _is_question(lookup(record, question)):
        context = next((name for name in CONTEXTS if isinstance(record.get(name), str) and name != question), "")
        if context and isinstance(lookup(record, question), str) and "prompt" not in record:
            return _lines("alpaca", {"instruction": question, "input": context, "output": answer})
        return _lines("alpaca", {"prompt": question, "completion": answer})
    tools = next((path for path, value in found if _is_list_with(value, "function")), "tools")
    tools = next((path for path, value in found if _is_list_with(value, "name", "parameters")), tools)
    for path, value in found:
        if _is_list_with(value, "role"):
            return _lines("openai", {"messages": path, "tools": tools})
        if _is_list_with(value, "from", "value"):
            return _lines("sharegpt", {"conversations": path, "tools": tools})
    return ""


def _lines(format: str, fields: dict[str, str]) -> str:
    renamed = ", ".join(f"{ours}: {theirs}" for ours, theirs in fields.items() if ours != theirs)
    return f"  format: {format}" + (f"\n  fields: {{{renamed}}}" if renamed else "")


def _paths(record: Json, prefix: str = "", levels: int = NESTED) -> Iterator[tuple[str, Any]]:
    """Name every field, those of nested objects by dotted paths, the outer ones first."""
    for name, value in record.items():
        yield prefix + name, value
    for name, value in record.items():
        if isinstance(value, dict) and levels > 1:
            yield from _paths(value, f"{prefix}{name}.", levels - 1)


def _is_question(value: Any) -> bool:
    return isinstance(value, str) or _is_list_with(value, "role")


def _is_list_with(value: Any, *keys: str) -> bool:
    """Say whether a value is a list of objects, or the JSON text of one, that all have these keys."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = strict_json.parse(value)
        except ValueError:
            return False
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(item, dict) and all(key in item for key in keys) for item in value)
