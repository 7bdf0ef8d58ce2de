"""Keys and columns that no table names, but whose words say that they matter: they reject the row by name.

What nobody reads is counted and changes nothing (sft.formats.not_read). That is wrong for a flag, a thought, a call or
a document under an unknown name: other data would be trained than the row says. Such a row is rejected; the evidence
says under which key the reader expects it.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sft.conversation import Message, excerpt
from sft.formats.flags import UNCLEAR, UnfitRowError
from sft.formats.json_text import parsed_or_same
from sft.formats.not_read import says_something
from sft.formats.spellings import (
    ANSWERS,
    CALL_WORDS,
    CHOICE_WORDS,
    CONTEXT_WORDS,
    CUT_ANSWERS,
    FLAG_TEXTS,
    FLAG_WORDS,
    MASK_WORDS,
    OPTIONS,
    OTHER_FLAG_TEXTS,
    PLACEHOLDER,
    REASONING_WORDS,
    SKIP_WORDS,
    SPLIT_WORDS,
    STOP_REASONS,
    TURN_WORDS,
    snake_case,
)


class Rule(NamedTuple):
    """Keys of messages with one of these words."""

    roles: frozenset[str]
    words: frozenset[str]
    reason: str
    advice: str


MODEL, CONTEXT = frozenset({"assistant", "call"}), frozenset({"user", "system"})
REASONING = Rule(MODEL, REASONING_WORDS, "unread-reasoning", "Write reasoning under reasoning_content")
DOCUMENTS = Rule(CONTEXT, CONTEXT_WORDS, "unread-context", "Write what the model sees into content")
CALLS = Rule(
    MODEL | CONTEXT | {"tool"},
    CALL_WORDS,
    "unread-call",
    "Write calls under tool_calls, their results as messages of role tool, and tools beside messages",
)


@functools.lru_cache(maxsize=4096)
def words_of(name: str) -> frozenset[str]:
    """Return the words of a key.

    >>> sorted(words_of("isTrained")), sorted(words_of("loss_mask"))
    (['is', 'trained'], ['loss', 'mask'])
    """
    return frozenset(snake_case(name).split("_"))


def check_keys(role: str, items: Iterable[tuple[str, Any]]) -> None:
    """Raise UnfitRowError if keys of a message that are not read matter."""
    for key, value in items:
        if not says_something(value):
            continue
        words = words_of(key)
        if says_whether(key, value):
            raise UnfitRowError(UNCLEAR, f"{key} is {excerpt(value)}, which is not read. Use loss: true or false")
        for rule, holds in ((REASONING, _holds_words), (DOCUMENTS, _holds_words), (CALLS, _holds_objects)):
            if role in rule.roles and not words.isdisjoint(rule.words) and holds(value):
                raise UnfitRowError(rule.reason, f"{key} is not read. {rule.advice}: {excerpt(value)}")
        if role in MODEL and snake_case(key) in STOP_REASONS and str(value).lower() in CUT_ANSWERS:
            raise UnfitRowError("cut-answer", f"{key} is {excerpt(value)}: the answer is not whole")


def check_column(name: str, value: Any, num_turns: Callable[[], Sequence[int]]) -> None:
    """Raise UnfitRowError if a column that is not read may say which turns are trained.

    Args:  num_turns: returns how many messages and how many answers the row has.
    """
    words = words_of(name.rpartition(".")[2])
    has_word = not words.isdisjoint(FLAG_WORDS | MASK_WORDS)
    if has_word and type(value := parsed_or_same(value, "[")) is list:
        is_by_turn = not words.isdisjoint(TURN_WORDS) or len(value) in num_turns()
        is_flag = is_by_turn and all(map(_is_whole_number, value))
    else:
        is_flag = has_word and words.isdisjoint(SPLIT_WORDS) and _is_flag(value)
        is_flag = is_flag or (type(value) is bool and words < SKIP_WORDS)
    if is_flag:
        raise UnfitRowError(
            UNCLEAR, f"{name} is {excerpt(value)}, which is not read. Use loss_mask, with 0 or 1 for each message"
        )


def check_columns(unread: Mapping[str, Any], turns: Sequence[Message]) -> None:
    """Raise UnfitRowError if the turns need what columns hold: media, the options of a question, the last answer."""
    for name, value in unread.items():
        for index, turn in enumerate(turns):
            if match := PLACEHOLDER.search(turn["content"]):
                raise UnfitRowError("non-text-content", f"{match[0]} in messages[{index}], with the column {name}")
        options = _options(unread) if snake_case(name) in OPTIONS else []
        if options and not any(option in turn["content"] for option in options for turn in turns[:-1]):
            raise UnfitRowError(
                "unread-options",
                f"{name} is not read: the answer chooses from it. Write {excerpt(options)} into the question",
            )
        if turns and turns[-1]["role"] == "user" and snake_case(name) in ANSWERS and _holds_words(value, 1):
            raise UnfitRowError(
                "unread-answer",
                f"the last message is the user's, and {name} is not read. Write read: {{format: alpaca, fields: "
                f"{{prompt: messages, completion: {name}}}}}",
            )


def matters(name: str) -> bool:
    """Return whether `check_columns` looks at a column."""
    return snake_case(name) in OPTIONS or snake_case(name) in ANSWERS


def says_whether(key: str, value: Any) -> bool:
    """Return whether a key that no table names says yes or no to being trained, be it clear which of both."""
    words = words_of(key)
    if not words.isdisjoint(FLAG_WORDS):
        is_weight = isinstance(value, int | float) and not words.isdisjoint(("weight", "weights"))
        return is_weight or _is_flag(value) or (type(value) is list and all(map(_is_flag, value)))
    return type(value) is bool and not words.isdisjoint(CHOICE_WORDS)


def _is_flag(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in (*FLAG_TEXTS, *OTHER_FLAG_TEXTS)
    return isinstance(value, bool | int | float) and value in (0, 1)


def _is_whole_number(value: Any) -> bool:
    return isinstance(value, int) or _is_flag(value)


def _holds_words(value: Any, number: int = 2) -> bool:
    """Return whether a text of some words is in a value."""
    if isinstance(value, str):
        return len(value.split(maxsplit=number)) >= number
    items = value if isinstance(value, list) else value.values() if isinstance(value, dict) else ()
    return any(_holds_words(item, number) for item in items)


def _holds_objects(value: Any) -> bool:
    return type(parsed_or_same(value)) in (list, dict)


def _options(unread: Mapping[str, Any]) -> list[str]:
    """Return the texts of the options of a question: a list, an object of lists or by letter, or a column for each."""
    found: list[str] = []
    for name, value in unread.items():
        if snake_case(name) in OPTIONS:
            value = parsed_or_same(value)
            value = value.get("text", list(value.values())) if type(value) is dict else value
            found += [str(item) for item in (value if type(value) is list else [value])]
    return found if len(found) > 1 else []
