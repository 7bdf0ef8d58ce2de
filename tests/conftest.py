"""What tests of several folders share."""

from pathlib import Path

import pytest

from tests.support.project import clone_project


@pytest.fixture
def local_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow is told in runs/mlflow.db of the folder in which a test stands, whatever the environment names."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)


@pytest.fixture(scope="session")
def tiny_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the pipeline runs in a minute."""
    return clone_project(tmp_path_factory.mktemp("tiny") / "project")
