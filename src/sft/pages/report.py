"""The report of an evaluation: what training changed, as an HTML page and as a table for the terminal.

Pure: numbers and texts in, text out. Same inputs, same bytes.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from sft.domains import BY_SLUG, domain_of, in_order
from sft.evaluation.answers import TOOL_CALL_SHARES
from sft.metric_labels import RULES, SHARES
from sft.pages.charts import Bar, Line, Point, bar_chart, line_chart
from sft.pages.render import number, render

TITLE = "What training changed"
HEADLINE = {
    "held-out loss": "loss",
    "perplexity": "perplexity",
    "tool calls that fit": "tool_call_fits",
    "answers that stop": "stopped",
}
MAX_ANSWERS = 200
"""Answers on the page; reports/answers.jsonl has them all."""
FILTERS = {
    "all": "all",
    "failed": "failed",
    "worse": "worse than before",
    "better": "better than before",
    "tool": "tool calls",
    "chat": "other prompts",
}
"""What each filter of the answers is called, by the CSS class of what it shows."""
ANSWER_CHARS = 1_200
QUESTION_CHARS = 110
MEAN_SHARE = 12
"""The running mean is over a twelfth of the steps: packs of one step are of other domains than those of the next."""


def read_curve(paths: Sequence[Path]) -> list[dict[str, float]]:
    """Return the losses that the train stage wrote, if it did, as one list of points in order of iteration."""
    points: dict[int, dict[str, float]] = {}
    for path in paths:
        if path.exists():
            with path.open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    iteration = int(row["iteration"])
                    losses = {name: float(row[name]) for name in ("loss", "validation_loss") if row.get(name)}
                    points.setdefault(iteration, {"iteration": iteration}).update(losses)
    return [points[iteration] for iteration in sorted(points)]


def page(
    evaluation: Mapping[str, Any],
    answers: Sequence[Mapping[str, Any]],
    curve: Sequence[Mapping[str, float]],
    lineage_key: str,
    domains: Mapping[str, Mapping[str, Any]],
    windows: Mapping[str, int] | None = None,
) -> str:
    """Return the page.

    `evaluation` is reports/eval.json, `answers` are the rows of reports/answers.jsonl, `curve` the points of the
    training: iteration, loss and, where it was measured, validation_loss; `domains` counts what was packed, by
    domain, and `windows` those of samples longer than a pack (both in data/packed/metadata.json).
    """
    before, after = evaluation["before"], evaluation["after"]
    changes = evaluation["change"]["loss_by_domain"]
    losses = [
        (
            domain_of(domain).name,
            Bar(was := before["loss_by_domain"][domain]),
            Bar(after["loss_by_domain"][domain], _bounds(changes[domain], was)),
        )
        for domain in sorted(after["loss_by_domain"], key=lambda name: (-changes[name]["change"], name))
    ]
    marked = sorted(((_marks(row), row) for row in answers), key=lambda pair: _failures_first(pair[0]))
    shares = [(label, _share_bar(before, name), _share_bar(after, name)) for name, label in _shares(after).items()]
    return render(
        "report.html.j2",
        title=TITLE,
        lineage_key=lineage_key,
        before=before,
        after=after,
        headline=HEADLINE.items(),
        loss_chart=line_chart(_curves(curve)) if len(curve) > 1 else "",
        has_validation=any("validation_loss" in point for point in curve),
        domain_chart=bar_chart(losses),
        tasks=list(_task_rows(evaluation.get("tasks", {}))),
        shares_chart=bar_chart(shares, top=1.0),
        gate=evaluation["gate"],
        counts=_counts(evaluation),
        domains=_domains(domains),
        windows=windows,
        filters=[(name, label, sum(name in marks for marks, _ in marked)) for name, label in FILTERS.items()],
        answers=[_example(row, marks) for marks, row in marked[:MAX_ANSWERS]],
        num_answers=len(answers),
    )


def table(evaluation: Mapping[str, Any]) -> Table:
    """Return the table for the terminal: metric, before, after, change, 95 % interval.

    The interval of a loss is that of its change, over n conversations; that of a share is of the trained model, with
    how many answers got better (+) and worse (-).
    """
    before, after, change = evaluation["before"], evaluation["after"], evaluation["change"]
    rows = [("loss", before["loss"], after["loss"], _loss_note(change["loss"]))]
    rows += [("perplexity", before["perplexity"], after["perplexity"], "")]
    rows += [
        (f"loss, {domain}", before["loss_by_domain"][domain], loss, _loss_note(change["loss_by_domain"][domain]))
        for domain, loss in after["loss_by_domain"].items()
    ]
    rows += [
        (label, before[name], after[name], _share_note(after, change, name)) for name, label in _shares(after).items()
    ]
    rows += [
        (f"{task}: {metric}", was, now, ", ".join(filter(None, (note, in_training_data))))
        for task, metric, was, now, note, in_training_data in _task_rows(evaluation.get("tasks", {}))
    ]
    laid = Table("metric", "before", "after", "change", "95 % interval")
    for label, was, now, note in rows:
        if was is None or now is None:
            laid.add_row(escape(label), "no prompts", "no prompts", "", "")
        else:
            laid.add_row(escape(label), number(was), number(now), f"{now - was:+.3f}", note)
    for column in laid.columns[1:4]:
        column.justify = "right"
    return laid


def _shares(after: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels of the shares: of the rules, those that apply to a prompt."""
    rules = {f"rule_{name}": label for name, label in RULES.items() if after.get(f"rule_{name}") is not None}
    return SHARES | rules


