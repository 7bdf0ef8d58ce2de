"""Splits: which conversations are held out, and which are the same conversation twice.

By a keyed hash of the conversation id, inside each source, with exact counts: the same conversation is on
the same side whatever else is in the blend, and a source of three or more conversations has all splits.
Conversations that are near-duplicates of each other are one group, on one side; across sources only the
first source by `pack.precedence` keeps its own.
"""

import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sft.command import InputError

SPLITS = ("training", "validation", "test")
FEWEST_TO_SPLIT = 3


@dataclass(frozen=True)
class Duplicate:
    """A conversation that its source loses, because an earlier source has it or one like it."""

    source: str
    conversation: str
    reason: str
    """duplicate: the same; near-duplicate: one like it."""
    kept: str
    """The conversation that is kept instead."""
    kept_source: str


def keyed_hash(seed: int, text: str) -> str:
    """Return a hash that orders texts anew for each seed, the same on every machine."""
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()


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


def settle_duplicates(
    conversations: Iterable[tuple[str, str]], clusters: Mapping[str, str]
) -> tuple[list[Duplicate], dict[str, str]]:
    """Say who loses what to an earlier source, and what stays together: conversation -> first of its group.

    `conversations` are (source, id), the source that wins first; `clusters` names the cluster of an id, absent
    for one that is alone. The first conversation of a cluster decides: its source keeps all that it has of
    the cluster, together in one group, and every other source loses its own.

    >>> settle_duplicates([("a", "x"), ("b", "x"), ("b", "y")], {"x": "1", "y": "1"})[0][1]
    Duplicate(source='b', conversation='y', reason='near-duplicate', kept='x', kept_source='a')
    """
    lost: list[Duplicate] = []
    groups: dict[str, str] = {}
    owner: dict[str, str] = {}
    first: dict[str, tuple[str, str]] = {}
    for source, conversation in conversations:
        if (earlier := owner.get(conversation, source)) != source:
            lost.append(Duplicate(source, conversation, "duplicate", conversation, earlier))
            continue
        kept_source, kept = first.setdefault(clusters.get(conversation, conversation), (source, conversation))
        if kept_source != source:
            lost.append(Duplicate(source, conversation, "near-duplicate", kept, kept_source))
            continue
        owner[conversation] = source
        if kept != conversation:
            groups[conversation] = kept
    return lost, groups


def split_conversations(
    sources: Mapping[str, Iterable[str]],
    validation: float,
    test: float,
    seed: int,
    groups: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Assign a split to every conversation id; `sources` has the ids of each source.

    `groups` names the group of an id, absent for one that is alone: a group is on one side. Counts are exact
    unless groups are too large for it. An id found in several sources gets one split, drawn in the first of
    them by name.
    """
    assigned: dict[str, str] = {}
    for source in sorted(sources):
        members: dict[str, list[str]] = {}
        for conversation in sorted(set(sources[source]) - assigned.keys()):
            members.setdefault((groups or {}).get(conversation, conversation), []).append(conversation)
        for split, chosen in _split_groups(members, validation, test, seed).items():
            assigned.update((conversation, split) for group in chosen for conversation in members[group])
    return assigned


def _split_groups(members: Mapping[str, list[str]], validation: float, test: float, seed: int) -> dict[str, list[str]]:
    """Choose groups for each split in the order of their hash; a group that is too large goes to training."""
    conversations = sum(map(len, members.values()))
    missing = held_out(conversations if len(members) >= FEWEST_TO_SPLIT else 0, validation, test)
    wanted = [split for split in SPLITS if missing.get(split, 1)]
    chosen: dict[str, list[str]] = {split: [] for split in SPLITS}
    for group in sorted(members, key=lambda name: keyed_hash(seed, name)):
        size = len(members[group])
        split = next((held for held in missing if size <= missing[held]), "training")
        chosen[split].append(group)
        if split in missing:
            missing[split] -= size
    if len(members) >= FEWEST_TO_SPLIT:  # groups may be too large for a split: then it gets the smallest there is
        for split in wanted:
            if not chosen[split]:
                most = max(chosen.values(), key=len)
                smallest = min(most, key=lambda name: len(members[name]))
                most.remove(smallest)
                chosen[split].append(smallest)
    return chosen


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
