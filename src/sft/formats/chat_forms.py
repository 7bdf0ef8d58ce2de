"""The formats of a source (`read.format` in params.yaml): raw files to records in OpenAI form.

`select_rows` and `convert_chats` turn the rows of sft.formats.raw_files into rows with a record (messages, tools, meta)
or with a fault and the text of the row. A bad row never raises, so that the filter stage can count it. A valid record
that must not be trained on has its reason in `meta["refuse"]`.

openai, sharegpt and alpaca read any source: `fields` gives the names that its fields have there, `select` the values
that a field must have. The other formats (PACKAGES) read the files of one published package, as sft.formats.demo
describes.
"""

import contextlib
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sft.cli import InputError
from sft.conversation import excerpt
from sft.formats.demo.bfcl import bfcl
from sft.formats.demo.champ import champ
from sft.formats.demo.django_po import django_po
from sft.formats.demo.human_eval import human_eval
from sft.formats.demo.nemo_gym import nemo_gym
from sft.formats.fields import PREFERENCE, SHOWN_CHARS, is_selected, listed, lookup, merged, suggest_read
from sft.formats.json_text import parse_text, parsed_or_same
from sft.formats.not_read import says_something
from sft.formats.other_shapes import other_shape
from sft.formats.raw_files import Json, Row
from sft.formats.records import ChatRow, as_messages, question_and_answer
from sft.formats.responses import answer_messages
from sft.formats.spellings import SYSTEM_COLUMNS, TOOLS_COLUMNS, has_speaker, role_of
from sft.formats.turn_lists import messages_of_turns

SHAPE_ERRORS = (KeyError, TypeError, ValueError, AttributeError, IndexError)  # of an object of another shape
MESSAGE_TEXT = re.compile("""["']role["']""")
PARTS_TEXT = re.compile(r"""\s*\[\s*\{\s*["']type["']\s*:\s*["']text["']""")
AUTO = "auto"  # sft.formats.detect finds the format
KEPT_ROWS = 20  # rows without the fields of their format, kept to suggest what `read` should be

Fields = Mapping[str, str]
Selection = Mapping[str, Sequence[str]]


def check_read(format: str, fields: Fields, select: Selection) -> None:
    """Raise InputError if a format is unknown, or has no such field as `fields` names."""
    if format in PACKAGES and (fields or select):
        raise InputError(f"read: format {format!r} reads one package as it is. Remove fields and select.")
    if format in PACKAGES:
        return
    if format == AUTO and fields.keys() <= {GROUP}:
        return
    if format == AUTO:
        raise InputError(
            f"read: format {AUTO!r} finds the fields itself, but {GROUP}. Remove read.fields, or name the format."
        )
    if format not in TO_RECORD:
        raise InputError(f"read: format {format!r} is unknown. {_nearest(format, FORMATS)}Known: {', '.join(FORMATS)}.")
    for name in fields:
        if name not in (known := (*FIELDS[format], GROUP)):
            raise InputError(
                f"read.fields: format {format!r} has no field {name!r}. {_nearest(name, known)}"
                f"It has: {', '.join(known)}. Write {{our name: name in the source}}."
            )


@dataclass
class FieldCounts:
    """How many rows of a part of a source, or of all of it, have the fields that `read` names."""

    with_fields: int = 0
    """Selected rows with the fields of the format."""
    with_group: int = 0
    """Of them, rows with a value in the column of `fields: {group: ...}`."""
    not_selected: int = 0
    """Rows with other values than `select` accepts."""
    unseen_select: set[str] = field(default_factory=set)
    """Fields of `select` that no row has."""
    without_fields: list[Sequence[Any]] = field(default_factory=list)
    """[location, object] of the first selected rows without the fields of the format."""

    def add(self, later: "FieldCounts") -> None:
        """Add the counts of the rows that follow."""
        self.with_fields += later.with_fields
        self.with_group += later.with_group
        self.not_selected += later.not_selected
        self.unseen_select &= later.unseen_select
        self.without_fields = (self.without_fields + later.without_fields)[:KEPT_ROWS]

    def check(self, format: str, fields: Fields) -> None:
        """Raise InputError if no row has the fields."""
        if self.unseen_select and self.not_selected and not self.with_fields and not self.without_fields:
            names = ", ".join(sorted(self.unseen_select))
            raise InputError(f"read.select: no row has the field {names}, so none is selected. Correct or remove it.")
        if self.without_fields and not self.with_fields:
            raise InputError(_no_row_fits(format, fields, self.without_fields))
        if GROUP in fields and self.with_fields and not self.with_group:
            raise InputError(f"read.fields: group: no row has {fields[GROUP]!r}. Correct or remove it.")