def _bounds(interval: Mapping[str, Any] | None, base: float = 0.0) -> tuple[float, float] | None:
    """Return the ends of an interval, added to what it is a change of; None: there is none."""
    if interval is None or interval["low"] is None:
        return None
    return base + interval["low"], base + interval["high"]


def _share_bar(metrics: Mapping[str, Any], name: str) -> Bar:
    return Bar(metrics[name], _bounds(metrics["intervals"].get(name)))


def _loss_note(change: Mapping[str, Any]) -> str:
    bounds = _bounds(change)
    units = f"n={change['conversations']}"
    return f"{bounds[0]:+.3f} to {bounds[1]:+.3f}, {units}" if bounds else f"too few, {units}"


def _task_rows(tasks: Mapping[str, Any]) -> Iterator[tuple[str, str, float, float, str, str]]:
    """Yield task, metric, before, after, interval with counts, and how many items the training data contains."""
    for task, measured in tasks.items():
        for metric, values in measured["metrics"].items():
            bounds = _bounds(values.get("interval"))
            note = f"{bounds[0]:.2f} to {bounds[1]:.2f}, +{values['better']} -{values['worse']}" if bounds else ""
            found = f"{measured['contaminated']:,} of {measured['items']:,} items in the training data"
            if measured["contaminated"] and values.get("uncontaminated") is not None:
                found += f"; {number(values['uncontaminated'])} without them"
            if measured.get("cut"):
                found += f"; {measured['cut']:,} longer than the model's context, cut at their start"
            yield task, metric, values["before"], values["after"], note, found


def _share_note(after: Mapping[str, Any], change: Mapping[str, Any], name: str) -> str:
    bounds, counts = _bounds(after["intervals"].get(name)), change.get(name)
    if bounds is None or counts is None:
        return ""
    return f"{bounds[0]:.2f} to {bounds[1]:.2f}, +{counts['better']} -{counts['worse']}"


def running_mean(points: Sequence[Point], window: int) -> list[Point]:
    """Return the mean of each value and up to `window` - 1 before it.

    >>> running_mean([(1, 4.0), (2, 2.0), (3, 0.0)], 2)
    [(1, 4.0), (2, 3.0), (3, 1.0)]
    """
    means = []
    for index, (iteration, _) in enumerate(points):
        taken = [value for _, value in points[max(0, index + 1 - max(1, window)) : index + 1]]
        means.append((iteration, sum(taken) / len(taken)))
    return means


