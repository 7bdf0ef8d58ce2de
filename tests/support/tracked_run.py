"""A small run as training logs it, and what a store then has: for tests/tracking/."""

import json
from dataclasses import asdict

from sft.tracking import journal
from sft.tracking import store as store_of_runs
from sft.tracking.journal import Dataset, open_run, record_status
from sft.training.steps import Step

KEY = "0123456789abcdef"
PARAMS = {"optimizer": {"lr": 1e-5}, "train": {"train_iters": 6}}
DATA = Dataset("packed", "f" * 64, "file:///data/packed", "training", {"tokens": "12"})
SOURCE = Dataset("calls", "e" * 64, "file:///data/calls", "source", {"license": "MIT", "rows": "9", "tokens": "12"})
# Names with what MLflow refuses: licenses as rows state them.
COUNTS = {
    "filter/rows_in": 10.0,
    "pack/licenses.Apache-2.0, MIT.samples": 3.0,
    f"pack/licenses.{'text ' * 99}.tokens": 4.0,
}
HELD_OUT = Dataset("held-out", "d" * 64, "file:///data/packed", "evaluation", {"chat": "4"})


def made(folder, key=KEY, digest=DATA.digest, sampled=False, **params):
    """Log the packed data of a run, as a training does when it begins."""
    report = folder / "filter.json"
    report.write_text("{}")
    journal.add_data(
        folder / "runs" / key, digest, {"filter": params}, COUNTS, [SOURCE, DATA],
        {"reports/filter.json": report}, sampled=sampled,
    )  # fmt: skip


def data_runs(sampled=""):
    client = store_of_runs.connect()
    found = client.get_experiment_by_name(store_of_runs.experiment_name(client) + sampled)
    return client.search_runs([found.experiment_id], "tags.stage = 'data'") if found else []


def begin(folder, key=KEY, sampled=False, **tags):
    return open_run(folder / "runs" / key, PARAMS, tags, [DATA, SOURCE], sampled=sampled)


def log_step(run_journal, iteration, loss, **values):
    """Log a step as training does."""
    step = Step(iteration, loss, lr=0.1, grad_norm=1.0, tokens=10, trained_tokens=4, seconds=2.0, flops=6.0)
    run_journal.add("step", **{**asdict(step), **values})


def exported(folder, key=KEY, parent=None, more=""):
    """A model as training exports it."""
    model = folder / "models/final"
    model.mkdir(parents=True, exist_ok=True)
    lineage = {"lineage_key": key, "data": DATA.digest, "base_model": "b", "code": "c", "git_commit": "a" * 40}
    (model / "lineage.json").write_text(json.dumps({**lineage, "params": PARAMS, "parent": parent, "more": more}))
    return model


def begin_and_finish(folder):
    """A whole run: two steps, a model and its evaluation."""
    run_journal = begin(folder)
    with record_status(run_journal):
        for step in (1, 2):
            log_step(run_journal, step, 1 / step)
        journal.add_model(run_journal, exported(folder), {"train_loss": 0.5}, step=2)
    evaluate(run_journal, 0.4)
    return run_journal


def evaluate(run_journal, loss, passed=True, held_out=HELD_OUT):
    """Log an evaluation as the stage does: it has over 100 metrics."""
    metrics = {"eval/after/loss": loss, **{f"eval/by_rule/{number}": 1.0 for number in range(120)}}
    run_journal.add(
        "evaluation", step=0, tags={}, params={"eval.seed": "1"}, metrics=metrics, loss=loss, passed=passed,
        dataset=held_out.__dict__,
    )  # fmt: skip


def history(run_id, name="loss"):
    return [(metric.step, metric.value) for metric in store_of_runs.connect().get_metric_history(run_id, name)]


def children(run_id):
    client = store_of_runs.connect()
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'")
    return {run.info.run_name: run for run in found}


def aliases():
    client = store_of_runs.connect()
    name = store_of_runs.model_name(store_of_runs.experiment_name(client))
    return dict(client.get_registered_model(name).aliases)
