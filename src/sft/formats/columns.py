"""Columns of a row beside its messages that say something about them.

Read are flags for each turn, in a list beside the messages (`loss_mask`, `metadata.train_turns`) or for the whole row;
`mask`, the speaker whose turns are masked (NeMo); `chat_template_kwargs`; and the reasoning of the only answer.
Pictures, sound and film reject the row.
The same names count in an object such as `metadata`. An answer that the row calls a bad one (`label: false`) rejects
it. All other columns with a value are counted as not read.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

from sft.conversation import THINK_TAGS, Message, TemplateKwargs, excerpt
from sft.formats.flags import UNCLEAR, UnfitRowError, is_statistic, read_flag
from sft.formats.json_text import parsed_or_same
from sft.formats.not_read import NotRead, holds_something, says_something
from sft.formats.spellings import (
    AMBIGUOUS_FLAG,
    FLAG_LISTS,
    GROUP_COLUMNS,
    LICENSE_COLUMNS,
    MEDIA,
    MEDIA_WORD,
    META_OBJECTS,
    REASONING_COLUMNS,
    TEMPLATE_KWARGS,
    THINKING_KWARGS,
    VERDICT,
    role_of,
    snake_case,
    speaker_of,
)
from sft.formats.unread import UNPLACED_REASONING, check_column, matters

NO_ROW: Mapping[str, Any] = {}
REJECTED_ANSWER, UNSUPPORTED_KWARGS = "rejected-answer", "unsupported-template-kwargs"
MAX_KWARG = 64  # characters of an argument of the template: no filter reads it
# A list of flags in the text of an object, of JSON or of Python.
FLAG_LIST_TEXT = re.compile(
    rf"""["'](?:{"|".join(name.replace("_", "[-_. ]?") for name in FLAG_LISTS)})["']\s*:\s*\[""", re.IGNORECASE
)
KNOWN = {*FLAG_LISTS, AMBIGUOUS_FLAG, TEMPLATE_KWARGS, THINKING_KWARGS[0], VERDICT}
ANSWERING = {"assistant", "call", "reasoning"}


class RowFacts(NamedTuple):
    """What the columns of a row say about its messages."""

    flags: list[bool | None] | None = None
    """Whether each message is trained, None where nothing is said; None for all."""
    masks_answers: bool = False
    """Whether all answers are masked."""
    template_kwargs: dict[str, Any] | None = None
    reasoning: tuple[str, str] | None = None
    """Name and text of a column with the reasoning of the answer."""
    unread: Mapping[str, Any] = NO_ROW
    """Columns that are not read and that the turns may need: media, a thought, options, an answer or its end."""


NOTHING = RowFacts()


def read_columns(row: Mapping[str, Any], read: Set[str], messages: Sequence[Any], not_read: NotRead) -> RowFacts:
    """Return what the columns say that are not `read` (names or dotted paths), and count those that say nothing to us.

    Raises:  UnfitRowError: media, a flag that is unclear, or lists of flags that contradict each other.
    """
    if row.keys() <= read:
        return NOTHING
    facts = NOTHING
    for name, value in row.items():
        if name in read or not says_something(value):
            continue
        if type(value) is str and value.lstrip().startswith("{"):
            if snake_case(name) in META_OBJECTS or FLAG_LIST_TEXT.search(value):
                value = parsed_or_same(value, "{")
        if type(value) is dict or _may_matter(name):
            facts = _read_column(facts, name, value, read, messages, not_read)
        else:
            _leave_unread(name, value, messages, not_read)
    return facts


def _leave_unread(name: str, value: Any, messages: Sequence[Any], not_read: NotRead) -> None:
    """Count a column. Raises UnfitRowError: it may be a flag."""
    not_read.add(name)
    _check_column(name, value, messages)


def _check_column(name: str, value: Any, messages: Sequence[Any]) -> None:
    check_column(name, value, lambda: (len(messages), len(answer_places(messages))))


@functools.lru_cache(maxsize=4096)
def _may_matter(name: str) -> bool:
    key = snake_case(name)
    is_read = key in LICENSE_COLUMNS or key in GROUP_COLUMNS or _is_reasoning(name)
    return is_read or key in KNOWN or matters(name) or MEDIA_WORD.search(name) is not None


