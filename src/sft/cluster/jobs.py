"""The job of a run: submit it, follow it, and record how it ended.

runs/<run>/job.json    cluster, stage, job id, and the outcome once it is known
runs/<run>/code/       what the job runs: code, params.yaml, scripts
runs/<run>/inputs/     the data it reads, as of submission
runs/<run>/logs/       <job>.log, <job>-<restart>/node-<n>.log, latest
runs/<run>/complete    written last by the job; holds the run's name, which is the lineage key

Guarantees:
- A run has at most one active job, even if a shell dies while it submits: a job is found by job.json, or else by its
  name, which holds the lineage key. One process at a time submits and follows it, and collects what it made.
- A job computes what was submitted. Later edits of code, params or data do not reach it.
- Slurm's state and `complete` decide the outcome. An exit code never does.
"""

import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from sft.cli import InputError, echo
from sft.cluster import slurm
from sft.cluster.cluster_file import Cluster, check_image, is_on
from sft.cluster.run_lock import RunLock
from sft.files import REPOSITORY, link_or_copy, publish_file, publish_folder, read_json, write_json
from sft.lineage.key import package_versions
from sft.params.read import PARAMS

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0  # between two questions to the controller
SHARED_FILES_SECONDS = 15.0  # a network file system can show the last files of a node this late
TAIL_LINES = 20
# Slurm writes this into the log if a step runs out of memory; the state of the job is then FAILED.
OUT_OF_MEMORY = re.compile(r"Out Of Memory|oom[-_]kill", re.IGNORECASE)
MARKER = "complete"
LOGIN_FILE = Path("/etc/profile")  # of a login shell
READY_FOR_DVC = 3  # exit status: the job has ended; the Makefile now runs the stage in DVC to collect its outputs
# By Slurm's state or reason.
ADVICE = {
    "CANCELLED": "somebody cancelled it",
    "JobLaunchFailure": "Slurm could not start it on every node. A node may not see the run's folder: put the project "
    "on a file system that all nodes share",
    "DEADLINE": "it could not finish before its deadline",
    "NODE_FAIL": "a node failed, and Slurm did not requeue the job",
    "OUT_OF_MEMORY": "a node ran out of memory. Raise memory_per_node (0: all of it) or change the parallel layout",
    "PREEMPTED": "another job took its nodes, and this partition does not requeue preempted jobs",
    "TIMEOUT": "it reached the time limit before it saved a checkpoint. Raise `time` or `save_before_seconds`",
}


@dataclass(frozen=True)
class Job:
    """A submitted job."""

    run: Path
    stage: str
    cluster: str
    id: str

    @property
    def name(self) -> str:
        """Name of the job in Slurm."""
        return job_name(self.run)

    @property
    def make_command(self) -> str:
        """The command that follows the job, collects its outputs, or submits it again."""
        return f"make {self.stage} CLUSTER={self.cluster}"

    def __str__(self) -> str:
        return f"job {self.id} on {self.cluster}"


def job_name(run: Path) -> str:
    """Return the name of a run's jobs in Slurm: it holds the lineage key."""
    return f"sft-{run.name}"


def following(run: Path) -> contextlib.AbstractContextManager[RunLock]:
    """Hold the lock to submit a run's job, follow it and collect its outputs, while a block runs.

    Raises InputError on entering: another process holds it, and this does not wait (sft.cluster.run_lock).
    """
    job = active_job(run)
    return RunLock(run, "follower", f"follows {job} for this run" if job else "submits a job for this run").held()


def last_job(run: Path) -> Job | None:
    """Return the last recorded job of a run, or None."""
    path = run / "job.json"
    record = read_json(path) if path.exists() else None
    return Job(run, record["stage"], record["cluster"], record["job"]) if record else None


def outcome(run: Path) -> str | None:
    """Return how the run's last job ended: complete, or Slurm's state. None: not known yet."""
    recorded: str | None = read_json(run / "job.json")["outcome"]
    return recorded


def active_job(run: Path) -> Job | None:
    """Return the run's job unless its outcome is recorded, or None."""
    job = last_job(run)
    return job if job and outcome(run) is None else None


def refuse_if_active(run: Path) -> None:
    """Raise InputError if a job computes this run: it must not also run here or on another cluster."""
    if job := active_job(run):
        since = datetime.fromtimestamp((run / "job.json").stat().st_mtime, UTC).isoformat(timespec="seconds")
        raise InputError(
            f"runs/{run.name}: {job}, submitted {since}, computes this run. To follow it or collect its outputs: "
            f"{job.make_command}. To cancel it: make cancel CLUSTER={job.cluster}"
        )


