"""Reach the MLflow store, and look up runs, versions and records in it.

The store is MLFLOW_TRACKING_URI, else one SQLite file of the repository, runs/mlflow.db, also for experiments that DVC
runs in a copy. Passwords in addresses are neither shown nor written.

The experiment and the registered model are MLFLOW_EXPERIMENT_NAME; else `nano3-sft` in runs/mlflow.db, and the name of
the project's folder in a store that several projects share. Two projects in folders of one name get two names.
"""

import contextlib
import logging
import os
import re
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
from google.protobuf.json_format import ParseError  # type: ignore[import-untyped]
from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException
from requests.utils import get_environ_proxies
from sqlalchemy.exc import SQLAlchemyError

from sft.cli import InputError
from sft.files import file_lock, project_root, publish_file, write_text
from sft.sources.redact import redact
from sft.tracking.address import StoreError, is_local, sqlite_uri, store_name, store_uri
from sft.tracking.answers import bound_answers
from sft.tracking.journal import RECORDS

LOCAL_NAME = "nano3-sft"  # of the experiment and the registered model in runs/mlflow.db
SAMPLED = "-sampled"  # behind the names of runs on a sample of the data
PROJECT = "project"  # tag of an experiment: the project that it belongs to
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
PATIENCE = 30.0  # seconds to wait for another process that makes the local store
MAX_NAMED = 100  # trainings in a message
MAX_EXPERIMENTS = 1000  # in which a run is looked up
# Error codes of HTTP 401 and 403: the only ones that stop a training, before its first step.
NO_ACCESS = {"CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED", "UNAUTHENTICATED"}
VERSION = r"([\w.-]+)(?:/(\d+)|@([\w.-]+))"  # of a registered model: name/version, name@alias
# Error codes for a run, a version or an alias that the store does not have, or that was deleted.
UNKNOWN = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE"}
# Columns of MLflow's tables that hold addresses of artifacts.
ADDRESSES = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"))
# Options of MLflow's client, unless the environment has others.
OPTIONS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

logging.getLogger("mlflow").setLevel(logging.WARNING)  # it logs every table and every version that it makes
logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it logs every try


class NoAccessError(InputError):
    """The store refuses the user or the password (HTTP 401 or 403)."""


def connect() -> mlflow.MlflowClient:
    """Return a client of the store.

    Raises:  StoreError: the store does not answer, or is none. NoAccessError: it refuses the user or the password.
    """
    for name, value in OPTIONS.items():
        os.environ.setdefault(name, value)
    bound_answers()
    with explained():
        uri = store_uri()
        if (host := urlsplit(uri).hostname) in LOOPBACK:  # no proxy leads to this machine
            os.environ["no_proxy"] = ",".join(filter(None, [os.environ.get("no_proxy"), host]))
        if is_local():
            _make_local_store(project_root() / "runs")
            _find_artifacts(project_root() / "runs")
        mlflow.set_tracking_uri(uri)
        return mlflow.MlflowClient()


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
            raise StoreError("runs/mlflow.db: another process is still making it.")
        if not store.exists():
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            with publish_file(store) as partial:
                SqlAlchemyStore(sqlite_uri(partial), (runs / "mlflow-artifacts").as_uri()).engine.dispose()


def _find_artifacts(runs: Path) -> None:
    """Let runs/mlflow.db name the artifacts where they are: its addresses are absolute, and a project can move."""
    here, mark = (runs / "mlflow-artifacts").as_uri(), "/runs/mlflow-artifacts"
    with contextlib.closing(sqlite3.connect(runs / "mlflow.db", timeout=PATIENCE)) as database, database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        for table, column in (each for each in ADDRESSES if each[0] in tables):
            moved = f"{column} LIKE 'file:%' AND instr({column}, :mark) AND substr({column}, 1, length(:here)) <> :here"
            names = {"here": here, "mark": mark}
            if database.execute(f"SELECT 1 FROM {table} WHERE {moved} LIMIT 1", names).fetchone():
                rest = f"substr({column}, instr({column}, :mark) + length(:mark))"
                database.execute(f"UPDATE {table} SET {column} = :here || {rest} WHERE {moved}", names)


