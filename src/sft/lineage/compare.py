"""compare: two trainings side by side: what went in, what came out, and what each answers.

--a NAME --b NAME (each as in sft.lineage.graph)  ->  tables and sparklines on the terminal; --html FILE, a page with
                                                  drawn curves and answers; --json FILE

Params are those by which DVC ran the stages; only what differs is shown. Counts are of every source and stage.
What one side lacks is a dash. Nothing is changed.
"""

import csv
import io
import itertools
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from sft.cli import InputError, make_parser, run_or_exit
from sft.files import flatten, publish_file, write_json
from sft.inspect.terminal import Screen, visible
from sft.lineage.graph import as_text, data_sources, evaluation_of
from sft.lineage.key import NUMERIC_PACKAGES
from sft.lineage.resolve import LOCK, Records, find
from sft.pages.report import escaped, whole_page

SPARKS = "▁▂▃▄▅▆▇█"
SPARK_CELLS = 48
ANSWERS_SHOWN = 4
ANSWER_CHARS = 600
CURVES = {"loss": "reports/train_loss.csv", "validation_loss": "reports/validation_loss.csv"}
SIDES = ("a", "b")
Pair = tuple[Any, Any]

MORE_STYLE = """
svg path.a, svg path.validation.a { stroke: var(--before); } svg path.b { stroke: var(--after); }
td { overflow-wrap: anywhere; } td:first-child { overflow-wrap: normal; }
.legend span.b::before { background: var(--after); } .pair > div.b { border-color: var(--after); }
"""


@dataclass
class Comparison:
    """Two trainings: of everything, the value of each."""

    a: str
    b: str
    tables: dict[str, dict[str, Pair]] = field(default_factory=dict)
    """By title: rows by name."""
    curves: dict[str, tuple[list[tuple[int, float]], list[tuple[int, float]]]] = field(default_factory=dict)
    """By name: (iteration, value) of each."""
    answers: list[dict[str, Any]] = field(default_factory=list)
    """question, and what each says (a, b)."""


def compare(a: Records, b: Records) -> Comparison:
    """Gather what two trainings are made of and what came of them.

    Raises:  InputError: nobody has records of one of them.
    """
    for one in (a, b):
        if not one.lineage and not one.lock:
            raise InputError(
                f"{one.name}: no {LOCK} and no lineage.json of it is at hand. Commit {LOCK} and reports/ after a run, "
                "or name a run in MLflow that keeps its records."
            )
    both = (a, b)
    code_a, code_b = (_code(one) for one in both)
    params = pairs(*(_params(one) for one in both))
    data = pairs(*(_counts(one) for one in both))
    metrics = pairs(*(_metrics(one) for one in both))
    tables = {
        "Identity": pairs(*(_identity(one) for one in both)),
        "Params that differ": {name: pair for name, pair in params.items() if pair[0] != pair[1]},
        "Code and packages that differ": {n: p for n, p in pairs(code_a, code_b).items() if p[0] != p[1]},
        "Data": data,
        "Metrics": metrics,
        "Held-out loss by domain": pairs(*(_domains(one) for one in both)),
    }
    curves = {name: (_curve(a, name, path), _curve(b, name, path)) for name, path in CURVES.items()}
    return Comparison(a.name, b.name, tables, curves, _answers(a, b))


def pairs(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Pair]:
    """Put two mappings side by side; what one lacks is None.

    >>> pairs({"x": 1}, {"x": 2, "y": 3})
    {'x': (1, 2), 'y': (None, 3)}
    """
    return {name: (a.get(name), b.get(name)) for name in dict.fromkeys([*a, *b])}


