"""Held-out loss as reports/eval.json has it. Pure: sums of negative log likelihood in, loss per token out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

DIGITS = 6
"""Decimals of a number in reports/eval.json."""


def loss_metrics(losses: Mapping[str, Sequence[tuple[float, int]]]) -> dict[str, Any]:
    """Return the loss per token of (summed loss, tokens) of each sample, by domain: overall and for each domain.

    >>> loss_metrics({"a": [(2.0, 1), (4.0, 2)], "b": [(0.0, 3)]})
    {'loss': 1.0, 'perplexity': 2.718282, 'loss_by_domain': {'a': 2.0, 'b': 0.0}}
    """
    loss = _mean([pair for pairs in losses.values() for pair in pairs])
    return {
        "loss": round(loss, DIGITS),
        "perplexity": round(math.exp(loss), DIGITS),
        "loss_by_domain": {domain: round(_mean(pairs), DIGITS) for domain, pairs in losses.items()},
    }


def _mean(pairs: Sequence[tuple[float, int]]) -> float:
    return math.fsum(total for total, _ in pairs) / sum(count for _, count in pairs)
