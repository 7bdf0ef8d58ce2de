"""Tracking: the only module that talks to MLflow: tells a store what stands in outboxes, and looks things up.

The store is MLFLOW_TRACKING_URI, or else one SQLite file, runs/mlflow.db, below the repository, also for
experiments that DVC runs in a copy. Nothing waits for a store: what it is to be told stands in the outbox of
the run (sft.run.outbox), and everything told can be told again without a second entry, so that a store that was
away, or whose answer was lost, has each thing once in the end. A store that was never told of a run gets all of it.

In a store: a run for each packed data set, found by its tag `packed_data`, with what its stages counted; a run for
each lineage key, found by its tag `lineage_key`, with params (what determines the model), data sets, metrics and
records; child runs for each attempt (tags, status, system metrics) and each evaluation;
the model as a LoggedModel and a version of a registered model, which leads to run, parent version and data.
Sampled runs have an experiment and a registered model of their own, and never an alias.
"""

import contextlib
import getpass
import itertools
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
from mlflow import entities
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from requests.exceptions import RequestException
from rich.console import Console
from rich.markup import escape

from sft.command import InputError, say
from sft.files import holding, project_root, publish_file
from sft.run.outbox import DIGEST_DIGITS, FINISHED, RECORDS, Outbox, without_secret

EXPERIMENT = REGISTERED_MODEL = "nano3-sft"
SAMPLED = "nano3-sft-sampled"  # experiment and registered model of runs on a sample of the data
CANDIDATE, CHAMPION = "candidate", "champion"
MOST_AT_ONCE = 100  # params or tags in a request, and steps, which have a few metrics each
MOST_METRICS = 1000  # in a request
PATIENCE = 30.0  # seconds that a stage waits for a store at its end
EVERY = 2.0  # seconds between two deliveries while a training runs
LONGEST_PAUSE = 60.0  # seconds between two tries while a store does not answer
SYSTEM_EVERY = 10.0  # seconds between two samples of the machine; MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL
# What a store answers that another try does not change.
REFUSALS = {
    "BAD_REQUEST",
    "CUSTOMER_UNAUTHORIZED",
    "ENDPOINT_NOT_FOUND",
    "INVALID_PARAMETER_VALUE",
    "NOT_FOUND",
    "PERMISSION_DENIED",
    "RESOURCE_DOES_NOT_EXIST",
    "UNAUTHENTICATED",
}
VERSION = r"([\w.-]+)(?:/(\d+)|@([\w.-]+))"  # of a registered model: name/version, name@alias
# What the store answers for a run, a version, and an alias that it does not have.
UNKNOWN = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}

logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table and every version that it makes
logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it tells of every try


class NoAnswerError(InputError):
    """The store does not answer: another try may."""


# --- Reaching a store -----------------------------------------------------------------------------------


def store_uri() -> str:
    """Return the address of the store: MLFLOW_TRACKING_URI, or runs/mlflow.db of the repository."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _local_uri()


def _local_uri() -> str:
    return f"sqlite:///{project_root() / 'runs' / 'mlflow.db'}"


def store_name() -> str:
    """Return the address as it may be shown and written down."""
    uri = store_uri()  # MLflow sets the variable itself when it is pointed somewhere
    return "runs/mlflow.db" if uri == _local_uri() else without_secret(uri)


def has_store() -> bool:
    """Whether there is a store to ask: a server that is named, or runs/mlflow.db."""
    return store_uri() != _local_uri() or (project_root() / "runs" / "mlflow.db").exists()


def connect() -> mlflow.MlflowClient:
    """Point MLflow at the store, and make the experiment if it is new.

    Raises:  NoAnswerError: the store does not answer. InputError: it refuses.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # seconds
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    if store_uri() == _local_uri():
        _make_local_store(project_root() / "runs")
    mlflow.set_tracking_uri(store_uri())
    client = mlflow.MlflowClient()
    with _explained():
        _experiment(client, EXPERIMENT)
    return client


def _make_local_store(runs: Path) -> None:
    """Make runs/mlflow.db if it is not there: whole or not at all, and once where several processes want it.

    MLflow makes the tables in dozens of steps, for seconds, and a second process that finds some of them makes them
    too: both fail, and so does everyone who comes later.
    """
    store = runs / "mlflow.db"
    if store.exists():
        return
    with holding(runs / "mlflow.db.lock", PATIENCE) as held:
        if not held:
            raise NoAnswerError("runs/mlflow.db: another process makes it.")
        if not store.exists():
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            with publish_file(store) as partial:
                SqlAlchemyStore(f"sqlite:///{partial}", (runs / "mlflow-artifacts").as_uri()).engine.dispose()


