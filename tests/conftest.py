"""What tests of the documentation and of the pipeline share."""

from pathlib import Path

import pytest

from tests.project import clone_project


@pytest.fixture(scope="session")
def tiny_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the pipeline runs in a minute."""
    return clone_project(tmp_path_factory.mktemp("tiny") / "project")
