"""Compare two trainings: what differs in data, code, packages and params, their metrics, curves and answers.

--a NAME --b NAME (each as in sft.lineage.graph)  ->  tables on the terminal, or JSON (--json); --html FILE, a page with
                                                      the curves drawn and all answers

Unlike `dvc params diff`, `dvc metrics diff` and `dvc plots diff`, it also takes models, MLflow runs and versions, and
compares digests and answers. For the counts of every stage, run: dvc metrics diff A B
"""

import csv
import io
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from sft.cli import InputError, add_json_option, file_to_write, make_parser, print_facts, run_or_exit
from sft.files import flatten, write_text
from sft.inspect.terminal import Screen, visible
from sft.lineage.graph import as_text, evaluation_of
from sft.lineage.key import NUMERIC_PACKAGES
from sft.lineage.resolve import LOCK, Records, find
from sft.pages.charts import Line, line_chart
from sft.pages.render import render

ANSWERS_SHOWN = 4
ANSWER_CHARS = 600
CURVES = {"loss": "reports/train_loss.csv", "validation_loss": "reports/validation_loss.csv"}
IDENTITY = ("lineage_key", "git_commit", "git_dirty", "data", "base_model", "mlflow_run_id")
SIDES = ("a", "b")
TITLES = {
    "identity": "Identity",
    "params": "Params that differ",
    "code": "Code and packages that differ",
    "metrics": "Metrics",
}
Pair = tuple[Any, Any]
Curve = list[tuple[float, float]]


@dataclass
class Comparison:
    """Two trainings; of everything the value of each, None if one lacks it."""

    a: str
    b: str
    tables: dict[str, dict[str, Pair]]
    """By a name of TITLES: rows by name."""
    curves: dict[str, tuple[Curve, Curve]]
    """By name: (iteration, value) of each."""
    answers: list[dict[str, Any]]
    """question, source, kind, and the answers a and b."""

    def values(self) -> dict[str, Any]:
        """Return what --json prints."""
        sides = {"a": self.a, "b": self.b}
        rows = {
            name: {row: dict(zip(SIDES, pair, strict=True)) for row, pair in table.items()}
            for name, table in self.tables.items()
        }
        curves = {name: dict(zip(SIDES, pair, strict=True)) for name, pair in self.curves.items()}
        return {**sides, **rows, "curves": curves, "answers": self.answers}


def compare(a: Records, b: Records) -> Comparison:
    """Return the comparison of two trainings.

    Raises:  InputError: one of them has no records.
    """
    for side in (a, b):
        if not side.lineage and not side.lock:
            raise InputError(
                f"{side.name}: found neither its {LOCK} nor its lineage.json. Commit {LOCK} and reports/ after a run, "
                "or name a run in MLflow."
            )
    tables = {
        "identity": pairs(*({name: side.lineage.get(name) for name in IDENTITY} for side in (a, b))),
        "params": differing(_params(a), _params(b)),
        "code": differing(_code(a), _code(b)),
        "metrics": pairs(_metrics(a), _metrics(b)),
    }
    curves = {name: (_curve(a, name, path), _curve(b, name, path)) for name, path in CURVES.items()}
    return Comparison(a.name, b.name, tables, curves, _answers(a, b))


def pairs(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Pair]:
    """Return the values of two mappings side by side, None for a missing one.

    >>> pairs({"x": 1}, {"x": 2, "y": 3})
    {'x': (1, 2), 'y': (None, 3)}
    """
    return {name: (a.get(name), b.get(name)) for name in dict.fromkeys([*a, *b])}


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Pair]:
    """Return the pairs whose values differ."""
    return {name: pair for name, pair in pairs(a, b).items() if pair[0] != pair[1]}


def _params(records: Records) -> dict[str, Any]:
    """The params of all stages in dvc.lock, by dotted name; those of lineage.json if there is no dvc.lock."""
    params: dict[str, Any] = {}
    for stage in records.lock.values():
        params |= flatten(stage.get("params", {}).get("params.yaml", {}))
    return params or flatten(records.lineage.get("params", {}))


