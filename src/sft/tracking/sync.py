"""teller: tells a store the things of one run; each can be told again without a second entry.

An outbox (sft.tracking.journal), from where the store was told on  ->  runs, models, versions and aliases in the store

In a store: a run for each packed data set, found by its tag `packed_data`, with what its stages counted; a run for
each lineage key, found by its tag `lineage_key`, with params (what determines the model), data sets, metrics and
records; child runs for each attempt (tags, status, system metrics) and each evaluation; the model as a LoggedModel
and a version of a registered model, which leads to run, parent version and data.
Sampled runs have an experiment and a registered model of their own, and never an alias.
"""

import getpass
import itertools
import json
from collections.abc import Sequence
from typing import Any

import mlflow
from mlflow import entities

from sft.files import file_lock, project_root
from sft.tracking.journal import DIGEST_DIGITS, FINISHED, RECORDS, Journal
from sft.tracking.store import (
    EXPERIMENT,
    SAMPLED,
    NoAnswerError,
    connect,
    experiment_id,
    explained,
    find_data_run,
    find_run,
    known,
)

CANDIDATE, CHAMPION = "candidate", "champion"
MOST_AT_ONCE = 100  # params or tags in a request, and steps, which have a few metrics each
MOST_METRICS = 1000  # in a request
NOTE = "mlflow.note.content"  # MLflow's tag for the description of a run, in Markdown
ANOTHER_SECONDS = 2.0  # that one waits for another who tells of the same data


def tell_all(box: Journal, store: str) -> None:
    """Tell the store what it lacks of an outbox, in order, and note after each thing that it has it.

    Raises:  NoAnswerError: it does not answer; what it has is noted. InputError: it refuses.
    """
    client = connect()
    teller = Teller(client, box, box.delivered(store))
    start = teller.state.get("bytes", 0)
    steps = {"metrics", "system"}
    groups = itertools.groupby(box.read(start), key=lambda pair: "" if pair[1]["kind"] in steps else pair[1]["kind"])
    with explained():
        for kind, group in groups:
            for chunk in itertools.batched(group, 1 if kind else MOST_AT_ONCE):
                teller.tell([thing for _, thing in chunk])
                teller.state["bytes"] = chunk[-1][0]
                box.note(store, teller.state)


