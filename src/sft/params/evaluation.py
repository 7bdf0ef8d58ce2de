"""The section of params.yaml that determines the evaluation: eval."""

from typing import Annotated, Literal

from pydantic import Field

from sft.params.base import Positive, Section, Share


class Gate(Section):
    """What the evaluation must show for a model to become a candidate (sft.evaluation.gate)."""

    max_loss_ratio: Annotated[float, Field(gt=0)]
    """Limit of the held-out loss after training, divided by the loss before: below it with 95 % confidence."""
    max_domain_loss_ratio: Annotated[float, Field(gt=0)] | None
    """A domain fails if it is above this ratio with 95 % confidence; null = not checked."""
    min_tool_call_fits: Share | None
    """Lowest share of tool calls whose arguments fit the schema; null = not checked."""


class Eval(Section):
    """What is measured before and after training, on held-out conversations."""

    samples_per_domain: Positive | None
    """Most held-out samples per domain for the loss; null = all of them."""
    tool_prompts: Annotated[int, Field(ge=0)]
    """Held-out prompts whose answer is a tool call."""
    chat_prompts: Annotated[int, Field(ge=0)]
    """Other held-out prompts."""
    max_prompt_tokens: Positive
    """Longest prompt, in tokens. Longer ones are skipped and counted."""
    max_new_tokens: Positive
    """Longest answer, in tokens."""
    engine: Literal["transformers", "endpoint"] = "transformers"
    """What generates the answers: transformers, or the OpenAI-compatible endpoints in SFT_EVAL_URL (vLLM)."""
    batch_size: Positive
    """Prompts per batch of generation with transformers."""
    seed: int
    """Seed of the choice of samples and prompts."""
    gate: Gate
    """What makes a model a candidate in MLflow. A candidate that is better than the champion becomes champion."""
