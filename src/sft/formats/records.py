"""Objects to records in OpenAI form: what all formats share.

A record has messages, and perhaps tools and meta. `convert_rows` applies a format's function to the object of each
row; an object of another shape becomes a fault of its row. A format gives a valid record that must not be trained on
one of REJECT_REASONS in `meta["refuse"]`.
"""

from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field, replace
from typing import Any

from sft.formats.fields import lookup
from sft.formats.not_read import says_something
from sft.formats.raw_files import Json, Row
from sft.formats.spellings import GROUP_COLUMNS, LICENSE_COLUMNS

CLOSED_MODEL, FAILED_ROLLOUT, NO_ANSWER = "closed-model", "failed-rollout", "no-answer"
REJECT_REASONS = (CLOSED_MODEL, FAILED_ROLLOUT, NO_ANSWER)


@dataclass(frozen=True)
class ChatRow(Row):
    """A row of a chat format: the record for sft.formats.messages, and the columns that it was made of."""

    columns: Json = field(default_factory=dict)
    """The object in the file."""
    columns_read: Set[str] = frozenset()
    """Names, or dotted paths, of the columns in the record."""
    group_column: str | None = None
    """Name, or dotted path, of the column that `read.fields` names for the group."""

    @property
    def license(self) -> Any:
        """What the row says about its own license; None if nothing."""
        return self._first_of(LICENSE_COLUMNS)

    @property
    def group(self) -> Any:
        """What the row says about the rows it belongs to; None if nothing."""
        if self.group_column is None:
            return self._first_of(GROUP_COLUMNS)
        value = lookup(self.columns, self.group_column)
        return value if says_something(value) else None

    def _first_of(self, names: Iterable[str]) -> Any:
        return next((self.columns[name] for name in names if says_something(self.columns.get(name))), None)


# From the object of a row and its location (`file:line`) to a record.
ToRecord = Callable[[Json, str], Json]


def convert_rows(rows: Iterable[Row], to_record: ToRecord) -> Iterator[Row]:
    """Yield each row with a record instead of its object, or with a fault."""
    return (convert_row(row, to_record) for row in rows)


def convert_row(row: Row, to_record: ToRecord) -> Row:
    """Return a row with a record instead of its object; with a fault if the object has another shape."""
    if row.record is None:
        return row
    try:
        return Row(row.location, _checked(to_record(row.record, row.location)))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        return replace(row, record=None, fault=f"not of this format: {reason}")


def _checked(record: Json) -> Json:
    """Return a record after a check of the types that all readers rely on. Raises ValueError."""
    messages, tools, meta = record["messages"], record.get("tools"), record.get("meta")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError("messages must be a list of objects")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise ValueError("tools must be a list of objects")
    if meta is not None and not isinstance(meta, dict):
        raise ValueError("meta must be an object")
    if meta and meta.get("refuse") not in (None, *REJECT_REASONS):
        raise ValueError(f"meta.refuse must be one of {', '.join(REJECT_REASONS)}")
    return record


def question_and_answer(question: Any, answer: Any) -> list[Json]:
    """Return the messages of a question and its answer; both are texts or lists of messages."""
    return [*as_messages("user", question), *as_messages("assistant", answer)]


def as_messages(role: str, content: Any) -> list[Json]:
    """Return a text as a message; messages as they are. Raises ValueError: neither."""
    if isinstance(content, list):
        if not all(isinstance(message, dict) for message in content):
            raise ValueError("question and answer must be texts or lists of messages, found a list of other things")
        return content
    if not isinstance(content, str):
        raise ValueError(f"question and answer must be texts or lists of messages, found {type(content).__name__}")
    return [{"role": role, "content": content}]


def openai_call(id: str, call: Json) -> Json:
    """Return a call, {name, arguments}, in OpenAI form."""
    return {"id": id, "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}


def openai_tool(tool: Json) -> Json:
    """Return a tool in OpenAI form: a bare function is wrapped, unknown keys are left out."""
    function = tool.get("function", tool)
    kept = {key: function[key] for key in ("name", "description", "parameters") if function.get(key) is not None}
    return {"type": "function", "function": {"name": function["name"], **kept}}
