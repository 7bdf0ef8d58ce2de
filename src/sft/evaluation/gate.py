"""The gate: whether a trained model is good enough to be a candidate in MLflow. Pure."""

from collections.abc import Mapping
from typing import Any

from sft.params.evaluation import Gate


def gate_failures(before: Mapping[str, Any], after: Mapping[str, Any], gate: Gate) -> list[str]:
    """Return every limit of the gate that a model misses; none: it passes.

    `before` and `after` are the metrics of the base model and of the trained one, as in reports/eval.json.
    """
    failures = []
    domains = after["loss_by_domain"]
    ratios = {"loss": (after["loss"], before["loss"], gate.max_loss_ratio)} | {
        f"loss, {name}": (domains[name], before["loss_by_domain"][name], gate.max_domain_loss_ratio) for name in domains
    }
    for name, (loss_after, loss_before, max_ratio) in ratios.items():
        if max_ratio is not None and loss_after > loss_before * max_ratio:
            failures.append(f"{name}: {loss_after} after, at most {max_ratio} x {loss_before}")
    min_fits, fits = gate.min_tool_call_fits, after["tool_call_fits"]
    if min_fits is not None and fits is not None and fits < min_fits:
        failures.append(f"arguments fit: {fits}, at least {min_fits}")
    return failures
