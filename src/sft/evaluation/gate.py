"""The gate: whether a trained model is good enough to be a candidate in MLflow. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from sft.evaluation.intervals import FEWEST, Pair, change_bounds
from sft.params.evaluation import Gate

CONFIDENCE = 0.95  # one-sided
TWO_SIDED = 2 * CONFIDENCE - 1
"""Level of the two-sided interval whose ends are the one-sided bounds."""


def decide(pairs: Mapping[str, Sequence[Pair]], tool_call_fits: float | None, gate: Gate) -> dict[str, Any]:
    """Return the gate of reports/eval.json: whether the model passed, every limit it misses, and what nobody can tell.

    The loss over all must be below its limit with 95 % confidence: two equal models do not pass. A domain fails if it
    is above its limit with 95 % confidence. Fewer than FEWEST held-out conversations decide nothing: that is said and
    does not fail.

    `pairs` are the losses of each conversation by domain; `tool_call_fits` is the share of the trained model.
    """
    failures, undecided = [], []
    everything = [pair for kept in pairs.values() for pair in kept]
    limits = [("loss", everything, gate.max_loss_ratio, True)]
    if gate.max_domain_loss_ratio is not None:
        limits += [(f"loss, {name}", list(kept), gate.max_domain_loss_ratio, False) for name, kept in pairs.items()]
    for name, kept, ratio, must_be_shown in limits:
        bounds = change_bounds(kept, ratio, TWO_SIDED)
        if bounds is None:
            undecided.append(f"{name}: {len(kept)} held-out conversations, at least {FEWEST} to tell")
        elif not (bounds[1] < 0 if must_be_shown else bounds[0] <= 0):  # so that a loss of NaN fails
            tokens = sum(pair.tokens for pair in kept)
            before, after = (sum(losses) / tokens for losses in list(zip(*kept, strict=True))[:2])
            claim = f"not below {ratio} x {before:.6g}" if must_be_shown else f"above {ratio} x {before:.6g}"
            failures.append(f"{name}: {after:.6g} after, {claim} with 95 % confidence")
    least = gate.min_tool_call_fits
    if least is not None and tool_call_fits is not None and tool_call_fits < least:
        failures.append(f"arguments fit: {tool_call_fits}, at least {least}")
    return {"passed": not failures, "failures": failures, "undecided": undecided}