def submit(
    run: Path,
    target: str,
    name: str,
    cluster: Cluster,
    prepare: Callable[[], None] = lambda: None,
    command: tuple[str, ...] = (),
) -> Job:
    """Return the run's active job, or submit one. Call it while `following`.

    Args:
        run: Folder of the run.
        target: DVC's name of the stage: prep@<source>, train or eval.
        name: Name of the cluster file.
        cluster: What the stage requests.
        prepare: Called before a job is submitted, to put its inputs into the run's folder.
        command: Command that runs instead of the stage, to try a cluster.

    Raises:  InputError: Slurm rejects the job or does not answer, or something that the cluster file names is missing.
    """
    if job := active_job(run):
        if job.cluster != name:
            refuse_if_active(run)
        echo(f"{job}: found, submitted before; logs in {run / 'logs'}")
        return job
    environment = slurm.job_environment(cluster, run=run, python=sys.executable)
    slurm.check_variables(cluster)
    check_image(cluster)
    existing = slurm.find(cluster, job_name(run))  # submitted by a process that died before it wrote job.json
    if not existing:
        ask_slurm(run, target, cluster, environment)
        prepare()
        write_snapshot(run, cluster)
        (run / "logs").mkdir(exist_ok=True)
        (run / MARKER).unlink(missing_ok=True)
    line = slurm.submit_command(cluster, target=target, name=job_name(run), run=run, command=command)
    job = Job(run, target.partition("@")[0], name, existing or slurm.submit(cluster, line, environment))
    write_json(run / "job.json", {"cluster": name, "stage": job.stage, "job": job.id, "outcome": None})
    echo(f"{job}: {'found, submitted before' if existing else 'submitted'}; logs in {run / 'logs'}")
    return job


