"""Tracking: the only module that talks to MLflow.

The store is MLFLOW_TRACKING_URI, or else one SQLite file, runs/mlflow.db, below the repository, also for
experiments that DVC runs in a copy. There is one MLflow run for each lineage key: it is found by the tag
`lineage_key`, so a resumed training or a later evaluation goes on in the same run. Params are what
determines the model; what describes an attempt stands in tags, because MLflow never changes a param.
"""

import contextlib
import logging
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException

from sft.command import InputError
from sft.files import file_digest, project_root
from sft.run.lineage import EVAL_RECORDS, records

EXPERIMENT = "nano3-sft"
REGISTERED_MODEL = "nano3-sft"
DIGEST_DIGITS = 12
MOST_PARAM_CHARS = 6000
# What the store answers for a run, a version, and an alias that it does not have.
UNKNOWN = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
RECORDS = "records"  # the folder of a run's artifacts that holds the texts that tell of it

logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table and every version that it makes
logging.getLogger("alembic").setLevel(logging.WARNING)


def connect() -> mlflow.MlflowClient:
    """Point MLflow at the store, and make the experiment if it is new.

    Raises:  InputError: the store does not answer.
    """
    root, local = project_root(), _local()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or local
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    (root / "runs").mkdir(exist_ok=True)
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient()
    try:
        if client.get_experiment_by_name(EXPERIMENT) is None:
            place = (root / "runs" / "mlflow-artifacts").as_uri() if uri == local else None
            client.create_experiment(EXPERIMENT, artifact_location=place)
    except MlflowException as error:
        raise InputError(
            f"MLflow does not answer at {without_secret(uri)}: {without_secret(str(error)).splitlines()[0]}. "
            "Start it, or unset MLFLOW_TRACKING_URI to keep runs in runs/mlflow.db."
        ) from error
    mlflow.set_experiment(EXPERIMENT)
    return client


def _local() -> str:
    """Return the location of the store that needs no server."""
    return f"sqlite:///{project_root() / 'runs' / 'mlflow.db'}"


def without_secret(text: str) -> str:
    """Remove user:password@ from every URI in a text.

    >>> without_secret("http://me:secret@host:5000/x")
    'http://***@host:5000/x'
    """
    head, *rest = text.split("://")
    cleaned = [head]
    for part in rest:
        place = part.split("/", 1)[0].split(" ", 1)[0]
        cleaned.append("***@" + part[place.rindex("@") + 1 :] if "@" in place else part)
    return "://".join(cleaned)


def find_run(client: mlflow.MlflowClient, lineage_key: str) -> str | None:
    """Return the id of the run of a lineage key, or None."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return None
    found = client.search_runs(
        [experiment.experiment_id],
        f"tags.lineage_key = '{lineage_key}'",
        order_by=["attributes.start_time ASC"],
        max_results=1,
    )
    return str(found[0].info.run_id) if found else None


def open_run(lineage_key: str, params: dict[str, Any], tags: dict[str, str], datasets: list["Dataset"]) -> str:
    """Find or make the run of a lineage key, write what determines the model and its data; return its id."""
    client = connect()
    run_id = find_run(client, lineage_key)
    is_new = run_id is None
    with mlflow.start_run(run_id=run_id, run_name=None if run_id else f"sft-{lineage_key}") as run:
        mlflow.set_tags({**tags, "lineage_key": lineage_key})
        if is_new:
            mlflow.log_params({k: str(v)[:MOST_PARAM_CHARS] for k, v in flatten(params).items()})
            for dataset in datasets:
                mlflow.log_input(dataset.as_mlflow(), context=dataset.context, tags=dataset.tags)
    client.update_run(run.info.run_id, status="RUNNING")
    return str(run.info.run_id)


class Dataset:
    """A data set as an input of a run: name, digest, where it is, and counts as tags."""

    def __init__(self, name: str, digest: str, source: Path, context: str, tags: dict[str, str]) -> None:
        self.name, self.digest, self.source, self.context, self.tags = name, digest, source, context, tags

    def as_mlflow(self) -> MetaDataset:
        """Return the data set as MLflow knows it; no data is read."""
        with warnings.catch_warnings():  # that a folder is a folder by two of MLflow's names
            warnings.simplefilter("ignore")
            source = mlflow.data.dataset_source_registry.resolve_dataset_source(self.source.as_uri())
        return MetaDataset(source, name=self.name, digest=self.digest[:DIGEST_DIGITS])


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted names.

    >>> flatten({"optimizer": {"lr": 0.1}, "rng": {"seed": 1}})
    {'optimizer.lr': 0.1, 'rng.seed': 1}
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


class Metrics:
    """Metrics of a run over its steps; a step that the run already has is not written twice."""

    def __init__(self, run_id: str) -> None:
        self._client = connect()
        self._run_id = run_id
        self._last: dict[str, int] = {}

    def log(self, step: int, **values: float) -> None:
        """Log values of one step."""
        for name, value in values.items():
            if name not in self._last:
                history = self._client.get_metric_history(self._run_id, name)
                self._last[name] = max((metric.step for metric in history), default=-1)
            if step > self._last[name]:
                self._client.log_metric(self._run_id, name, value, step=step)
                self._last[name] = step


@contextlib.contextmanager
def true_status(run_id: str) -> Iterator[None]:
    """End the run as it ended: FINISHED, FAILED on an error, KILLED on an interrupt."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        connect().set_terminated(run_id, status=status)


