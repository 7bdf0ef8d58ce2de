"""One owner of a run: however two trainings of one lineage key meet, here or on a cluster, every step is trained once.

Slow, so in `make test-layouts` only. They train with tests/support/stub_bridge.py, where a step takes 0.4 s;
`-s` prints who trained. tests/cluster/test_run_lock.py races the lock alone.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sft.files import read_json
from tests.support.project import ROOT, clone_project, commit, environment, run, set_params
from tests.support.slurm_loopback import Loopback, running_cluster, wait_for, write_cluster_file

pytestmark = [pytest.mark.layouts, pytest.mark.pipeline, pytest.mark.timeout(3600)]
STEPS = 12
TRAIN = ("python", "-m", "sft.stages.train")
REPRO = ("dvc", "repro", "--single-item", "train")
TEMP = ("dvc", "exp", "run", "--temp", "--single-item", "train")
ON_ANOTHER_HOST = ("unshare", "--uts", "bash", "-c", 'hostname another; exec "$@"', "bash")
WITHOUT_FLOCK = (
    *("python", "-c"),
    "import errno, fcntl, runpy, sys\n"
    "def flock(*_): raise OSError(errno.ENOLCK, 'No locks available')\n"
    "fcntl.flock = flock; sys.argv = ['train']; runpy.run_module('sft.stages.train', run_name='__main__')",
)


@pytest.fixture(scope="module")
def stubbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose data is packed, with a training without a model."""
    project = clone_project(tmp_path_factory.mktemp("races") / "clone")
    set_params(project, **{"train.train_iters": STEPS, "checkpoint.most_recent_k": 2})
    run(project, "dvc", "repro", "pack", "fetch-model")
    shutil.copy(ROOT / "tests/support/stub_bridge.py", project / "src/sft/training/bridge.py")
    commit(project, "stub")
    return project


@pytest.fixture(scope="module")
def cluster(stubbed: Path) -> Iterator[Loopback]:
    """A Slurm on which the project trains with CLUSTER=loop."""
    with running_cluster() as cluster:
        write_cluster_file(stubbed, "loop", cluster)
        yield cluster


