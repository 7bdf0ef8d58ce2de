"""Jobs: a run's way through a cluster, from submission to what became of it.

runs/<run>/job.json    cluster, stage, job id, and what became of it once that is known
runs/<run>/code/       what the job runs: code, params.yaml, scripts
runs/<run>/inputs/     the data that it reads, as it was when submitted
runs/<run>/logs/       <job>.log, <job>-<life>/node-<n>.log, latest
runs/<run>/complete    written last by the job: the run's name, which holds its lineage key

Guarantees:
- A run has one living job at most, also when two shells submit it at once, or one died while it did: a job is
  known by its record, and before that by its name, which holds the lineage key.
- A job computes what was submitted: no later edit of code, params or data reaches it.
- What became of a job is said by Slurm's state and by `complete`; never by an exit code.
"""

import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from sft.cli import InputError, echo
from sft.cluster import slurm
from sft.cluster.cluster_file import Cluster, find_image, is_on
from sft.files import REPOSITORY, file_lock, publish_file, publish_folder, read_json, write_json
from sft.lineage.key import package_versions
from sft.params.read import PARAMS

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0  # between two questions to the controller
SHARED_FILES_SECONDS = 15.0  # a network file system may show a node's last files so much later
LOCK_SECONDS = 120.0
LAST_LINES = 20
# What Slurm writes into a log where a step took more memory than the job has; the job itself is FAILED then.
OUT_OF_MEMORY = re.compile(r"Out Of Memory|oom[-_]kill", re.IGNORECASE)
COMPLETE = "complete"
TO_COLLECT = 3  # exit status: the job has ended, and DVC, which runs the stage, is to collect what it made
# By Slurm's state, or by its reason.
WHAT_TO_DO = {
    "CANCELLED": "somebody cancelled it",
    "JobLaunchFailure": "Slurm could not begin it on every node: one may not see the run's folder, which must be on a "
    "file system that all nodes share, and have mounted",
    "DEADLINE": "it could not end before its deadline",
    "NODE_FAIL": "a node was lost, and Slurm did not requeue the job",
    "OUT_OF_MEMORY": "a node ran out of memory: ask for more (options: [--mem=0]), or change the parallel layout",
    "PREEMPTED": "another job took its nodes, and Slurm did not requeue it: the partition's rule",
    "TIMEOUT": "it reached the time limit without making way: raise `time`, or `stop_seconds` so that a "
    "checkpoint is saved in it",
}


@dataclass(frozen=True)
class Job:
    """A submitted run."""

    run: Path
    stage: str
    cluster: str
    id: str
    is_new: bool = False
    """Submitted just now, by this process."""

    @property
    def name(self) -> str:
        """Name of the job in Slurm: it holds the lineage key."""
        return job_name(self.run)

    @property
    def again(self) -> str:
        """The command that follows the job, collects what it made, or submits it again."""
        return f"make {self.stage} CLUSTER={self.cluster}"

    def __str__(self) -> str:
        return f"job {self.id} on {self.cluster}"


def job_name(run: Path) -> str:
    """Name a run's jobs."""
    return f"sft-{run.name}"


@contextlib.contextmanager
def alone(run: Path) -> Iterator[None]:
    """Hold a run: nobody else submits it, or writes down its end. Ends with the process, however that ends."""
    with file_lock(run / "job.lock", LOCK_SECONDS) as held:
        if not held:
            raise InputError(f"{run}: another process submits this run; wait for it")
        yield


def last(run: Path) -> Job | None:
    """Return the last job of a run that was written down, or None."""
    path = run / "job.json"
    record = read_json(path) if path.exists() else None
    return Job(run, record["stage"], record["cluster"], record["job"]) if record else None


def fate(run: Path) -> str | None:
    """Return what became of a run's last job; None: nobody has heard its end."""
    return str(found) if (found := read_json(run / "job.json")["fate"]) else None


def living(run: Path) -> Job | None:
    """Return the job that computes a run, or None; a job nobody has heard the end of counts."""
    job = last(run)
    return job if job and fate(run) is None else None


def refuse_living(run: Path) -> None:
    """Refuse to compute here, or on another cluster, what a job computes. Raises InputError."""
    if job := living(run):
        raise InputError(
            f"{job} computes this run. Follow it, or hear how it ended: {job.again}. "
            f"End it: make cancel CLUSTER={job.cluster}"
        )


