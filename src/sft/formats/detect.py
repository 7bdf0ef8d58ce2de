"""`read: auto`: which form the rows of a source have, decided on the first ROWS of them.

Every way to read a row that sft.formats.fields suggests is tried on all of these rows. One must fit MIN_SHARE of them:
its columns are there and the row becomes a conversation. The decision, with the counts, goes into the ledger.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sft.cli import InputError
from sft.conversation import Conversation, Rejection
from sft.formats.chat_forms import AUTO, FieldCounts, check_read, convert_chats
from sft.formats.fields import Suggestion, listed, merged, suggest_read
from sft.formats.messages import normalize
from sft.formats.other_shapes import WRITE, other_shape
from sft.formats.raw_files import Row, read_objects
from sft.formats.records import ChatRow
from sft.params.data import Read
from sft.raw_folders import KINDS, select_files

ROWS, MIN_SHARE = 1_000, 0.99
MISFITS = {"malformed-row", "unknown-role", "no-messages"}  # reasons that say that a row has another form
SHOWN_FORMS = 5


def decide_read(folder: Path, read: Read) -> tuple[Read, dict[str, Any] | None]:
    """Return `read` with the format that the rows have, and the decision, if its format is auto. Raises as detect."""
    if read.format != AUTO:
        return read, None
    suggestion, decision = detect(folder, read)
    return read.model_copy(
        update={"format": suggestion.format, "fields": read.fields | dict(suggestion.fields)}
    ), decision


def read_line(read: Read) -> str:
    """Return how a source is read as a line of params.yaml."""
    return Suggestion(read.format, tuple(read.fields.items())).line().strip()


def detect(folder: Path, read: Read) -> tuple[Suggestion, dict[str, Any]]:
    """Return the way to read a raw folder, and the decision as in `reports/`: form, rows tried, rows that fit.

    Raises:  InputError: there are no rows, or no form fits enough of them; the message has the counts.
    """
    check_read(AUTO, read.fields, read.select)
    found = list(itertools.islice(read_objects(folder, read.split, read.config), ROWS))
    if not (rows := [row for row in found if row.record is not None]):
        faults = [f"{row.location}: {row.fault}" for row in found[:1]]
        files = select_files(folder, read.split, read.config).line()
        others = f"Files that are not read: {files}. Rows are read from {KINDS}"
        reason = " ".join((*faults, *([others] if files else []))) or "Check uri"
        raise InputError(f"{folder}: no row to find the format of. {reason}.")
    fits, ends_open, misfits = Counter[Suggestion](), Counter[Suggestion](), dict[Suggestion, str]()
    for suggestion in _suggestions(rows):
        for row in rows:
            outcome = _outcome(suggestion, row)
            is_fit = _fits(suggestion, outcome)
            fits[suggestion] += is_fit
            ends_open[suggestion] += _ends_open(outcome)
            if isinstance(outcome, Rejection) and not is_fit:
                misfits.setdefault(suggestion, f"{row.location}: {outcome.reason}: {outcome.evidence}")
    best = max(fits, key=lambda suggestion: fits[suggestion], default=None)
    if best is None or fits[best] < MIN_SHARE * len(rows):
        raise InputError(_undecided(folder, rows, fits, misfits))
    if (open_rows := ends_open[best]) >= MIN_SHARE * len(rows):
        raise InputError(
            f"{folder}: read: {AUTO}: the last message of {open_rows} of the first {len(rows)} rows is the user's. "
            "Where is the answer? Name its field: read: {format: alpaca, fields: {prompt: ..., completion: ...}}. "
            f"Or name the format, to train the answers before it: {best.line().strip()}"
        )
    decision = {"format": best.format, "fields": dict(best.fields), "rows": len(rows), "rows_that_fit": fits[best]}
    return best, decision


def _suggestions(rows: Sequence[Row]) -> list[Suggestion]:
    """Return the ways to read the rows: first that of all rows together, then those of single rows, by frequency."""
    records = [row.record for row in rows if row.record is not None]
    single = Counter(suggestion for record in records if (suggestion := suggest_read(record)) is not None)
    whole = suggest_read(merged(records))
    return list(dict.fromkeys(([whole] if whole else []) + [suggestion for suggestion, _ in single.most_common()]))


def _fits(suggestion: Suggestion, outcome: Conversation | Rejection) -> bool:
    if isinstance(outcome, Conversation) and suggestion.format == "alpaca":
        # Messages that end with an answer are no question of which another column has the answer.
        return _roles(outcome)[-2:] != ["assistant", "assistant"]
    return not isinstance(outcome, Rejection) or outcome.reason not in MISFITS


def _outcome(suggestion: Suggestion, row: Row) -> Conversation | Rejection:
    """Return a row as a conversation, or why it is none."""
    counts = FieldCounts()
    (converted,) = convert_chats([row], suggestion.format, dict(suggestion.fields), {}, counts)
    if not isinstance(converted, ChatRow) or converted.record is None:
        return Rejection("malformed-row", converted.fault)
    return normalize(converted.record, converted.columns, converted.columns_read)


def _ends_open(outcome: Conversation | Rejection) -> bool:
    """Return whether a row has answers, but its last message is the user's."""
    roles = _roles(outcome) if isinstance(outcome, Conversation) else []
    return "assistant" in roles and roles[-1] == "user"


def _roles(conversation: Conversation) -> list[str]:
    return [turn["role"] for turn in conversation.messages]


def _undecided(
    folder: Path, rows: Sequence[Row], fits: Mapping[Suggestion, int], misfits: Mapping[Suggestion, str]
) -> str:
    ranked = sorted(fits, key=lambda suggestion: -fits[suggestion])[:SHOWN_FORMS]
    forms = "".join(
        f"\n{fits[suggestion]:6} fit {suggestion.line().strip()}"
        + (f"\n         {misfits[suggestion]}" if suggestion in misfits else "")
        for suggestion in ranked
    )
    found = listed(dict(sorted(merged(row.record for row in rows if row.record is not None).items())))
    shapes = Counter(filter(None, (other_shape(row.record) for row in rows if row.record is not None)))
    forms += "".join(f"\n{count:6} are {shape}." for shape, count in shapes.most_common(SHOWN_FORMS))
    advice = "" if forms else f"\nOr write {WRITE}."
    return (
        f"{folder}: read: {AUTO}: no form fits {MIN_SHARE:.0%} of the first {len(rows)} rows.{forms}\n"
        f"Fields found: {found}. Name the format under read, or split the source.{advice}"
    )