class Teller:
    """Tells a store the things of one run. Each can be told again: found by tags, or the same entry."""

    def __init__(self, client: mlflow.MlflowClient, box: Journal, state: dict[str, Any]) -> None:
        self.client, self.box, self.state = client, box, state
        self._last: dict[str, int] = {}

    def tell(self, things: list[dict[str, Any]]) -> None:
        """Tell one thing, or some with metrics."""
        if things[0]["kind"] in ("metrics", "system"):
            self.metrics(things)
            return
        for thing in things:
            getattr(self, thing["kind"])(thing)

    def data(self, thing: dict[str, Any]) -> None:
        """The run of the packed data, told whole by the first training on it; the others find it."""
        with file_lock(project_root() / "runs/.mlflow-data", ANOTHER_SECONDS) as alone:
            if not alone:
                raise NoAnswerError("another training tells it of the same data.")
            self.state["data_run"] = self._data_run(thing)

    def _data_run(self, thing: dict[str, Any]) -> str:
        experiment = experiment_id(self.client, SAMPLED if thing["sampled"] else EXPERIMENT)
        run = find_data_run(self.client, experiment, thing["digest"])
        if run is not None and run.info.status == FINISHED:
            return str(run.info.run_id)
        if run is None:
            name = f"data-{thing['digest'][:DIGEST_DIGITS]}"
            tags = {"packed_data": thing["digest"], "stage": "data", **_who("sft.stages.pack")}
            run = self.client.create_run(experiment, start_time=thing["time"], tags=tags, run_name=name)
        run_id, when = str(run.info.run_id), run.info.start_time  # its own time: told again it is the same entry
        self._params(run_id, thing["params"])
        self._inputs(run_id, thing["datasets"])
        metrics = [entities.Metric(name, value, when, 0) for name, value in thing["counts"].items()]
        for some in itertools.batched(metrics, MOST_METRICS):
            self.client.log_batch(run_id, metrics=list(some))
        self.client.log_artifacts(run_id, str(self.box.folder / thing["files"]), RECORDS)
        self.client.set_terminated(run_id, status=FINISHED, end_time=when)
        return run_id

    def run(self, thing: dict[str, Any]) -> None:
        """The run: params where it has none of that name, tags of the last attempt, data sets, its data's run."""
        state = self.state
        state["name"] = SAMPLED if thing["sampled"] else EXPERIMENT
        state["experiment"] = experiment_id(self.client, state["name"])
        run_id = find_run(self.client, self.box.key)
        if run_id is None:
            tags = {"lineage_key": self.box.key, **_who()}
            run_id = self._new_run(f"sft-{self.box.key}", tags, thing["time"])
        elif not state.get("bytes"):  # told by another outbox: its steps are there
            state["check"] = True
        state["run_id"] = run_id
        self._params(run_id, thing["params"])
        self._tags(run_id, {**thing["tags"], **self._link(run_id, thing["datasets"])})
        self._inputs(run_id, thing["datasets"])
        state["datasets"] = thing["datasets"]

    def attempt(self, thing: dict[str, Any]) -> None:
        """A child run for an attempt; with it the run runs."""
        tags = {"stage": "train", "attempt": str(thing["attempt"]), **thing["tags"]}
        name = f"attempt-{thing['attempt']}"
        self.state.setdefault("attempts", {})[str(thing["attempt"])] = self._child(name, tags, thing["time"])
        self.client.update_run(self.state["run_id"], status="RUNNING")

    def end(self, thing: dict[str, Any]) -> None:
        """The end of an attempt, and of the run until there is another."""
        for run_id in (self.state["attempts"][str(thing["attempt"])], self.state["run_id"]):
            self.client.set_terminated(run_id, status=thing["status"], end_time=thing["time"])

    def metrics(self, things: list[dict[str, Any]]) -> None:
        """Metrics of steps: of the run, or of an attempt (the machine's)."""
        by_run: dict[str, list[entities.Metric]] = {}
        for thing in things:
            attempt = thing.get("attempt")
            run_id = self.state["run_id"] if attempt is None else self.state["attempts"][str(attempt)]
            for name, value in thing["values"].items():
                if attempt is not None or self._is_new(name, thing["step"]):
                    by_run.setdefault(run_id, []).append(entities.Metric(name, value, thing["time"], thing["step"]))
        for run_id, metrics in by_run.items():
            for some in itertools.batched(metrics, MOST_METRICS):
                self.client.log_batch(run_id, metrics=list(some))

    def files(self, thing: dict[str, Any]) -> None:
        """Texts to attach, at their places."""
        self.client.log_artifacts(self.state["run_id"], str(self.box.folder / thing["files"]), thing["folder"])

    def model(self, thing: dict[str, Any]) -> None:
        """The exported model: a LoggedModel whose weights stay where they are, and a registered version."""
        state, name = self.state, self.state["name"]
        tags = {**thing["tags"], "path": thing["path"], "lineage_json": thing["digest"]}
        tags |= {f"data.{one['name']}": one["digest"] for one in state["datasets"]}
        if thing["parent"] and (parent := self._version(f"tags.lineage_key = '{thing['parent']}'")):
            tags["parent"] = f"{parent.name}/{parent.version}"
        digest = f"tags.lineage_json = '{thing['digest']}'"
        version = self._version(f"{digest} and run_id = '{state['run_id']}'")
        if version is None:
            found = self.client.search_logged_models([state["experiment"]], digest)
            logged = next((one for one in found if one.source_run_id == state["run_id"]), None)
            if logged is None or logged.status != entities.LoggedModelStatus.READY:
                logged = mlflow.create_external_model(
                    name=name,
                    source_run_id=state["run_id"],
                    tags=tags,
                    params=thing["params"],
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
        if state["model_id"] not in {one.model_id for one in outputs}:
            self.client.log_outputs(state["run_id"], [entities.LoggedModelOutput(state["model_id"], step=0)])
        self._measured(state["run_id"], thing["metrics"], thing["time"], state["datasets"][0])
        state["version"], state["aliases"], state["note"] = f"{name}/{version.version}", [], None

    def evaluation(self, thing: dict[str, Any]) -> None:
        """A child run for an evaluation; its numbers also stand at the run and at the model. Moves the aliases."""
        state, dataset = self.state, thing["dataset"]
        child = self._child("evaluation", {"stage": "eval", **thing["tags"]}, thing["time"])
        self._params(child, thing["params"])
        self._inputs(child, [dataset], [entities.LoggedModelInput(state["model_id"])])
        self._measured(child, thing["metrics"], thing["time"], dataset)
        self._measured(state["run_id"], thing["metrics"], thing["time"], dataset)
        self.client.set_terminated(child, status="FINISHED", end_time=thing["time"])
        name, number = state["version"].split("/")
        facts = {
            "eval.loss": str(thing["loss"]),
            "eval.held_out": dataset["digest"],
            "eval.gate": "passed" if thing["passed"] else "failed",
        }
        for key, value in facts.items():
            self.client.set_model_version_tag(name, number, key, value)
        state["aliases"], state["note"] = self._move_aliases(name, number, thing)

    def _move_aliases(self, name: str, number: str, thing: dict[str, Any]) -> tuple[list[str], str | None]:
        """Make a version candidate if it passed the gate, and champion if it is better on the same held-out data."""
        if name == SAMPLED:
            return [], "a run on a sample of the data takes no alias"
        if not thing["passed"]:
            return [], "the gate was not passed"
        self.client.set_registered_model_alias(name, CANDIDATE, number)
        champion = known(lambda: self.client.get_model_version_by_alias(name, CHAMPION))
        if champion is not None and str(champion.version) != number:
            other = f"champion stays {name}/{champion.version}: "
            if champion.tags.get("eval.held_out") != thing["dataset"]["digest"]:
                return [CANDIDATE], other + "it was measured on other held-out data or by other params"
            if float(champion.tags["eval.loss"]) <= thing["loss"]:
                return [CANDIDATE], other + f"its held-out loss is {champion.tags['eval.loss']}"
        self.client.set_registered_model_alias(name, CHAMPION, number)
        return [CANDIDATE, CHAMPION], None

    def _measured(self, run_id: str, values: dict[str, float], when: int, dataset: dict[str, Any]) -> None:
        """Log numbers of the model on a data set: the store shows them at both."""
        metrics = [
            entities.Metric(
                name, value, when, 0, self.state["model_id"], dataset["name"], dataset["digest"][:DIGEST_DIGITS], run_id
            )
            for name, value in values.items()
        ]
        self.client.log_batch(run_id, metrics=metrics)

    def _is_new(self, name: str, step: int) -> bool:
        """Whether the run lacks a step of a metric, where another outbox may have told it."""
        if not self.state.get("check"):
            return True
        if name not in self._last:
            history = self.client.get_metric_history(self.state["run_id"], name)
            self._last[name] = max((metric.step for metric in history), default=-1)
        return step > self._last[name]

    def _child(self, name: str, tags: dict[str, str], when: int) -> str:
        """Find or make a child run that began at a time."""
        mark = f"{self.box.key}/{name}/{when}"
        found = self.client.search_runs([self.state["experiment"]], f"tags.child = '{mark}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        parent = {"mlflow.parentRunId": self.state["run_id"], "child": mark}
        return self._new_run(name, {**tags, **_who(), **parent}, when)

    def _new_run(self, name: str, tags: dict[str, str], when: int) -> str:
        run = self.client.create_run(self.state["experiment"], start_time=when, tags=tags, run_name=name)
        return str(run.info.run_id)

    def _version(self, condition: str) -> Any:
        """Return the newest version of the registered model that fits, or None."""
        found = self.client.search_model_versions(f"name = '{self.state['name']}' and {condition}")
        return max(found, key=lambda one: int(one.version), default=None)

    def _link(self, run_id: str, datasets: Sequence[dict[str, Any]]) -> dict[str, str]:
        """Return the tags that lead to the run of the packed data: one to search by, and a description to click on
        where the run has none; {} where the store has no such run."""
        state = self.state
        for one in datasets:
            if "data_run" not in state and one["context"] == "training":
                found = find_data_run(self.client, state["experiment"], one["digest"])
                state |= {"data_run": str(found.info.run_id)} if found else {}
        if "data_run" not in state:
            return {}
        place = f"#/experiments/{state['experiment']}/runs/{state['data_run']}"
        described = self.client.get_run(run_id).data.tags.get(NOTE)
        return {"data_run": state["data_run"], NOTE: described or f"Trained on [the packed data of this run]({place})"}

    def _params(self, run_id: str, params: dict[str, str]) -> None:
        """Log the params that a run has none of the name of: a param of a store never changes."""
        known = self.client.get_run(run_id).data.params
        new = {name: value for name, value in params.items() if name not in known}
        for some in itertools.batched(new.items(), MOST_AT_ONCE):
            self.client.log_batch(run_id, params=[entities.Param(name, value) for name, value in some])

    def _tags(self, run_id: str, tags: dict[str, str]) -> None:
        for some in itertools.batched(tags.items(), MOST_AT_ONCE):
            self.client.log_batch(run_id, tags=[entities.RunTag(name, value) for name, value in some])

    def _inputs(self, run_id: str, datasets: Sequence[dict[str, Any]], models: Sequence[Any] = ()) -> None:
        inputs = []
        for one in datasets:
            source = json.dumps({"uri": one["source"]})
            profile = json.dumps(one["tags"], sort_keys=True)
            known = entities.Dataset(one["name"], one["digest"][:DIGEST_DIGITS], "local", source, profile=profile)
            tags = {**one["tags"], "mlflow.data.context": one["context"]}
            inputs.append(entities.DatasetInput(known, [entities.InputTag(name, str(tags[name])) for name in tags]))
        self.client.log_inputs(run_id, inputs, list(models))


def _who(program: str = "sft.stages.train") -> dict[str, str]:
    """Tags by which the store shows who ran what."""
    return {
        "mlflow.user": getpass.getuser(),
        "mlflow.source.name": program,
        "mlflow.source.type": "LOCAL",
    }
