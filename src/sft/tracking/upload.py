"""Upload the journal of one run to a store; an entry that is uploaded twice is there once.

A journal (sft.tracking.journal), from what the store has on  ->  runs, models, versions and aliases in the store

In the store: a run for each packed data set, found by its tag `packed_data`, with the counts of its stages; a run for
each lineage key, found by its tag `lineage_key`, with params (what determines the model), data sets, metrics and
records; child runs for each attempt (tags, status, system metrics) and each evaluation; the model as a LoggedModel and
a version of a registered model, which links to run, parent version and data.
Runs on a sample of the data have their own experiment and registered model, and never an alias.

What the store has is asked, not believed: the run has a tag with the part of the journal that it got. If the tag, the
run or the version is missing (deleted, or the store is a new one), the whole journal is uploaded again, and each metric
is there once for each step.
"""

import getpass
import itertools
import json
import os
import re
from collections.abc import Sequence
from typing import Any

import mlflow
from mlflow import entities
from mlflow.exceptions import MlflowException

from sft.files import file_lock, project_root
from sft.hashing import value_digest
from sft.tracking.address import StoreError
from sft.tracking.journal import DIGEST_DIGITS, FINISHED, RECORDS, Journal
from sft.tracking.store import (
    SAMPLED,
    UNKNOWN,
    connect,
    experiment_name,
    explained,
    find_data_run,
    find_run,
    known,
    model_name,
    open_experiment,
)

CANDIDATE, CHAMPION = "candidate", "champion"
MAX_BATCH = 100  # params, tags or metrics of a model in a request, and steps, which have a few metrics each
MAX_METRICS = 1000  # in a request
DESCRIPTION = "mlflow.note.content"  # of a run, in Markdown
UPLOADED = "journal"  # tag of a run: the part of the journal that it has
DATA_LOCK_SECONDS = 2.0  # wait for another process that uploads the same data
NOT_IN_METRIC = re.compile(r"[^\w./ :-]", re.ASCII)
MAX_METRIC_CHARS = 250
METRICS = {"step", "validation", "system"}  # kinds of entries


def upload(journal: Journal, store: str, *, confirm: bool = True) -> list[str]:
    """Upload what the store does not have, in order, and write down after each part what it has.

    `confirm`: ask first whether the store still has what it had. Returns what was missing there, as messages.

    Raises:  StoreError: it does not answer; what it has is written down. NoAccessError: it refuses.
    """
    with explained():
        uploader = Uploader(connect(), journal, store)
        if confirm:
            uploader.confirm()
        is_new = not uploader.state
        try:
            uploader.upload_pending()
        except MlflowException as error:
            if is_new or error.error_code not in UNKNOWN:
                raise
            uploader.start_over(str(error).partition("\n")[0])  # deleted while it was trained
            uploader.upload_pending()
    return uploader.notes