def _experiment(client: mlflow.MlflowClient, name: str) -> str:
    """Return the id of an experiment, made if it is new."""
    if (found := client.get_experiment_by_name(name)) is not None:
        return str(found.experiment_id)
    runs = project_root() / "runs"
    try:
        place = (runs / "mlflow-artifacts").as_uri() if store_uri() == _local_uri() else None
        return str(client.create_experiment(name, artifact_location=place))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # made by another process meanwhile
            raise
        return str(client.get_experiment_by_name(name).experiment_id)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Say what a store that does not answer, or refuses, means to the user; without secrets."""
    try:
        yield
    except (MlflowException, RequestException) as error:
        reason = without_secret(str(error)).splitlines()[0]
        if isinstance(error, MlflowException) and error.error_code in REFUSALS:
            raise InputError(
                f"MLflow at {store_name()} refuses: {reason}. Give it what it wants (address, MLFLOW_TRACKING_USERNAME "
                "and MLFLOW_TRACKING_PASSWORD or MLFLOW_TRACKING_TOKEN), or unset MLFLOW_TRACKING_URI."
            ) from error
        raise NoAnswerError(
            f"MLflow does not answer at {store_name()}: {reason}. "
            "Start it, or unset MLFLOW_TRACKING_URI to keep runs in runs/mlflow.db."
        ) from error


# --- Telling a store what stands in an outbox -----------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """How far a store has been told of a run."""

    store: str
    run_id: str | None
    version: str | None
    """Of the registered model, as in nano3-sft/3."""
    aliases: list[str]
    """That the last evaluation moved to it."""
    note: str | None
    """Why an evaluation moved none."""
    waiting: int
    """Things that the store has not been told."""
    reason: str | None
    """Why they wait; None: all was told, what waits came meanwhile."""


def deliver(run: Path, patience: float = PATIENCE) -> Told:
    """Tell the store what it has not been told of the run in a folder; wait some seconds for one that is away.

    Raises:  InputError: the store refuses.
    """
    box, store = Outbox(run), store_name()
    deadline = time.monotonic() + patience
    reason = None
    with box.delivering(patience) as alone:
        while alone:
            try:
                _tell_all(box, store)
                reason = None
                break
            except NoAnswerError as error:
                reason = str(error)
                if time.monotonic() + 1 >= deadline:
                    break
                time.sleep(1)
    state = box.delivered(store)
    told = {name: state.get(name) for name in ("run_id", "version", "note")}
    waiting = box.waiting(store)
    if waiting and not alone:
        reason = "another process is telling it."
    return Told(store, aliases=state.get("aliases", []), waiting=waiting, reason=reason, **told)


def run_id(run: Path) -> str | None:
    """Return the id that the store gave to the run in a folder, None if it could not be asked yet."""
    return Outbox(run).delivered(store_name()).get("run_id")


def greet(run: Path) -> None:
    """Tell the store of a run that begins. One that does not answer is left for later.

    Raises:  InputError: the store refuses; better known now than when the training has ended.
    """
    if reason := deliver(run, patience=0).reason:
        say(f"[yellow]{escape(reason)} The work goes on; what MLflow is to be told waits in runs/{run.name}/mlflow.[/]")


@dataclass
class Ending:
    """What is to be said of MLflow when a stage has ended."""

    text: str = ""


@contextlib.contextmanager
def told_in_the_end(run: Path) -> Iterator[Ending]:
    """Tell the store when a block has ended, well or not. Whether it can be told does not decide how it ended."""
    ending, patience = Ending(), EVERY
    try:
        yield ending
        patience = PATIENCE
    finally:
        try:
            ending.text = summary(deliver(run, patience), run)
        except InputError as error:
            ending.text = f"[yellow]{escape(str(error))} What it was to be told waits: make deliver[/]"


def summary(told: Told, run: Path) -> str:
    """Say in a line where the run and the model stand in MLflow, or how much waits, and for what."""
    if told.reason:
        return (
            f"[yellow]{told.waiting} entries wait in runs/{run.name}/mlflow: {escape(str(told.reason))} "
            "They are told by the next stage that reaches it, or by: make deliver[/]"
        )
    aliases = "".join(f" @{alias}" for alias in told.aliases) + (f" ({told.note})" if told.note else "")
    return f"models/final is {told.version}{aliases} in MLflow, run {told.run_id}"


@contextlib.contextmanager
def delivering(run: Path) -> Iterator[None]:
    """Tell the store in the background while a block runs, and sample the machine; never in the block's way."""
    box, over, terminal = Outbox(run), threading.Event(), sys.stdout
    attempt = max(box.attempts())
    threads = [
        threading.Thread(target=_keep_telling, args=(run, over, terminal), name="mlflow", daemon=True),
        threading.Thread(target=_sample_machine, args=(box, attempt, over), name="machine", daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(EVERY)  # a store that is slow is left to the end of the stage


def _keep_telling(run: Path, over: threading.Event, terminal: Any) -> None:
    pause, said = EVERY, False
    console = Console(file=terminal, highlight=False, soft_wrap=True)
    while not over.wait(pause):
        try:
            told = deliver(run, patience=0)
        except InputError as error:
            console.print(f"[yellow]{error} Training goes on; MLflow is asked again at its end.[/]")
            return
        if told.reason and not said:
            console.print(f"[yellow]{told.reason} Training goes on; what MLflow is to be told waits.[/]")
        elif said and not told.reason:
            console.print(f"MLflow at {told.store} answers again, and has been told all")
        said = bool(told.reason)
        pause = min(pause * 2, LONGEST_PAUSE) if said else EVERY


def _sample_machine(box: Outbox, attempt: int, over: threading.Event) -> None:
    """Note load, memory, disk, network and GPUs of this machine, as MLflow measures them."""
    monitor = SystemMetricsMonitor("")
    every = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or SYSTEM_EVERY)
    for step in itertools.count():
        monitor.collect_metrics()
        values = {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
        for one in monitor.monitors:
            one.clear_metrics()
        box.add("system", attempt=attempt, step=step, values=values)
        if over.wait(every):
            return


def _tell_all(box: Outbox, store: str) -> None:
    client = connect()
    teller = _Teller(client, box, box.delivered(store))
    start = teller.state.get("bytes", 0)
    steps = {"metrics", "system"}
    groups = itertools.groupby(box.read(start), key=lambda pair: "" if pair[1]["kind"] in steps else pair[1]["kind"])
    with _explained():
        for kind, group in groups:
            for chunk in itertools.batched(group, 1 if kind else MOST_AT_ONCE):
                teller.tell([thing for _, thing in chunk])
                teller.state["bytes"] = chunk[-1][0]
                box.note(store, teller.state)


class _Teller:
    """Tells a store the things of one run. Each can be told again: found by tags, or the same entry."""

    def __init__(self, client: mlflow.MlflowClient, box: Outbox, state: dict[str, Any]) -> None:
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
        with holding(project_root() / "runs/.mlflow-data", EVERY) as alone:
            if not alone:
                raise NoAnswerError("another training tells it of the same data.")
            self.state["data_run"] = self._data_run(thing)

    def _data_run(self, thing: dict[str, Any]) -> str:
        experiment = _experiment(self.client, SAMPLED if thing["sampled"] else EXPERIMENT)
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
        state["experiment"] = _experiment(self.client, state["name"])
        run_id = find_run(self.client, self.box.key)
        if run_id is None:
            tags = {"lineage_key": self.box.key, **_who()}
            run_id = self._new_run(f"sft-{self.box.key}", tags, thing["time"])
        elif not state.get("bytes"):  # told by another outbox: its steps are there
            state["check"] = True
        state["run_id"] = run_id
        self._params(run_id, thing["params"])
        self._tags(run_id, {**thing["tags"], **self._link(thing["datasets"])})
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
        champion = _known(lambda: self.client.get_model_version_by_alias(name, CHAMPION))
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

    def _link(self, datasets: Sequence[dict[str, Any]]) -> dict[str, str]:
        """Return the tag that leads to the run of the packed data; {} where the store has none."""
        for one in datasets:
            if "data_run" not in self.state and one["context"] == "training":
                found = find_data_run(self.client, self.state["experiment"], one["digest"])
                self.state |= {"data_run": str(found.info.run_id)} if found else {}
        return {name: value for name, value in self.state.items() if name == "data_run"}

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


# --- Looking things up ----------------------------------------------------------------------------------


def find_run(client: mlflow.MlflowClient, lineage_key: str) -> str | None:
    """Return the id of the run of a lineage key, or None."""
    names = (client.get_experiment_by_name(name) for name in (EXPERIMENT, SAMPLED))
    found = client.search_runs(
        [experiment.experiment_id for experiment in names if experiment],
        f"tags.lineage_key = '{lineage_key}'",
        order_by=["attributes.start_time ASC"],
        max_results=1,
    )
    return str(found[0].info.run_id) if found else None


def find_data_run(client: mlflow.MlflowClient, experiment: str, digest: str) -> Any:
    """Return the run of the packed data with a digest, or None."""
    found = client.search_runs(
        [experiment], f"tags.packed_data = '{digest}'", order_by=["attributes.start_time ASC"], max_results=1
    )
    return found[0] if found else None


def fetch_records(run_id: str, target: Path) -> Path:
    """Bring the texts that tell of a run into `target`; return the folder that holds them, maybe empty."""
    client = connect()
    folder = target / RECORDS
    folder.mkdir(parents=True)
    with _explained():
        if client.list_artifacts(run_id, RECORDS):
            client.download_artifacts(run_id, RECORDS, str(target))
    return folder


@dataclass(frozen=True)
class Tracked:
    """A run as the store knows it."""

    run_id: str
    facts: dict[str, Any]
    """Status, start in UTC, metrics, tags, and versions of the registered model."""
    version: dict[str, str] | None
    """Tags of the version that was asked for, or of the run's latest."""


def look_up(name: str) -> Tracked | None:
    """Find a run by its id (or that of a child), by the lineage key, or by a version of a registered model
    (name/version, name@alias).

    Returns None where the name has another form, or nothing of it is in the store.
    """
    if not re.fullmatch(VERSION, name) and not re.fullmatch("[0-9a-f]{16}|[0-9a-f]{32}", name):
        return None  # without asking: a store that is away is no reason not to find an experiment
    client = connect()
    with _explained():
        return _look_up(client, name)


def _look_up(client: mlflow.MlflowClient, name: str) -> Tracked | None:
    version = None
    if named := re.fullmatch(VERSION, name):
        model, number, alias = named.groups()
        version = _known(
            lambda: (
                client.get_model_version_by_alias(model, alias) if alias else client.get_model_version(model, number)
            )
        )
        run_id = version.run_id if version else None
    elif re.fullmatch("[0-9a-f]{16}", name):
        run_id = find_run(client, name)
    else:
        run_id = name if re.fullmatch("[0-9a-f]{32}", name) else None
    run = _known(lambda: client.get_run(run_id)) if run_id else None
    if run is not None and (parent := run.data.tags.get("mlflow.parentRunId")):
        run_id, run = parent, client.get_run(parent)
    if run is None:
        return None
    if run.data.tags.get("stage") == "data":
        trained = client.search_runs([run.info.experiment_id], f"tags.data_run = '{run_id}'", max_results=MOST_AT_ONCE)
        keys = ", ".join(one.data.tags["lineage_key"] for one in trained)
        raise InputError(
            f"{name} is the run of packed data. Name a training on it by its lineage key: {keys or 'none'}"
        )
    versions = client.search_model_versions(f"run_id = '{run_id}'")
    newest = max(versions, key=lambda one: int(one.version), default=None)
    started = datetime.fromtimestamp(run.info.start_time / 1000, UTC).isoformat(timespec="seconds")
    facts = {
        "run": run_id,
        "store": store_name(),
        "status": run.info.status,
        "started": started,
        "run of its data": run.data.tags.get("data_run"),
        "versions": [f"{one.name}/{one.version}" for one in sorted(versions, key=lambda one: int(one.version))],
        "metrics": dict(sorted(run.data.metrics.items())),
    }
    tagged = version or newest
    return Tracked(str(run_id), facts, dict(tagged.tags) if tagged else None)


def _known(ask: Callable[[], Any]) -> Any:
    """Return what the store answers, None where it knows no such thing."""
    try:
        return ask()
    except MlflowException as error:
        if error.error_code not in UNKNOWN:
            raise
        return None
