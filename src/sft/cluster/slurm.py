"""Slurm: the only module that talks to it.

`submit_command` and `job_environment` say what is submitted; `submit`, `state`, `find`, `cancel` ask the
controller, each with a limit of time and one clear message where it does not answer or does not agree.

sbatch is started with the variables that the profile names, those of `job_environment` and no others, so that
--export=ALL gives a job exactly these; their values stand in no file of ours.
"""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from sft.cli import InputError
from sft.cluster.cluster_file import Cluster
from sft.files import project_root

ANSWER_SECONDS = 60  # what a busy controller may take
PING_SECONDS = 20
# What every job gets where it is set: a shell's basics, what Slurm's own commands need, the store of metrics.
ALWAYS = ("HOME", "LANG", "OMP_NUM_THREADS", "PATH", "SLURM_JWT", "USER")
ALWAYS_PREFIX = "MLFLOW_"
SILENT = re.compile(
    r"Unable to contact slurm controller|Unable to establish|Connection refused|timed out|is DOWN"
    r"|Could not establish a configuration source|Unable to process configuration file",
    re.IGNORECASE,
)
# What a controller says, or what is heard of it, where it does not accept the asker's credential.
STRANGER = re.compile(r"authentication error|credential|token|Munge|Zero Bytes were transmitted", re.IGNORECASE)
ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}


class UnreachableError(InputError):
    """The controller does not answer: nothing is known of any job."""


@dataclass(frozen=True)
class State:
    """What Slurm says of a job."""

    name: str
    """RUNNING, COMPLETED, …"""
    reason: str = ""
    restarts: int = 0
    nodes: str = ""

    @property
    def ended(self) -> bool:
        """Whether the job will not run again."""
        return self.name in ENDED

    @property
    def is_held(self) -> bool:
        """Whether the job waits for somebody to release it."""
        return self.name == "PENDING" and "held" in self.reason.lower()

    def __str__(self) -> str:
        life = f", life {self.restarts + 1}" if self.restarts else ""
        where = f" on {self.nodes}" if self.nodes and not self.ended else ""
        why = f" ({self.reason})" if self.reason not in ("", "None") else ""
        return f"{self.name}{where}{why}{life}"


def submit_command(cluster: Cluster, *, stage: str, name: str, run: Path, command: tuple[str, ...] = ()) -> list[str]:
    """Return the command line that submits a job: sbatch, what the profile asks, the script of the snapshot.

    Args:
        cluster: The profile, as the stage asks for it.
        stage: prep, train or eval: which script.
        name: Name of the job.
        run: Folder of the run.
        command: What the script is to run instead of the stage: for trying a cluster.
    """
    return [
        "sbatch",
        "--parsable",
        f"--job-name={name}",
        f"--partition={cluster.partition}",
        *([f"--account={cluster.account}"] if cluster.account else []),
        f"--nodes={cluster.nodes}",
        "--ntasks-per-node=1",  # one launcher on a node, which starts the ranks
        *([f"--gpus-per-node={cluster.gpus_per_node}"] if cluster.gpus_per_node else []),
        f"--time={cluster.time}",
        *([f"--cpus-per-task={cluster.ranks_on_node}"] if stage == "prep" else []),
        *([f"--signal=B:USR1@{cluster.stop_seconds}"] if stage == "train" else []),
        "--requeue",
        "--open-mode=append",
        f"--output={run}/logs/%j.log",
        f"--chdir={run}",
        "--export=ALL",
        *cluster.options,
        f"{run}/code/slurm/{stage}.sbatch",
        *command,
    ]


def find_variables(cluster: Cluster) -> None:
    """Refuse a profile that names a variable which is not set here. Raises InputError."""
    missing = [name for name in cluster.environment if name not in os.environ]
    if missing:
        raise InputError(
            f"the profile's environment names {', '.join(missing)}, which is not set here. Nothing was submitted: "
            "export it, then rerun"
        )


def job_environment(cluster: Cluster, *, run: Path, python: str) -> dict[str, str]:
    """Return the variables of a job: of those that the profile names, the ones that are set here."""
    root = project_root()
    container = cluster.container
    wanted = {*ALWAYS, *cluster.environment}
    named = [name for name in os.environ if name in wanted or name.startswith(ALWAYS_PREFIX)]
    return {
        **{name: os.environ[name] for name in sorted(named)},
        "SFT_CODE": f"{run}/code",
        "SFT_FREE_GB": str(cluster.free_gb),
        "SFT_GPUS_PER_NODE": str(cluster.gpus_per_node),
        "SFT_IMAGE": container.image if container else "",
        "SFT_MOUNTS": ",".join([f"{root}:{root}", *container.mounts]) if container else "",
        "SFT_PYTHON": cluster.python or python,
        "SFT_RANKS_PER_NODE": str(cluster.ranks_on_node),
        "SFT_REQUEUES": str(cluster.requeues),
        "SFT_ROOT": str(root),
        "SFT_RUN": str(run),
        "SFT_STOP_SECONDS": str(cluster.stop_seconds),
    }