def submit(
    run: Path,
    stage: str,
    name: str,
    cluster: Cluster,
    prepare: Callable[[], None] = lambda: None,
    command: tuple[str, ...] = (),
    more: dict[str, str] | None = None,
) -> Job:
    """Return the run's living job, or submit one.

    Args:
        run: The run's folder.
        stage: prep, train or eval.
        name: Name of the profile.
        cluster: The profile, as the stage asks for it.
        prepare: Called before a job is submitted, to put its inputs into the run's folder.
        command: What every node runs instead of the stage, to try a cluster.
        more: More variables of the job.

    Raises:  InputError: Slurm refuses it, does not answer, or what the profile names is not there.
    """
    with alone(run):
        if job := living(run):
            if job.cluster != name:
                refuse_living(run)
            return job
        environment = {**slurm.job_environment(cluster, run=run, python=sys.executable), **(more or {})}
        slurm.find_variables(cluster)
        find_image(cluster)
        found = slurm.find(cluster, job_name(run))  # submitted, and not written down: the submitter died
        if not found:
            test(run, stage, cluster, environment)
            prepare()
            snapshot(run, cluster)
            (run / "logs").mkdir(exist_ok=True)
            (run / COMPLETE).unlink(missing_ok=True)
        line = slurm.submit_command(cluster, stage=stage, name=job_name(run), run=run, command=command)
        number = found or slurm.submit(cluster, line, environment)
        write_json(run / "job.json", {"cluster": name, "stage": stage, "job": number, "fate": None})
        return Job(run, stage, name, number, is_new=found is None)