def _is_reasoning(name: str) -> bool:
    return name.lower() in REASONING_COLUMNS or snake_case(name) in REASONING_COLUMNS


def _read_column(
    facts: RowFacts, name: str, value: Any, names: Set[str], messages: Sequence[Any], not_read: NotRead
) -> RowFacts:
    if name in LICENSE_COLUMNS or name in GROUP_COLUMNS:  # goes to meta (sft.filters.examine)
        return facts
    if _is_known(snake_case(name)):
        return _read_known(facts, name, value, messages, not_read)
    if _is_reasoning(name) and type(value) is str and " " in value.strip():  # not on, off, high
        if facts.reasoning is not None and facts.reasoning[1] != value:
            raise UnfitRowError(UNPLACED_REASONING, f"{facts.reasoning[0]} and {name} differ")
        return facts._replace(reasoning=(name, value))
    if type(value) is dict:
        facts = _read_object(facts, name, value, names, messages, not_read)
    else:
        _leave_unread(name, value, messages, not_read)
    return facts._replace(unread={**facts.unread, name: value}) if _may_matter(name) else facts


@functools.lru_cache(maxsize=4096)
def _is_known(key: str) -> bool:
    return key in KNOWN or MEDIA.fullmatch(key) is not None


def _read_known(facts: RowFacts, path: str, value: Any, messages: Sequence[Any], not_read: NotRead) -> RowFacts:
    """Read what a column, or a key of an object beside the messages, says about them."""
    key = snake_case(path.rpartition(".")[2])
    if key in FLAG_LISTS and type(flags := parsed_or_same(value, "[")) is list:
        return _add_flags(facts, path, flags, messages)
    if key in FLAG_LISTS:
        return _add_row_flag(facts, path, value, messages, not_read)
    if key == AMBIGUOUS_FLAG:
        return _mask(facts, value, not_read)
    if key == TEMPLATE_KWARGS or key == THINKING_KWARGS[0]:
        kwargs = parsed_or_same(value, "{") if key == TEMPLATE_KWARGS else {key: value}
        if type(kwargs) is not dict:
            raise UnfitRowError(UNSUPPORTED_KWARGS, f"{path}: expected an object, found {excerpt(value)}")
        return facts._replace(template_kwargs={**(facts.template_kwargs or {}), **kwargs})
    if key == VERDICT:
        if value is False or (type(value) is str and value.strip().lower() == "false"):  # 0 and 1 name classes
            raise UnfitRowError(REJECTED_ANSWER, f"{path} is false: the row calls its answer a bad one")
        not_read.add(path)
        return facts
    if not holds_something(value):
        not_read.add(path)
        return facts
    raise UnfitRowError("non-text-content", f"{path}: text alone can be trained, found {excerpt(value)}")


def _read_object(
    facts: RowFacts, name: str, value: dict[str, Any], names: Set[str], messages: Sequence[Any], not_read: NotRead
) -> RowFacts:
    """Read an object beside the messages: flags in it, and what is not read of it.

    An object of which nothing is read counts as one value. In `metadata`, and beside the messages that `read.fields`
    names in an object, keys mean what they mean as columns; in another object, lists of flags alone do.
    """
    has_names = any(path.startswith(f"{name}.") for path in names)
    is_beside = has_names or snake_case(name.rpartition(".")[2]) in META_OBJECTS
    known, others = [], []
    for key, item in value.items():
        path = f"{name}.{key}"
        if path in names or not says_something(item):
            continue
        if type(item) is dict and any(read.startswith(f"{path}.") for read in names):
            facts = _read_object(facts, path, item, names, messages, not_read)
        elif _is_known(snake_case(key)) and (is_beside or (type(item) is list and snake_case(key) in FLAG_LISTS)):
            known.append((path, item))
        else:
            others.append(path)
            if is_beside:
                _check_column(path, item, messages)
    for path, item in known:
        facts = _read_known(facts, path, item, messages, not_read)
    if others or not known:
        for path in others if known or has_names else [name]:
            not_read.add(path)
    return facts