def sparkline(values: Sequence[float], low: float, high: float, cells: int = SPARK_CELLS) -> str:
    """Draw values as a line of blocks, averaged to at most `cells`.

    >>> sparkline([0, 1, 2, 3], 0, 3)
    '▁▃▆█'
    """
    number = min(cells, len(values))
    edges = [len(values) * cell // number for cell in range(number + 1)] if number else [0]
    means = [sum(values[i:j]) / (j - i) for i, j in itertools.pairwise(edges)]
    span = (high - low) or 1.0
    return "".join(SPARKS[round((mean - low) / span * (len(SPARKS) - 1))] for mean in means)


def _identity(records: Records) -> dict[str, Any]:
    told = records.lineage
    training = records.json("reports/train.json")
    return {
        "lineage key": told.get("lineage_key", training.get("lineage_key")),
        "commit": told.get("git_commit"),
        "uncommitted changes": told.get("git_dirty"),
        "packed data": told.get("data"),
        "base model": told.get("base_model"),
        "MLflow run": told.get("mlflow_run_id"),
    }


def _params(records: Records) -> dict[str, Any]:
    """Return the params by which the stages ran, by dotted name; of lineage.json where there is no dvc.lock."""
    found: dict[str, Any] = {}
    for stage in records.lock.values():
        found |= flatten(stage.get("params", {}).get("params.yaml", {}))
    return found or flatten(records.lineage.get("params", {}))


def _code(records: Records) -> dict[str, Any]:
    told = records.lineage
    deps = {
        dep["path"]: str(dep.get("md5"))[:12]
        for stage in records.lock.values()
        for dep in stage.get("deps", [])
        if not dep["path"].startswith(("data/", "models/", "reports/"))
    }
    packages = {name: told.get("packages", {}).get(name) for name in NUMERIC_PACKAGES if told}
    return {**deps, **packages, **flatten(told.get("hardware", {}), "hardware.")}


def _counts(records: Records) -> dict[str, Any]:
    """Return the counts of every source at every stage, and of the packs."""
    counts: dict[str, Any] = {}
    packed = records.json("data/packed/metadata.json").get("sources", {})
    names = dict.fromkeys([*data_sources(records), *_stage_sources(records)])
    for name in names:
        for stage in ("fetch", "filter", "prep"):
            report = records.json(f"reports/{stage}/{name}.json")
            if report:
                counts[f"{name}: rows out of {stage}"] = report["rows_out"]
            counts |= {f"{name}: {stage} refused, {reason}": n for reason, n in report.get("rejected", {}).items()}
        counts[f"{name}: trained tokens in packs"] = packed.get(name, {}).get("trained_tokens")
    pack = records.json("reports/pack.json")
    counts |= {f"all: pack refused, {reason}": number for reason, number in pack.get("rejected", {}).items()}
    for split, told in pack.get("splits", {}).items():
        counts |= {f"{split}: {key.replace('_', ' ')}": told.get(key) for key in ("packs", "tokens", "trained_tokens")}
    return {name: count for name, count in counts.items() if count is not None}


def _stage_sources(records: Records) -> list[str]:
    return [name.partition("@")[2] for name in records.lock if name.startswith("filter@")]


def _metrics(records: Records) -> dict[str, Any]:
    training = records.json("reports/train.json")
    shown_keys = ("train_loss", "validation_loss", "iterations", "epochs", "tokens")
    measured = {f"training: {key}": training.get(key) for key in shown_keys if key in training}
    evaluation = evaluation_of(records)
    for when in ("before", "after"):
        measured |= {f"{when}: {k}": v for k, v in evaluation.get(when, {}).items() if not isinstance(v, dict)}
    return measured


def _domains(records: Records) -> dict[str, Any]:
    evaluation = evaluation_of(records)
    return {
        f"{domain}, {when}": loss
        for domain in evaluation.get("after", {}).get("loss_by_domain", {})
        for when in ("before", "after")
        if (loss := evaluation[when]["loss_by_domain"].get(domain)) is not None
    }


def _curve(records: Records, name: str, path: str) -> list[tuple[int, float]]:
    return [(int(row["iteration"]), float(row[name])) for row in csv.DictReader(io.StringIO(records.text(path)))]


def _answers(a: Records, b: Records) -> list[dict[str, Any]]:
    """Put the answers to the same prompts side by side, in the order of A."""
    said = [
        {_prompt(row): row for row in map(json.loads, one.text("reports/answers.jsonl").splitlines())} for one in (a, b)
    ]
    return [
        {"question": row["question"], "kind": row["kind"], "source": row["source"]}
        | {side: rows[key]["after"]["text"] for side, rows in zip(SIDES, said, strict=True)}
        for key, row in said[0].items()
        if key in said[1]
    ]


def _prompt(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["conversation_id"], row["kind"], row["question"]


def show(comparison: Comparison) -> None:
    """Print the comparison."""
    screen = Screen()
    for title, rows in comparison.tables.items():
        laid = Table(box=None)
        for head in (title, f"A {visible(comparison.a)}", f"B {visible(comparison.b)}"):
            laid.add_column(Text(head), header_style="bold")
        for name, pair in rows.items():
            style = "" if pair[0] == pair[1] else "bold yellow"
            laid.add_row(Text(visible(name)), *(Text(visible(as_text(value)), style=style) for value in pair))
        if not rows:
            laid.add_row(Text("none"), Text(""), Text(""))
        screen.print(laid)
        screen.print()
    for name, curves in comparison.curves.items():
        values = [value for curve in curves for _, value in curve]
        for side, curve in zip("AB", curves, strict=True):
            line = sparkline([value for _, value in curve], min(values), max(values)) if curve else "-"
            ends = f"{curve[0][1]:.4f} to {curve[-1][1]:.4f}" if curve else ""
            screen.print(f"{name:<16} {side} {line} {ends}")
    for answer in comparison.answers[:ANSWERS_SHOWN]:
        screen.print()
        screen.print(Text(visible(answer["question"][:ANSWER_CHARS]), style="bold"))
        for side in SIDES:
            screen.print(f"{side.upper()}: {visible(answer[side][:ANSWER_CHARS])}", soft_wrap=True)


def page(comparison: Comparison) -> str:
    """Render the comparison as one page that stands alone."""
    named = f'<span>A {escaped(comparison.a)}</span><span class="b">B {escaped(comparison.b)}</span>'
    legend = f'<p class="legend faint">{named}</p>'
    body = [f"<h1>{escaped(comparison.a)} and {escaped(comparison.b)}</h1>", legend]
    body += [f"<h2>{escaped(name)}</h2>{_drawing(curves)}" for name, curves in comparison.curves.items() if all(curves)]
    for title, rows in comparison.tables.items():
        cells = "".join(
            f"<tr><td>{escaped(name)}</td>" + "".join(f"<td>{escaped(as_text(value))}</td>" for value in pair) + "</tr>"
            for name, pair in rows.items()
        )
        head = "<tr><th></th><th>A</th><th>B</th></tr>"
        body.append(f"<h2>{escaped(title)}</h2>" + (f"<table>{head}{cells}</table>" if rows else "<p>none</p>"))
    body.append("<h2>Answers after training</h2>")
    for answer in comparison.answers:
        panels = "".join(
            f'<div class="{side}">{side.upper()}<pre>{escaped(answer[side])}</pre></div>' for side in SIDES
        )
        origin = f'<span class="faint">{escaped(answer["source"])}, {escaped(answer["kind"])}:</span>'
        summary = f"<summary>{origin} {escaped(answer['question'][:110])}</summary>"
        body.append(f'<details>{summary}<div class="pair">{panels}</div></details>')
    if not comparison.answers:
        body.append('<p class="faint">No prompt that both answered.</p>')
    return whole_page(f"{comparison.a} and {comparison.b}", "\n".join(body), MORE_STYLE)


def _drawing(curves: Sequence[Sequence[tuple[int, float]]]) -> str:
    """Draw two curves over iterations."""
    left, top, width, height, ticks = 56, 14, 660, 220, 4
    points = [point for curve in curves for point in curve]
    last = max(iteration for iteration, _ in points)
    low, high = min(value for _, value in points), max(value for _, value in points)
    low, high = (low - 0.5, high + 0.5) if low == high else (low, high)
    parts = ['<div class="plot"><svg viewBox="0 0 740 270" role="img">']
    for tick in range(ticks + 1):
        y, value = top + height * tick / ticks, high - (high - low) * tick / ticks
        parts.append(f'<line class="grid" x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.2f}</text>')
    parts.append(f'<text x="{left + width}" y="{top + height + 20}" text-anchor="end">iteration {last}</text>')
    for side, curve in zip(SIDES, curves, strict=True):
        at = [
            (left + width * iteration / (last or 1), top + height * (high - value) / (high - low))
            for iteration, value in curve
        ]
        if len(at) == 1:  # one validation: a short line, so that it is seen
            at = [(at[0][0] - 8, at[0][1]), at[0]]
        parts.append(f'<path class="{side}" d="M{" L".join(f"{x:.1f} {y:.1f}" for x, y in at)}"/>')
    return "".join(parts) + "</svg></div>"


def main(a: str, b: str, html_file: Path | None, json_file: Path | None) -> None:
    """Compare two trainings. Raises InputError where one is not found."""
    if not (a and b):
        raise InputError("two trainings have to be named, as in A=HEAD B=my-experiment. make show lists experiments.")
    with tempfile.TemporaryDirectory() as scratch:
        found = [find(name, Path.cwd(), Path(scratch)) for name in (a, b)]
        comparison = compare(*found)
    show(comparison)
    if json_file:
        told = {"a": a, "b": b, "tables": comparison.tables, "curves": comparison.curves, "answers": comparison.answers}
        write_json(json_file, told)
    if html_file:
        with publish_file(html_file) as partial:
            partial.write_text(page(comparison), encoding="utf-8")


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    for side in SIDES:
        parser.add_argument(f"--{side}", required=True, metavar="NAME", help="a model, run, revision or experiment")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparison as JSON")
    given = parser.parse_args()
    run_or_exit(lambda: main(given.a, given.b, given.html, given.json))
