"""The section of params.yaml that determines the evaluation: eval."""

from typing import Annotated

from pydantic import Field

from sft.params.base import Positive, Section, Share


class Gate(Section):
    """What a model has to hold to become a candidate, by its evaluation (sft.stages.eval)."""

    max_loss_ratio: Annotated[float, Field(gt=0)]
    """Held-out loss after training over that before."""
    max_domain_loss_ratio: Annotated[float, Field(gt=0)] | None
    """The same for each domain; null = not asked."""
    min_tool_call_fits: Share | None
    """Share of tool calls whose arguments fit; null = not asked, also where there are no prompts for it."""


class Eval(Section):
    """What is measured before and after."""

    samples_per_domain: Positive
    """Held-out samples per domain for the loss."""
    tool_prompts: Annotated[int, Field(ge=0)]
    """Held-out prompts that want a tool call."""
    chat_prompts: Annotated[int, Field(ge=0)]
    """Other held-out prompts."""
    max_prompt_tokens: Positive
    """Longer prompts are left out, and counted."""
    max_new_tokens: Positive
    """An answer is cut there."""
    batch_size: Positive
    """Prompts generated together."""
    seed: int
    gate: Gate
    """Passed: the model is candidate in MLflow, and champion if it is better than that."""
