"""Rules that an answer keeps or breaks: reasoning and its budget, and for answers without tools language, form,
refusals and results of math. Pure: texts in, verdicts out.

Whether a rule applies depends on the prompt and the reference alone, so that it is the same for every model.
Everything is read from text that a model wrote: what cannot be read breaks the rule.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from py3langid import classify  # type: ignore[import-untyped]

from sft.evaluation.tool_calls import opening

MIN_LETTERS = 20
"""A shorter text may be of any language."""
NO_LANGUAGE = "zxx"
REFUSAL_CHARS = 200
"""A refusal is at the start of an answer."""
REFUSAL = re.compile(
    r"\b(?:I(?:'m| am) (?:sorry|unable|not able)|I (?:cannot|can't|can not|won't|must decline)|as an AI)\b",
    re.IGNORECASE,
)
FENCE = re.compile(r"```(\w*)[^\n]*\n(.*?)```", re.DOTALL)
BOXED = r"\boxed"


def check_rules(
    prompt: str,
    text: str,
    reference: Mapping[str, Any],
    *,
    thinking: bool,
    budget: int | None,
    count_tokens: Callable[[str], int],
) -> dict[str, bool]:
    """Return which of sft.metric_labels.RULES an answer keeps; rules that do not apply are left out.

    Args:
        prompt: The rendered prompt.
        text: The answer of a model, without its stop token.
        reference: The assistant message of the data.
        thinking: Whether the prompt asks for reasoning.
        budget: The most tokens of reasoning, as the prompt states them; None: it states none.
        count_tokens: Returns the number of tokens of a text.
    """
    kept: dict[str, bool] = {}
    opened = opening(prompt)
    reasoning, answer, is_closed = split_reasoning(opened + text)
    if opened:
        if thinking:
            kept["reasoning_on"] = is_closed and bool(reasoning.strip())
        else:
            kept["reasoning_off"] = not reasoning.strip() and "think>" not in answer
        if thinking and budget is not None:
            kept["within_budget"] = is_closed and count_tokens(reasoning.strip()) <= budget
    expected = reference.get("content") or ""
    if reference.get("tool_calls") or not expected.strip():
        return kept
    if language := language_of(expected):
        kept["language"] = language_of(answer) in (language, None) and bool(answer.strip())
    if form := form_of(expected):
        kept["form"] = form_of(answer) == form
    kept["refusal"] = refuses(answer) == refuses(expected)
    if BOXED in expected:
        from math_verify import parse, verify  # type: ignore[import-untyped]  # slow to import: it loads SymPy

        if result := parse(expected):
            kept["math"] = bool(verify(result, parse(answer)))
    return kept


def split_reasoning(turn: str) -> tuple[str, str, bool]:
    """Return the reasoning of a turn, the answer behind it, and whether the reasoning ends.

    >>> split_reasoning("<think>so</think>yes"), split_reasoning("<think>so"), split_reasoning("yes")
    (('so', 'yes', True), ('so', '', False), ('', 'yes', True))
    """
    before, closed, after = turn.partition("</think>")
    if closed:
        return before.removeprefix("<think>"), after, True
    if turn.startswith("<think>"):
        return turn.removeprefix("<think>"), "", False
    return "", turn, True


def language_of(text: str) -> str | None:
    """Return the ISO 639-1 code of the language of a text; None: too short, or no language.

    >>> language_of("Das ist ein deutscher Satz, lang genug."), language_of('{"a": 1}')
    ('de', None)
    """
    text = FENCE.sub("", text)
    if sum(letter.isalpha() for letter in text) < MIN_LETTERS:
        return None
    code, _ = classify(text)
    return None if code == NO_LANGUAGE else str(code)


def form_of(text: str) -> str | None:
    """Return the form of a text: an object or an array of JSON, alone or in a fence; code in a fence; else None.

    >>> form_of('[1]'), form_of('Here:\\n```python\\n1 + 1\\n```'), form_of('one')
    ('array', 'code', None)
    """
    fenced = FENCE.search(text)
    for candidate in (text, fenced[2] if fenced else ""):
        try:
            value = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict | list):
            return "object" if isinstance(value, dict) else "array"
    return "code" if fenced else None


def refuses(text: str) -> bool:
    """Return whether a text begins as English refusals do.

    >>> refuses("I\u2019m sorry, but I can\u2019t help with that."), refuses("Sorry about the delay: here it is.")
    (True, False)
    """
    return bool(REFUSAL.search(text.lstrip()[:REFUSAL_CHARS].replace("\u2019", "'")))