def snapshot(run: Path, cluster: Cluster) -> None:
    """Publish runs/<run>/code: all that a job reads besides its data."""
    with publish_folder(run / "code") as code:
        shutil.copytree(REPOSITORY / "src", code / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        shutil.copyfile(PARAMS, code / PARAMS)
        (code / "slurm").mkdir()
        for script in sorted([*(REPOSITORY / "slurm").glob("*.sbatch"), *(REPOSITORY / "slurm").glob("node_*.sh")]):
            shutil.copy(script, code / "slurm" / script.name)
        (code / "setup.sh").write_text("".join(f"{line}\n" for line in cluster.setup), encoding="utf-8")
        pins = "".join(f"{package}=={version}\n" for package, version in package_versions().items())
        (code / "packages.txt").write_text(pins, encoding="utf-8")


def keep(source: Path, target: Path) -> None:
    """Publish a copy of a file or folder. A folder's files are links to the same files, which take no space: what
    replaces the folder later replaces names, not files. A single file may be one that people edit: it is copied.
    """
    if source.is_dir():
        with publish_folder(target) as partial:
            shutil.copytree(source, partial, dirs_exist_ok=True, copy_function=_link)
    else:
        with publish_file(target) as partial:
            shutil.copyfile(source, partial)


def _link(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def dry_run(run: Path, stage: str, cluster: Cluster) -> list[str]:
    """Return what would be submitted, and what Slurm says of it, as text; change nothing."""
    environment = slurm.job_environment(cluster, run=run, python=sys.executable)
    command = slurm.submit_command(cluster, stage=stage, name=job_name(run), run=run)
    script = REPOSITORY / "slurm" / f"{stage}.sbatch"
    shown = [f"  {name}={value if name.startswith('SFT_') else '(as here)'}" for name, value in environment.items()]
    return [
        " \\\n    ".join(command),
        "environment of the job:\n" + "\n".join(shown),
        "setup.sh:\n" + "".join(f"  {line}\n" for line in cluster.setup) if cluster.setup else "setup.sh: empty",
        f"{script.relative_to(REPOSITORY)}:\n" + script.read_text(encoding="utf-8"),
        verdict("variables", lambda: slurm.find_variables(cluster)),
        verdict("image", lambda: find_image(cluster)),
        verdict("slurm", lambda: test(run, stage, cluster, environment)),
    ]


def print_verdict(told: list[str]) -> None:
    """Print what a dry run shows. Raises InputError: one of its checks refuses the job."""
    sys.stdout.write("\n\n".join([*told, "nothing was submitted (DRY_RUN=1)"]) + "\n")
    refused = sum(len(re.findall(r"^(?:\w[\w -]*: )?REFUSED", part, re.M)) for part in told)
    if refused:
        raise InputError(f"{refused} of the checks above refuse this job")


def test(run: Path, stage: str, cluster: Cluster, environment: dict[str, str]) -> str:
    """Ask Slurm whether such a job could ever run; return what it expects. Raises InputError: it could not.

    The run's folder may not be there yet: Slurm is asked without it, and with the script of this machine.
    """
    command = slurm.submit_command(cluster, stage=stage, name=job_name(run), run=run)
    options = [word for word in command[:-1] if not word.startswith(("--chdir", "--output"))]
    return slurm.test(cluster, [*options, str(REPOSITORY / "slurm" / f"{stage}.sbatch")], environment)


def verdict(what: str, check: Callable[[], object]) -> str:
    """Return what a check says, for people."""
    try:
        said = check()
    except slurm.UnreachableError as error:
        return f"{what}: NOT ASKED: {error}"
    except InputError as error:
        return f"{what}: REFUSED: {error}"
    told = str(said or "").strip()
    return f"{what}: {told if told.startswith('ok') else f'ok: {told}' if told else 'ok'}"


@dataclass
class Logs:
    """What a job writes, shown as it grows: the job's own log and, of each life, that of the first node."""

    run: Path
    job: str
    shown: dict[Path, int] = field(default_factory=dict)

    def show(self) -> None:
        """Print the whole lines that are new."""
        for path in (self.run / "logs" / f"{self.job}.log", *(life / "node-0.log" for life in self._lives())):
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(self.shown.get(path, 0))
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self.shown[path] = self.shown.get(path, 0) + len(whole)
            sys.stdout.write(whole.decode("utf-8", "replace"))
            sys.stdout.flush()

    def of_last_life(self) -> str:
        """Return what the job's own log says of its last life."""
        log = self.run / "logs" / f"{self.job}.log"
        said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        return said[max(0, said.rfind(".sbatch: job ")) :]

    def last_words(self) -> str:
        """Return the end of the log that tells why: of the task that Slurm says failed first, or of the job."""
        log = self.run / "logs" / f"{self.job}.log"
        failed = re.search(r"srun: error: \S+ tasks? (\d+).*(?:[Ee]xit|Out Of Memory)", self.of_last_life())
        for life in self._lives()[-1:]:
            told = life / f"node-{failed[1] if failed else 0}.log"
            log = told if told.exists() and told.stat().st_size else log
        if not log.exists():
            return f"{log}: not there: the job could not write to it, or never started"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        return f"{log} ends:\n" + "\n".join(f"    {line}" for line in lines)

    def _lives(self) -> list[Path]:
        """Return the folders of the job's lives, in order."""
        return sorted((self.run / "logs").glob(f"{self.job}-*"), key=lambda life: int(life.name.rpartition("-")[2]))


def follow(job: Job, cluster: Cluster) -> slurm.State | None:
    """Show state and log of a job until it has ended; return its last state, None where Slurm has forgotten it.

    A controller that does not answer is waited for: the job runs on without it.
    """
    logs, said, pause = Logs(job.run, job.id), "", FIRST_PAUSE_SECONDS
    try:
        while True:
            state, now, ended = _news(job, cluster)
            if now != said:
                sys.stdout.write(f"{job}: {now}\n")
                said, pause = now, FIRST_PAUSE_SECONDS
            logs.show()
            if ended:
                return state
            time.sleep(pause)
            pause = min(pause * 1.3, LONGEST_PAUSE_SECONDS)
    except KeyboardInterrupt:
        echo(f"{job} goes on. Follow it: {job.again}. End it: make cancel CLUSTER={job.cluster}")
        raise


def _news(job: Job, cluster: Cluster) -> tuple[slurm.State | None, str, bool]:
    """Return (state, the same for people, whether the job has ended)."""
    try:
        state = slurm.state(cluster, job.id, job.name)
        ended = state is None or state.ended
        if ended:
            time.sleep(FIRST_PAUSE_SECONDS)  # a job that Slurm requeues can look ended for a moment
            ended = slurm.state(cluster, job.id, job.name) == state
        now = str(state or "not known to Slurm")
        if state and state.is_held:
            now += f": it waits until it is released: scontrol release {job.id}"
        return state, now, ended
    except slurm.UnreachableError as error:
        return None, f"no news: {error}", False


def wait_or_detach(job: Job, cluster: Cluster) -> slurm.State | None:
    """Follow a job to its end, or leave it to itself (DETACH=1) while it has none; return its last state.

    Leaving ends this process: with 0, or as a failure where DVC waits for outputs.
    """
    if is_on("DETACH"):
        if not has_ended(job, cluster):
            told = f"{job}: left to itself (DETACH=1). Follow it, or collect what it made: {job.again}"
            if in_dvc():
                raise InputError(told)
            echo(told)
            raise SystemExit(0)
        exit_for_dvc()
    return follow(job, cluster)


def exit_for_dvc() -> None:
    """End a process that nobody waits for outputs of (DETACH=1 outside of DVC), so that the stage is run by DVC."""
    if is_on("DETACH") and not in_dvc():
        raise SystemExit(TO_COLLECT)


def in_dvc() -> bool:
    """Whether DVC runs this stage, and waits for its outputs."""
    return "DVC_STAGE" in os.environ


def is_dry_run() -> bool:
    """Whether a job is only to be shown. Raises InputError: DVC waits for outputs."""
    if is_on("DRY_RUN") and in_dvc():
        raise InputError("DRY_RUN makes no outputs, for which DVC waits: make train CLUSTER=<profile> DRY_RUN=1")
    return is_on("DRY_RUN")


def has_ended(job: Job, cluster: Cluster) -> bool:
    """Whether a job has ended, without waiting for it; what is known of it is said."""
    _, now, ended = _news(job, cluster)
    echo(f"{job}: {now}")
    return ended


def is_marked(run: Path) -> bool:
    """Whether the run's job wrote, as its last act, that all of it went well: with this run's name."""
    marker = run / COMPLETE
    return marker.exists() and marker.read_text(encoding="utf-8").strip() == run.name


def finish(job: Job, state: slurm.State | None, is_complete: Callable[[], bool] = lambda: True) -> None:
    """Write down what became of an ended job. Raises InputError: it is not complete.

    Complete is a run whose job left its marker, and of which `is_complete` says the same. A job that Slurm says
    was cancelled or killed, and that had left its marker before, is complete.
    """
    end = time.monotonic() + (SHARED_FILES_SECONDS if state and state.name == "COMPLETED" else 0)
    while not (complete := is_marked(job.run) and is_complete()) and time.monotonic() < end:
        time.sleep(1)
    name = state.name if state else "unknown to Slurm"
    close(job.run, "complete" if complete else name, job.id)
    if not complete:
        _fail(job, state)
    echo(f"{job}: {name}, complete")


def close(run: Path, told: str, job: str | None = None) -> None:
    """Write down what became of a run's living job, if it has one; of a certain one, where others may have followed."""
    with alone(run):
        if (now := living(run)) and job in (None, now.id):
            write_json(run / "job.json", {**read_json(run / "job.json"), "fate": told})
            if told == "complete":
                shutil.rmtree(run / "inputs", ignore_errors=True)


def _fail(job: Job, state: slurm.State | None) -> NoReturn:
    logs = Logs(job.run, job.id)
    if state is None:
        what = "Slurm no longer knows it, and it left no completion marker"
    elif state.name == "COMPLETED":
        what = "COMPLETED, but it left no completion marker of this run"
    else:
        known = "OUT_OF_MEMORY" if OUT_OF_MEMORY.search(logs.of_last_life()) else state.reason
        what = f"{state}: {WHAT_TO_DO.get(known) or WHAT_TO_DO.get(state.name) or f'{job.stage} failed'}"
    from_where = ", from its newest checkpoint" if job.stage == "train" else ""
    again = f"The same command submits it again{from_where}: {job.again}"
    raise InputError(f"{job}: {what}.\n{logs.last_words()}\n{again}")


def steps_done(run: Path) -> int:
    """Return how many training steps a run has written down."""
    path = run / "steps.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return len({line for line in lines if '"loss"' in line and line.endswith("}")})
