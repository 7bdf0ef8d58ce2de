"""Params of the eval stage with tiny limits and no gate but the loss."""

from typing import Any

from sft.params.evaluation import Eval, Gate

LIMITS = ("tool_prompts", "chat_prompts", "max_prompt_tokens", "max_new_tokens", "batch_size")


def eval_params(limit: int, **others: Any) -> Eval:
    """Return params with the same limit of everything, except for `others`."""
    gate = Gate(max_loss_ratio=1.0, max_domain_loss_ratio=None, min_tool_call_fits=None)
    return Eval(**{"samples_per_domain": None, **dict.fromkeys(LIMITS, limit), "seed": 1, "gate": gate, **others})