def select_rows(rows: Iterable[Row], select: Selection, counts: FieldCounts) -> Iterator[Row]:
    """Yield the rows with accepted values, and those that cannot be read. Counts the others."""
    for row in rows:
        if row.record is not None:
            values = {path: lookup(row.record, path) for path in select}
            counts.unseen_select -= {path for path, value in values.items() if value is not None}
            if not all(is_selected(value, select[path]) for path, value in values.items()):
                counts.not_selected += 1
                continue
        yield row


def convert_chats(
    rows: Iterable[Row], format: str, fields: Fields, select: Selection, counts: FieldCounts
) -> Iterator[Row]:
    """Yield selected rows with records instead of objects: renamed, converted. Updates `counts`."""
    return (row if row.record is None else _to_chat(row, format, fields, select, counts) for row in rows)


def _to_chat(row: Row, format: str, fields: Fields, select: Selection, counts: FieldCounts) -> Row:
    """Return a row with a record instead of its object, or with a fault."""
    assert row.record is not None
    columns = Columns(row.record, fields, select)
    if not any([columns.has(*names) for names in REQUIRED[format]]):
        if len(counts.without_fields) < KEPT_ROWS:
            counts.without_fields.append((row.location, row.record))
        fault = other_shape(row.record) or f"no field {_required(format)}; the row has {listed(row.record)}"
        return replace(row, record=None, fault=fault)
    counts.with_fields += 1
    try:
        record = TO_RECORD[format](columns)
    except SHAPE_ERRORS as error:
        return replace(row, record=None, fault=f"not of this format: {error}")
    group = fields.get(GROUP)
    read = columns.read | ({group} if group else set())
    chat = ChatRow(row.location, record, columns=row.record, columns_read=read, group_column=group, size=row.size)
    counts.with_group += chat.group is not None
    return chat


def _no_row_fits(format: str, fields: Fields, rows: Sequence[Sequence[Any]]) -> str:
    records = [record for _, record in rows]
    absent = [
        f"fields: {ours}: no row has {theirs!r}. "
        for ours, theirs in fields.items()
        if all(lookup(record, theirs) is None for record in records)
    ]
    values = merged(records)
    return (
        f"{rows[0][0]}: no row has what format {format!r} reads: {_required(format)}. {''.join(absent)}"
        f"Fields found: {listed(dict(sorted(values.items())))}. {_advice(values)}"
    )


def _advice(record: Json) -> str:
    """Return what to write in params.yaml to read a record, and which of its columns are not read then."""
    preference = ""
    if all(name in record for name in PREFERENCE):
        preference = "This is preference data: pairs of answers. Here only one can be trained, the chosen one. "
    if shape := other_shape(record):
        return f"{preference}A row is {shape}."
    suggestion = suggest_read(record)
    if suggestion is None:
        return (
            f"{preference}No field holds messages, or a question and its answer. Name them under read: "
            "fields: {our name: name in the source}."
        )
    columns = Columns(record, dict(suggestion.fields))
    with contextlib.suppress(*SHAPE_ERRORS):
        TO_RECORD[suggestion.format](columns)
    parts = {path.partition(".")[0] for path in columns.read} | columns.read
    others = [name for name, value in record.items() if name not in parts and says_something(value)]
    more = f"\nThen not read: {', '.join(sorted(others))[:SHOWN_CHARS]}." if others else ""
    return f"{preference}In params.yaml, under this source, write:\n{suggestion.line()}{more}"


def _required(format: str) -> str:
    return " or ".join(" and ".join(names) for names in REQUIRED[format])


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]!r}? " if near else ""


# Objects to records


class Columns:
    """The columns of a row by our names for them; `read` has the names, or dotted paths, of those that were read."""

    def __init__(self, row: Json, fields: Fields, read: Iterable[str] = ()) -> None:
        self._row, self._fields, self.read = row, fields, set(read)

    def has(self, *names: str) -> bool:
        """Return whether a row has some columns, be they empty."""
        for name in names:
            if self._row.get(name) is None if name not in self._fields else self._lookup(name) is None:
                return False
        return True

    def get(self, *names: str) -> Any:
        """Return the first of some columns that has a value; of the first name alone if `fields` says where it is."""
        empty = None
        for name in names if names[0] not in self._fields else names[:1]:
            value = self._row.get(name) if name not in self._fields else self._lookup(name)
            if value is None:
                continue
            if says_something(value):
                self.read.add(self._fields.get(name, name))
                return value
            empty = value
        return empty

    def _lookup(self, name: str) -> Any:
        return lookup(self._row, self._fields[name])

    def decoded(self, *names: str) -> Any:
        """Return the same, or what it holds as JSON text."""
        value = self.get(*names)
        return parse_text(value) if type(value) is str and value.strip() else value


def _openai(columns: Columns) -> Json:
    """`messages` in any form that sft.formats.messages reads, and `tools`."""
    return _with_system(columns, columns.decoded("messages"))


def _sharegpt(columns: Columns) -> Json:
    """The same under its ShareGPT name, `conversations`, or a list without roles (sft.formats.turn_lists)."""
    return _with_system(columns, messages_of_turns(columns.decoded("conversations")))


