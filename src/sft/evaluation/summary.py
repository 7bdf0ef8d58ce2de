"""What two models did with the same held-out data  ->  reports/eval.json, and their graded answers."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sft.evaluation.answers import answer_metrics, compare_answers, graded_answer
from sft.evaluation.gate import decide
from sft.evaluation.held_out import HeldOut, choose_held_out
from sft.evaluation.intervals import measured_changes, pair_losses
from sft.evaluation.loss import loss_metrics
from sft.evaluation.measure import Measured, measure_models
from sft.params.evaluation import Eval

Graded = list[dict[str, Any]]
"""Answers as sft.evaluation.answers.graded_answer returns them."""


def measure_and_compare(
    base: Path, final: Path, metadata: Mapping[str, Any], params: Eval
) -> tuple[HeldOut, dict[str, Any], Graded, Graded]:
    """Ask both models the held-out data of `metadata` (data/packed/metadata.json); return it and `compare_models`.

    Raises:  InputError: as choose_held_out and measure_models.
    """
    from sft.tokens.render import ChatTemplate, Settings

    settings = Settings(date=metadata.get("date"))
    chat = ChatTemplate.load(str(final / "chat_template.jinja"), final, settings=settings)
    held_out = choose_held_out(metadata, params, chat)
    segments = [segment for kept in held_out.segments.values() for segment in kept]
    measured = measure_models(base, final, segments, held_out.prompts, chat.stop_ids, params)
    return held_out, *compare_models(held_out, measured, chat, params)


def compare_models(
    held_out: HeldOut, measured: Sequence[Measured], chat: Any, params: Eval
) -> tuple[dict[str, Any], Graded, Graded]:
    """Return reports/eval.json without its tasks, and the graded answers of the model before and after training."""
    _, segments, groups, prompts, left_out = held_out
    losses: list[dict[str, list[tuple[float, int]]]] = []
    graded: list[Graded] = []
    for model in measured:
        rest = iter(model.losses)
        losses.append({domain: list(itertools.islice(rest, len(kept))) for domain, kept in segments.items()})
        graded.append([graded_answer(prompt, ids, chat) for prompt, ids in zip(prompts, model.answers, strict=True)])
    pairs = {
        domain: pair_losses(
            [groups[segment.source, segment.conversation_id] for segment in kept], losses[0][domain], losses[1][domain]
        )
        for domain, kept in segments.items()
    }
    before, after = ({**loss_metrics(losses[at]), **answer_metrics(graded[at])} for at in (0, 1))
    evaluation = {
        "before": before,
        "after": after,
        "change": {**measured_changes(pairs), **compare_answers(*graded)},
        "gate": decide(pairs, after["tool_call_fits"], params.gate),
        "tool_prompts": sum(prompt.kind == "tool" for prompt in prompts),
        "chat_prompts": sum(prompt.kind == "chat" for prompt in prompts),
        "samples_by_domain": {domain: len(kept) for domain, kept in segments.items()},
        "tokens": sum(sum(segment.marks) for kept in segments.values() for segment in kept),
        "prompts_left_out": dict(sorted(left_out.items())),
    }
    return evaluation, graded[0], graded[1]
