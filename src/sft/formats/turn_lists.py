"""Conversations that are lists without roles, as messages: pairs of a question and its answer, or texts by turns.

Capybara and XTuner: [{"input": "Hi", "output": "Hello"}, ...]; other data sets name the two differently, or have lists
[["Hi", "Hello"], ...]. UltraChat: ["Hi", "Hello", ...], the user first. Lists [["user", "Hi"], ...] and texts
["User: Hi", ...] have roles, which are read.
"""

import itertools
import re
from typing import Any

from sft.formats.spellings import SPEAKER_KEYS, role_of

Json = dict[str, Any]
# The names of a question and of its answer.
PAIRS = (
    ("input", "output"),
    ("human", "assistant"),
    ("user", "assistant"),
    ("question", "answer"),
    ("prompt", "response"),
)
ANSWER_FLAG = "output_with_loss"  # XTuner's: false = the answer is not trained
# A pair with two of these says two things.
ALTERNATIVES = {"instruction", *itertools.chain(*PAIRS)}
MESSAGE = re.compile(r"""\s*\{.*?["'](?:role|from|type)["']\s*:""", re.DOTALL)  # as JSON text
LABEL = re.compile(r"\s*(\w+):\s*")


def has_turns(value: Any) -> bool:
    """Return whether a value is a list of pairs, or of at least two texts.

    >>> has_turns([{"input": "a", "output": "b"}]), has_turns(["a", "b"]), has_turns(["a"]), has_turns([])
    (True, True, False, False)
    """
    if type(value) is not list or not value:
        return False
    if all(type(item) is str for item in value):
        return len(value) > 1 and not any(MESSAGE.match(text) for text in value)
    return all(_pair(item) is not None for item in value)


def messages_of_turns(value: Any) -> Any:
    """Return the messages of a list without roles; any other value as it is.

    Keys beside a pair stay, at its answer: flags are read there, and others counted. `system` is a message of its own.

    >>> messages_of_turns([{"input": "a", "output": "b"}]) == messages_of_turns([["a", "b"]])
    True
    """
    if not has_turns(value):
        return value
    if type(value[0]) is str:
        labels = [LABEL.match(text) for text in value]
        if all(label and role_of(label[1]) for label in labels):
            return [_message(label[1], text[label.end() :]) for label, text in zip(labels, value, strict=True) if label]
        return [_message(("user", "assistant")[index % 2], text) for index, text in enumerate(value)]
    if type(value[0]) is list and role_of(value[0][0]):
        return [_message(*item) for item in value]
    messages: list[Json] = []
    for item in value:
        question, answer, others = _pair(item) or ("", "", {})
        if system := others.pop("system", None):
            messages.append(_message("system", system))
        if ANSWER_FLAG in others:
            others["loss"] = others.pop(ANSWER_FLAG)
        messages += [_message("user", question), {**others, **_message("assistant", answer)}]
    return messages


def _message(role: str, content: Any) -> Json:
    return {"role": role, "content": content}


def _pair(item: Any) -> tuple[str, str, Json] | None:
    """Return question, answer and the other keys of a pair; None if it is none."""
    if type(item) is list and len(item) == 2 and all(type(text) is str for text in item):
        return item[0], item[1], {}
    if type(item) is not dict or any(key in item for key in SPEAKER_KEYS):
        return None
    for names in PAIRS:
        if all(type(item.get(name)) is str for name in names):
            others = {key: value for key, value in item.items() if key not in names}
            if any(others[key] for key in ALTERNATIVES & others.keys()):
                return None
            return item[names[0]], item[names[1]], others
    return None