def _alpaca(columns: Columns) -> Json:
    """A question and its answer: texts, or lists of messages, of which the answer alone is trained."""
    if columns.has("prompt", "completion") or columns.has("prompt", "calls"):
        question, answer = columns.get("prompt"), columns.get("completion")
    elif columns.has("instruction", "output"):
        question, answer = columns.get("instruction"), columns.get("output")
        question = "\n\n".join(part for part in (question, columns.get("input")) if part)
    else:
        question, answer = columns.get("input"), columns.get("output")
    earlier = []
    for item in columns.decoded("history") or []:
        if type(item) is dict and has_speaker(item):
            earlier.append(item)
        elif type(item) is list and len(item) == 2:
            earlier += question_and_answer(*item)
        else:
            raise ValueError(f"history: expected [[question, answer], ...] or messages, found {excerpt(item)}")
    asked = _messages("user", question)
    turn = {"reasoning_content": columns.get("reasoning_content"), "tool_calls": columns.get("calls")}
    answered = answer_messages(answer) or _messages("assistant", "" if answer is None else answer)
    if answered[: len(asked)] == asked:  # answers of preference data may begin with their prompt
        answered = answered[len(asked) :]
    answered[:1] = [{**message, **{key: value for key, value in turn.items() if value}} for message in answered[:1]]
    num_context = len(earlier) + len(asked) if type(question) is not str or len(asked) > 1 else 0
    # Beside the items of a request, `instructions` is the system message of OpenAI's Responses API.
    more_names = ("instructions",) if type(question) is list else ()
    return _with_system(columns, [*earlier, *asked, *answered], num_context, more_names)


def _messages(role: str, content: Any) -> list[Json]:
    """Return a text as a message, and messages, also as JSON text, as they are."""
    if type(content) is str and MESSAGE_TEXT.search(content) and type(items := parsed_or_same(content, "[")) is list:
        content = items if all(type(item) is dict and has_speaker(item) for item in items) else content
    return as_messages(role, [content] if type(content) is dict else content)


def _system_messages(system: Any) -> list[Json]:
    """Return the messages of a system column: a text, parts of one, a message or messages, also as JSON text.

    Raises:  ValueError: messages of another role.
    """
    if type(system) is dict and "parts" in system:  # Gemini's
        system = system["parts"]
    if type(system) is str and PARTS_TEXT.match(system):
        system = parsed_or_same(system)
    value = parsed_or_same(system) if type(system) is str and MESSAGE_TEXT.search(system) else system
    items = value if type(value) is list else [value]
    if not all(type(item) is dict and role_of(item.get("role")) and "content" in item for item in items):
        return [{"role": "system", "content": system}] if system else []
    if any(role_of(item["role"]) != "system" for item in items):
        raise ValueError(f"system: expected a text or messages of role system, found {excerpt(system)}")
    return items


def _with_system(columns: Columns, messages: Any, num_context: int = 0, more_names: tuple[str, ...] = ()) -> Json:
    """Return a record; a system message in a column of its own comes first, unless the messages begin with it."""
    record: Json = {"messages": messages, "tools": columns.decoded(*TOOLS_COLUMNS)}
    system, num_added = _system_messages(columns.get(*SYSTEM_COLUMNS, *more_names)), 0
    if system and type(messages) is list:
        first = messages[0] if messages and type(messages[0]) is dict else {}
        if [first.get("content", first.get("value"))] != [message.get("content") for message in system]:
            record["messages"], num_added = [*system, *messages], len(system)
    if num_context or num_added:
        record |= {"num_context": num_context + num_added if num_context else 0, "num_added": num_added}
    return record


TO_RECORD: dict[str, Callable[[Columns], Json]] = {"openai": _openai, "sharegpt": _sharegpt, "alpaca": _alpaca}
GROUP = "group"  # a field of all of them: rows with the same value are in one split
# The fields that `fields` may name, and the groups of fields of which a row needs one.
FIELDS = {
    "openai": ("messages", "system", "tools", "functions"),
    "sharegpt": ("conversations", "system", "tools"),
    "alpaca": (
        *("prompt", "completion", "instruction", "input", "output", "system", "history", "tools"),
        *("reasoning_content", "calls"),
    ),
}
REQUIRED = {
    "openai": (("messages",),),
    "sharegpt": (("conversations",),),
    "alpaca": (("prompt", "completion"), ("instruction", "output"), ("input", "output"), ("prompt", "calls")),
}
PACKAGES: dict[str, Callable[[Path], Iterator[Row]]] = {
    "bfcl": bfcl,
    "nemo-gym": nemo_gym,
    "champ": champ,
    "human-eval": human_eval,
    "django-po": django_po,
}
FORMATS = (AUTO, *TO_RECORD, *PACKAGES)
