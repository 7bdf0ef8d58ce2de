"""Stores: a real server, and the file that needs none."""

import shutil

import mlflow
import pytest

from sft.tracking import sync
from tests.support.servers import mlflow_server


@pytest.fixture(scope="package")
def server(tmp_path_factory):
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as server:
        shutil.copyfile(server.folder / "mlflow.db", server.folder / "empty.db")
        yield server


@pytest.fixture(autouse=True)
def _outside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(sync, "EVERY", 0.1)
    yield
    mlflow.set_tracking_uri(None)


@pytest.fixture
def store(server, tmp_path, monkeypatch):
    """The store that needs no server, its tables made (which takes MLflow ten seconds)."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "runs").mkdir()
    shutil.copyfile(server.folder / "empty.db", tmp_path / "runs/mlflow.db")
    return tmp_path


@pytest.fixture
def served(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    return server
