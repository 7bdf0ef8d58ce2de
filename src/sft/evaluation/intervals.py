"""Intervals of what was measured: shares of answers, and the change of the held-out loss. Pure.

A loss per token is a ratio of sums. Its independent units are neither tokens nor conversations but split groups
(conversations with the same first question): they are drawn with replacement, before and after together (paired
bootstrap, percentiles of RESAMPLES draws). Shares have Wilson intervals,
their change the exact McNemar test.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sft.evaluation.loss import DIGITS

LEVEL = 0.95
FEWEST = 10
"""Groups of conversations below which a change of the loss has no interval."""
RESAMPLES = 9_999
SEED = 0
VALUES_AT_ONCE = 2_000_000
"""Drawn values held in memory at a time."""


class Pair(NamedTuple):
    """The summed loss of one group of conversations before and after training, and its trained tokens."""

    before: float
    after: float
    tokens: int


def pair_losses(
    groups: Sequence[int], before: Sequence[tuple[float, int]], after: Sequence[tuple[float, int]]
) -> list[Pair]:
    """Return one pair for each group, from (sum, tokens) of its samples; `groups` names the group of each sample.

    >>> pair_losses([7, 8, 7], [(2.0, 1), (3.0, 1), (4.0, 2)], [(1.0, 1), (3.0, 1), (1.0, 2)])
    [Pair(before=6.0, after=2.0, tokens=3), Pair(before=3.0, after=3.0, tokens=1)]
    """
    pairs: dict[int, Pair] = {}
    for group, (was, tokens), (now, _) in zip(groups, before, after, strict=True):
        old = pairs.get(group, Pair(0.0, 0.0, 0))
        pairs[group] = Pair(old.before + was, old.after + now, old.tokens + tokens)
    return list(pairs.values())


def change_bounds(pairs: Sequence[Pair], ratio: float = 1.0, level: float = LEVEL) -> tuple[float, float] | None:
    """Return the two-sided interval of (after - ratio * before) per token; None: fewer than FEWEST conversations."""
    if len(pairs) < FEWEST:
        return None
    from scipy.stats import bootstrap  # type: ignore[import-untyped]  # here and below: it takes a second to import

    before, after, tokens = np.array(pairs, dtype=np.float64).T

    def per_token(losses: Any, counts: Any, axis: int) -> Any:
        return losses.sum(axis) / counts.sum(axis)

    interval = bootstrap(
        (after - ratio * before, tokens),
        per_token,
        n_resamples=RESAMPLES,
        batch=max(1, VALUES_AT_ONCE // len(pairs)),
        paired=True,
        vectorized=True,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def loss_change(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return the change of the loss per token, its interval (None: too few) and the number of conversations.

    Conversations of one group count as one.
    """
    low, high = change_bounds(pairs) or (None, None)
    difference = sum(pair.after - pair.before for pair in pairs) / sum(pair.tokens for pair in pairs)
    return {"change": _round(difference), "low": _round(low), "high": _round(high), "conversations": len(pairs)}


def share_interval(claims: Sequence[bool]) -> dict[str, float] | None:
    """Return Wilson's interval of the share of true claims; None: there are none.

    >>> share_interval([True] * 17 + [False] * 3)
    {'low': 0.639581, 'high': 0.947631}
    """
    if not claims:
        return None
    from scipy.stats import binomtest

    interval = binomtest(sum(claims), len(claims)).proportion_ci(LEVEL, method="wilson")
    return {"low": round(float(interval.low), DIGITS), "high": round(float(interval.high), DIGITS)}


def share_change(before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any] | None:
    """Return how many claims became true and false, and the probability of that by chance (McNemar, exact).

    >>> share_change([True, False, False], [True, True, True])
    {'better': 2, 'worse': 0, 'p': 0.5}
    """
    if not before:
        return None
    from scipy.stats import binomtest

    better = sum(now and not was for was, now in zip(before, after, strict=True))
    worse = sum(was and not now for was, now in zip(before, after, strict=True))
    p = binomtest(min(better, worse), better + worse).pvalue if better + worse else 1.0
    return {"better": better, "worse": worse, "p": round(float(p), DIGITS)}


def measured_changes(pairs: Mapping[str, Sequence[Pair]]) -> dict[str, Any]:
    """Return the change of the loss over all and by domain."""
    everything = [pair for kept in pairs.values() for pair in kept]
    return {
        "loss": loss_change(everything),
        "loss_by_domain": {domain: loss_change(kept) for domain, kept in pairs.items()},
    }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)