def submit(cluster: Cluster, command: list[str], environment: dict[str, str]) -> str:
    """Submit a job; return its id. Raises InputError: Slurm refuses it, or does not answer."""
    return _ask(cluster, *command, environment=environment).split(";")[0].strip()


def test(cluster: Cluster, command: list[str], environment: dict[str, str]) -> str:
    """Ask whether a job could ever run; return what Slurm expects. Raises InputError: it could not."""
    _ask(cluster, "scontrol", "ping", seconds=PING_SECONDS)  # sbatch itself would wait for minutes
    return _ask(cluster, command[0], "--test-only", *command[1:], environment=environment)


def find(cluster: Cluster, name: str) -> str | None:
    """Return the newest of the user's queued and running jobs of a name, or None."""
    found = _ask(cluster, "squeue", "--me", "--noheader", f"--name={name}", "--format=%i").split()
    return max(found, key=int) if found else None


def state(cluster: Cluster, job: str, name: str) -> State | None:
    """Return the state of a job, or None where nobody knows the job any more.

    The controller forgets a job minutes after its end; then accounting is asked, where there is one. A job of
    another name has taken the id of ours after a controller lost its state.
    """
    try:
        shown = _ask(cluster, "scontrol", "show", "job", "--oneliner", job)
    except UnreachableError:
        raise
    except InputError:
        return _accounted(cluster, job)
    fields = dict(re.findall(r"(\w+)=(\S*)", shown))
    if fields.get("JobName") != name:
        return None
    nodes = fields.get("NodeList", "").replace("(null)", "")
    return State(fields["JobState"], fields.get("Reason", ""), int(fields.get("Restarts", "0")), nodes)


def _accounted(cluster: Cluster, job: str) -> State | None:
    try:
        said = _ask(cluster, "sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={job}", "--format=State")
    except UnreachableError:
        raise
    except InputError:  # there is no accounting
        return None
    return State(said.split()[0]) if said.split() else None


def cancel(cluster: Cluster, job: str) -> None:
    """Cancel a job, all of its steps."""
    _ask(cluster, "scancel", job)


def _ask(
    cluster: Cluster, *command: str, environment: dict[str, str] | None = None, seconds: float | None = None
) -> str:
    """Run a command of Slurm, with these variables or with all of this process; return what it prints."""
    seconds = seconds or ANSWER_SECONDS
    surroundings = dict(os.environ if environment is None else environment)
    if cluster.slurm_conf:
        surroundings["SLURM_CONF"] = str(project_root() / cluster.slurm_conf)
        if not Path(surroundings["SLURM_CONF"]).exists():
            raise UnreachableError(
                f"{surroundings['SLURM_CONF']}: not found (profile: slurm_conf). Nothing was submitted. Is the "
                "cluster up? make slurm-up starts the one of slurm/clusters/loopback.yaml."
            )
    try:
        done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False, timeout=seconds)
    except FileNotFoundError as error:
        raise InputError(f"{command[0]}: not found. Run on a machine that has the cluster's Slurm commands.") from error
    except subprocess.TimeoutExpired as error:
        raise UnreachableError(
            f"{command[0]}: no answer from Slurm within {seconds:.0f} s. Try again later."
        ) from error
    said = done.stdout if command[:2] == ("scontrol", "ping") else ""
    if done.returncode == 0 and not SILENT.search(said):
        return done.stdout or done.stderr
    text = " ".join((done.stderr.strip() or done.stdout.strip()).split("\n"))
    if SILENT.search(text):
        raise UnreachableError(f"the Slurm controller does not answer ({command[0]}: {text}). Try again when it does.")
    if STRANGER.search(text):
        raise UnreachableError(
            f"Slurm does not accept who asks ({command[0]}: {text}). Renew the token (SLURM_JWT), or submit from "
            "a machine whose munge has the cluster's key."
        )
    raise InputError(f"{command[0]}: {text or f'status {done.returncode}'}")
