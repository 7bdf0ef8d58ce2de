"""Reasoning of an answer: by key, as parts, or in its text between `<think>` or other tags."""

import re
from typing import Any

from sft.conversation import THINK_TAGS, Message, excerpt
from sft.formats.flags import UnfitRowError
from sft.formats.not_read import NotRead, says_something
from sft.formats.parts import Json, read_part
from sft.formats.spellings import REASONING_KEYS

INLINE_REASONING = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)
# Other tags around a thought at the start of an answer, in small letters -> what ends it.
THOUGHT_ENDS = {
    "<thinking>": "</thinking>",
    "<think>": "</think>",
    "<seed:think>": "</seed:think>",
    "[think]": "[/think]",
    "<|begin_of_thought|>": "<|end_of_thought|>",
}
THOUGHT_TAG = re.compile(r"(?!<think>)((?i:<thinking>|<think>|<seed:think>)|\[THINK\]|<\|begin_of_thought\|>)")
THOUGHT_START = re.compile(r"\s*" + THOUGHT_TAG.pattern)
SOLUTION = re.compile(r"\s*<\|begin_of_solution\|>(.*)<\|end_of_solution\|>\s*", re.DOTALL)


def reasoning_of(message: Json, thoughts: list[str], not_read: NotRead) -> str:
    """Return the reasoning that the keys and parts of a message give. Raises UnfitRowError: they differ."""
    found: dict[str, str] = {"thinking parts": "\n\n".join(thoughts).strip()} if thoughts else {}
    for key in REASONING_KEYS:
        if (value := message.get(key)) is None:
            continue
        if type(value) is not str:
            value = thoughts_of(value, key, not_read)
        if value.strip():
            found[key] = value.strip()
    if len(found) > 1 and len(set(found.values())) > 1:
        raise UnfitRowError("malformed-row", f"{' and '.join(found)} differ")
    return next(iter(found.values()), "")


def thoughts_of(value: Any, key: str, not_read: NotRead) -> str:
    """Return the text of reasoning that is a list of texts, or of parts of reasoning."""
    parts = as_list(value)
    if not all(type(part) is str or (type(part) is dict and says_something(part)) for part in parts):
        raise UnfitRowError("malformed-row", f"{key}: expected text or parts of reasoning, found {excerpt(value)}")
    return "\n\n".join(
        part if type(part) is str else read_part({"type": "reasoning", **part}, not_read)[1] for part in parts
    )


def give_reasoning(turn: Message, reasoning: str) -> None:
    """Add reasoning and remove inline reasoning from the content. Unpaired tags stay, for sft.filters.structure."""
    if "</think>" in turn["content"]:
        thought, answer = split_reasoning(turn["content"])
        if answer is not None and (not reasoning or thought in ("", reasoning)):
            reasoning, turn["content"] = reasoning or thought, answer
    if reasoning:
        turn["reasoning_content"] = reasoning


def with_think_tags(text: str) -> str:
    """Return an answer that begins with a thought between other tags with `<think>` around it.

    Raises:  UnfitRowError: a thought that has no end, or another one after it.
    """
    if (start := THOUGHT_START.match(text)) is None:
        return text
    end = THOUGHT_ENDS[start[1].lower()]
    thought, *answers = re.split(re.escape(end), text[start.end() :], maxsplit=1, flags=re.IGNORECASE)
    answer = answers[0] if answers else ""
    if not answers or THOUGHT_TAG.search(thought) or THOUGHT_START.match(answer):
        raise UnfitRowError("think-tags", f"{start[1]} without one {end} after it: {excerpt(text)}")
    if solution := SOLUTION.fullmatch(answer):
        answer = solution[1]
    return f"<think>{thought}</think>{answer}"


def split_reasoning(text: str) -> tuple[str, str | None]:
    """Return thought and answer of `<think>thought</think>answer`; answer None if it is not that.

    The first tag may be missing: many templates write it into the prompt.

    >>> split_reasoning("<think>Count.</think>2"), split_reasoning("Count.</think>2"), split_reasoning("2")
    (('Count.', '2'), ('Count.', '2'), ('', None))
    """
    inline = INLINE_REASONING.fullmatch(text)
    if inline is None and "<think>" not in text and (parts := text.split("</think>"))[1:]:
        thought, answer = parts[0], "</think>".join(parts[1:])
    elif inline is not None:
        thought, answer = inline[1], inline[2]
    else:
        return "", None
    if THINK_TAGS.search(thought + answer):
        return "", None
    return thought.strip(), answer.lstrip()


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, another value as its only item."""
    return value if type(value) is list else [value]
