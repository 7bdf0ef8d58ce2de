"""curve: how each metric of the evaluation changes while training, at the checkpoints that a run kept.

models/base, runs/<lineage key>/checkpoints, data/packed/{validation,test}, data/filtered
    ->  the terminal, or JSON (--json): loss, loss by domain and shares at step 0 (the base model) and at each step

Params: eval; checkpoint.most_recent_k and save_retain_interval say which checkpoints are kept. Each is exported to a
temporary folder beside its run, measured, and removed. Results are kept in runs/<lineage key>/curve, by params, data,
base model, code and packages: a second call measures new steps only. A run of other packs is an error.
"""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from sft.cli import InputError, add_json_option, echo, make_parser, print_facts, run_or_exit
from sft.evaluation.held_out import PACKED
from sft.evaluation.measure import PACKAGES
from sft.evaluation.summary import measure_and_compare
from sft.files import read_json, write_json
from sft.hashing import file_digest, folder_digest, value_digest
from sft.lineage import snapshot
from sft.lineage.key import code_digest
from sft.pages.render import number
from sft.params.evaluation import Eval
from sft.params.read import load
from sft.training import checkpoints
from sft.training.export import export, find_run

BASE, FINAL = Path("models/base"), Path("models/final")


@dataclass(frozen=True)
class Curve:
    """The metrics of reports/eval.json by step."""

    run: str
    steps: dict[int, dict[str, Any]]


def measure_run(name: str | None) -> Curve:
    """Return the metrics at every intact checkpoint of a run; None: the run of models/final.

    Raises:  InputError: no such run, no checkpoint, no packs.
    """
    lineage = FINAL / "lineage.json"
    for path, target in ((PACKED / "metadata.json", "pack"), (BASE / "config.json", "fetch"), (lineage, "train")):
        if not path.is_file() and not (path == lineage and name):
            raise InputError(f"{path}: not found. Run: make {target}")
    run = find_run(name or read_json(lineage)["lineage_key"])
    intact = [each for each in sorted((run / "checkpoints").glob("iter_*")) if checkpoints.fault_of(each) is None]
    if not intact:
        raise InputError(f"{run}: no intact checkpoint. checkpoint.save_interval says when they are written.")
    check_packs(run)
    params = load("eval")
    asked = {
        "params": params.model_dump(exclude={"gate", "tasks"}),
        "data": file_digest(PACKED / "metadata.json"),
        "base": folder_digest(BASE),
        "code": code_digest("sft.evaluation.summary"),
        "packages": {name: version(name) for name in PACKAGES},
    }
    folder = run / "curve" / value_digest(asked)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    for checkpoint in intact:
        step = checkpoints.step_of(checkpoint)
        if not (folder / f"{step}.json").is_file():
            write_json(folder / f"{step}.json", _measure(run, step, params))
    steps = {step: read_json(folder / f"{step}.json") for step in map(checkpoints.step_of, intact)}
    return Curve(run.name, {0: steps[min(steps)]["before"], **{step: each["after"] for step, each in steps.items()}})


def check_packs(run: Path) -> None:
    """Raise InputError if a run did not train the packs of data/packed: what they hold out, it may have trained."""
    metadata, begun = PACKED / "metadata.json", run / snapshot.BEGUN / PACKED / "metadata.json"
    if begun.is_file() and file_digest(begun) != file_digest(metadata):
        raise InputError(
            f"{metadata}: differs from the one that run {run.name} began with, so the run may have trained what is "
            f"held out here. Restore its data ({begun.parents[2] / 'dvc.lock'} names it), or choose another run."
        )


def _measure(run: Path, step: int, params: Eval) -> dict[str, Any]:
    """Return the metrics of the base model and of a checkpoint."""
    metadata = read_json(PACKED / "metadata.json")
    with tempfile.TemporaryDirectory(dir=run, prefix=".curve-") as folder:
        model = Path(folder, "model")
        export(run, step, model)
        _, evaluation, _, _ = measure_and_compare(BASE, model, metadata, params)
    return {"before": evaluation["before"], "after": evaluation["after"]}


def rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the name and the value of each metric that was measured."""
    for name, value in metrics.items():
        if name == "loss_by_domain":
            yield from ((f"loss, {domain}", loss) for domain, loss in value.items())
        elif isinstance(value, int | float):
            yield name, value


def show(curve: Curve) -> None:
    """Print a table: a line for each metric, a column for each step."""
    table = Table("metric", *(f"step {step}" if step else "base" for step in curve.steps), title=f"run {curve.run}")
    by_step = [dict(rows(metrics)) for metrics in curve.steps.values()]
    for name in by_step[0]:
        table.add_row(name, *(number(values.get(name)) for values in by_step))
    for column in table.columns[1:]:
        column.justify = "right"
    echo(table)


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument(
        "--run", metavar="KEY", help="lineage key, or its first digits; default: the run of models/final"
    )
    add_json_option(parser)
    options = parser.parse_args()
    run_or_exit(lambda: print_facts(lambda: measure_run(options.run), show, as_json=options.json, values=asdict))
