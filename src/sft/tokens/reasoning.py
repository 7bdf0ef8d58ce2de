"""Reasoning control: some conversations lose their reasoning, some have it truncated to a budget.

The model learns to answer without reasoning, and to answer when a budget is used up. In a drawn share of the
conversations with reasoning it is removed; in another share, the reasoning of each answer ends after a drawn number of
tokens and the original answer follows. The draw depends on the seed and the conversation id alone, not on other
rows, their order or the number of processes.

Shares and effect follow the Nemotron 3 Nano report, section 3.1.5: 10 % without reasoning, 3 % truncated.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from sft.conversation import NO_KWARGS, Message, TemplateKwargs
from sft.hashing import keyed_hash

MODES = ("none", "kept", "stripped", "truncated")


class Shares(NamedTuple):
    """`prep.reasoning` of params.yaml; sft.params.data explains the keys."""

    strip: float
    truncate: float
    budgets: list[int]
    seed: int


class TokenRanges(Protocol):
    """Returns the characters that each token of a text, or of its first `most`, covers; tokens may share one."""

    def __call__(self, text: str, most: int | None = None) -> list[tuple[int, int]]: ...  # noqa: D102


class Controlled(NamedTuple):
    """A conversation as it is trained."""

    messages: list[Message]
    mode: str
    """none: has no reasoning; kept: unchanged; stripped: all removed; truncated: shortened in some answer."""
    budget: int | None
    """If truncated: the most reasoning tokens of an answer. The template writes it in the prompt."""
    tokens_removed: int
    cut: frozenset[int] = frozenset()
    """The messages whose reasoning is shortened."""
    kwargs: TemplateKwargs = NO_KWARGS
    """What the row gives the template."""


def control_reasoning(
    conversation: str,
    messages: list[Message],
    params: Shares,
    ranges: TokenRanges,
    count: Callable[[str], int] | None = None,
    kwargs: TemplateKwargs = NO_KWARGS,
) -> Controlled:
    """Return the messages of a conversation (`conversation` is its id) with reasoning kept, removed or truncated.

    A conversation to truncate gets one of the budgets that its longest reasoning exceeds; if there is none, all
    reasoning is kept. So it is with `kwargs`: an effort or a budget of the row is that of its own reasoning.
    """
    thoughts = [turn["reasoning_content"] for turn in messages if "reasoning_content" in turn]
    if not thoughts or kwargs:
        return Controlled(messages, "kept" if thoughts else "none", None, 0, kwargs=kwargs)
    place = _draw(params.seed, f"reasoning:{conversation}")
    if place >= params.strip + params.truncate:  # most conversations: no tokens are counted
        return Controlled(messages, "kept", None, 0)
    count = count or (lambda text: len(ranges(text)))
    lengths = [count(thought) for thought in thoughts]
    if place < params.strip:
        return Controlled([_without(turn) for turn in messages], "stripped", None, sum(lengths))
    budgets = sorted(budget for budget in params.budgets if budget < max(lengths))
    if not budgets:
        return Controlled(messages, "kept", None, 0)
    budget = budgets[int(_draw(params.seed, f"budget:{conversation}") * len(budgets))]
    truncated = [_truncate_message(turn, budget, ranges) for turn in messages]
    left = sum(count(turn["reasoning_content"]) for turn in truncated if "reasoning_content" in turn)
    cut = frozenset(index for index, turn in enumerate(truncated) if turn != messages[index])
    return Controlled(truncated, "truncated", budget, sum(lengths) - left, cut)


def truncate(text: str, budget: int, ranges: TokenRanges) -> str:
    """Return the start of a text, at most `budget` tokens long, without trailing blanks.

    Ends behind a whole token and a whole character. The tokens of the result are counted again, because a
    shorter text can have other tokens.
    """
    tokens = ranges(text, budget + 1)  # one more, to see whether it shares a character
    for kept in range(min(budget, len(tokens)), 0, -1):
        end = tokens[kept - 1][1]
        if kept < len(tokens) and tokens[kept][0] < end:
            continue
        start = text[:end].rstrip()
        if len(ranges(start, budget + 1)) <= budget:
            return start
    return ""


def _truncate_message(message: Message, budget: int, ranges: TokenRanges) -> Message:
    if "reasoning_content" not in message:
        return message
    start = truncate(message["reasoning_content"], budget, ranges)
    return message | {"reasoning_content": start} if start else _without(message)


def _without(message: Message) -> Message:
    return {key: value for key, value in message.items() if key != "reasoning_content"}


def _draw(seed: int, text: str) -> float:
    """Return a number in [0, 1), the same on every machine; `text` names the draw, so that draws are independent."""
    return int(keyed_hash(seed, text)[:13], 16) / 16**13
