"""Reach the MLflow store, and look up runs, versions and records in it.

The store is MLFLOW_TRACKING_URI, else one SQLite file of the repository, runs/mlflow.db, also for experiments that DVC
runs in a copy. Passwords in addresses are neither shown nor written.
"""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import mlflow
from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException

from sft.cli import InputError
from sft.files import file_lock, project_root, publish_file
from sft.sources.redact import redact
from sft.tracking.journal import RECORDS

EXPERIMENT = REGISTERED_MODEL = "nano3-sft"
SAMPLED = "nano3-sft-sampled"  # experiment and registered model of runs on a sample of the data
PATIENCE = 30.0  # seconds to wait for another process that makes the local store
MAX_NAMED = 100  # trainings in a message
# Error codes that another try does not change.
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
# Error codes for a run, a version or an alias that the store does not have.
UNKNOWN = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}

logging.getLogger("mlflow").setLevel(logging.WARNING)  # it logs every table and every version that it makes
logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it logs every try


class NoAnswerError(InputError):
    """The store does not answer: another try may."""


def store_uri() -> str:
    """Return the address of the store: MLFLOW_TRACKING_URI, or runs/mlflow.db of the repository."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _local_uri()


def _local_uri() -> str:
    return sqlite_uri(project_root() / "runs" / "mlflow.db")


def sqlite_uri(path: Path) -> str:
    """Return the address of a SQLite file.

    Where the path has a character that means something in an address, it is quoted and relative to this folder: MLflow
    also makes the folder of an address as it is written.
    """
    absolute = str(path.absolute())
    return "sqlite:///" + (quote(os.path.relpath(path)) if set(absolute) & set("?#%") else absolute)


def store_name() -> str:
    """Return the address of the store without secrets."""
    uri = store_uri()  # MLflow sets the variable itself when it is pointed somewhere
    return "runs/mlflow.db" if uri == _local_uri() else redact(uri)


def has_store() -> bool:
    """Whether there is a store: MLFLOW_TRACKING_URI is set, or runs/mlflow.db exists."""
    return store_uri() != _local_uri() or (project_root() / "runs" / "mlflow.db").exists()


def connect() -> mlflow.MlflowClient:
    """Return a client of the store, which has the experiment from now on.

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
    with explained():
        experiment_id(client, EXPERIMENT)
    return client


def _make_local_store(runs: Path) -> None:
    """Make runs/mlflow.db if it does not exist: whole or not at all, and once for several processes.

    MLflow makes the tables in dozens of steps that take seconds. A second process that finds some of them makes them
    too: both fail, and so does every later process.
    """
    store = runs / "mlflow.db"
    if store.exists():
        return
    with file_lock(runs / "mlflow.db.lock", PATIENCE) as held:
        if not held:
            raise NoAnswerError("runs/mlflow.db: another process is still making it.")
        if not store.exists():
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            with publish_file(store) as partial:
                SqlAlchemyStore(sqlite_uri(partial), (runs / "mlflow-artifacts").as_uri()).engine.dispose()


