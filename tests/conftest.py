"""What tests of several folders share."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.project import ROOT, clone_project

# The same examples each time, however slow the machine is; `make fuzz` draws others.
unchecked = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("suite", derandomize=True, deadline=None, suppress_health_check=unchecked)
settings.load_profile("suite")

# Files of several minutes, longest first. The workers of pytest-xdist take whole files in this order, so that no long
# one begins when the others are done.
LONG_FILES = (
    "tests/test_submission.py",
    "tests/test_pipeline.py",
    "tests/cluster/test_jobs.py",
    "tests/training/test_bridge.py",
    "tests/training/test_layouts.py",
    "tests/test_docs.py",
    "tests/lineage/test_reproduce.py",
    "tests/experiments/test_sweep.py",
    "tests/test_remotes.py",
    "tests/stages/test_pack_faults.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of LONG_FILES first; the order within a file stays."""
    rank = {ROOT / name: number for number, name in enumerate(LONG_FILES)}
    assert all(path.exists() for path in rank), "LONG_FILES names a file that is gone"
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture
def local_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow is told in runs/mlflow.db of the folder in which a test stands, whatever the environment names."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)


@pytest.fixture(scope="session")
def tiny_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the pipeline runs in a minute."""
    return clone_project(tmp_path_factory.mktemp("tiny") / "project")
