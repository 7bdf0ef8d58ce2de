"""Fields of raw objects: look them up, rename them, select rows by their values, suggest what `read` should be."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sft.formats.json_text import parsed_or_same
from sft.formats.not_read import says_something
from sft.formats.other_shapes import other_shape
from sft.formats.responses import answer_messages
from sft.formats.spellings import (
    ANSWERS,
    CHAT_COLUMNS,
    REASONING_COLUMNS,
    SYSTEM_COLUMNS,
    has_speaker,
    role_of,
    speaker_of,
    unwrapped,
)
from sft.formats.turn_lists import has_turns

Json = dict[str, Any]

# Names for a question, the likeliest first.
QUESTIONS = ("prompt", "instruction", "question", "query", "problem", "input", "user")
# Names for a response of an API; the words of a request's path -> those of its response.
RESPONSES = ("response_body", "outputs", "result", "generation", "choices", "preferred_output")
REQUEST_WORDS = (("input", "output"), ("request", "response"), ("prompt", "completion"))
# Columns of preference data: the better and the worse of two answers.
PREFERENCE = ("chosen", "rejected")
CONVERSATIONS = {"messages": "openai", "conversations": "sharegpt"}
# Names for a conversation that may be a list of pairs or of texts.
TURN_LISTS = (*CHAT_COLUMNS, "data")
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
    parts = path.split(".")
    for end in range(1, len(parts)):
        inner = record.get(".".join(parts[:end]))
        if isinstance(inner, dict) and (value := lookup(inner, ".".join(parts[end:]))) is not None:
            return value
    return None


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


class Suggestion(NamedTuple):
    """A way to read a record: a format, and the names of its fields in the source (ours -> theirs)."""

    format: str
    fields: tuple[tuple[str, str], ...]

    def line(self) -> str:
        """Return the line of params.yaml."""
        renamed = ", ".join(f"{ours}: {theirs}" for ours, theirs in self.fields)
        return f"  read: {{format: {self.format}, fields: {{{renamed}}}}}" if renamed else f"  read: {self.format}"


def merged(records: Iterable[Json]) -> Json:
    """Return a record with every field of some records, with the first value that is not empty.

    >>> merged([{"a": None, "b": 1}, {"a": 2, "b": 3}])
    {'a': 2, 'b': 1}
    """
    record: Json = {}
    for each in records:
        for name, value in each.items():
            if name not in record or not says_something(record[name]):
                record[name] = value
    return record


def suggest_read(record: Json) -> Suggestion | None:
    """Return how a record can be read; None if no field holds messages, or a question and its answer."""
    if other_shape(record):
        return None
    paths = list(_paths(record))
    if (suggestion := _suggest_log(paths)) is not None:
        return suggestion
    for name, format in CONVERSATIONS.items():
        value = record.get(name)
        if _is_list_with(value, "from") or (format == "openai" and _is_conversation(value, "role")):
            return _suggestion(format, {**_system(paths), "tools": _tools(paths)})
    if (suggestion := _suggest_question(record, paths)) is not None:
        return suggestion
    for path, value in paths:
        if not isinstance(value, dict) and _is_conversation(value, "role"):
            return _suggestion("openai", {"messages": path, **_system(paths), "tools": _tools(paths)})
        if _is_list_with(value, "from", "value"):
            return _suggestion("sharegpt", {"conversations": path, **_system(paths), "tools": _tools(paths)})
        if _is_turn_list(path, value, record):
            return _suggestion("sharegpt", {"conversations": path, **_system(paths), "tools": _tools(paths)})
    return None


def _suggest_log(paths: list[tuple[str, Any]]) -> Suggestion | None:
    """Return how to read messages that end with a question, if another field has its answer: a log of an API."""
    for path, value in paths:
        if not isinstance(value, dict) and _ends_with_question(value):
            inside = _folder(path)
            others = [
                other
                for other, answer in paths
                if other != path and not (inside and other.startswith(inside)) and _is_answer(answer)
            ]
            names = {other.rpartition(".")[2].lower(): other for other in reversed(others)}
            likely = [path.replace(*pair) for pair in REQUEST_WORDS]
            likely += [names[name] for name in (*ANSWERS, *RESPONSES) if name in names]
            if answer := next((other for other in likely if other in others), ""):
                fields = {"prompt": path, "completion": answer, **_system(paths, path), "tools": _tools(paths)}
                return _suggestion("alpaca", fields)
    return None


def _folder(path: str) -> str:
    """Return what the paths beside a field begin with.

    >>> _folder("request.body.messages"), _folder("messages")
    ('request.body.', '')
    """
    return path[: path.rfind(".") + 1]


def _is_answer(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else bool(answer_messages(value))


def _is_turn_list(path: str, value: Any, record: Json) -> bool:
    """Return whether a field holds turns without roles.

    `data` is a name of many things: texts in it are turns only in a row of UltraChat, which has nothing else.
    """
    name, turns = path.rpartition(".")[2], parsed_or_same(value, "[")
    if name not in TURN_LISTS or not has_turns(turns):
        return False
    return name != "data" or type(turns[0]) is not str or record.keys() <= {"id", "data"}


def _suggest_question(record: Json, paths: list[tuple[str, Any]]) -> Suggestion | None:
    named = {path.rpartition(".")[2].lower(): path for path, value in reversed(paths) if value}
    question, answer = (next((named[name] for name in names if name in named), "") for names in (QUESTIONS, ANSWERS))
    calls = next((path for path, value in paths if _is_list_with(value, "name", "arguments")), "")
    if not question or not _is_question(lookup(record, question)):
        return None
    fields = {**_system(paths), "tools": _tools(paths)}
    thought = next(
        (named[name] for name in REASONING_COLUMNS if name in named and _is_thought(lookup(record, named[name]))), ""
    )
    if thought:
        fields["reasoning_content"] = thought
    if isinstance(lookup(record, answer), str) or _is_conversation(lookup(record, answer), "role"):
        context = next((name for name in CONTEXTS if isinstance(record.get(name), str) and name != question), "")
        has_own_pair = "prompt" in record and ("completion" in record or "calls" in record)  # which is read first
        if context and isinstance(lookup(record, question), str) and not has_own_pair:
            return _suggestion("alpaca", {"instruction": question, "input": context, "output": answer, **fields})
        return _suggestion("alpaca", {"prompt": question, "completion": answer, **fields})
    return _suggestion("alpaca", {"prompt": question, "calls": calls, **fields}) if calls else None


def _suggestion(format: str, fields: dict[str, str]) -> Suggestion:
    return Suggestion(format, tuple((ours, theirs) for ours, theirs in fields.items() if ours != theirs))


def _system(paths: list[tuple[str, Any]], beside: str = "") -> dict[str, str]:
    """Return the path of a system message: beside a field, or of the row."""
    given = {path for path, value in paths if says_something(value)}
    folders = [beside[: dot + 1] for dot in range(len(beside) - 1, -1, -1) if beside[dot] == "."]  # the nearest first
    names = [*SYSTEM_COLUMNS, "instructions"] if beside.rpartition(".")[2] == "input" else SYSTEM_COLUMNS
    paths_of = (folder + name for name in names for folder in (*folders, ""))
    return next(({"system": path} for path in paths_of if path in given), {})


def _tools(paths: list[tuple[str, Any]]) -> str:
    """Return the path of the tools; their usual name if there are none."""
    tools = next((path for path, value in paths if _is_list_with(value, "function")), "tools")
    return next((path for path, value in paths if _is_list_with(value, "name", "parameters")), tools)


def _paths(record: Json, prefix: str = "", levels: int = MAX_LEVELS) -> Iterator[tuple[str, Any]]:
    """Yield dotted path and value of every field, the outer ones first."""
    for name, value in record.items():
        yield prefix + name, value
    for name, value in record.items():
        if isinstance(value, dict) and levels > 1:
            yield from _paths(value, f"{prefix}{name}.", levels - 1)


def _is_question(value: Any) -> bool:
    return isinstance(value, str) or _is_conversation(value, "role")


def _is_thought(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return all(isinstance(text, str) for text in texts) and any(" " in text for text in texts)


def _is_conversation(value: Any, key: str) -> bool:
    """Return whether a value is a list of messages, of OpenAI's or Responses items if the key is role."""
    value = [value] if isinstance(value, dict) else value
    if _is_list_with(value, key):
        return True
    items = value if isinstance(value, list) else []
    are_messages = all(isinstance(item, dict) and has_speaker(unwrapped(item)) for item in items)
    return key == "role" and bool(items) and are_messages


def _ends_with_question(value: Any) -> bool:
    """Return whether a value is a conversation whose last message is the user's: another field has the answer."""
    if not _is_conversation(value, "role") and not _is_list_with(value, "from", "value"):
        return False
    last = parsed_or_same(parsed_or_same(value, "[")[-1], "{")
    return role_of(speaker_of(unwrapped(last))) == "user"


def _is_list_with(value: Any, *keys: str) -> bool:
    """Return whether a value is a list, or the JSON text of one, of objects that all have these keys."""
    value = parsed_or_same(value, "[")
    if not isinstance(value, list) or not value:
        return False
    items = (parsed_or_same(item, "{") for item in value)
    return all(isinstance(item, dict) and all(key in item for key in keys) for item in items)