def _code(records: Records) -> dict[str, Any]:
    deps = {
        dep["path"]: str(dep.get("md5"))[:12]
        for stage in records.lock.values()
        for dep in stage.get("deps", [])
        if not dep["path"].startswith(("data/", "models/", "reports/"))
    }
    installed = records.lineage.get("packages", {})
    packages = {name: installed[name] for name in NUMERIC_PACKAGES if name in installed}
    return {**deps, **packages, **flatten(records.lineage.get("hardware", {}), "hardware.")}


def _metrics(records: Records) -> dict[str, Any]:
    training, evaluation = records.json("reports/train.json"), evaluation_of(records)
    numbers = {
        key: training[key]
        for key in ("train_loss", "validation_loss", "iterations", "tokens", "trained_tokens")
        if key in training
    }
    return numbers | flatten({when: evaluation[when] for when in ("before", "after") if when in evaluation})


def _curve(records: Records, name: str, path: str) -> Curve:
    return [(float(row["iteration"]), float(row[name])) for row in csv.DictReader(io.StringIO(records.text(path)))]


def _answers(a: Records, b: Records) -> list[dict[str, Any]]:
    """The answers to the prompts that both got, in the order of A."""
    rows_a, rows_b = (
        {(row["conversation_id"], row["kind"], row["question"]): row for row in map(json.loads, text.splitlines())}
        for text in (a.text("reports/answers.jsonl"), b.text("reports/answers.jsonl"))
    )
    return [
        {
            **{name: row[name] for name in ("question", "kind", "source")},
            "a": row["after"]["text"],
            "b": rows_b[prompt]["after"]["text"],
        }
        for prompt, row in rows_a.items()
        if prompt in rows_b
    ]


def show(comparison: Comparison) -> None:
    """Print the comparison, with the first answers."""
    screen = Screen()
    for name, rows in comparison.tables.items():
        table = Table(box=None)
        for head in (TITLES[name], f"A {visible(comparison.a)}", f"B {visible(comparison.b)}"):
            table.add_column(Text(head), header_style="bold")
        for name, pair in rows.items():
            style = "" if pair[0] == pair[1] else "bold yellow"
            table.add_row(Text(visible(name)), *(Text(visible(as_text(value)), style=style) for value in pair))
        if not rows:
            table.add_row(Text("none"), Text(""), Text(""))
        screen.print(table)
        screen.print()
    for name, curves in comparison.curves.items():
        ends = (f"{curve[0][1]:.4f} to {curve[-1][1]:.4f}" if curve else "-" for curve in curves)
        screen.print(f"{name}: A {next(ends)}, B {next(ends)}")
    for answer in comparison.answers[:ANSWERS_SHOWN]:
        screen.print()
        screen.print(Text(visible(answer["question"][:ANSWER_CHARS]), style="bold"))
        for side in SIDES:
            screen.print(f"{side.upper()}: {visible(answer[side][:ANSWER_CHARS])}", soft_wrap=True)


def page(comparison: Comparison) -> str:
    """Return the comparison as a page."""
    charts = {
        name: line_chart([Line(side, points, has_dots=False) for side, points in zip(SIDES, curves, strict=True)])
        for name, curves in comparison.curves.items()
        if all(curves)
    }
    tables = {
        TITLES[title]: {name: [as_text(value) for value in pair] for name, pair in rows.items()}
        for title, rows in comparison.tables.items()
    }
    title = f"{comparison.a} and {comparison.b}"
    return render("compare.html.j2", title=title, comparison=comparison, charts=charts, tables=tables)


def main(a: str, b: str, html_file: Path | None, *, as_json: bool) -> None:
    """Compare two trainings. Raises InputError if one is not found."""
    if not (a and b):
        raise InputError("A and B: expected two trainings, as in A=HEAD B=my-experiment. make show lists experiments.")
    with tempfile.TemporaryDirectory() as scratch:
        comparison = print_facts(
            lambda: compare(*(find(name, Path.cwd(), Path(scratch)) for name in (a, b))),
            show,
            as_json=as_json,
            values=Comparison.values,
        )
    if html_file:
        write_text(html_file, page(comparison))


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    for side in SIDES:
        parser.add_argument(f"--{side}", required=True, metavar="NAME", help="a model, run, revision or experiment")
    parser.add_argument("--html", type=file_to_write, metavar="FILE", help="write a page")
    add_json_option(parser)
    options = parser.parse_args()
    run_or_exit(lambda: main(options.a, options.b, options.html, as_json=options.json))