def log_files(run_id: str, files: list[Path], folder: str) -> None:
    """Attach files to a run, those that exist."""
    client = connect()
    for path in files:
        if path.exists():
            client.log_artifact(run_id, str(path), folder)


def log_records(run_id: str, files: dict[str, Path]) -> None:
    """Attach texts that tell of a run (`sft.run.lineage.records`), each at its place below the folder RECORDS."""
    with tempfile.TemporaryDirectory() as staged:
        for place, file in files.items():
            (Path(staged) / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, Path(staged) / place)
        connect().log_artifacts(run_id, staged, RECORDS)


def fetch_records(run_id: str, target: Path) -> Path:
    """Bring the texts that tell of a run into `target`; return the folder that holds them, maybe empty."""
    client = connect()
    folder = target / RECORDS
    folder.mkdir(parents=True)
    if client.list_artifacts(run_id, RECORDS):
        client.download_artifacts(run_id, RECORDS, str(target))
    return folder


def has_store() -> bool:
    """Whether there is a store to ask: a server that is named, or runs/mlflow.db."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or (project_root() / "runs" / "mlflow.db").exists()


@dataclass(frozen=True)
class Tracked:
    """A run as the store knows it."""

    run_id: str
    facts: dict[str, Any]
    """Status, start in UTC, metrics, tags, and versions of the registered model."""
    version: dict[str, str] | None
    """Tags of the version that was asked for, or of the run's latest."""


def look_up(name: str) -> Tracked | None:
    """Find a run by its id, by the lineage key, or by a version of a registered model (name/version, name@alias).

    Returns None where the name has another form, or nothing of it is in the store.
    """
    client = connect()
    version = None
    if named := re.fullmatch(r"([\w.-]+)(?:/(\d+)|@([\w.-]+))", name):
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
    if run is None:
        return None
    versions = client.search_model_versions(f"run_id = '{run_id}'")
    newest = max(versions, key=lambda one: int(one.version), default=None)
    started = datetime.fromtimestamp(run.info.start_time / 1000, UTC).isoformat(timespec="seconds")
    facts = {
        "run": run_id,
        "store": "runs/mlflow.db"
        if mlflow.get_tracking_uri() == _local()
        else without_secret(mlflow.get_tracking_uri()),
        "status": run.info.status,
        "started": started,
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


def register_model(run_id: str, model: Path, tags: dict[str, str], params: dict[str, Any]) -> str:
    """Register the exported model of a run as a new version; return the version.

    The weights stay where they are: the version names their place and digest. A run that has a version
    with the same digest of weights keeps it.
    """
    client = connect()
    digest = file_digest(model / "lineage.json")
    for version in client.search_model_versions(f"name = '{REGISTERED_MODEL}' and run_id = '{run_id}'"):
        if version.tags.get("lineage_json") == digest:
            return str(version.version)
    tags = {**tags, "path": model.as_posix(), "lineage_json": digest}
    logged = mlflow.create_external_model(
        name=REGISTERED_MODEL,
        source_run_id=run_id,
        tags=tags,
        params={k: str(v)[:MOST_PARAM_CHARS] for k, v in flatten(params).items()},
        model_type="causal-lm",
    )
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    mlflow.finalize_logged_model(logged.model_id, "READY")
    return str(mlflow.register_model(f"models:/{logged.model_id}", REGISTERED_MODEL, tags=tags).version)


def log_evaluation(lineage_key: str, metrics: dict[str, float], files: list[Path]) -> None:
    """Add the metrics, reports and records of an evaluation to the run of a lineage key.

    Raises:  InputError: the store has no such run.
    """
    client = connect()
    run_id = find_run(client, lineage_key)
    if run_id is None:
        raise InputError(
            f"MLflow at {without_secret(mlflow.get_tracking_uri())} has no run with lineage key {lineage_key}. "
            "Train with the same MLFLOW_TRACKING_URI: dvc repro --force train"
        )
    for name, value in metrics.items():
        client.log_metric(run_id, name, value)
    for path in files:
        client.log_artifact(run_id, str(path), "eval")
    log_records(run_id, records(Path.cwd(), EVAL_RECORDS))
