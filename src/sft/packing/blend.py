"""Blend: how often each conversation of the training split is seen, so that the mixture is as requested.

A source sets `share`, its part of the blend, or `epochs`. Both count, by `pack.unit`, trained tokens of the training
split (the loss is an average over them) or its samples. In the held-out splits every conversation is seen once.

epochs 2.5     every conversation twice, and a drawn half once more
epochs 0.3     conversations with 0.3 of the trained tokens or samples, drawn without replacement
share          for all sources or for none. The blend is the largest one in which no source is seen more than
               `pack.max_epochs` times, by default once: all of the scarcest source, and a drawn part of the others.

Conversations are drawn by keyed hash, the same on every machine; a larger part of a source contains its smaller
ones. A part ends at the conversation that gets it closest to the requested amount.
"""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sft.cli import InputError

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

SHARES_TOLERANCE = 1e-6  # rounding errors of a sum of shares are smaller, typing errors larger
SHARE_DIGITS = 6
COUNTS = ("samples", "tokens", "trained_tokens")
USED_IN_FULL = 0.95  # epochs; less is named as a source of which a part is left


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
    available: Mapping[str, int],
    shares: Mapping[str, float | None],
    epochs: Mapping[str, float | None],
    max_epochs: float = 1.0,
    without: Collection[str] = (),
) -> dict[str, float]:
    """Return the epochs of each source; a share becomes epochs, at most `max_epochs`.

    `available` has the trained tokens or samples of one epoch. The shares of sources in `without` go to the others.

    >>> plan_epochs({"a": 100, "b": 300}, {"a": 0.5, "b": 0.5}, {"a": None, "b": None})["b"]
    0.3333333333333333
    """
    check_shares(shares, epochs)
    requested = {source: share for source, share in shares.items() if share is not None and source not in without}
    if not requested:
        return {source: 1.0 if (given := epochs[source]) is None else given for source in available}
    if empty := sorted(source for source in requested if not available[source]):
        raise InputError(
            f"fetch.sources: share: no trained tokens are left of {', '.join(empty)}. "
            "Raise pack.pack_size if its samples are over-length, or remove the source."
        )
    whole = math.fsum(requested.values())
    total = min(available[source] * whole / share for source, share in requested.items()) * max_epochs
    seen = {source: min(max_epochs, share / whole * total / available[source]) for source, share in requested.items()}
    return {source: seen.get(source, 0.0) for source in available}


def describe_limits(epochs: Mapping[str, float], max_epochs: float) -> str:
    """Return as text what limits a blend of shares, and of which sources a part is left.

    >>> describe_limits({"a": 2.0, "b": 0.25, "c": 1.1}, 2.0)
    'limited by a (pack.max_epochs 2); used in part: b 0.25 epochs'
    """
    scarcest = sorted(source for source, seen in epochs.items() if math.isclose(seen, max_epochs))
    text = f"limited by {', '.join(scarcest)} (pack.max_epochs {max_epochs:g})"
    parts = [f"{source} {seen:.3g}" for source, seen in sorted(epochs.items()) if 0 < seen < USED_IN_FULL]
    return f"{text}; used in part: {', '.join(parts)} epochs" if parts else text


def plan_copies(sizes: Int64s, hashes: Hashes, epochs: float) -> Int32s:
    """Return how many times each conversation of a source is seen, 0 for one that is not drawn.

    Shapes:  sizes (trained tokens or samples), hashes, result: (conversations,), of the training split.

    >>> plan_copies(np.array([10, 10]), np.array([1, 2], np.uint64), epochs=1.5).tolist()
    [2, 1]
    """
    whole = math.floor(epochs)
    times = np.full(len(sizes), whole, np.int32)
    part = (epochs - whole) * int(sizes.sum())
    times[draw_part(sizes, hashes, part, at_least_one=not whole)] += 1
    return times


def draw_part(sizes: Int64s, hashes: Hashes, part: float, at_least_one: bool) -> Int64s:
    """Return the numbers of drawn conversations, in the order of their hashes.

    Their sizes add up to about `part`, as close as whole conversations allow: none, if that is closest.
    """
    if part <= 0:
        return np.empty(0, np.int64)
    order = np.argsort(hashes, kind="stable")
    reached = np.cumsum(sizes[order])
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
    unit: str = "trained_tokens",
) -> list[dict[str, str | int | float]]:
    """Return a row for each source: its requested and its achieved share of the training split, in units of COUNTS.

    `available` has the amount of one epoch, `packed` the COUNTS as written.
    """
    requested = {source: available[source] * epochs[source] for source in available}
    requested_total = sum(requested.values())
    packed_total = sum(counts[unit] for counts in packed.values())
    return [
        {
            "source": source,
            "domain": domains[source],
            "epochs": round(epochs[source], SHARE_DIGITS),
            "asked_share": _share(requested[source], requested_total),
            **{count: packed[source][count] for count in COUNTS},
            "achieved_share": _share(packed[source][unit], packed_total),
        }
        for source in sorted(available)
    ]


def mixture_by_domain(rows: Sequence[Mapping[str, str | int | float]]) -> dict[str, dict[str, int | float]]:
    """Add up the mixture of the sources of each domain."""
    domains: dict[str, dict[str, int | float]] = {}
    for row in rows:
        total = domains.setdefault(str(row["domain"]), {})
        for name in ("asked_share", *COUNTS, "achieved_share"):
            value = row[name]
            if not isinstance(value, str):
                total[name] = round(total.get(name, 0) + value, SHARE_DIGITS)
    return domains


def _share(part: float, total: float) -> float:
    return round(part / total, SHARE_DIGITS) if total else 0.0
