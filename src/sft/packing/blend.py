"""Blend: how often a conversation of the training split is seen, so that the mixture is the one asked for.

A source asks for a share of the blend or for epochs. Both count trained tokens of the training split: the
loss is an average over them, so they are what a mixture means to the model. Held-out splits are as they
come, every conversation once.

epochs 2.5     every conversation twice, and a drawn half once more
epochs 0.3     a drawn part without replacement, 0.3 of the trained tokens
shares         for all sources or for none. The blend is the largest in which no source is used more than
               once: the scarcest source is used whole, of the others a part is drawn. Who wants the scarce
               one repeated says so in epochs.

Parts are drawn by keyed hash of the conversation, the same on every machine; a larger part of a source
contains its smaller ones. A part ends at a whole conversation, at the one that comes nearest.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sft.cli import InputError

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

SHARES_TOLERANCE = 1e-6  # what adding decimal fractions in floating point costs, and a typo does not
SHARE_DIGITS = 6


def check_asked(shares: Mapping[str, float | None], epochs: Mapping[str, float | None]) -> None:
    """Raise unless all sources have a share and these add up to 1, or none has one.

    Raises:  InputError: names the sources, what was found, and what to do.
    """
    given = {source: share for source, share in shares.items() if share is not None}
    if not given:
        return
    if missing := sorted(shares.keys() - given.keys()):
        raise InputError(
            f"fetch.sources: {', '.join(sorted(given))} have a share, {', '.join(missing)} have none. "
            "Give one to every source, or to none and use epochs."
        )
    if both := sorted(source for source in given if epochs[source] is not None):
        raise InputError(f"fetch.sources: {', '.join(both)} have a share and epochs. Keep one of them.")
    total = math.fsum(given.values())
    if abs(total - 1) > SHARES_TOLERANCE:
        found = ", ".join(f"{source} {share}" for source, share in sorted(given.items()))
        raise InputError(f"fetch.sources: the shares add up to {total:.7g}, not to 1: {found}. Change one of them.")


def plan_epochs(
    trained_tokens: Mapping[str, int], shares: Mapping[str, float | None], epochs: Mapping[str, float | None]
) -> dict[str, float]:
    """Return how often each source is seen; shares are turned into epochs, at most 1.

    >>> plan_epochs({"a": 100, "b": 300}, {"a": 0.5, "b": 0.5}, {"a": None, "b": None})["b"]
    0.3333333333333333
    """
    check_asked(shares, epochs)
    asked = {source: share for source, share in shares.items() if share is not None}
    if not asked:
        return {source: 1.0 if (given := epochs[source]) is None else given for source in trained_tokens}
    if empty := sorted(source for source in asked if not trained_tokens[source]):
        raise InputError(
            f"fetch.sources: {', '.join(empty)} have a share, but nothing of them is left to train on "
            "(reports/pack.json of an earlier run, or pack.pack_size, says why). "
            "Raise pack.pack_size, or take them out of the blend."
        )
    whole = math.fsum(asked.values())
    total = min(trained_tokens[source] * whole / share for source, share in asked.items())
    return {source: min(1.0, share / whole * total / trained_tokens[source]) for source, share in asked.items()}


def plan_repeats(trained_tokens: Int64s, hashes: Hashes, epochs: float) -> Int32s:
    """Say how many times each conversation of a source is seen, 0 for one that is not drawn.

    Shapes:  trained_tokens, hashes, result: (conversations,), of the training split.

    >>> plan_repeats(np.array([10, 10]), np.array([1, 2], np.uint64), epochs=1.5).tolist()
    [2, 1]
    """
    whole = math.floor(epochs)
    times = np.full(len(trained_tokens), whole, np.int32)
    part = (epochs - whole) * int(trained_tokens.sum())
    times[draw_part(trained_tokens, hashes, part, at_least_one=not whole)] += 1
    return times


def draw_part(trained_tokens: Int64s, hashes: Hashes, part: float, at_least_one: bool) -> Int64s:
    """Draw conversations whose trained tokens come nearest to `part`, in the order of their hashes.

    A small part may be none of them. Returns their numbers.
    """
    if part <= 0:
        return np.empty(0, np.int64)
    order = np.argsort(hashes, kind="stable")
    reached = np.cumsum(trained_tokens[order])
    last = int(np.searchsorted(reached, part))  # the first at which the part is reached or passed
    if last == len(order):
        return order
    before = int(reached[last - 1]) if last else 0
    passed = int(reached[last]) - part > part - before
    return order[: last + 1 - (passed and (last > 0 or not at_least_one))]


def describe_mixture(
    available: Mapping[str, int],
    packed: Mapping[str, Mapping[str, int]],
    domains: Mapping[str, str],
    epochs: Mapping[str, float],
) -> list[dict[str, str | int | float]]:
    """Compare, by source, the mixture that was asked for with the one that is in the training split.

    `available` has the trained tokens of one epoch, `packed` the tokens and trained tokens as written.
    """
    asked = {source: available[source] * epochs[source] for source in available}
    asked_total, packed_total = sum(asked.values()), sum(counts["trained_tokens"] for counts in packed.values())
    return [
        {
            "source": source,
            "domain": domains[source],
            "epochs": round(epochs[source], SHARE_DIGITS),
            "asked_share": _share(asked[source], asked_total),
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
