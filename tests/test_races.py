"""One owner of a run: however two trainings of one lineage key meet, every step is trained once.

Slow, so in `make test-layouts` only. tests/cluster/test_run_lock.py races the lock alone.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sft.tracking.journal import Journal
from tests.support.project import clone_project, environment, run, set_params
from tests.support.slurm_loopback import wait_for

pytestmark = [pytest.mark.layouts, pytest.mark.pipeline, pytest.mark.timeout(3600)]
STEPS = 12
REPRO = ("dvc", "repro", "--single-item", "train")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose data is packed."""
    project = clone_project(tmp_path_factory.mktemp("races") / "clone")
    set_params(project, **{"train.train_iters": STEPS, "checkpoint.most_recent_k": 2})
    run(project, "dvc", "repro", "pack", "fetch-model")
    return project


def start(project: Path, *command: str, **environ: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        cwd=project,
        env=environment(**environ),
        stdin=subprocess.DEVNULL,
        stdout=(project / f"../{random.random()}.txt").open("wb"),
        stderr=subprocess.STDOUT,
    )


def runs(project: Path) -> set[Path]:
    return {journal.parent for journal in (project / "runs").glob("*/journal.jsonl")}


def steps(run_folder: Path) -> list[int]:
    return [entry["iteration"] for entry in Journal(run_folder).entries("step")]


def pause() -> None:
    time.sleep(random.random() * 15)


def two_shells(project: Path) -> None:
    stage = ("python", "-m", "sft.stages.train")
    first = start(project, *stage, PYTHONPATH="src")
    pause()
    second = start(project, *stage, PYTHONPATH="src")
    assert 0 in (first.wait(), second.wait())


def an_experiment_in_a_copy(project: Path) -> None:
    first = start(project, "dvc", "exp", "run", "--temp", "--single-item", "train")
    pause()
    assert start(project, *REPRO, WAIT="1").wait() == 0
    first.wait()


def a_queue_of_two_workers(project: Path) -> None:
    for seed in (1, 2):
        run(project, "dvc", "exp", "run", "--queue", "--set-param", f"eval.seed={seed}", "--single-item", "train")
    run(project, "dvc", "queue", "start", "--jobs", "2")
    pause()
    assert start(project, *REPRO, WAIT="1").wait() == 0
    wait_for(lambda: not {"Queued", "Running"} & set(run(project, "dvc", "queue", "status").split()), 1800)


def a_sweep_of_evaluations(project: Path) -> None:
    sweep = start(project, "make", "sweep", "GRID=eval.seed=3,4", "JOBS=2", f"NAME=s{random.randrange(10**6)}")
    assert sweep.wait() == 0


def an_orphan(project: Path) -> None:
    before = runs(project)
    first = start(project, *REPRO)
    wait_for(lambda: any(steps(folder) for folder in runs(project) - before), 900)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert start(project, *REPRO, WAIT="1").wait() == 0


@pytest.mark.parametrize("repeat", range(4))
@pytest.mark.parametrize(
    "race", [two_shells, an_experiment_in_a_copy, a_queue_of_two_workers, a_sweep_of_evaluations, an_orphan]
)
def test_no_step_is_trained_twice(project: Path, race: Callable[[Path], None], repeat: int) -> None:
    before = runs(project)
    set_params(project, **{"optimizer.lr": random.uniform(1e-4, 1e-3)})
    race(project)
    (new,) = runs(project) - before
    assert steps(new) == list(range(1, STEPS + 1))
