"""judge-agreement: how far the judge agrees with people, by line of the rubric.

LABELS, a file of JSON lines: {"messages": [...], "tools": [...], "rules": [4]}, where `rules` are the numbers of the
lines of the rubric (filter.judge.rubric) that a person found broken, [] for none
    ->  the terminal, or JSON (--json): Cohen's kappa of each line, and of `consistent`, with its 95 % interval

The judge is that of filter.judge, at SFT_JUDGE_URL. Its verdicts are kept, as those of the filter stage: a second call
asks nothing. Conversations without a verdict are counted and left out.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from sft.cli import InputError, add_json_option, echo, make_parser, print_facts, run_or_exit
from sft.conversation import Conversation, Rejection
from sft.files import project_root, resolve_repo_file
from sft.filters.judge.judge import Judge
from sft.filters.judge.verdicts import JudgeFailure, read_rubric
from sft.formats.messages import normalize
from sft.formats.raw_files import parse_row
from sft.params.read import load

CONSISTENT = "consistent"
DRAWS, SEED = 9_999, 0
PRIOR = 0.5
"""Jeffreys: added to each of the four counts. Without it, agreement without exception has no width at all."""
TAILS = (2.5, 97.5)
"""Percentiles: the ends of a 95 % interval."""
NUMBERED = re.compile(r"^ {0,3}(\d{1,3})[.)] ", re.MULTILINE)
"""A line of a rubric with its number."""
FEWEST = 10
"""Conversations below which kappa has no interval."""


@dataclass(frozen=True)
class Agreement:
    """Two answers to one yes-no question about each conversation."""

    line: str
    """`rule 4`, broken or not; or `consistent`."""
    person: int
    """Conversations of which the person says yes."""
    judge: int
    both: int
    agreement: float
    """Share of equal answers."""
    kappa: float | None
    """1 = always equal, 0 = as by chance; None: both say the same of every conversation, which shows nothing."""
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Findings:
    """What the judge and the labels say of the same conversations."""

    conversations: int
    without_verdict: dict[str, int]
    """Left out, by the kind of failure."""
    lines: list[Agreement]


def read_labels(path: Path) -> list[tuple[Conversation, frozenset[int]]]:
    """Return the labelled conversations and the numbers of the broken lines of the rubric. Raises InputError."""
    labels = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}. Set LABELS to a file of JSON lines.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = parse_row(line, f"{path}:{number}")
        if row.record is None:
            raise InputError(f"{row.location}: {row.fault}")
        rules = row.record.get("rules")
        if not isinstance(rules, list) or not all(type(rule) is int and rule > 0 for rule in rules):
            raise InputError(
                f"{row.location}: rules: found {rules!r}, expected the numbers of the broken lines of the rubric, [] "
                "for none"
            )
        conversation = normalize(row.record)
        if isinstance(conversation, Rejection):
            raise InputError(f"{row.location}: {conversation.reason}: {conversation.evidence}")
        labels.append((conversation, frozenset(rules)))
    if not labels:
        raise InputError(f"{path}: no labelled conversations")
    return labels


def check_rules(path: Path, labels: Sequence[tuple[Conversation, frozenset[int]]], rubric: Path) -> None:
    """Raise InputError if labels name a line that a rubric with numbered lines does not have."""
    lines = {int(number) for number in NUMBERED.findall("\n".join(read_rubric(rubric)))}
    unknown = sorted({rule for _, rules in labels for rule in rules} - lines)
    if lines and unknown:
        raise InputError(
            f"{path}: rules: found {unknown[0]}, but {rubric} numbers its lines {min(lines)} to {max(lines)}"
        )


def compare(labels: Sequence[tuple[Conversation, frozenset[int]]], judge: Judge) -> Findings:
    """Ask the judge, and compare line by line. Raises InputError: as `Judge.verdicts`."""
    failures = Counter[str]()
    found: list[tuple[frozenset[int], frozenset[int | None], bool]] = []
    for (_, rules), verdict in zip(labels, judge.verdicts(each for each, _ in labels), strict=True):
        if isinstance(verdict, JudgeFailure):
            failures[verdict.kind] += 1
        else:
            broken = frozenset(fault.rule for fault in verdict.faults)
            found.append((rules, broken, verdict.consistent))
    named = sorted({rule for rules, broken, _ in found for rule in (*rules, *broken) if rule is not None})
    lines = [agreement(CONSISTENT, [(not rules, consistent) for rules, _, consistent in found])]
    lines += [
        agreement(f"rule {rule}", [(rule in rules, rule in broken) for rules, broken, _ in found]) for rule in named
    ]
    return Findings(len(found), dict(sorted(failures.items())), lines)


def agreement(line: str, answers: Iterable[tuple[bool, bool]]) -> Agreement:
    """Return the agreement of pairs of answers (person, judge).

    The interval has 95 % of kappa where the shares of the four cases are as probable as the counts make them.
    """
    counts = Counter(answers)
    cells = np.array([[counts[True, True], counts[True, False], counts[False, True], counts[False, False]]])
    total = int(cells.sum())
    kappas = kappa(cells)
    low = high = None
    if total >= FEWEST and not np.isnan(kappas[0]):
        drawn = kappa(np.random.default_rng(SEED).dirichlet(cells[0] + PRIOR, DRAWS))
        ends = np.percentile(drawn, TAILS)
        low, high = float(min(ends[0], kappas[0])), float(max(ends[1], kappas[0]))
    both, person, judge, neither = (int(count) for count in cells[0])
    return Agreement(
        line,
        person + both,
        judge + both,
        both,
        (both + neither) / total if total else 0.0,
        None if np.isnan(kappas[0]) else float(kappas[0]),
        low,
        high,
    )


def kappa(cells: Any) -> Any:
    """Return Cohen's kappa of each row of counts (both yes, only the first, only the second, none).

    NaN where both always give the same one answer.

    >>> kappa(np.array([[20, 5, 10, 15]])).round(6).tolist()
    [0.4]
    """
    both, first, second, neither = cells.T.astype(np.float64)
    total = both + first + second + neither
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = (both + neither) / total
        chance = ((both + first) * (both + second) + (neither + first) * (neither + second)) / total**2
        return np.where(chance < 1, (observed - chance) / (1 - chance), np.nan)


def show(findings: Findings) -> None:
    """Print the table."""
    table = Table("line", "person", "judge", "both", "agreement", "kappa", "95 % interval")
    for each in findings.lines:
        value = "-" if each.kappa is None else f"{each.kappa:.2f}"
        missing = "one answer only" if each.kappa is None else "too few"
        interval = missing if each.low is None else f"{each.low:.2f} to {each.high:.2f}"
        counts = (str(count) for count in (each.person, each.judge, each.both))
        table.add_row(each.line, *counts, f"{each.agreement:.0%}", value, interval)
    echo(table)
    left_out = ", ".join(f"{number} {kind}" for kind, number in findings.without_verdict.items())
    echo(f"{findings.conversations} conversations; without a verdict: {left_out or 'none'}")


def main(path: Path) -> Findings:
    """Return what the judge of params.yaml and the labels say. Raises InputError."""
    params = load("filter.judge")
    if params.model is None:
        raise InputError("filter.judge.model: null, expected the name of the judge at SFT_JUDGE_URL")
    labels = read_labels(path)
    check_rules(path, labels, resolve_repo_file(params.rubric))
    params = params.model_copy(update={"on_failure": "keep"})  # so that they are counted
    with Judge.load(params, project_root() / "runs" / "judge") as judge:
        return compare(labels, judge)


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--labels", type=Path, required=True, metavar="FILE")
    add_json_option(parser)
    options = parser.parse_args()
    run_or_exit(
        lambda: print_facts(lambda: main(options.labels), show, as_json=options.json, values=dataclasses.asdict)
    )
