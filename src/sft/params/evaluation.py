"""The section of params.yaml that determines the evaluation: eval."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from sft.params.base import MAX_INT, Positive, Section, Seed, Share


class Gate(Section):
    """What the evaluation must show for a model to become a candidate (sft.evaluation.gate)."""

    max_loss_ratio: Annotated[float, Field(gt=0)]
    """Limit of the held-out loss after training, divided by the loss before: below it with 95 % confidence."""
    max_domain_loss_ratio: Annotated[float, Field(gt=0)] | None
    """A domain fails if it is above this ratio with 95 % confidence; null = not checked."""
    min_tool_call_fits: Share | None
    """Lowest share of tool calls whose arguments fit the schema; null = not checked."""


class Task(Section):
    """A benchmark. `gsm8k` is short for `{name: gsm8k}`."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """Name of a task, group or tag of lm-eval, or of a task in tasks/."""
    limit: Positive | None = None
    """Its first items only; null = all."""
    num_fewshot: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None
    """Examples in the prompt; null = as many as the task says."""
    chat_template: bool = True
    """Whether the chat template renders the prompt."""
    thinking: bool = False
    """Whether the model may reason before it answers."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Eval(Section):
    """What is measured before and after training, on held-out conversations."""

    samples_per_domain: Positive | None
    """Most held-out samples per domain for the loss; null = all of them."""
    tool_prompts: Annotated[int, Field(ge=0, le=MAX_INT)]
    """Held-out prompts whose answer is a tool call."""
    chat_prompts: Annotated[int, Field(ge=0, le=MAX_INT)]
    """Other held-out prompts."""
    max_prompt_tokens: Positive
    """Longest prompt, in tokens. Longer ones are skipped and counted."""
    max_new_tokens: Positive
    """Longest answer, in tokens."""
    reasoning_budget: Positive | None = None
    """Most tokens of reasoning that prompts for reasoning state, if the template can; null = they state none."""
    engine: Literal["transformers", "endpoint"] = "transformers"
    """What generates the answers: transformers, or the OpenAI-compatible endpoints in SFT_EVAL_URL (vLLM)."""
    batch_size: Positive
    """Prompts per batch of generation with transformers."""
    seed: Seed
    """Seed of the choice of samples and prompts."""
    tasks: list[Task] = Field(default_factory=list)
    """Benchmarks that lm-eval runs: names, or mappings with the keys below. `make setup-lm-eval` installs it."""
    gate: Gate
    """What makes a model a candidate in MLflow. A candidate that is better than the champion becomes champion."""

    @field_validator("tasks")
    @classmethod
    def _each_once(cls, tasks: list[Task]) -> list[Task]:
        names = [task.name for task in tasks]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"the same task twice: {', '.join(repeated)}")
        return tasks
