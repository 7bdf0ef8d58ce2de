"""Reasoning control: some conversations lose their reasoning, some have it cut to a budget.

So that a model learns to answer without reasoning, and to come to its answer when a budget is used up: in a
drawn share of the conversations with reasoning it is taken out, and in another each answer's reasoning ends
after a drawn number of tokens and the original answer follows. Which conversation, and which budget, depends on
the seed and the id of the conversation alone: not on other rows, their order or the number of processes.

Shares and effect are those of the Nemotron 3 Nano report, section 3.1.5: 10 % without, 3 % cut.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from sft.conversation import Message
from sft.hashing import keyed_hash

MODES = ("none", "kept", "stripped", "truncated")


class Shares(NamedTuple):
    """What prep.reasoning in params.yaml says; sft.params.schema explains it."""

    strip: float
    truncate: float
    budgets: list[int]
    seed: int


class Ranges(Protocol):
    """A text -> the range of characters of each of its tokens, of the first `most`; tokens may share a character."""

    def __call__(self, text: str, most: int | None = None) -> list[tuple[int, int]]: ...  # noqa: D102


class Controlled(NamedTuple):
    """A conversation as it is trained."""

    messages: list[Message]
    mode: str
    """none: had no reasoning; kept: has it all; stripped: has none left; truncated: some answer has less."""
    budget: int | None
    """The longest reasoning of an answer, in tokens, where truncated: what the template is told."""
    tokens_removed: int


@dataclass
class ReasoningCounts:
    """What became of the reasoning of the conversations of a source."""

    conversations: Counter[str] = field(default_factory=Counter)
    """By mode."""
    tokens_removed: int = 0

    def add(self, controlled: Controlled) -> None:
        """Count one conversation."""
        self.conversations[controlled.mode] += 1
        self.tokens_removed += controlled.tokens_removed

    def report(self) -> dict[str, Any]:
        """Return the counts as they stand in `reports/`."""
        return {mode: self.conversations[mode] for mode in MODES} | {"tokens_removed": self.tokens_removed}


def control(
    conversation: str,
    messages: list[Message],
    params: Shares,
    ranges: Ranges,
    count: Callable[[str], int] | None = None,
) -> Controlled:
    """Take out or cut the reasoning of the conversation with the id `conversation`, if it is drawn.

    A conversation drawn to be cut gets one of the budgets that its longest reasoning exceeds; where it exceeds
    none, all is kept.
    """
    thoughts = [turn["reasoning_content"] for turn in messages if "reasoning_content" in turn]
    if not thoughts:
        return Controlled(messages, "none", None, 0)
    place = _draw(params.seed, f"reasoning:{conversation}")
    if place >= params.strip + params.truncate:  # most of them: before any token is counted
        return Controlled(messages, "kept", None, 0)
    count = count or (lambda text: len(ranges(text)))
    lengths = [count(thought) for thought in thoughts]
    if place < params.strip:
        return Controlled([_without(turn) for turn in messages], "stripped", None, sum(lengths))
    budgets = sorted(budget for budget in params.budgets if budget < max(lengths))
    if not budgets:
        return Controlled(messages, "kept", None, 0)
    budget = budgets[int(_draw(params.seed, f"budget:{conversation}") * len(budgets))]
    cut = [_cut(turn, budget, ranges) for turn in messages]
    left = sum(count(turn["reasoning_content"]) for turn in cut if "reasoning_content" in turn)
    return Controlled(cut, "truncated", budget, sum(lengths) - left)


def shorten(text: str, budget: int, ranges: Ranges) -> str:
    """Cut a text behind a whole token, so that what is left is at most `budget` tokens and whole characters.

    A character of several tokens stays whole or goes; blanks at the cut go. What is left is counted anew,
    because a text that ends earlier can have other tokens.
    """
    tokens = ranges(text, budget + 1)  # the next one tells whether it shares a character
    for kept in range(min(budget, len(tokens)), 0, -1):
        end = tokens[kept - 1][1]
        if kept < len(tokens) and tokens[kept][0] < end:
            continue
        short = text[:end].rstrip()
        if len(ranges(short, budget + 1)) <= budget:
            return short
    return ""


def _cut(message: Message, budget: int, ranges: Ranges) -> Message:
    if "reasoning_content" not in message:
        return message
    short = shorten(message["reasoning_content"], budget, ranges)
    return message | {"reasoning_content": short} if short else _without(message)


def _without(message: Message) -> Message:
    return {key: value for key, value in message.items() if key != "reasoning_content"}


def _draw(seed: int, text: str) -> float:
    """Draw from [0, 1), the same on every machine; the text says what for, so that draws are independent."""
    return int(keyed_hash(seed, text)[:13], 16) / 16**13