def start(project: Path, output: Path, *command: str, **environ: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        cwd=project,
        env=environment(**({"PYTHONPATH": "src"} if "sft" in str(command) else {}), **environ),
        stdin=subprocess.DEVNULL,
        stdout=output.open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def runs(project: Path) -> set[Path]:
    return {journal.parent for journal in (project / "runs").glob("*/journal.jsonl")}


def trained(project: Path, before: set[Path], steps: int = 1) -> Callable[[], bool]:
    """Return whether the new run has so many steps."""

    def has_steps() -> bool:
        files = [folder / "trained" for folder in runs(project) - before]
        return any(file.exists() and len(file.read_text().splitlines()) >= steps for file in files)

    return has_steps


class Race:
    """Processes that train one run."""

    def __init__(self, project: Path) -> None:
        self.project, self.before = project, runs(project)
        self.outputs: dict[int, Path] = {}

    def start(self, *command: str, **environ: str) -> subprocess.Popen[bytes]:
        output = self.project / f"../{(command or TRAIN)[0]}-{time.monotonic_ns()}.txt"
        process = start(self.project, output, *(command or TRAIN), **environ)
        self.outputs[process.pid] = output
        return process

    def check_refused(self, process: subprocess.Popen[bytes], *messages: str) -> None:
        """Check that a process ends with one line of an error that says all this."""
        assert process.wait() == 1
        (error,) = (line for line in self.outputs[process.pid].read_text().splitlines() if line.startswith("error: "))
        assert all(message in error for message in messages), error

    def run(self) -> Path:
        (new,) = runs(self.project) - self.before
        return new

    def wait_for(self, steps: int) -> None:
        wait_for(trained(self.project, self.before, steps), 300)


def at_once(race: Race) -> None:
    both = [race.start(), race.start()]
    assert 0 in [process.wait() for process in both]


def one_after_a_second(race: Race) -> None:
    first = race.start()
    time.sleep(1)
    second = race.start()
    assert 0 in (first.wait(), second.wait())


def in_the_middle(race: Race) -> None:
    first = race.start(STEP_SECONDS="3")
    race.wait_for(3)
    assert (race.start().wait(), first.wait()) == (1, 0)


def in_the_last_step(race: Race) -> None:
    first = race.start()
    race.wait_for(STEPS)
    assert race.start(WAIT="1").wait() == 0
    assert first.wait() == 0


def three_that_wait(race: Race, **environ: str) -> None:
    three = [race.start(WAIT="1", **environ) for _ in range(3)]
    assert [process.wait() for process in three] == [0, 0, 0]


def the_owner_is_killed(race: Race, number: int = signal.SIGKILL, steps: int = 4) -> None:
    first = race.start()
    race.wait_for(steps)
    second = race.start(WAIT="1")
    time.sleep(random.random() * 2)
    os.killpg(first.pid, number)
    first.wait()
    assert second.wait() == 0


def the_owner_is_killed_before_a_step(race: Race) -> None:
    first = race.start()
    wait_for(lambda: any((race.project / "runs").glob("*/owner")))
    second = race.start(WAIT="1")
    first.kill()
    first.wait()
    assert second.wait() == 0


def the_owner_gets_sigterm(race: Race) -> None:
    the_owner_is_killed(race, signal.SIGTERM)


def the_owner_gets_ctrl_c(race: Race) -> None:
    the_owner_is_killed(race, signal.SIGINT)


def killed_again_and_again(race: Race) -> None:
    for steps in (2, 5, 8):
        process = race.start(WAIT="1")
        race.wait_for(steps)
        process.kill()
        process.wait()
    both = [race.start(WAIT="1") for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]


def dvc_beside_a_stage(race: Race) -> None:
    first = race.start()
    race.wait_for(1)
    assert race.start(*REPRO, WAIT="1").wait() == 0
    assert first.wait() == 0


def an_experiment_in_a_copy(race: Race) -> None:
    first = race.start(*TEMP)
    time.sleep(random.random() * 15)
    assert race.start(*REPRO, WAIT="1").wait() == 0
    first.wait()


def two_experiments_in_copies(race: Race) -> None:
    both = [race.start(*TEMP), race.start(*TEMP)]
    assert 0 in [process.wait() for process in both]


def a_queue_of_two_workers(race: Race) -> None:
    for seed in (1, 2):
        command = ("dvc", "exp", "run", "--queue", "--set-param", f"eval.seed={seed}", "--single-item", "train")
        run(race.project, *command)
    run(race.project, "dvc", "queue", "start", "--jobs", "2")
    assert race.start(*REPRO, WAIT="1").wait() == 0
    wait_for(lambda: not {"Queued", "Running"} & set(run(race.project, "dvc", "queue", "status").split()), 1800)


def a_sweep_of_evaluations(race: Race) -> None:
    name = f"NAME=s{random.randrange(10**6)}"
    race.start("make", "sweep", "GRID=eval.seed=3,4", "JOBS=2", name).wait()  # the stub's model may not be evaluated
    race.start(*REPRO, WAIT="1").wait()


def a_dvc_that_is_killed(race: Race) -> None:
    first = race.start(*REPRO)
    wait_for(lambda: bool(runs(race.project) - race.before), 900)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert race.start(*REPRO, WAIT="1").wait() == 0


def two_hosts(race: Race, stage: tuple[str, ...] = TRAIN) -> None:
    first = race.start(*ON_ANOTHER_HOST, *stage, STEP_SECONDS="3")
    race.wait_for(2)
    assert (race.start(*stage).wait(), first.wait()) == (1, 0)


def two_hosts_without_flock(race: Race) -> None:
    two_hosts(race, WITHOUT_FLOCK)


RACES = (
    *(at_once, one_after_a_second, in_the_middle, in_the_last_step, three_that_wait),
    *(the_owner_is_killed, the_owner_is_killed_before_a_step, the_owner_gets_sigterm, the_owner_gets_ctrl_c),
    *(killed_again_and_again, dvc_beside_a_stage, an_experiment_in_a_copy, two_experiments_in_copies),
    *(a_queue_of_two_workers, a_sweep_of_evaluations, a_dvc_that_is_killed),
    *(two_hosts, two_hosts_without_flock),
)


# On a cluster: whoever submits, follows and collects, there is one job at a time.


def two_shells(race: Race) -> None:
    first, second = race.start(CLUSTER="loop"), race.start(CLUSTER="loop")
    wait_for(lambda: None not in (first.poll(), second.poll()) or 1 in (first.poll(), second.poll()))
    refused, owner = (first, second) if first.poll() == 1 else (second, first)
    race.check_refused(
        refused, f"process {owner.pid} on {os.uname().nodename}, since 20", "a job for this run", "WAIT=1"
    )
    assert owner.wait() == 0


def a_shell_while_the_job_trains(race: Race) -> None:
    first = race.start(CLUSTER="loop", STEP_SECONDS="2")
    race.wait_for(1)
    job = f"job {read_json(race.run() / 'job.json')['job']} on loop"
    race.check_refused(race.start(CLUSTER="loop"), f"process {first.pid} on {os.uname().nodename}, since 20", job)
    race.check_refused(race.start(), f"{job}, submitted 20", "make train CLUSTER=loop")
    assert first.wait() == 0


def three_shells_that_wait(race: Race) -> None:
    three_that_wait(race, CLUSTER="loop")
    assert len(list(race.run().glob("logs/*.log"))) == 1, "who waited needs no job"


def detached_and_a_repro(race: Race) -> None:
    assert race.start(CLUSTER="loop", DETACH="1", STEP_SECONDS="5").wait() == 0
    follower = race.start(*REPRO, CLUSTER="loop")
    wait_for(lambda: "RUNNING" in race.outputs[follower.pid].read_text())
    race.check_refused(race.start(CLUSTER="loop", DETACH="1"), "follows job ")
    assert follower.wait() == 0


def the_submitter_is_killed(race: Race) -> None:
    """While it checks, submits or follows."""
    for seconds in (4, 8, 12, 16):
        process = race.start(CLUSTER="loop", WAIT="1")
        time.sleep(seconds + random.random() * 4)
        process.kill()
        process.wait()
    both = [race.start(CLUSTER="loop", WAIT="1") for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]


def an_orphan_follows(race: Race) -> None:
    first = race.start(*REPRO, CLUSTER="loop", STEP_SECONDS="2")
    race.wait_for(1)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    race.check_refused(race.start(CLUSTER="loop"), "an orphan: its dvc was killed (to end it: kill ", "follows job ")
    assert race.start(*REPRO, CLUSTER="loop", WAIT="1").wait() == 0


def a_job_is_cancelled(race: Race) -> None:
    first = race.start(CLUSTER="loop", STEP_SECONDS="2")
    race.wait_for(3)
    second = race.start(CLUSTER="loop", WAIT="1")
    run(race.project, "make", "cancel", "CLUSTER=loop")
    assert (first.wait(), second.wait()) == (1, 0)


def a_sweep_with_jobs_of_one_key(race: Race) -> None:
    name = f"NAME=c{random.randrange(10**6)}"
    race.start("make", "sweep", "GRID=eval.seed=3,4", "JOBS=2", "CLUSTER=loop", name).wait()
    assert race.start(*REPRO, CLUSTER="loop", WAIT="1").wait() == 0
    assert len(list(race.run().glob("logs/*.log"))) == 1


ON_A_CLUSTER = (
    *(two_shells, a_shell_while_the_job_trains, three_shells_that_wait, detached_and_a_repro, the_submitter_is_killed),
    *(an_orphan_follows, a_job_is_cancelled, a_sweep_with_jobs_of_one_key),
)


def check_steps(project: Path, before: set[Path], name: str) -> None:
    """Check that one run is new, and that each of its steps was trained once.

    A step whose training was killed before its checkpoint was saved is trained again, by the next owner first of all.
    """
    (new,) = runs(project) - before
    lines = [line.split() for line in (new / "trained").read_text().splitlines()]
    owners = [owner for number, (_, owner) in enumerate(lines) if not number or lines[number - 1][1] != owner]
    twice = [
        step for number, (step, owner) in enumerate(lines)
        if int(step) <= max((int(earlier) for earlier, _ in lines[:number]), default=0)
        and not (lines[number - 1][1] != owner and lines[number - 1][0] == step)
    ]  # fmt: skip
    print(f"| {name} | {', '.join(owners)} | {len(twice)} |")  # noqa: T201
    assert len(owners) == len(set(owners)), f"two trained in turns: {lines}"
    assert twice == []
    assert {int(step) for step, _ in lines} == set(range(1, STEPS + 1))


def check_race(project: Path, race: Callable[[Race], None]) -> None:
    set_params(project, **{"optimizer.lr": random.uniform(1e-4, 1e-3)})
    before = runs(project)
    race(Race(project))
    check_steps(project, before, race.__name__)


@pytest.mark.parametrize("race", RACES, ids=lambda race: race.__name__)
def test_no_step_is_trained_twice(stubbed: Path, race: Callable[[Race], None]) -> None:
    check_race(stubbed, race)


@pytest.mark.slurm
@pytest.mark.parametrize("race", ON_A_CLUSTER, ids=lambda race: race.__name__)
def test_no_step_is_trained_twice_on_a_cluster(cluster: Loopback, stubbed: Path, race: Callable[[Race], None]) -> None:
    check_race(stubbed, race)
    assert cluster.jobs() == []
