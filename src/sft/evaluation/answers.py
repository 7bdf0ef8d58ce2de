"""Answers of a model, graded: rows of answers.jsonl and the shares of reports/eval.json. Pure."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sft.evaluation.loss import DIGITS
from sft.evaluation.prompts import Prompt
from sft.evaluation.tool_calls import grade, opening, think_balanced

TOOL_CALL_SHARES = ("well_formed", "known_function", "fits", "exact")
SHARES = ("stopped", "think_balanced")


def graded_answer(prompt: Prompt, ids: list[int], chat: Any) -> dict[str, Any]:
    """Return one answer as answers.jsonl has it: its text, whether it stopped, the verdict on its tool calls."""
    stopped = bool(ids) and ids[-1] in chat.stop_ids
    text = chat.decode(ids[:-1] if stopped else ids)
    turn = opening(chat.decode(prompt.ids)) + text
    answer = {"text": text, "stopped": stopped, "think_balanced": think_balanced(turn)}
    if prompt.kind == "tool":
        answer["verdict"] = dataclasses.asdict(grade(turn, prompt.tools, prompt.reference["tool_calls"]))
    return answer


def answer_metrics(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return graded answers as shares; None where there was no prompt to answer."""
    verdicts = [answer["verdict"] for answer in answers if "verdict" in answer]
    shares = {f"tool_call_{name}": _share([verdict[name] for verdict in verdicts]) for name in TOOL_CALL_SHARES}
    return shares | {name: _share([answer[name] for answer in answers]) for name in SHARES}


def answer_rows(
    prompts: Sequence[Prompt], before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the rows of answers.jsonl: each prompt with the answers of both models."""
    return [
        {
            "kind": prompt.kind,
            "source": prompt.source,
            "conversation_id": prompt.conversation_id,
            "thinking": prompt.thinking,
            "prompt_tokens": len(prompt.ids),
            "question": prompt.question,
            "reference": prompt.reference,
            "before": answer_before,
            "after": answer_after,
        }
        for prompt, answer_before, answer_after in zip(prompts, before, after, strict=True)
    ]


def _share(claims: Sequence[bool]) -> float | None:
    return round(sum(claims) / len(claims), DIGITS) if claims else None
