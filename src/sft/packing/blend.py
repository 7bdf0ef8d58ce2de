"""Blend: how often each conversation of the training split is seen, so that the mixture is as requested.

A source sets `share`, its part of the blend, or `epochs`. Both count trained tokens of the training split: the loss
is an average over them. In the held-out splits every conversation is seen once.

epochs 2.5     every conversation twice, and a drawn half once more
epochs 0.3     conversations with 0.3 of the trained tokens, drawn without replacement
share          for all sources or for none. The blend is the largest one in which no source is seen more than
               `pack.max_epochs` times, by default once: all of the scarcest source, and a drawn part of the others.

Conversations are drawn by keyed hash, the same on every machine; a larger part of a source contains its smaller
ones. A part ends at the conversation that gets it closest to the requested tokens.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sft.cli import InputError

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

SHARES_TOLERANCE = 1e-6  # rounding errors of a sum of shares are smaller, typing errors larger
SHARE_DIGITS = 6


def check_shares(shares: Mapping[str, float | None], epochs: Mapping[str, float | None]) -> None:
    """Raise InputError unless no source has a share, or all have one and they add up to 1."""
    given = {source: share for source, share in shares.items() if share is not None}
    if not given:
        return
    if missing := sorted(shares.keys() - given.keys()):
        raise InputError(
            f"fetch.sources: share: set for {', '.join(sorted(given))}, missing for {', '.join(missing)}. "
            "Set share for every source, or for none and use epochs."
        )
    if both := sorted(source for source in given if epochs[source] is not None):
        raise InputError(f"fetch.sources: {', '.join(both)}: found share and epochs, expected one. Remove one.")
    total = math.fsum(given.values())
    if abs(total - 1) > SHARES_TOLERANCE:
        listed = ", ".join(f"{source} {share}" for source, share in sorted(given.items()))
        raise InputError(f"fetch.sources: share: found a sum of {total:.7g} ({listed}), expected 1. Change the shares.")


def plan_epochs(
    trained_tokens: Mapping[str, int],
    shares: Mapping[str, float | None],
    epochs: Mapping[str, float | None],
    max_epochs: float = 1.0,
) -> dict[str, float]:
    """Return the epochs of each source; a share becomes epochs, at most `max_epochs`.

    >>> plan_epochs({"a": 100, "b": 300}, {"a": 0.5, "b": 0.5}, {"a": None, "b": None})["b"]
    0.3333333333333333
    """
    check_shares(shares, epochs)
    requested = {source: share for source, share in shares.items() if share is not None}
    if not requested:
        return {source: 1.0 if (given := epochs[source]) is None else given for source in trained_tokens}
    if empty := sorted(source for source in requested if not trained_tokens[source]):
        raise InputError(
            f"fetch.sources: share: no trained tokens are left of {', '.join(empty)}. "
            "Raise pack.pack_size if its samples are over-length, or remove the source."
        )
    whole = math.fsum(requested.values())
    total = min(trained_tokens[source] * whole / share for source, share in requested.items()) * max_epochs
    return {
        source: min(max_epochs, share / whole * total / trained_tokens[source]) for source, share in requested.items()
    }


def plan_copies(trained_tokens: Int64s, hashes: Hashes, epochs: float) -> Int32s:
    """Return how many times each conversation of a source is seen, 0 for one that is not drawn.

    Shapes:  trained_tokens, hashes, result: (conversations,), of the training split.

    >>> plan_copies(np.array([10, 10]), np.array([1, 2], np.uint64), epochs=1.5).tolist()
    [2, 1]
    """
    whole = math.floor(epochs)
    times = np.full(len(trained_tokens), whole, np.int32)
    part = (epochs - whole) * int(trained_tokens.sum())
    times[draw_part(trained_tokens, hashes, part, at_least_one=not whole)] += 1
    return times


def draw_part(trained_tokens: Int64s, hashes: Hashes, part: float, at_least_one: bool) -> Int64s:
    """Return the numbers of drawn conversations, in the order of their hashes.

    They have about `part` trained tokens, as close as whole conversations allow: none, if that is closest.
    """
    if part <= 0:
        return np.empty(0, np.int64)
    order = np.argsort(hashes, kind="stable")
    reached = np.cumsum(trained_tokens[order])
    last = int(np.searchsorted(reached, part))  # the first that reaches the part
    if last == len(order):
        return order
    before = int(reached[last - 1]) if last else 0
    overshoots = int(reached[last]) - part > part - before
    return order[: last + 1 - (overshoots and (last > 0 or not at_least_one))]


def mixture_by_source(
    available: Mapping[str, int],
    packed: Mapping[str, Mapping[str, int]],
    domains: Mapping[str, str],
    epochs: Mapping[str, float],
) -> list[dict[str, str | int | float]]:
    """Return a row for each source: its requested and its achieved share of the training split.

    `available` has the trained tokens of one epoch, `packed` the tokens and trained tokens as written.
    """
    requested = {source: available[source] * epochs[source] for source in available}
    requested_total = sum(requested.values())
    packed_total = sum(counts["trained_tokens"] for counts in packed.values())
    return [
        {
            "source": source,
            "domain": domains[source],
            "epochs": round(epochs[source], SHARE_DIGITS),
            "asked_share": _share(requested[source], requested_total),
            "tokens": packed[source]["tokens"],
            "trained_tokens": packed[source]["trained_tokens"],
            "achieved_share": _share(packed[source]["trained_tokens"], packed_total),
        }
        for source in sorted(available)
    ]


def mixture_by_domain(rows: Sequence[Mapping[str, str | int | float]]) -> dict[str, dict[str, int | float]]:
    """Add up the mixture of the sources of each domain."""
    domains: dict[str, dict[str, int | float]] = {}
    for row in rows:
        total = domains.setdefault(str(row["domain"]), {})
        for name in ("asked_share", "tokens", "trained_tokens", "achieved_share"):
            value = row[name]
            if not isinstance(value, str):
                total[name] = round(total.get(name, 0) + value, SHARE_DIGITS)
    return domains


def _share(part: float, total: float) -> float:
    return round(part / total, SHARE_DIGITS) if total else 0.0