def experiment_id(client: mlflow.MlflowClient, name: str) -> str:
    """Return the id of an experiment, made if it is new."""
    if (experiment := client.get_experiment_by_name(name)) is not None:
        return str(experiment.experiment_id)
    runs = project_root() / "runs"
    try:
        location = (runs / "mlflow-artifacts").as_uri() if store_uri() == _local_uri() else None
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # made by another process meanwhile
            raise
        return str(client.get_experiment_by_name(name).experiment_id)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn errors of MLflow into messages that name the store and the remedy, without secrets."""
    try:
        yield
    except (MlflowException, RequestException) as error:
        reason = redact(str(error)).splitlines()[0]
        if isinstance(error, MlflowException) and error.error_code in REFUSALS:
            raise InputError(
                f"MLflow at {store_name()} refuses: {reason}. Check the address, MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD or MLFLOW_TRACKING_TOKEN, or unset MLFLOW_TRACKING_URI."
            ) from error
        raise NoAnswerError(
            f"MLflow does not answer at {store_name()}: {reason}. "
            "Start it, or unset MLFLOW_TRACKING_URI to keep runs in runs/mlflow.db."
        ) from error


# --- Look up ---------------------------------------------------------------------------------------------


def find_run(client: mlflow.MlflowClient, lineage_key: str) -> str | None:
    """Return the id of the run of a lineage key, or None."""
    names = (client.get_experiment_by_name(name) for name in (EXPERIMENT, SAMPLED))
    experiments = [experiment.experiment_id for experiment in names if experiment]
    run = _first_run(client, experiments, f"tags.lineage_key = '{lineage_key}'")
    return str(run.info.run_id) if run else None


def find_data_run(client: mlflow.MlflowClient, experiment: str, digest: str) -> Any:
    """Return the run of the packed data with a digest, or None."""
    return _first_run(client, [experiment], f"tags.packed_data = '{digest}'")


def _first_run(client: mlflow.MlflowClient, experiments: list[str], condition: str) -> Any:
    runs = client.search_runs(experiments, condition, order_by=["attributes.start_time ASC"], max_results=1)
    return runs[0] if runs else None


def fetch_records(run_id: str, target: Path) -> Path:
    """Download the params, reports and locks of a run into `target`; return their folder, which may be empty."""
    client = connect()
    folder = target / RECORDS
    folder.mkdir(parents=True)
    with explained():
        if client.list_artifacts(run_id, RECORDS):
            client.download_artifacts(run_id, RECORDS, str(target))
    return folder


@dataclass(frozen=True)
class Tracked:
    """A run as it is in the store."""

    run_id: str
    facts: dict[str, Any]
    """Status, start in UTC, metrics, tags, and versions of the registered model."""
    version: dict[str, str] | None
    """Tags of the named version, or of the latest of the run."""


def look_up(name: str) -> Tracked | None:
    """Return a run by its id (or that of a child run), its lineage key, or a version of a registered model
    (name/version, name@alias); None if the name has another form, or the store does not have it.
    """
    if not re.fullmatch(VERSION, name) and not re.fullmatch("[0-9a-f]{16}|[0-9a-f]{32}", name):
        return None  # not asked: the name of a DVC experiment needs no store that answers
    client = connect()
    with explained():
        return _look_up(client, name)


def _look_up(client: mlflow.MlflowClient, name: str) -> Tracked | None:
    version = None
    if match := re.fullmatch(VERSION, name):
        model, number, alias = match.groups()
        version = known(
            lambda: (
                client.get_model_version_by_alias(model, alias) if alias else client.get_model_version(model, number)
            )
        )
        run_id = version.run_id if version else None
    elif re.fullmatch("[0-9a-f]{16}", name):
        run_id = find_run(client, name)
    else:
        run_id = name if re.fullmatch("[0-9a-f]{32}", name) else None
    run = known(lambda: client.get_run(run_id)) if run_id else None
    if run is not None and (parent := run.data.tags.get("mlflow.parentRunId")):
        run_id, run = parent, client.get_run(parent)
    if run is None:
        return None
    if run.data.tags.get("stage") == "data":
        trained = client.search_runs([run.info.experiment_id], f"tags.data_run = '{run_id}'", max_results=MAX_NAMED)
        keys = ", ".join(run.data.tags["lineage_key"] for run in trained)
        raise InputError(f"{name}: a run of packed data. Name a training on it by its lineage key: {keys or 'none'}")
    versions = client.search_model_versions(f"run_id = '{run_id}'")
    newest = max(versions, key=lambda version: int(version.version), default=None)
    started = datetime.fromtimestamp(run.info.start_time / 1000, UTC).isoformat(timespec="seconds")
    facts = {
        "run": run_id,
        "store": store_name(),
        "status": run.info.status,
        "started": started,
        "data run": run.data.tags.get("data_run"),
        "versions": [f"{v.name}/{v.version}" for v in sorted(versions, key=lambda v: int(v.version))],
        "metrics": dict(sorted(run.data.metrics.items())),
    }
    tagged = version or newest
    return Tracked(str(run_id), facts, dict(tagged.tags) if tagged else None)


def known(ask: Callable[[], Any]) -> Any:
    """Return the answer of the store, None if it has no such thing."""
    try:
        return ask()
    except MlflowException as error:
        if error.error_code not in UNKNOWN:
            raise
        return None
