"""Keys and columns that no table names, but whose words say that they matter: they reject the row by name.

What nobody reads is counted and changes nothing (sft.formats.not_read). That is wrong for a flag, a thought, a call or
a document under an unknown name: other data would be trained than the row says. Such a row is rejected; the evidence
says under which key the reader expects it. A label (`reasoning_type`), a judge's thought and a copy of what is read are
only counted.
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sft.conversation import Message, excerpt
from sft.formats.flags import UNCLEAR, UnfitRowError
from sft.formats.json_text import parsed_or_same
from sft.formats.not_read import holds_something, says_something
from sft.formats.spellings import (
    ANSWERS,
    CALL_WORDS,
    COLUMN_CONTEXT_WORDS,
    CONTEXT_LABELS,
    CONTEXT_WORDS,
    CUT_ANSWERS,
    FLAG_TEXTS,
    FLAG_WORDS,
    LABEL_WORDS,
    LEFT_OUT,
    LEFT_OUT_TURNS,
    LITTLE_WORDS,
    MASK_WORDS,
    MEDIA_WORD,
    OPTION_KEY,
    OPTIONS,
    OTHER_FLAG_TEXTS,
    OTHER_THINKERS,
    PLACEHOLDER,
    REASONING_WORDS,
    SPLIT_WORDS,
    STOP_REASONS,
    THOUGHT_WORDS,
    TRAINED_WORDS,
    TURN_WORDS,
    snake_case,
)

UNPLACED_REASONING, CUT_ANSWER = "unplaced-reasoning", "cut-answer"
NO_WORD = re.compile(r"(?:\\[nrt]|\W)+")  # also as JSON escapes it


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


@functools.lru_cache(maxsize=4096)
def is_label(name: str) -> bool:
    """Return whether a key is a label or a measure of a thing, and does not hold it.

    >>> is_label("reasoning_type"), is_label("toolName"), is_label("reasoning_steps")
    (True, True, False)
    """
    return snake_case(name).rpartition("_")[2] in LABEL_WORDS


def names_thought(name: str, words: frozenset[str] = THOUGHT_WORDS) -> bool:
    """Return whether a key may hold a thought of the model.

    >>> names_thought("model_reasoning"), names_thought("judge_reasoning"), names_thought("cot_type")
    (True, False, False)
    """
    found = words_of(name)
    return not found.isdisjoint(words) and found.isdisjoint(OTHER_THINKERS) and not is_label(name)


def check_keys(role: str, items: Iterable[tuple[str, Any]], message: Mapping[str, Any]) -> None:
    """Raise UnfitRowError if keys of a message that are not read matter; `message` is what is read."""
    for key, value in items:
        if not says_something(value):
            continue
        if says_whether(key, value):
            raise UnfitRowError(UNCLEAR, f"{key} is {excerpt(value)}, which is not read. Use loss: true or false")
        for rule in (REASONING, DOCUMENTS, CALLS):
            is_named = not words_of(key).isdisjoint(rule.words) and not is_label(key)
            if role not in rule.roles or not is_named or (rule is REASONING and not names_thought(key, rule.words)):
                continue
            texts = list(_passages(value)) if rule is DOCUMENTS else value
            if _holds_objects(value) if rule is CALLS else _adds_words(texts, message):
                raise UnfitRowError(rule.reason, f"{key} is not read. {rule.advice}: {excerpt(value)}")
        if role in MODEL and _is_cut(key, value):
            raise UnfitRowError(CUT_ANSWER, f"{key} is {excerpt(value)}: the answer is not whole")


def check_column(name: str, value: Any, num_turns: Callable[[], Sequence[int]]) -> None:
    """Raise UnfitRowError if a column that is not read may say which turns are trained.

    Args:  num_turns: returns how many messages and how many answers the row has.
    """
    key = name.rpartition(".")[2]
    words = words_of(key)
    if not words.isdisjoint(FLAG_WORDS | MASK_WORDS) and type(value := parsed_or_same(value, "[")) is list:
        is_by_turn = not words.isdisjoint(TURN_WORDS) or (not is_label(key) and len(value) in num_turns())
        is_flag = is_by_turn and all(map(_is_whole_number, value))
    elif not words.isdisjoint(FLAG_WORDS) and words.isdisjoint(SPLIT_WORDS) and not is_label(key):
        is_flag = _is_flag(value) and not (words <= TRAINED_WORDS and _is_yes(value))
    else:
        is_flag = _leaves_out(words, value, LEFT_OUT)
    if is_flag:
        raise UnfitRowError(
            UNCLEAR, f"{name} is {excerpt(value)}, which is not read. Use loss_mask, with 0 or 1 for each message"
        )


def check_columns(unread: Mapping[str, Any], turns: Sequence[Message]) -> None:
    """Raise UnfitRowError if the turns need what columns hold: media, a thought, documents, options, an answer."""
    answers = [turn for turn in turns if turn["role"] == "assistant"]
    has_thought = any("reasoning_content" in turn for turn in answers)  # so that a column has one of another model
    options = _options(unread)
    for name, value in unread.items():
        for index, turn in enumerate(turns if MEDIA_WORD.search(name) else ()):
            if match := PLACEHOLDER.search(turn["content"]):
                raise UnfitRowError("non-text-content", f"{match[0]} in messages[{index}], with the column {name}")
        if names_thought(name) and not has_thought and _adds_words(value, {"answers": answers}):
            raise UnfitRowError(
                UNPLACED_REASONING,
                f"the column {name} may be the reasoning of an answer. Put it into its message as reasoning_content: "
                f"{excerpt(value)}",
            )
        if _names_context(name) and _adds_words(list(_passages(value)), {"turns": turns}, 3):  # fewer: a label
            raise UnfitRowError(
                DOCUMENTS.reason,
                f"the column {name} is not read. Write what the model sees into the question, and remove the column: "
                f"{excerpt(value)}",
            )
        if answers and turns[-1] is answers[-1] and _is_cut(name, value):
            raise UnfitRowError(CUT_ANSWER, f"{name} is {excerpt(value)}: the last answer is not whole")
        is_option = snake_case(name) in OPTIONS
        if is_option and options and not any(option in turn["content"] for option in options for turn in turns[:-1]):
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


def _names_context(name: str) -> bool:
    """Return whether a column may hold documents that a question is about."""
    is_named = not words_of(name).isdisjoint(COLUMN_CONTEXT_WORDS) and not is_label(name)
    return is_named and snake_case(name).rpartition("_")[2] not in CONTEXT_LABELS


def matters(name: str) -> bool:
    """Return whether `check_columns` looks at a column."""
    key = snake_case(name)
    names_end = key in STOP_REASONS or _says_truncated(name)
    return key in OPTIONS or key in ANSWERS or names_end or names_thought(name) or _names_context(name)


def says_whether(key: str, value: Any) -> bool:
    """Return whether a key that no table names says yes or no to being trained, be it clear which of both."""
    words = words_of(key)
    if not words.isdisjoint(FLAG_WORDS) and words.isdisjoint(SPLIT_WORDS) and not is_label(key):
        is_weight = isinstance(value, int | float) and not words.isdisjoint(("weight", "weights"))
        return is_weight or _is_flag(value) or (type(value) is list and all(map(_is_flag, value)))
    return _leaves_out(words, value, LEFT_OUT_TURNS)


def _leaves_out(words: frozenset[str], value: Any, values: Mapping[str, bool | None]) -> bool:
    """Return whether a flag leaves out a row or a message; `values`: the value of each word that does."""
    if type(value) is not bool or not words <= values.keys() | LITTLE_WORDS:
        return False
    return any(values[word] in (None, value) for word in words & values.keys())


def _is_flag(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in (*FLAG_TEXTS, *OTHER_FLAG_TEXTS)
    return isinstance(value, bool | int | float) and value in (0, 1)


def _is_yes(value: Any) -> bool:
    return str(value).strip().lower() in ("true", "1", "1.0", "yes", "on")


def _is_whole_number(value: Any) -> bool:
    return isinstance(value, int) or _is_flag(value)


def _is_cut(name: str, value: Any) -> bool:
    if snake_case(name) in STOP_REASONS:
        return str(value).lower() in CUT_ANSWERS
    return value is True and _says_truncated(name)


def _says_truncated(name: str) -> bool:
    words = words_of(name)
    return "truncated" in words and words <= LITTLE_WORDS | {"truncated"}


def _texts(value: Any, number: int) -> Iterator[str]:
    """Yield the texts in a value that have some words, without what is between words."""
    if isinstance(value, str):
        if len(value.split(maxsplit=number)) >= number:
            yield NO_WORD.sub(" ", value).strip()
        return
    for item in value if isinstance(value, list) else value.values() if isinstance(value, dict) else ():
        yield from _texts(item, number)


def _holds_words(value: Any, number: int) -> bool:
    return next(_texts(value, number), None) is not None


def _adds_words(value: Any, read: Mapping[str, Any], number: int = 2) -> bool:
    """Return whether a text of some words or more is in a value, and not in what is read."""
    shown = "\n".join(_texts(read, 1))
    return any(text not in shown for text in _texts(value, number))


def _passages(value: Any) -> Iterator[str]:
    """Yield the texts of documents, perhaps in JSON: the longest of an object, whose others are a title or a source.

    >>> list(_passages([{"title": "On the size of Rome", "text": "Rome is big, and Paris is, too."}, "Oslo is not."]))
    ['Rome is big, and Paris is, too.', 'Oslo is not.']
    """
    value = parsed_or_same(value)
    items = value if type(value) is list else list(value.values()) if type(value) is dict else []
    texts = [value] if type(value) is str else [item for item in items if type(item) is str]
    if type(value) is list or not texts:
        for item in items:
            yield from _passages(item)
    else:
        yield max(texts, key=lambda text: len(text.split()))


def _holds_objects(value: Any) -> bool:
    """Return whether a value, perhaps in JSON, is an object or a list of some that are not empty."""
    value = parsed_or_same(value)
    items = value if type(value) is list else [value]
    return any(type(item) is dict and holds_something(item) for item in items)


def _options(unread: Mapping[str, Any]) -> list[str]:
    """Return the texts of the options of a question: a list, an object of lists or by letter, or a column for each.

    Other objects of this name are the settings of a model, or the answers in a response.
    """
    found: list[str] = []
    for name, value in unread.items():
        if snake_case(name) in OPTIONS:
            value = parsed_or_same(value)
            if type(value) is dict:
                by_key = list(value.values()) if all(map(OPTION_KEY.fullmatch, value)) else []
                value = value.get("text", by_key)
            items = value if type(value) is list else [value] if type(value) is str else []
            found += [str(item) for item in items if isinstance(item, str | int | float)]
    return found if len(found) > 1 else []