def _add_flags(facts: RowFacts, name: str, values: list[Any], messages: Sequence[Any]) -> RowFacts:
    """Add a list with a flag for each message, or for each answer."""
    answers = answer_places(messages)
    if len(values) == len(messages):
        places: Sequence[int] = range(len(messages))
    elif len(values) == len(answers):
        places = answers
    else:
        counts = f"{len(messages)} messages and {len(answers)} answers"
        raise UnfitRowError(UNCLEAR, f"{name} has {len(values)} flags for {counts}")
    flags = list(facts.flags or [None] * len(messages))
    for place, value in zip(places, values, strict=True):
        flag = read_flag(snake_case(name.rpartition(".")[2]), value)
        if flag is not None and flags[place] not in (None, flag):
            raise UnfitRowError(UNCLEAR, f"{name} says {flag} for messages[{place}], another list says {flags[place]}")
        flags[place] = flags[place] if flag is None else flag
    return facts._replace(flags=flags)


def answer_places(messages: Sequence[Any]) -> list[int]:
    """Return the indices of the messages of the model."""
    speakers = (speaker_of(message) if type(message) is dict else None for message in messages)
    return [index for index, speaker in enumerate(speakers) if role_of(speaker) in ANSWERING]


def _add_row_flag(facts: RowFacts, name: str, value: Any, messages: Sequence[Any], not_read: NotRead) -> RowFacts:
    """Add a flag for the whole row. Another number in a column of most of these names is a statistic."""
    key = snake_case(name.rpartition(".")[2])
    if is_statistic(key, value):
        not_read.add(name)
        return facts
    is_trained = read_flag(key, value)
    return _add_flags(facts, name, [value] * len(messages), messages) if is_trained is False else facts


def _mask(facts: RowFacts, value: Any, not_read: NotRead) -> RowFacts:
    role = role_of(value)
    if role is not None:
        return facts._replace(masks_answers=facts.masks_answers or role == "assistant")
    if type(value) is not str:
        raise UnfitRowError(
            UNCLEAR, f"mask is {excerpt(value)}, which some mean as trained and some as not; use loss_mask"
        )
    not_read.add(AMBIGUOUS_FLAG)
    return facts


# --- Checks that need the turns --------------------------------------------------------------------------------


def check_template_kwargs(kwargs: Mapping[str, Any], turns: Iterable[Message]) -> TemplateKwargs:
    """Return the arguments that prep gives the template for a row, those with a value.

    Not enable_thinking: prep sets it for each trained answer, true if it has reasoning.

    Raises:  UnfitRowError: the row says otherwise, or a value is no number, true or false, or short text.
    """
    trained = [turn for turn in turns if turn["role"] == "assistant" and turn.get("loss", True)]
    given = {name: value for name, value in kwargs.items() if says_something(value)}
    for name, value in given.items():
        if name in THINKING_KWARGS and type(value) is bool:
            if any(("reasoning_content" in turn) != value for turn in trained):
                has = "has" if not value else "has no"
                raise UnfitRowError(UNSUPPORTED_KWARGS, f"{name} is {value}, but a trained answer {has} reasoning")
        elif name in THINKING_KWARGS or not _is_short_scalar(value):
            expected = "true or false" if name in THINKING_KWARGS else f"a number, true, false or {MAX_KWARG} letters"
            raise UnfitRowError(UNSUPPORTED_KWARGS, f"{name} is {excerpt(value)}, expected {expected}")
    return {name: value for name, value in given.items() if name != THINKING_KWARGS[0]}


def _is_short_scalar(value: Any) -> bool:
    return len(value) <= MAX_KWARG if type(value) is str else type(value) in (bool, int, float)


def add_reasoning(name: str, text: str, turns: Sequence[Message]) -> None:
    """Give the only answer the reasoning of a column, unless a turn has it.

    Raises:  UnfitRowError: there are several answers, or the answer has other reasoning or is a call.
    """
    answers = [turn for turn in turns if turn["role"] == "assistant"]
    if any(text.strip() in (turn.get("reasoning_content"), turn["content"].strip()) for turn in answers):
        return
    if len(answers) != 1 or "reasoning_content" in answers[0] or THINK_TAGS.search(answers[0]["content"] + text):
        raise UnfitRowError(
            UNPLACED_REASONING,
            f"the column {name} beside {len(answers)} answers: expected one answer without reasoning; "
            f"put it into its message as reasoning_content, found {excerpt(text)}",
        )
    answers[0]["reasoning_content"] = text.strip()