class Uploader:
    """Uploads the entries of one run. Each can be uploaded again: it is found by tags, or gives the same entry.

    `state` is what is known of the store, kept in synced.json; {} when everything is uploaded from the start.
    """

    def __init__(self, client: mlflow.MlflowClient, journal: Journal, store: str) -> None:
        self.client, self.journal, self.store = client, journal, store
        self.state: dict[str, Any] = journal.synced(store)
        self.notes: list[str] = []
        self._has: dict[tuple[str, str], set[int]] = {}

    def confirm(self) -> None:
        """Start over unless the store has what it had: the run with its tag, the run of its data, the version."""
        if not self.state:
            return
        name = experiment_name(self.client)
        run_id, version = self.state.get("run_id"), self.state.get("version")
        run = known(lambda: self.client.get_run(run_id)) if run_id else None
        if run_id is None or self.state.get("experiment_name") not in (name, name + SAMPLED):
            self.start_over(None)
        elif run is None or not _is_active(run):
            self.start_over(f"run {run_id} is no longer there")
        elif run.data.tags.get(UPLOADED) != self._mark():
            self.start_over(None)
        elif version and known(lambda: self.client.get_model_version(*version.split("/"))) is None:
            self.start_over(f"version {version} is no longer there")
        elif (data := self.state.get("data_run")) and not _is_active(known(lambda: self.client.get_run(data))):
            self.start_over(f"run {data} of the packed data is no longer there")
        elif lost := self._lost_steps(run_id):
            self.start_over(f"{lost} steps of run {run_id} are not there, though it said that it had them")

    def start_over(self, missing: str | None) -> None:
        """Forget what the store had, so that everything is uploaded; what it still has stays as it is."""
        if missing:
            self.notes.append(f"MLflow at {self.store}: {missing}: the run is logged again from its journal")
        self.state = {}

    def upload_pending(self) -> None:
        """Upload the entries behind those that the store has."""
        start = self.state.get("bytes", 0)
        groups = itertools.groupby(
            self.journal.read(start), key=lambda pair: "" if pair[1]["kind"] in METRICS else pair[1]["kind"]
        )
        for kind, group in groups:
            for chunk in itertools.batched(group, 1 if kind else MAX_BATCH):
                entries = [entry for _, entry in chunk]
                if kind:
                    getattr(self, kind)(entries[0])
                else:
                    self.metrics(entries)
                self.state["bytes"] = chunk[-1][0]
                if run_id := self.state.get("run_id"):
                    self.client.set_tag(run_id, UPLOADED, self._mark())
                self.journal.set_synced(self.store, self.state)

    def _mark(self) -> str:
        """Return the value of the tag: which journal, and how many bytes of it."""
        first = next((entry for _, entry in self.journal.read()), {})
        return f"{value_digest(first)[:DIGEST_DIGITS]}:{self.state.get('bytes', 0)}"

    def data(self, entry: dict[str, Any]) -> None:
        """The run of the packed data: the first training on it makes it, the others find it."""
        with file_lock(project_root() / "runs/.mlflow-data", DATA_LOCK_SECONDS) as is_alone:
            if not is_alone:
                raise StoreError("another training is uploading the same data.")
            self.state["data_run"] = self._data_run(entry)

    def _data_run(self, entry: dict[str, Any]) -> str:
        experiment = self._open_experiment(entry)
        run = find_data_run(self.client, experiment, entry["digest"])
        if run is not None and run.info.status == FINISHED:
            return str(run.info.run_id)
        if run is None:
            name = f"data-{entry['digest'][:DIGEST_DIGITS]}"
            tags = {"packed_data": entry["digest"], "stage": "data", **_source_tags("sft.stages.pack")}
            run = self.client.create_run(experiment, start_time=entry["time"], tags=tags, run_name=name)
        # The time of the run: uploaded again it is the same entry.
        run_id, when = str(run.info.run_id), run.info.start_time
        self._params(run_id, entry["params"])
        self._inputs(run_id, entry["datasets"])
        metrics = [entities.Metric(metric_name(name), value, when, 0) for name, value in entry["counts"].items()]
        for some in itertools.batched(metrics, MAX_METRICS):
            self.client.log_batch(run_id, metrics=list(some))
        self.client.log_artifacts(run_id, str(self.journal.folder / entry["files"]), RECORDS)
        self.client.set_terminated(run_id, status=FINISHED, end_time=when)
        return run_id

    def _open_experiment(self, entry: dict[str, Any]) -> str:
        """Return the id of the project's experiment, or of the one for runs on a sample of the data."""
        name = experiment_name(self.client) + (SAMPLED if entry["sampled"] else "")
        experiment, note = open_experiment(self.client, name)
        self.notes += [note] if note else []
        self.state |= {"experiment": experiment, "experiment_name": name, "name": model_name(name)}
        return experiment

    def run(self, entry: dict[str, Any]) -> None:
        """The run: new params, the tags of the last attempt, data sets, the run of its data."""
        state = self.state
        experiment = self._open_experiment(entry)
        run_id = find_run(self.client, self.journal.key, experiment)
        if run_id is None:
            tags = {"lineage_key": self.journal.key, **_source_tags()}
            run_id = self._new_run(f"sft-{self.journal.key}", tags, entry["time"])
        state["run_id"] = run_id
        self._params(run_id, entry["params"])
        self._tags(run_id, {**entry["tags"], **self._link(run_id, entry["datasets"])})
        self._inputs(run_id, entry["datasets"])
        state["datasets"] = entry["datasets"]

    def attempt(self, entry: dict[str, Any]) -> None:
        """A child run for an attempt; the run is RUNNING."""
        tags = {"stage": "train", "attempt": str(entry["attempt"]), **entry["tags"]}
        name = f"attempt-{entry['attempt']}"
        self.state.setdefault("attempts", {})[str(entry["attempt"])] = self._child(name, tags, entry["time"])
        self.client.update_run(self.state["run_id"], status="RUNNING")

    def end(self, entry: dict[str, Any]) -> None:
        """The end of an attempt, and of the run until the next one."""
        for run_id in (self.state["attempts"][str(entry["attempt"])], self.state["run_id"]):
            self.client.set_terminated(run_id, status=entry["status"], end_time=entry["time"])

    def metrics(self, entries: list[dict[str, Any]]) -> None:
        """Metrics by step: of the run, or of an attempt (system metrics). Of a repeated step the first counts."""
        by_run: dict[str, list[entities.Metric]] = {}
        for entry in entries:
            attempt = entry.get("attempt")
            run_id = self.state["run_id"] if attempt is None else self.state["attempts"][str(attempt)]
            step, values = _values(entry)
            for name, value in ((metric_name(name), value) for name, value in values.items()):
                if step not in (has := self._steps(run_id, name)):
                    has.add(step)
                    by_run.setdefault(run_id, []).append(entities.Metric(name, value, entry["time"], step))
        for run_id, metrics in by_run.items():
            for some in itertools.batched(metrics, MAX_METRICS):
                self.client.log_batch(run_id, metrics=list(some))

    def _steps(self, run_id: str, name: str) -> set[int]:
        """Return the steps of a metric that a run in the store has: asked once, then kept up to date."""
        if (run_id, name) not in self._has:
            self._has[run_id, name] = {metric.step for metric in self.client.get_metric_history(run_id, name)}
        return self._has[run_id, name]

    def _lost_steps(self, run_id: str) -> int:
        """Return how many steps and validations that the store took are not there: it may answer and store nothing."""
        sent: dict[str, set[int]] = {}
        for end, entry in self.journal.read():
            if end <= self.state.get("bytes", 0) and entry["kind"] in ("step", "validation"):
                step, values = _values(entry)
                for name in values.keys() & {"loss", "validation_loss"}:
                    sent.setdefault(name, set()).add(step)
        return sum(len(steps - self._steps(run_id, name)) for name, steps in sent.items())

    def files(self, entry: dict[str, Any]) -> None:
        """Texts to attach."""
        self.client.log_artifacts(self.state["run_id"], str(self.journal.folder / entry["files"]), entry["folder"])

    def model(self, entry: dict[str, Any]) -> None:
        """The exported model: a LoggedModel that points to the weights, and a registered version."""
        state, name = self.state, self.state["name"]
        tags = {**entry["tags"], "path": entry["path"], "lineage_json": entry["digest"]}
        tags |= {f"data.{dataset['name']}": dataset["digest"] for dataset in state["datasets"]}
        if entry["parent"] and (parent := self._version(f"tags.lineage_key = '{entry['parent']}'")):
            tags["parent"] = f"{parent.name}/{parent.version}"
        digest = f"tags.lineage_json = '{entry['digest']}'"
        version = self._version(f"{digest} and run_id = '{state['run_id']}'")
        if version is None:
            models = self.client.search_logged_models([state["experiment"]], digest)
            logged = next((model for model in models if model.source_run_id == state["run_id"]), None)
            if logged is None or logged.status != entities.LoggedModelStatus.READY:
                logged = mlflow.create_external_model(
                    name=name,
                    source_run_id=state["run_id"],
                    tags=tags,
                    params=entry["params"],
                    model_type="causal-lm",
                    experiment_id=state["experiment"],
                )
            if not self.client.search_registered_models(f"name = '{name}'"):
                self.client.create_registered_model(name)
            version = self.client.create_model_version(
                name, f"models:/{logged.model_id}", state["run_id"], tags, model_id=logged.model_id
            )
        state["model_id"] = version.source.removeprefix("models:/")
        outputs = self.client.get_run(state["run_id"]).outputs.model_outputs
        if state["model_id"] not in {output.model_id for output in outputs}:
            self.client.log_outputs(state["run_id"], [entities.LoggedModelOutput(state["model_id"], step=0)])
        self._log_measured(state["run_id"], entry, state["datasets"][0])
        state |= {"version": f"{name}/{version.version}", "digest": entry["digest"], "aliases": [], "note": None}

    def evaluation(self, entry: dict[str, Any]) -> None:
        """A child run for an evaluation, with its metrics also at the run and the model. Moves the aliases."""
        state, dataset = self.state, entry["dataset"]
        child = self._child("evaluation", {"stage": "eval", **entry["tags"]}, entry["time"])
        self._params(child, entry["params"])
        self._inputs(child, [dataset], [entities.LoggedModelInput(state["model_id"])])
        for run_id in (child, state["run_id"]):
            self._log_measured(run_id, entry, dataset)
        self.client.set_terminated(child, status="FINISHED", end_time=entry["time"])
        name, number = state["version"].split("/")
        facts = {
            "eval.loss": str(entry["loss"]),
            "eval.held_out": dataset["digest"],
            "eval.gate": "passed" if entry["passed"] else "failed",
        }
        for key, value in facts.items():
            self.client.set_model_version_tag(name, number, key, value)
        state["aliases"], state["note"] = self._move_aliases(name, number, entry)

    def _move_aliases(self, name: str, number: str, entry: dict[str, Any]) -> tuple[list[str], str | None]:
        """Make a version candidate if it passed the gate, champion if its loss on the same held-out data is lower."""
        if name.endswith(SAMPLED):
            return [], "no alias for a run on a sample of the data"
        if not entry["passed"]:
            return [], "the gate failed"
        self.client.set_registered_model_alias(name, CANDIDATE, number)
        champion = known(lambda: self.client.get_model_version_by_alias(name, CHAMPION))
        if champion is not None and champion.tags.get("lineage_json") != self.state.get("digest"):
            unchanged = f"champion stays {name}/{champion.version}: "
            if champion.tags.get("eval.held_out") != entry["dataset"]["digest"]:
                return [CANDIDATE], unchanged + "it was evaluated on other held-out data or with other params"
            if float(champion.tags["eval.loss"]) <= entry["loss"]:
                return [CANDIDATE], unchanged + f"its held-out loss is {champion.tags['eval.loss']}"
        self.client.set_registered_model_alias(name, CHAMPION, number)
        return [CANDIDATE, CHAMPION], None

    def _log_measured(self, run_id: str, entry: dict[str, Any], dataset: dict[str, Any]) -> None:
        """Log metrics of the model on a data set: the store shows them at both.

        A metric that the run has at that step keeps its value, as the validation loss of the last step.
        """
        step, metrics = entry.get("step", 0), []
        for name, value in ((metric_name(name), value) for name, value in entry["metrics"].items()):
            history = self.client.get_metric_history(run_id, name)
            metric = next((metric for metric in history if metric.step == step), None)
            value, when = (metric.value, metric.timestamp) if metric else (value, entry["time"])
            described = (self.state["model_id"], dataset["name"], dataset["digest"][:DIGEST_DIGITS], run_id)
            metrics.append(entities.Metric(name, value, when, step, *described))
        for some in itertools.batched(metrics, MAX_BATCH):  # of more, a store refuses those of a model that it has
            self.client.log_batch(run_id, metrics=list(some))

    def _child(self, name: str, tags: dict[str, str], when: int) -> str:
        """Return the id of a child run that began at a time; make it if it is new."""
        mark = f"{self.journal.key}/{name}/{when}"
        condition = f"tags.child = '{mark}' and tags.`mlflow.parentRunId` = '{self.state['run_id']}'"
        existing = self.client.search_runs([self.state["experiment"]], condition, max_results=1)
        if existing:
            return str(existing[0].info.run_id)
        parent = {"mlflow.parentRunId": self.state["run_id"], "child": mark}
        return self._new_run(name, {**tags, **_source_tags(), **parent}, when)

    def _new_run(self, name: str, tags: dict[str, str], when: int) -> str:
        run = self.client.create_run(self.state["experiment"], start_time=when, tags=tags, run_name=name)
        if not run.info.run_id:
            raise StoreError(f"MLflow at {self.store}: a run without an id. Is the address that of MLflow?")
        return str(run.info.run_id)

    def _version(self, condition: str) -> Any:
        """Return the newest version of the registered model that meets a condition, or None."""
        versions = self.client.search_model_versions(f"name = '{self.state['name']}' and {condition}")
        return max(versions, key=lambda version: int(version.version), default=None)

    def _link(self, run_id: str, datasets: Sequence[dict[str, Any]]) -> dict[str, str]:
        """Return the tags that link to the run of the packed data: one to search by, and a description to click on
        (if the run has none yet); {} if the store has no such run."""
        state = self.state
        for dataset in datasets:
            if "data_run" not in state and dataset["context"] == "training":
                run = find_data_run(self.client, state["experiment"], dataset["digest"])
                state |= {"data_run": str(run.info.run_id)} if run else {}
        if "data_run" not in state:
            return {}
        page = f"#/experiments/{state['experiment']}/runs/{state['data_run']}"
        ours, tags = "Trained on [the packed data of this run](", self.client.get_run(run_id).data.tags
        description = tags.get(DESCRIPTION, ours)
        return {
            "data_run": state["data_run"],
            DESCRIPTION: f"{ours}{page})" if description.startswith(ours) else description,
        }

    def _params(self, run_id: str, params: dict[str, str]) -> None:
        """Log the params whose names are new to the run: MLflow lets no param change."""
        known = self.client.get_run(run_id).data.params
        new = {name: value for name, value in params.items() if name not in known}
        for some in itertools.batched(new.items(), MAX_BATCH):
            self.client.log_batch(run_id, params=[entities.Param(name, value) for name, value in some])

    def _tags(self, run_id: str, tags: dict[str, str]) -> None:
        for some in itertools.batched(tags.items(), MAX_BATCH):
            self.client.log_batch(run_id, tags=[entities.RunTag(name, value) for name, value in some])

    def _inputs(self, run_id: str, datasets: Sequence[dict[str, Any]], models: Sequence[Any] = ()) -> None:
        inputs = []
        for dataset in datasets:
            source = json.dumps({"uri": dataset["source"]})
            profile = json.dumps(dataset["tags"], sort_keys=True)
            digest = dataset["digest"][:DIGEST_DIGITS]
            entity = entities.Dataset(dataset["name"], digest, "local", source, profile=profile)
            tags = {**dataset["tags"], "mlflow.data.context": dataset["context"]}
            inputs.append(entities.DatasetInput(entity, [entities.InputTag(name, str(tags[name])) for name in tags]))
        self.client.log_inputs(run_id, inputs, list(models))


