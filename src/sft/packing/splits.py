"""Splits: which conversations are held out, and which are the same conversation twice.

By a keyed hash of the conversation id, inside each source, with exact counts: the same conversation is on
the same side whatever else is in the blend, and a source of three or more conversations has all splits.
Conversations that are near-duplicates of each other are one group, on one side; across sources only the
first source by `pack.precedence` keeps its own.
"""

import difflib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sft.cli import InputError

Int32s = npt.NDArray[np.int32]
Hashes = npt.NDArray[np.uint64]

SPLITS = ("training", "validation", "test")
FEWEST_TO_SPLIT = 3


def by_precedence(sources: Iterable[str], precedence: Sequence[str]) -> list[str]:
    """Order sources by who keeps a conversation that several have: those in `precedence`, then the others by name.

    Raises:  InputError: `precedence` names what is no source, or one twice.

    >>> by_precedence(["b", "c", "a"], ["c"])
    ['c', 'a', 'b']
    """
    names = sorted(sources)
    for place, name in enumerate(precedence):
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            meant = f"Did you mean {near[0]!r}? " if near else ""
            raise InputError(f"pack.precedence: {name!r} is no source. {meant}Sources: {', '.join(names)}.")
        if name in precedence[:place]:
            raise InputError(f"pack.precedence: {name!r} stands there twice. Name each source once.")
    return [*precedence, *(name for name in names if name not in precedence)]


class Settled(NamedTuple):
    """Who loses what to whom, by conversation: arrays of (conversations,)."""

    instead: Int32s
    """The conversation of an earlier source that is kept instead of this one; -1 for one that is kept."""
    group: Int32s
    """The first conversation of those that stay together with this one; itself for one that is alone."""


def settle_duplicates(source: Int32s, identity: Int32s, cluster: Int32s) -> Settled:
    """Say who loses what to an earlier source, and what stays together.

    Conversations are in the order of their sources, the source that wins first. Where two have the same
    `identity` they are the same; `cluster` has a number for each identity, the same where they are alike. The
    first conversation of a cluster decides: its source keeps all that it has of the cluster, together in one
    group, and every other source loses its own: to the same conversation if that is kept, else to the first.

    Shapes:  source, identity: (conversations,); cluster: (identities,).

    >>> settle_duplicates(np.array([0, 1, 1]), np.array([0, 0, 1]), np.array([0, 0])).instead.tolist()
    [-1, 0, 0]
    """
    conversations = np.arange(len(source), dtype=np.int32)
    own = cluster[identity]
    first = np.full(len(cluster), -1, np.int32)
    first[own[::-1]] = conversations[::-1]  # the last that is written is the first
    first_of_own = first[own]
    kept = source == source[first_of_own]
    same = np.full(len(cluster), -1, np.int32)
    same[identity[kept]] = conversations[kept]
    instead = np.where(same[identity] >= 0, same[identity], first_of_own)
    return Settled(np.where(kept, -1, instead).astype(np.int32), np.where(kept, first_of_own, conversations))


def split_groups(sizes: Int32s, hashes: Hashes, validation: float, test: float) -> npt.NDArray[np.uint8]:
    """Assign a split (its place in SPLITS) to every group of conversations of one source.

    Groups are chosen in the order of their hashes; one that is too large for what a split still misses goes to
    training. So counts are exact unless groups are too large, and a source of three or more has all splits.

    Shapes:  sizes, hashes, result: (groups,); sizes in conversations.
    """
    result = np.zeros(len(sizes), np.uint8)
    if len(sizes) < FEWEST_TO_SPLIT:
        return result
    order = np.argsort(hashes, kind="stable")
    missing = held_out(int(sizes.sum()), validation, test)
    wanted = [SPLITS.index(split) for split in SPLITS if missing.get(split, 1)]
    for group in order:
        if not any(missing.values()):
            break
        split = next((held for held in missing if sizes[group] <= missing[held]), None)
        if split:
            missing[split] -= int(sizes[group])
            result[group] = SPLITS.index(split)
    for number in wanted:  # groups may be too large for a split: then it gets the smallest there is
        counts = np.bincount(result, minlength=len(SPLITS))
        if not counts[number]:
            most = order[result[order] == counts.argmax()]
            result[most[sizes[most].argmin()]] = number
    return result


def held_out(conversations: int, validation: float, test: float) -> dict[str, int]:
    """Return how many conversations are held out: rounded shares, at least one of three or more, never all.

    >>> held_out(2, 0.01, 0.01), held_out(3, 0.01, 0.01), held_out(1000, 0.01, 0.0)
    ({'validation': 0, 'test': 0}, {'validation': 1, 'test': 1}, {'validation': 10, 'test': 0})
    """
    counts = {"validation": 0, "test": 0}
    if conversations >= FEWEST_TO_SPLIT:
        most = conversations - 1 - (validation > 0 and test > 0)
        for split, share in (("validation", validation), ("test", test)):
            if share > 0:
                counts[split] = min(max(1, round(conversations * share)), most)
        counts["test"] = min(counts["test"], conversations - 1 - counts["validation"])
    return counts
