"""Answers of a model, graded: rows of answers.jsonl and the shares of reports/eval.json. Pure."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sft.evaluation.intervals import share_change, share_interval
from sft.evaluation.loss import DIGITS
from sft.evaluation.prompts import Prompt
from sft.evaluation.rules import check_rules
from sft.evaluation.tool_calls import grade, opening, think_balanced
from sft.metric_labels import RULES

TOOL_CALL_SHARES = ("well_formed", "known_function", "fits", "exact")
SHARES = ("stopped", "think_balanced")


def graded_answer(prompt: Prompt, ids: list[int], chat: Any) -> dict[str, Any]:
    """Return one answer as answers.jsonl has it: its text, whether it stopped, rules, and the verdict on its calls."""
    stopped = bool(ids) and ids[-1] in chat.stop_ids
    text = chat.decode(ids[:-1] if stopped else ids)
    rendered = chat.decode(prompt.ids)
    turn = opening(rendered) + text
    rules = check_rules(
        rendered,
        text,
        prompt.reference,
        thinking=prompt.thinking,
        budget=prompt.budget,
        count_tokens=chat.count_tokens,
    )
    answer = {"text": text, "stopped": stopped, "think_balanced": think_balanced(turn), "rules": rules}
    if prompt.kind == "tool":
        answer["verdict"] = dataclasses.asdict(grade(turn, prompt.tools, prompt.reference["tool_calls"]))
    return answer


def answer_metrics(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return graded answers as shares with their 95 % intervals; None where there was no prompt to answer."""
    claims = _claims(answers)
    return {
        **{name: round(sum(each) / len(each), DIGITS) if each else None for name, each in claims.items()},
        "intervals": {name: interval for name, each in claims.items() if (interval := share_interval(each))},
    }


def compare_answers(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return for each share how many answers got better and worse, and how probable that is by chance."""
    was, now = _claims(before), _claims(after)
    return {name: change for name in was if (change := share_change(was[name], now[name]))}


def _claims(answers: Sequence[Mapping[str, Any]]) -> dict[str, list[bool]]:
    """Return what each answer achieved, by the name of the share."""
    verdicts = [answer["verdict"] for answer in answers if "verdict" in answer]
    claims = {f"tool_call_{name}": [verdict[name] for verdict in verdicts] for name in TOOL_CALL_SHARES}
    for name in RULES:
        claims[f"rule_{name}"] = [answer["rules"][name] for answer in answers if name in answer["rules"]]
    return claims | {name: [answer[name] for answer in answers] for name in SHARES}


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


def own_sources(recorded: Mapping[str, Mapping[str, Any]], packed: Iterable[str]) -> set[str]:
    """Return the packed sources that are your own: an address of it is file://, or nobody knows it.

    `recorded`: the sources in lineage.json, whose `uri` joins addresses by commas.

    >>> own_sources({"a": {"uri": "hf://o/n@1/x"}, "b": {"uri": "hf://o/n@1/x, file://y"}}, ["a", "b", "c"]) - {"b"}
    {'c'}
    """
    addresses = {name: str(recorded.get(name, {}).get("uri", "")) for name in packed}
    return {name for name, address in addresses.items() if not address or "file://" in address}
