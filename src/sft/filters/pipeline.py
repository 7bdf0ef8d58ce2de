"""Checks: every filter that looks at a conversation by itself, asked of many rows at once.

Rows -> for each what is kept of it, or why it is refused: `Checks.examine`. The first "no" in this order is the
reason: form, structure, loops, narrative, consistency, items of evaluation sets. What a row becomes depends on no
other row; together they are only examined faster.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from sft.conversation import Conversation, Rejection, normalise
from sft.files import resolve_repo_file
from sft.filters.contamination import Benchmarks, rejection_of
from sft.filters.control_tokens import count_control, escape
from sft.filters.dedup.signatures import signatures
from sft.filters.dedup.words import hash_words
from sft.filters.narrative import NarrativePatterns, check_narratives
from sft.filters.repetition import check_repetitions
from sft.filters.rules.consistency import check_consistency
from sft.filters.screen import RepetitionLimits
from sft.filters.structure import check_structure
from sft.formats.raw_files import Row
from sft.params.data import Filter

ROWS_AT_ONCE = 256


class Kept(NamedTuple):
    """A conversation that nothing speaks against so far."""

    conversation: Conversation
    id: str
    signature: bytes
    control_tokens: int
    """How many are typed in it as text: passed on, or escaped."""


Outcome = Kept | Rejection


class Checks:
    """The filters that are on, with what they need; `benchmarks` are (set, item, text) to be looked for."""

    def __init__(self, params: Filter, benchmarks: Iterable[tuple[str, str, str]]) -> None:
        items = list(benchmarks) if params.contamination is not None else []
        self._params = params
        self._limits = None if params.repetition is None else RepetitionLimits(**params.repetition.model_dump())
        self._patterns = (
            None if params.narrative is None else NarrativePatterns.load(resolve_repo_file(params.narrative))
        )
        self._benchmarks = Benchmarks(items, params.contamination.n) if params.contamination and items else None

    def examine(self, rows: Sequence[Row]) -> list[Outcome]:
        """Turn rows into conversations, or say why they are refused."""
        outcomes: list[Conversation | Rejection] = [self._read(row) for row in rows]
        typed = [0] * len(rows)
        if self._params.control_tokens != "reject":
            for place, one in _conversations(outcomes):
                typed[place] = count_control(one)
                outcomes[place] = escape(one) if self._params.control_tokens == "escape" else one
        self._ask(outcomes, self._structure)
        if (limits := self._limits) is not None:
            self._ask_all(outcomes, lambda conversations: check_repetitions(conversations, limits))
        if (patterns := self._patterns) is not None:
            self._ask_all(outcomes, lambda conversations: check_narratives(conversations, patterns))
        if self._params.consistency:
            self._ask(outcomes, check_consistency)
        sketches = self._look_for_items_and_sketch(outcomes)
        return [
            Kept(one, one.id, sketches[place], typed[place]) if isinstance(one, Conversation) else one
            for place, one in enumerate(outcomes)
        ]

    def _read(self, row: Row) -> Conversation | Rejection:
        if row.record is None:
            return Rejection("malformed-row", row.fault)
        meta = row.record.get("meta") or {}
        if refuse := meta.get("refuse"):
            return Rejection(refuse, json.dumps(meta, ensure_ascii=False))
        return normalise(row.record)

    def _structure(self, conversation: Conversation) -> Rejection | None:
        params = self._params
        return check_structure(conversation, params.max_chars, params.max_message_chars, params.control_tokens)

    def _ask(self, outcomes: list[Conversation | Rejection], check: Callable[[Conversation], Rejection | None]) -> None:
        for place, one in _conversations(outcomes):
            if rejection := check(one):
                outcomes[place] = rejection

    def _ask_all(
        self,
        outcomes: list[Conversation | Rejection],
        check: Callable[[Sequence[Conversation]], list[Rejection | None]],
    ) -> None:
        asked = _conversations(outcomes)
        for (place, _), rejection in zip(asked, check([one for _, one in asked]), strict=True):
            outcomes[place] = rejection or outcomes[place]

    def _look_for_items_and_sketch(self, outcomes: list[Conversation | Rejection]) -> dict[int, bytes]:
        """Look for items of evaluation sets, and sketch what is left: both by the words of all texts."""
        asked = _conversations(outcomes)
        if not asked:
            return {}
        parts = [list(one.parts()) for _, one in asked]
        found = hash_words([text for own in parts for _, text in own])
        if self._benchmarks is not None and self._params.contamination is not None:
            matches, begin = self._benchmarks.matches(found), 0
            for (place, one), own in zip(asked, parts, strict=True):
                here = {part: matches[begin + part] for part in range(len(own)) if begin + part in matches}
                begin += len(own)
                ratio = self._params.contamination.ratio
                if here and (rejection := rejection_of(one, own, here, self._benchmarks, ratio)):
                    outcomes[place] = rejection
        sketches = signatures([one for _, one in asked], parts, found)
        return {place: sketch for (place, _), sketch in zip(asked, sketches, strict=True)}


def _conversations(outcomes: Sequence[Conversation | Rejection]) -> list[tuple[int, Conversation]]:
    """Return what is not refused so far, with its place."""
    return [(place, one) for place, one in enumerate(outcomes) if isinstance(one, Conversation)]