def write_snapshot(run: Path, cluster: Cluster) -> None:
    """Publish runs/<run>/code: all that a job reads besides its data."""
    with publish_folder(run / "code") as code:
        shutil.copytree(REPOSITORY / "src", code / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        shutil.copyfile(PARAMS, code / PARAMS)
        (code / "slurm").mkdir()
        for pattern in ("*.sbatch", "node_*.sh", "attempt.sh"):
            for script in (REPOSITORY / "slurm").glob(pattern):
                shutil.copy(script, code / "slurm" / script.name)
        (code / "job_setup.sh").write_text(job_setup_script(cluster), encoding="utf-8")
        pins = "".join(f"{package}=={version}\n" for package, version in package_versions().items())
        (code / "packages.txt").write_text(pins, encoding="utf-8")


def job_setup_script(cluster: Cluster) -> str:
    """Return the script that a job sources: the lines of job_setup, which run as in an ordinary batch script.

    An error or an unset variable in them does not end the job, as `module load` and `conda activate` need it, and
    `module` is defined as in a login shell. The PATH of the submitting shell comes first.
    """
    if not cluster.job_setup:
        return ""
    read_it = f"path=$PATH; . {LOGIN_FILE}; PATH=$path:$PATH"
    login = f'if [[ "$(type -t module)" != function && -r {LOGIN_FILE} ]]; then {read_it}; fi'
    return "\n".join(["set +euo pipefail", login, *cluster.job_setup, "set -euo pipefail", ""])


def publish_copy(source: Path, target: Path) -> None:
    """Publish a copy of a file or folder that later changes of `source` do not reach.

    A folder's files become hard links, which take no space: stages replace a folder and never write into its files.
    A single file is copied, because people edit such files in place.
    """
    if source.is_dir():
        with publish_folder(target) as partial:
            shutil.copytree(source, partial, dirs_exist_ok=True, copy_function=link_or_copy)
    else:
        with publish_file(target) as partial:
            shutil.copyfile(source, partial)


def dry_run(run: Path, target: str, cluster: Cluster) -> list[str]:
    """Return what would be submitted and what the checks report, as paragraphs of text. Changes nothing."""
    environment = slurm.job_environment(cluster, run=run, python=sys.executable)
    command = slurm.submit_command(cluster, target=target, name=job_name(run), run=run)
    script = REPOSITORY / "slurm" / slurm.script_of(target)
    inherited = [name for name in environment if not name.startswith("SFT_")]
    variables = [f"  inherited from this shell: {' '.join(inherited)}"]
    variables += [f"  {name}={value}" for name, value in environment.items() if name not in inherited]
    setup = "".join(f"\n  {line}" for line in cluster.job_setup) or " empty"
    return [
        " \\\n    ".join(command),
        "environment of the job:\n" + "\n".join(variables),
        f"job_setup:{setup}",
        f"{script.relative_to(REPOSITORY)}:\n" + script.read_text(encoding="utf-8"),
        verdict("variables", lambda: slurm.check_variables(cluster)),
        verdict("image", lambda: check_image(cluster)),
        verdict("slurm", lambda: ask_slurm(run, target, cluster, environment)),
    ]


def print_verdict(paragraphs: list[str]) -> None:
    """Print a dry run. Raises InputError: a check failed."""
    sys.stdout.write("\n\n".join([*paragraphs, "nothing was submitted (DRY_RUN=1)"]) + "\n")
    failed = sum(len(re.findall(r"^(?:\w[\w -]*: )?FAILED", text, re.M)) for text in paragraphs)
    if failed:
        raise InputError(f"{failed} of the checks above failed: the job would not be submitted")


def ask_slurm(run: Path, target: str, cluster: Cluster, environment: dict[str, str]) -> str:
    """Return what `sbatch --test-only` reports about a run's job. Raises InputError: it can never run.

    The run's folder may not exist yet, so Slurm gets neither its path nor its copy of the script.
    """
    command = slurm.submit_command(cluster, target=target, name=job_name(run), run=run)
    options = [word for word in command if word.startswith("--") and not word.startswith(("--chdir", "--output"))]
    script = str(REPOSITORY / "slurm" / slurm.script_of(target))
    return slurm.test_only(cluster, [command[0], *options, script], environment)


def verdict(name: str, check: Callable[[], object]) -> str:
    """Return the result of a check as text: ok, FAILED or NOT CHECKED, with its message."""
    try:
        result = check()
    except slurm.UnreachableError as error:
        return f"{name}: NOT CHECKED: {error}"
    except InputError as error:
        return f"{name}: FAILED: {error}"
    text = str(result or "").strip()
    return f"{name}: {text if text.startswith('ok') else f'ok: {text}' if text else 'ok'}"


@dataclass
class Logs:
    """The logs of a job, printed as they grow: the job's own, and the first node's of each attempt."""

    run: Path
    job: str
    printed_bytes: dict[Path, int] = field(default_factory=dict)

    def print_new(self) -> None:
        """Print the new whole lines."""
        for path in (self._job_log, *(attempt / "node-0.log" for attempt in self._attempts())):
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(self.printed_bytes.get(path, 0))
                text = file.read()
            lines = text[: text.rfind(b"\n") + 1]
            self.printed_bytes[path] = self.printed_bytes.get(path, 0) + len(lines)
            sys.stdout.write(lines.decode("utf-8", "replace"))
            sys.stdout.flush()

    def last_attempt(self) -> str:
        """Return what the last attempt wrote into the job's own log."""
        text = self._job_log.read_text(encoding="utf-8", errors="replace") if self._job_log.exists() else ""
        return text[max(0, text.rfind(".sbatch: job ")) :]

    def tail(self) -> str:
        """Return the end of the log that shows the cause: of the task that Slurm says failed first, or the job's."""
        log = self._job_log
        failed = re.search(r"srun: error: \S+ tasks? (\d+).*(?:[Ee]xit|Out Of Memory)", self.last_attempt())
        for attempt in self._attempts()[-1:]:
            node_log = attempt / f"node-{failed[1] if failed else 0}.log"
            log = node_log if node_log.exists() and node_log.stat().st_size else log
        if not log.exists():
            return f"{log}: not found: the job never started or could not write it"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
        return f"{log} ends:\n" + "\n".join(f"    {line}" for line in lines)

    @property
    def _job_log(self) -> Path:
        return self.run / "logs" / f"{self.job}.log"

    def _attempts(self) -> list[Path]:
        """Return the log folders of the job's attempts, in order."""
        folders = (self.run / "logs").glob(f"{self.job}-*")
        return sorted(folders, key=lambda attempt: int(attempt.name.rpartition("-")[2]))


def follow(job: Job, cluster: Cluster) -> slurm.State | None:
    """Print the state and logs of a job until it ends. Return its last state, or None if Slurm no longer knows it.

    If the controller does not answer, this waits: the job keeps running.
    """
    logs, printed, pause = Logs(job.run, job.id), "", FIRST_PAUSE_SECONDS
    try:
        while True:
            state, text, has_ended = _poll(job, cluster)
            if text != printed:
                sys.stdout.write(f"{job}: {text}\n")
                printed, pause = text, FIRST_PAUSE_SECONDS
            logs.print_new()
            if has_ended:
                return state
            time.sleep(pause)
            pause = min(pause * 1.3, LONGEST_PAUSE_SECONDS)
    except KeyboardInterrupt:
        echo(f"{job} keeps running. Follow it: {job.make_command}. Cancel it: make cancel CLUSTER={job.cluster}")
        raise


def _poll(job: Job, cluster: Cluster) -> tuple[slurm.State | None, str, bool]:
    """Return (state, the state as text, whether the job has ended)."""
    try:
        state = slurm.state(cluster, job.id, job.name)
        has_ended = state is None or state.has_ended
        if has_ended:
            time.sleep(FIRST_PAUSE_SECONDS)  # a job looks ended for a moment while Slurm requeues it
            has_ended = slurm.state(cluster, job.id, job.name) == state
        text = str(state or "not known to Slurm")
        if state and state.is_held:
            text += f": held. Release it: scontrol release {job.id}"
        return state, text, has_ended
    except slurm.UnreachableError as error:
        return None, f"state unknown: {error}", False


def wait_or_detach(job: Job, cluster: Cluster) -> slurm.State | None:
    """Follow a job and return its last state; with DETACH=1, end this process instead.

    It ends with READY_FOR_DVC if the job has ended, or else with 0, or with an error if DVC waits for outputs.
    """
    if is_on("DETACH"):
        if not has_ended(job, cluster):
            message = f"{job}: detached (DETACH=1). To follow it or collect its outputs: {job.make_command}"
            if in_dvc():
                raise InputError(message)
            echo(message)
            raise SystemExit(0)
        exit_for_dvc()
    return follow(job, cluster)


def exit_for_dvc() -> None:
    """End this process with READY_FOR_DVC if DETACH=1 and DVC did not start it: DVC must record the outputs."""
    if is_on("DETACH") and not in_dvc():
        raise SystemExit(READY_FOR_DVC)


def in_dvc() -> bool:
    """Whether DVC runs this process and waits for its outputs."""
    return "DVC_STAGE" in os.environ


def is_dry_run() -> bool:
    """Whether to only show the job. Raises InputError: DVC waits for outputs."""
    if is_on("DRY_RUN") and in_dvc():
        raise InputError("DRY_RUN=1 makes no outputs, but DVC waits for them. Run make train CLUSTER=<name> DRY_RUN=1.")
    return is_on("DRY_RUN")


def has_ended(job: Job, cluster: Cluster) -> bool:
    """Print the state of a job and return whether it has ended. Does not wait."""
    _, text, ended = _poll(job, cluster)
    echo(f"{job}: {text}")
    return ended


def has_marker(run: Path) -> bool:
    """Whether the run's job wrote its completion marker, with this run's name."""
    marker = run / MARKER
    return marker.exists() and marker.read_text(encoding="utf-8").strip() == run.name


def finish(job: Job, state: slurm.State | None, is_complete: Callable[[], bool] = lambda: True) -> None:
    """Record the outcome of a job that has ended. Raises InputError: it is not complete.

    A run is complete if its job wrote the marker and `is_complete` agrees, even if Slurm says that the job was
    cancelled or killed: that happened after the marker was written.
    """
    deadline = time.monotonic() + (SHARED_FILES_SECONDS if state and state.name == "COMPLETED" else 0)
    while not (complete := has_marker(job.run) and is_complete()) and time.monotonic() < deadline:
        time.sleep(1)
    name = state.name if state else "unknown to Slurm"
    record_outcome(job.run, "complete" if complete else name, job.id)
    if not complete:
        _fail(job, state)
    echo(f"{job}: {name}, complete")


def record_outcome(run: Path, result: str, job: str | None = None) -> None:
    """Record how the run's active job ended, if it has one; with `job`, only if that is the active one."""
    if (active := active_job(run)) and job in (None, active.id):
        write_json(run / "job.json", {**read_json(run / "job.json"), "outcome": result})
        if result == "complete":
            shutil.rmtree(run / "inputs", ignore_errors=True)


def _fail(job: Job, state: slurm.State | None) -> NoReturn:
    logs = Logs(job.run, job.id)
    if state is None:
        problem = "Slurm no longer knows it, and it left no completion marker"
    elif state.name == "COMPLETED":
        problem = "COMPLETED, but it left no completion marker of this run"
    else:
        reason = "OUT_OF_MEMORY" if OUT_OF_MEMORY.search(logs.last_attempt()) else state.reason
        problem = f"{state}: {ADVICE.get(reason) or ADVICE.get(state.name) or f'{job.stage} failed'}"
    resume = ", from its newest checkpoint" if job.stage == "train" else ""
    raise InputError(f"{job}: {problem}.\n{logs.tail()}\nTo submit it again{resume}: {job.make_command}")