def experiment_name(client: mlflow.MlflowClient) -> str:
    """Return the name of this project's experiment in the store."""
    if given := os.environ.get("MLFLOW_EXPERIMENT_NAME"):
        return given
    if is_local():
        return LOCAL_NAME
    folder, project = re.sub(r"[^\w.-]", "-", project_root().name) or LOCAL_NAME, project_id()
    experiment = client.get_experiment_by_name(folder)
    is_ours = experiment is None or experiment.tags.get(PROJECT, project) == project
    return folder if is_ours else f"{folder}-{project[:6]}"


def model_name(experiment: str) -> str:
    """Return the name of the registered model of an experiment: without what MLflow does not take there."""
    return re.sub(r"[^\w.-]+", "-", experiment).strip("-")


def project_id() -> str:
    """Return the id of this project: made once, in a folder that git ignores and `make clean` keeps."""
    dvc = project_root() / ".dvc"
    file = dvc / "tmp/project-id" if dvc.is_dir() else project_root() / "runs/project-id"
    if not file.exists():
        write_text(file, f"{uuid.uuid4().hex}\n")
    return file.read_text(encoding="utf-8").strip()


def open_experiment(client: mlflow.MlflowClient, name: str) -> tuple[str, str | None]:
    """Return (id of an experiment, what was done to it): made if it is new, restored if it was deleted."""
    experiment = client.get_experiment_by_name(name)
    note = None
    if experiment is None:
        location = (project_root() / "runs/mlflow-artifacts").as_uri() if is_local() else None
        try:
            found = client.create_experiment(name, artifact_location=location, tags={PROJECT: project_id()})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # made by another process meanwhile
                raise
            found = client.get_experiment_by_name(name).experiment_id
    else:
        found = experiment.experiment_id
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(found)
            note = f"experiment {name} was deleted: restored"
        if not is_local() and PROJECT not in experiment.tags:
            client.set_experiment_tag(found, PROJECT, project_id())
    if not found:
        raise StoreError(f"MLflow at {store_name()}: an experiment without an id. Is the address that of MLflow?")
    return str(found), note


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn errors of MLflow, of its database and of its server into messages that name the store and the remedy.

    A server can answer anything: what no server of MLflow answers is an error of the address, not of this program.
    """
    try:
        yield
    except InputError:
        raise
    except (MlflowException, RequestException, SQLAlchemyError, sqlite3.Error, ParseError, OSError) as error:
        lines = [line for line in redact(str(error)).splitlines() if line.strip()]
        reason = lines[0][:500] if lines else type(error).__name__
        if isinstance(error, MlflowException) and error.error_code in NO_ACCESS:
            raise NoAccessError(
                f"MLflow at {store_name()} refuses: {reason}. Check MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD or MLFLOW_TRACKING_TOKEN, or unset MLFLOW_TRACKING_URI."
            ) from error
        raise StoreError(f"MLflow at {store_name()}: {reason}. {_remedy()}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if is_local():
            raise
        reason = f"{type(error).__name__} {redact(str(error))[:200]}"
        raise StoreError(f"MLflow at {store_name()}: not an answer of MLflow ({reason}). {_remedy()}") from error


def _remedy() -> str:
    """Return what to do about a store that does not work."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    proxies = get_environ_proxies(uri) if uri.startswith("http") else {}
    if proxy := proxies.get(urlsplit(uri).scheme):
        return (
            f"The request goes through the proxy {redact(proxy)} ({urlsplit(uri).scheme}_proxy). "
            f"If the server needs none: export no_proxy={urlsplit(uri).hostname}"
        )
    if is_local():
        return "If the file is damaged or of another MLflow, move it away: make mlflow-sync makes it again."
    return "Check that it runs at this address, or unset MLFLOW_TRACKING_URI to keep runs in runs/mlflow.db."


# --- Look up ---------------------------------------------------------------------------------------------


def find_run(client: mlflow.MlflowClient, lineage_key: str, experiment: str | None = None) -> str | None:
    """Return the id of the run of a lineage key, in an experiment (by its id) or in any; None if there is none."""
    found = [experiment] if experiment else _experiments(client)
    run = _first_run(client, found, f"tags.lineage_key = '{lineage_key}'") if found else None
    return str(run.info.run_id) if run else None


def _experiments(client: mlflow.MlflowClient) -> list[str]:
    """Return the ids of experiments, those of this project first."""
    name = experiment_name(client)
    found = client.search_experiments(max_results=MAX_EXPERIMENTS)
    ours = sorted(found, key=lambda experiment: experiment.name not in (name, name + SAMPLED))
    return [str(experiment.experiment_id) for experiment in ours]


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
