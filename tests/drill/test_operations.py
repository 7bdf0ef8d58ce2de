"""operations: a few operations of one stage; a stage that writes in place, or hides an error, is caught."""

from pathlib import Path

import pytest

from tests.drill.operations import Stage, drill, stages
from tests.support.project import link_project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SFT_WORKERS", "1")
    link_project(tmp_path / "project")
    return tmp_path / "project"


def test_a_fetch_with_faults_leaves_the_bytes_of_one_without(project: Path) -> None:
    line, failures = drill(stages()[0], project, 4)
    assert failures == []
    assert int(line.split()[3]) >= 12, line


def in_place() -> None:
    """Write an output in two steps, without a partial file."""
    for path in (Path("data/one"), Path("data/two")):
        path.parent.mkdir(exist_ok=True)
        path.write_text("whole")


def in_silence() -> None:
    """Publish nothing after an error, and say nothing."""
    try:
        in_place()
    except OSError:
        Path("data/one").write_text("half")


@pytest.mark.parametrize(
    ("main", "outputs"), [(in_place, ("data",)), (in_silence, ("data/one",))], ids=["in place", "in silence"]
)
def test_a_stage_that_does_not_publish_whole_outputs_is_caught(project: Path, main, outputs) -> None:
    _, failures = drill(Stage("bad", main, outputs), project, None)
    assert [failure for failure in failures if "half written" in failure]