def _curves(curve: Sequence[Mapping[str, float]]) -> list[Line]:
    """Return the loss of each step, its running mean, and validations."""
    steps = [(point["iteration"], point["loss"]) for point in curve if "loss" in point]
    validations = [(point["iteration"], point["validation_loss"]) for point in curve if "validation_loss" in point]
    mean = running_mean(steps, len(steps) // MEAN_SHARE)
    return [Line("step", steps), Line("after", mean), Line("validation", validations, has_dots=True)]


def _counts(evaluation: Mapping[str, Any]) -> list[tuple[str, int]]:
    return [
        ("prompts that want a tool call", evaluation["tool_prompts"]),
        ("other prompts", evaluation["chat_prompts"]),
        *((f"prompts left out: {reason}", n) for reason, n in evaluation["prompts_left_out"].items()),
        *((f"held-out samples: {domain}", n) for domain, n in evaluation["samples_by_domain"].items()),
        ("trained tokens in them", evaluation["tokens"]),
    ]


def _domains(packed: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[Any, Mapping[str, Any] | None, str]]:
    """Yield (domain, counts, share of the trained tokens): the recipe's fourteen, also without data, then others."""
    total = sum(counts["trained_tokens"] for counts in packed.values()) or 1
    for slug in in_order({*BY_SLUG, *packed}):
        counts = packed.get(slug)
        yield domain_of(slug), counts, f"{counts['trained_tokens'] / total:.1%}" if counts else "-"


def _marks(row: Mapping[str, Any]) -> set[str]:
    """Return the filters that show a row of answers.jsonl. A tool call fails if it does not fit; another answer, if
    it does not stop."""
    before, after = (_claims(row[name]) for name in ("before", "after"))
    verdict = row["after"].get("verdict")
    failed = not (verdict["fits"] if verdict else row["after"]["stopped"])
    shown = {"failed": failed, "worse": after < before, "better": after > before}
    return {"all", row["kind"], *(name for name, holds in shown.items() if holds)}


def _claims(answer: Mapping[str, Any]) -> int:
    """Return how much of what an answer should be it is: claims of its verdict, and that it stops."""
    verdict = answer.get("verdict", {})
    return sum(bool(verdict.get(name)) for name in TOOL_CALL_SHARES) + bool(answer["stopped"])


def _failures_first(marks: set[str]) -> tuple[bool, ...]:
    return tuple(name not in marks for name in ("failed", "worse", "better"))


def _example(row: Mapping[str, Any], marks: set[str]) -> dict[str, Any]:
    """Return what the page shows of a row of answers.jsonl."""
    question = row["question"].strip()
    return {
        "classes": " ".join(name for name in FILTERS if name in marks),
        "note": _notes(row["after"]),
        "source": row["source"],
        "kind": row["kind"],
        "question": question if len(question) <= QUESTION_CHARS else question[: QUESTION_CHARS - 3] + "...",
        "panels": [(name, _notes(row[name]), _start(row[name]["text"])) for name in ("before", "after")],
        "reference": _start(_reference(row["reference"])),
    }


def _notes(answer: Mapping[str, Any]) -> str:
    verdict = answer["verdict"]["fault"] or "exact" if "verdict" in answer else ""
    broken = [f"not: {RULES[name]}" for name, is_kept in answer.get("rules", {}).items() if not is_kept]
    return ", ".join(note for note in (verdict, "" if answer["stopped"] else "cut at max_new_tokens", *broken) if note)


def _reference(message: Mapping[str, Any]) -> str:
    calls = [call["function"] for call in message.get("tool_calls", [])]
    lines = [f"{call['name']} {json.dumps(call['arguments'], ensure_ascii=False)}" for call in calls]
    return "\n".join([message["content"], *lines]).strip()


def _start(text: str) -> str:
    left_out = len(text) - ANSWER_CHARS
    return text if left_out <= 0 else f"{text[:ANSWER_CHARS]}\n[{left_out} more characters]"
