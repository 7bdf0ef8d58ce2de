"""Fields of raw objects: look them up, rename them, select rows by their values, suggest what `read` should be."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sft import strict_json

Json = dict[str, Any]

# Names for a question and for its answer, the likeliest first.
QUESTIONS = ("prompt", "instruction", "question", "query", "problem", "input", "user")
ANSWERS = ("completion", "output", "response", "answer", "solution", "assistant")
# Names for a text that belongs to an instruction; it is empty in many rows.
CONTEXTS = ("input", "context")
MAX_LEVELS = 4  # of nested fields
SHOWN_CHARS = 500
KINDS = {str: "text", dict: "object", bool: "true or false", type(None): "null"}


def lookup(record: Json, path: str) -> Any:
    """Return a field by its name or its dotted path; None if it is missing.

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
    """Return the record with fields under our names (ours -> theirs); a missing field is None.

    >>> rename({"id": 1, "chat": {"turns": []}}, {"messages": "chat.turns"})
    {'id': 1, 'chat': {'turns': []}, 'messages': []}
    """
    if not fields:
        return record
    return {**record, **{ours: lookup(record, theirs) for ours, theirs in fields.items()}}


def is_selected(value: Any, accepted: Sequence[str]) -> bool:
    """Return whether a value, an item of a list, or a part of a text with commas is one of the accepted values.

    >>> is_selected("a, b", ["b"]), is_selected(["a"], ["b"]), is_selected(True, ["true"]), is_selected(None, ["a"])
    (True, False, True, False)
    """
    if isinstance(value, list):
        return any(is_selected(item, accepted) for item in value)
    if value is None:
        return False
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text in accepted or any(part.strip() in accepted for part in text.split(","))


def listed(record: Json) -> str:
    """List the fields of a record and their types, for a message."""
    shown = ", ".join(f"{name} ({KINDS.get(type(value), type(value).__name__)})" for name, value in record.items())
    return shown[:SHOWN_CHARS] or "no fields"


def suggest_read(records: Sequence[Json]) -> str:
    """Return the line of params.yaml that would read the first readable record; empty if there is none."""
    return next((line for record in records if (line := _suggest_read(record))), "")


def _suggest_read(record: Json) -> str:
    paths = list(_paths(record))
    named = {path.rpartition(".")[2].lower(): path for path, value in reversed(paths) if value}
    question, answer = (next((named[name] for name in names if name in named), "") for names in (QUESTIONS, ANSWERS))
    if question and isinstance(lookup(record, answer), str) and _is_question(lookup(record, question)):
        context = next((name for name in CONTEXTS if isinstance(record.get(name), str) and name != question), "")
        if context and isinstance(lookup(record, question), str) and "prompt" not in record:
            return _read_line("alpaca", {"instruction": question, "input": context, "output": answer})
        return _read_line("alpaca", {"prompt": question, "completion": answer})
    tools = next((path for path, value in paths if _is_list_with(value, "function")), "tools")
    tools = next((path for path, value in paths if _is_list_with(value, "name", "parameters")), tools)
    for path, value in paths:
        if _is_list_with(value, "role"):
            return _read_line("openai", {"messages": path, "tools": tools})
        if _is_list_with(value, "from", "value"):
            return _read_line("sharegpt", {"conversations": path, "tools": tools})
    return ""


def _read_line(format: str, fields: dict[str, str]) -> str:
    renamed = ", ".join(f"{ours}: {theirs}" for ours, theirs in fields.items() if ours != theirs)
    return f"  read: {{format: {format}, fields: {{{renamed}}}}}" if renamed else f"  read: {format}"


def _paths(record: Json, prefix: str = "", levels: int = MAX_LEVELS) -> Iterator[tuple[str, Any]]:
    """Yield dotted path and value of every field, the outer ones first."""
    for name, value in record.items():
        yield prefix + name, value
    for name, value in record.items():
        if isinstance(value, dict) and levels > 1:
            yield from _paths(value, f"{prefix}{name}.", levels - 1)


def _is_question(value: Any) -> bool:
    return isinstance(value, str) or _is_list_with(value, "role")


def _is_list_with(value: Any, *keys: str) -> bool:
    """Return whether a value is a list, or the JSON text of one, of objects that all have these keys."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = strict_json.parse(value)
        except ValueError:
            return False
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(item, dict) and all(key in item for key in keys) for item in value)
