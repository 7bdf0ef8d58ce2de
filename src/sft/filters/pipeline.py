"""The filters that look at one conversation at a time, applied to many rows at once.

`Pipeline.apply` turns each row into a `Kept` conversation or a `Rejection`. A row is read (sft.formats.messages), and
its ends are trimmed; then the first filter that rejects it gives the reason, in this order: format, structure,
repetition, narrative, consistency, contamination. The outcome of a row depends on no other row; a batch is only faster.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sft.conversation import Conversation, Rejection
from sft.files import resolve_repo_file
from sft.filters.contamination import BenchmarkItems, reject_contaminated
from sft.filters.control_tokens import count_control_tokens, escape
from sft.filters.dedup.signatures import signatures
from sft.filters.dedup.words import hash_words
from sft.filters.ends import apply_ends
from sft.filters.narrative import NarrativePatterns, check_narrative
from sft.filters.repetition import check_repetitions
from sft.filters.rules.consistency import check_consistency
from sft.filters.structure import check_structure
from sft.formats.messages import normalize
from sft.formats.not_read import NotRead
from sft.formats.raw_files import Row
from sft.formats.records import ChatRow
from sft.params.data import Filter

# The most rows of a batch, and bytes of their JSON.
ROWS_AT_ONCE, BYTES_AT_ONCE = 256, 8 << 20


@dataclass
class RowCounts:
    """What the pipeline counts beside the outcomes of rows."""

    not_read: NotRead = field(default_factory=NotRead)
    ends: Counter[str] = field(default_factory=Counter)
    """conversations with other ends, turns made context, turns cut (sft.filters.ends)."""

    def merge(self, not_read: Mapping[str, tuple[int, str]], ends: Mapping[str, int]) -> None:
        """Add the counts of the rows that follow."""
        self.not_read.merge(not_read)
        self.ends.update(ends)


class Kept(NamedTuple):
    """A conversation that no filter rejects so far."""

    conversation: Conversation
    id: str
    signature: bytes | None
    """None if `filter.near_duplicates` is off."""
    control_tokens: int
    """How many are typed in it as text; passed on or escaped."""


Outcome = Kept | Rejection
# A filter: some conversations in; for each the reason and the evidence of its rejection, or None.
Check = Callable[[Sequence[Conversation]], Sequence[Rejection | None]]


class Pipeline:
    """The filters that are on, loaded. `benchmark_items` are (benchmark, item, text)."""

    def __init__(self, params: Filter, benchmark_items: Iterable[tuple[str, str, str]]) -> None:
        self._params = params
        self._filters = list(_load_filters(params))
        items = list(benchmark_items) if params.contamination is not None else []
        self._items = BenchmarkItems(items, params.contamination.n) if params.contamination and items else None

    def apply(self, rows: Sequence[Row], counts: RowCounts | None = None) -> list[Outcome]:
        """Return the outcome of each row; `counts` takes what is not read of them, and what is cut."""
        counts = counts or RowCounts()
        outcomes = [self._trim(_normalize(row, counts.not_read), counts) for row in rows]
        control_tokens = [0] * len(rows)
        if self._params.control_tokens != "reject":
            for place, conversation in _not_rejected(outcomes):
                control_tokens[place] = count_control_tokens(conversation)
                if self._params.control_tokens == "escape":
                    outcomes[place] = escape(conversation)
        for check in self._filters:
            conversations = _not_rejected(outcomes)
            rejections = check([conversation for _, conversation in conversations])
            for (place, _), rejection in zip(conversations, rejections, strict=True):
                outcomes[place] = rejection or outcomes[place]
        signature_of = self._check_contamination_and_sign(outcomes)
        return [
            Kept(outcome, outcome.id, signature_of.get(place), control_tokens[place])
            if isinstance(outcome, Conversation)
            else outcome
            for place, outcome in enumerate(outcomes)
        ]

    def _trim(self, outcome: Conversation | Rejection, counts: RowCounts) -> Conversation | Rejection:
        if isinstance(outcome, Rejection):
            return outcome
        ends = apply_ends(outcome, self._params.ends)
        if ends.conversation is not outcome:
            counts.ends.update(conversations=1, context_turns=ends.context, cut_turns=ends.cut)
        return ends.conversation

    def _check_contamination_and_sign(self, outcomes: list[Conversation | Rejection]) -> dict[int, bytes]:
        """Reject contaminated conversations and return signatures, if params ask for them: both need all words."""
        conversations, signs = _not_rejected(outcomes), self._params.near_duplicates is not None
        if not conversations or (self._items is None and not signs):
            return {}
        parts = [list(conversation.parts()) for _, conversation in conversations]
        words = hash_words([text for message_parts in parts for _, text in message_parts])
        if self._items is not None and self._params.contamination is not None:
            matches, begin = self._items.matches(words), 0
            ratio = self._params.contamination.ratio
            for (place, conversation), message_parts in zip(conversations, parts, strict=True):
                by_part = {part: matches[begin + part] for part in range(len(message_parts)) if begin + part in matches}
                begin += len(message_parts)
                if by_part and (
                    rejection := reject_contaminated(conversation, message_parts, by_part, self._items, ratio)
                ):
                    outcomes[place] = rejection
        if not signs:
            return {}
        signed = signatures([conversation for _, conversation in conversations], parts, words)
        return {place: signature for (place, _), signature in zip(conversations, signed, strict=True)}


def _load_filters(params: Filter) -> Iterator[Check]:
    """Yield the filters that are on, in their order; contamination comes last, with the signatures."""
    yield _each(lambda conversation: check_structure(conversation, params.control_tokens))
    if (repetition := params.repetition) is not None:
        yield lambda conversations: check_repetitions(conversations, repetition)
    if params.narrative is not None:
        patterns = NarrativePatterns.load(resolve_repo_file(params.narrative))
        yield _each(lambda conversation: check_narrative(conversation, patterns))
    if params.consistency:
        yield _each(check_consistency)


def _each(check: Callable[[Conversation], Rejection | None]) -> Check:
    return lambda conversations: [check(conversation) for conversation in conversations]


def _normalize(row: Row, not_read: NotRead) -> Conversation | Rejection:
    if row.record is None:
        return Rejection("malformed-row", row.fault)
    meta = row.record.get("meta") or {}
    if reason := meta.get("refuse"):
        return Rejection(reason, json.dumps(meta, ensure_ascii=False))
    if isinstance(row, ChatRow):
        outcome = normalize(row.record, row.columns, row.columns_read, not_read)
    else:
        outcome = normalize(row.record, not_read=not_read)
    not_read.end_row(row.location, isinstance(outcome, Conversation))
    return outcome


def _not_rejected(outcomes: Sequence[Conversation | Rejection]) -> list[tuple[int, Conversation]]:
    """Return the conversations that are not rejected so far, each with its place."""
    return [(place, outcome) for place, outcome in enumerate(outcomes) if isinstance(outcome, Conversation)]
