"""Splits: which conversations are held out.

By a keyed hash of the conversation id, inside each source, with exact counts: the same conversation is on
the same side whatever else is in the blend, and a source of three or more conversations has all splits.
"""

import hashlib

SPLITS = ("training", "validation", "test")
FEWEST_TO_SPLIT = 3


def keyed_hash(seed: int, text: str) -> str:
    """Return a hash that orders texts anew for each seed, the same on every machine."""
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()


def split_conversations(sources: dict[str, list[str]], validation: float, test: float, seed: int) -> dict[str, str]:
    """Assign a split to every conversation id; `sources` has the ids of each source.

    An id found in several sources gets one split, drawn in the first of them by name.
    """
    assigned: dict[str, str] = {}
    for source in sorted(sources):
        ids = sorted(set(sources[source]) - assigned.keys(), key=lambda i: keyed_hash(seed, i))
        counts = {"validation": held_out(len(ids), validation), "test": held_out(len(ids), test)}
        held = [split for split in ("validation", "test") for _ in range(counts[split])]
        for position, conversation in enumerate(ids):
            assigned[conversation] = held[position] if position < len(held) else "training"
    return assigned


def held_out(conversations: int, share: float) -> int:
    """Return how many conversations a share of a source is: rounded, but at least one of three or more.

    >>> [held_out(2, 0.01), held_out(3, 0.01), held_out(1000, 0.01), held_out(1000, 0.0)]
    [0, 1, 10, 0]
    """
    if share == 0 or conversations < FEWEST_TO_SPLIT:
        return 0
    return max(1, round(conversations * share))
