"""Partition: which trained turns of a conversation share a sample.

A sample is messages[:end] with some of its assistant turns trained. A turn is exact in a sample if what is before
it is the prompt that the model gets when it has to write that turn. The last turn is always exact in the conversation
that ends with it; earlier ones are unless the template rewrites them when the conversation continues (it drops their
reasoning, for example). So the longest sample takes every turn that is exact in it, the next one ends with the last
turn that is left, and so on: one sample wherever that is exact, and never more than needed.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

Attempt = Callable[[int, list[int]], list[int]]
"""(end, turns) -> those of the turns (indices of messages) that are exact in messages[:end]; turns are ascending."""


class Part(NamedTuple):
    """A sample: messages[:end], and the indices of the turns that it trains, ascending."""

    end: int
    turns: list[int]


def partition(trained: Sequence[int], thinks: Sequence[bool], attempt: Attempt) -> list[Part] | int:
    """Return the samples of a conversation, short ones first, or a turn that is exact in none.

    trained: indices of the trained turns, ascending. thinks: by message, whether it has reasoning; a sample is rendered
    for a model that thinks if one of its turns does, so which turns are exact may depend on the others.
    """
    left, parts = list(trained), list[Part]()
    while left:
        end = left[-1] + 1
        exact = _exact_with_last(end, left, thinks, attempt)
        if not exact:
            return left[-1]
        parts.append(Part(end, exact))
        left = [turn for turn in left if turn not in exact]
    parts.reverse()
    return [_with_turns_of_later(parts, number, thinks, attempt) for number in range(len(parts))]


def _exact_with_last(end: int, turns: list[int], thinks: Sequence[bool], attempt: Attempt) -> list[int]:
    """Return turns that are exact together, the last among them; none if there are none."""
    for wanted in (turns, [turn for turn in turns if thinks[turn] == thinks[turns[-1]]]):
        chosen, exact = wanted, attempt(end, wanted)
        while turns[-1] in exact and _think(exact, thinks) != _think(chosen, thinks):
            chosen, exact = exact, attempt(end, exact)
        if turns[-1] in exact:
            return exact
    return []


def _with_turns_of_later(parts: list[Part], number: int, thinks: Sequence[bool], attempt: Attempt) -> Part:
    """Move turns of longer samples that are exact in this one, too, to it: it shows them in less context."""
    part = parts[number]
    more = list[int]()
    for later in range(number + 1, len(parts)):
        for turn in parts[later].turns:
            rest = [other for other in parts[later].turns if other != turn]
            if turn < part.end and rest and _think(rest, thinks) == _think(parts[later].turns, thinks):
                more.append(turn)
    more = [turn for turn in more if _think(part.turns, thinks) or not thinks[turn]]
    if not more:
        return part
    exact = attempt(part.end, sorted([*part.turns, *more]))
    for later in range(number + 1, len(parts)):
        end, turns = parts[later]
        kept = [turn for turn in turns if turn not in exact]
        if kept and _think(kept, thinks) == _think(turns, thinks):
            parts[later] = Part(end, kept)
        else:
            exact = [turn for turn in exact if turn not in turns]
    return Part(part.end, exact)


def _think(turns: Sequence[int], thinks: Sequence[bool]) -> bool:
    return any(thinks[turn] for turn in turns)
