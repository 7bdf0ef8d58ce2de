"""Splits: which conversations are held out, and who keeps a duplicate.

Conversations of a source are split in groups: those with the same first user message, or with the same `group` in
their rows, and near-duplicates. A keyed hash of the group decides, within each source: a conversation is in the same
split whatever else is in the blend. Counts are exact where groups are small enough, and a source of three or more
groups has all splits. A conversation that equals or resembles a kept one of an earlier source, by `pack.precedence`, is
dropped.
"""

import difflib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sft.cli import InputError

Int32s = npt.NDArray[np.int32]
Hashes = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]

SPLITS = ("training", "validation", "test")
MIN_TO_SPLIT = 3


def by_precedence(sources: Iterable[str], precedence: Sequence[str]) -> list[str]:
    """Return the sources in the order in which they keep duplicates: those in `precedence`, then the others by name.

    Raises:  InputError: `precedence` has an unknown source, or one twice.

    >>> by_precedence(["b", "c", "a"], ["c"])
    ['c', 'a', 'b']
    """
    names = sorted(sources)
    for place, name in enumerate(precedence):
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise InputError(f"pack.precedence: unknown source {name!r}. {hint}Sources: {', '.join(names)}.")
        if name in precedence[:place]:
            raise InputError(f"pack.precedence: {name!r} is listed twice. List each source once.")
    return [*precedence, *(name for name in names if name not in precedence)]


class NearDuplicates(NamedTuple):
    """What the near-duplicate search found: arrays of (ids,)."""

    kept_instead: Int32s
    """The id of an earlier source that is kept instead of this one; -1 for one that is kept."""
    similarity: Floats
    """Of the two."""
    together: Int32s
    """The first id of the same source that resembles this one, directly or through others; or itself."""

    @classmethod
    def none(cls, ids: int) -> "NearDuplicates":
        """Return what is found among ids that do not resemble each other."""
        return cls(np.full(ids, -1, np.int32), np.zeros(ids), np.arange(ids, dtype=np.int32))


class DuplicateChoice(NamedTuple):
    """Which duplicates are dropped: arrays of (conversations,)."""

    kept_instead: Int32s
    """The conversation of an earlier source that is kept instead of this one; -1 for one that is kept."""
    kept_with: Int32s
    """The first of the near-duplicates that stay together with this one; itself if there are none."""


def resolve_duplicates(id_number: Int32s, near_duplicates: NearDuplicates) -> DuplicateChoice:
    """Choose which conversations to drop as duplicates, and which to keep together.

    Conversations are sorted by source, in order of precedence. Of those with the same `id_number`, (conversations,),
    the first source keeps its own; if that one is dropped as a near-duplicate, so are the others.

    >>> resolve_duplicates(np.array([0, 0, 1]), NearDuplicates.none(2)).kept_instead.tolist()
    [-1, 0, -1]
    """
    conversations = np.arange(len(id_number), dtype=np.int32)
    first = np.full(len(near_duplicates.together), -1, np.int32)
    first[id_number[::-1]] = conversations[::-1]  # of several assignments the last one stays
    similar = near_duplicates.kept_instead[id_number]
    kept_instead = first[np.where(similar >= 0, similar, id_number)]
    kept = kept_instead == conversations
    kept_with = np.where(kept, first[near_duplicates.together[id_number]], conversations)
    return DuplicateChoice(np.where(kept, -1, kept_instead).astype(np.int32), kept_with.astype(np.int32))


def join_groups(first: Int32s, second: Int32s) -> Int32s:
    """Return the groups of some members who are together in one grouping or the other, directly or through others.

    Shapes: both groupings and the result: (members,), from 0; a group is named by its smallest member.

    >>> join_groups(np.array([0, 1, 1, 2, 3]), np.array([0, 0, 1, 2, 3])).tolist()
    [0, 0, 0, 3, 4]
    """
    joined = np.arange(len(first), dtype=np.int32)
    while True:
        before = joined.copy()
        for groups in (first, second):
            smallest = np.full(groups.max(initial=-1) + 1, len(first), np.int32)
            np.minimum.at(smallest, groups, joined)
            np.minimum.at(joined, joined.copy(), smallest[groups])  # all that have the same name get the new one
            while not np.array_equal(joined, following := joined[joined]):
                joined = following
        if np.array_equal(joined, before):
            return joined


def split_groups(sizes: Int32s, hashes: Hashes, validation: float, test: float) -> npt.NDArray[np.uint8]:
    """Return the split, as an index into SPLITS, of every group of conversations of one source.

    Groups are taken in the order of their hashes; one that is larger than what a split still needs goes to
    training. So counts are exact unless groups are too large, and a source of three or more has all splits.

    Shapes:  sizes, hashes, result: (groups,); sizes in conversations.
    """
    result = np.zeros(len(sizes), np.uint8)
    if len(sizes) < MIN_TO_SPLIT:
        return result
    order = np.argsort(hashes, kind="stable")
    missing = held_out_counts(int(sizes.sum()), validation, test)
    wanted = [SPLITS.index(split) for split in SPLITS if missing.get(split, 1)]
    for group in order:
        if not any(missing.values()):
            break
        split = next((held for held in missing if sizes[group] <= missing[held]), None)
        if split:
            missing[split] -= int(sizes[group])
            result[group] = SPLITS.index(split)
    for number in wanted:  # a split for which all groups were too large gets the smallest group
        counts = np.bincount(result, minlength=len(SPLITS))
        if not counts[number]:
            most = order[result[order] == counts.argmax()]
            result[most[sizes[most].argmin()]] = number
    return result


def held_out_counts(conversations: int, validation: float, test: float) -> dict[str, int]:
    """Return how many conversations are held out: rounded shares, at least one of three or more, never all.

    >>> held_out_counts(2, 0.01, 0.01), held_out_counts(3, 0.01, 0.01)
    ({'validation': 0, 'test': 0}, {'validation': 1, 'test': 1})
    """
    counts = {"validation": 0, "test": 0}
    if conversations >= MIN_TO_SPLIT:
        most = conversations - 1 - (validation > 0 and test > 0)
        for split, share in (("validation", validation), ("test", test)):
            if share > 0:
                counts[split] = min(max(1, round(conversations * share)), most)
        counts["test"] = min(counts["test"], conversations - 1 - counts["validation"])
    return counts
