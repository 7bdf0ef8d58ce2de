"""Tracking: the only module that talks to MLflow.

The store is MLFLOW_TRACKING_URI, or else one SQLite file, runs/mlflow.db, below the repository, also for
experiments that DVC runs in a copy. There is one MLflow run for each lineage key: it is found by the tag
`lineage_key`, so a resumed training or a later evaluation goes on in the same run. Params are what
determines the model; what describes an attempt stands in tags, because MLflow never changes a param.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException

from sft.command import InputError
from sft.files import file_digest
from sft.run.lineage import project_root

EXPERIMENT = "nano3-sft"
REGISTERED_MODEL = "nano3-sft"
DIGEST_DIGITS = 12
MOST_PARAM_CHARS = 6000

logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table and every version that it makes
logging.getLogger("alembic").setLevel(logging.WARNING)


def connect() -> mlflow.MlflowClient:
    """Point MLflow at the store, and make the experiment if it is new.

    Raises:  InputError: the store does not answer.
    """
    root = project_root()
    local = f"sqlite:///{root / 'runs' / 'mlflow.db'}"
    uri = os.environ.get("MLFLOW_TRACKING_URI") or local
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
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
    """Add the metrics and reports of an evaluation to the run of a lineage key.

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