def metric_name(name: str) -> str:
    """Return a name that MLflow takes: a license in it has commas, or is a text of any length.

    >>> metric_name("pack/licenses.Apache-2.0, MIT.samples")
    'pack/licenses.Apache-2.0_ MIT.samples'
    """
    text = NOT_IN_METRIC.sub("_", name)
    if len(text) <= MAX_METRIC_CHARS:
        return text
    digest = value_digest(name)[:DIGEST_DIGITS]
    return f"{text[: MAX_METRIC_CHARS - len(digest) - 1]}_{digest}"


def user_name() -> str:
    """Return the name of the user, or the number of one without a name, as in a container with any uid."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _source_tags(program: str = "sft.stages.train") -> dict[str, str]:
    """Return the tags by which MLflow shows who ran what."""
    return {
        "mlflow.user": user_name(),
        "mlflow.source.name": program,
        "mlflow.source.type": "LOCAL",
    }


STEP_METRICS = ("loss", "lr", "grad_norm", "mfu", "peak_memory", "seconds_left")


def _values(entry: dict[str, Any]) -> tuple[int, dict[str, float]]:
    """Return the step and the metrics of an entry."""
    if entry["kind"] == "validation":
        return entry["iteration"], {"validation_loss": entry["validation_loss"]}
    if entry["kind"] == "step":
        measured = {name: entry[name] for name in STEP_METRICS if entry.get(name) is not None}
        for name, count in {"tokens_per_second": "tokens", "model_flops_per_second": "flops"}.items():
            if count in entry and entry["seconds"]:
                measured[name] = entry[count] / entry["seconds"]
        return entry["iteration"], measured
    return entry["step"], entry["values"]


def _is_active(run: Any) -> bool:
    return run is not None and run.info.lifecycle_stage == "active"
