"""Talk to Slurm. No other module does.

`submit_command` and `job_environment` return what is submitted; `submit`, `state`, `find` and `cancel` ask the
controller. Each call has a timeout and ends with one clear message if Slurm fails.

sbatch runs with the variables of `job_environment` only, so --export=ALL passes exactly these to the job. Their values
are never written to a file.
"""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from sft.cli import InputError
from sft.cluster.cluster_file import ALL, CPUS_OPTION, GPU_OPTIONS, WHOLE_NODE, Cluster, image_path
from sft.files import project_root

TIMEOUT_SECONDS = 60  # a busy controller can take this long
PING_SECONDS = 20
# Passed to every job if set: the basics of a shell, what Slurm's commands need, and the MLflow settings.
ALWAYS_PASSED = ("HOME", "LANG", "OMP_NUM_THREADS", "PATH", "SLURM_CONF", "SLURM_JWT", "USER")
ALWAYS_PASSED_PREFIX = "MLFLOW_"
# Not passed by `environment: all`: of make, DVC and this project, which would submit again in the job; of an allocation
# in which the command is typed; and sbatch's own, because the cluster file says what is requested.
NEVER_PASSED = re.compile(
    r"(CLUSTER|DETACH|DRY_RUN|WAIT|MAKE(FLAGS|LEVEL|OVERRIDES|FILES)|MFLAGS|GNUMAKEFLAGS|OLDPWD|PWD|_|SHLVL)$"
    r"|(DVC|SFT|SBATCH|SLURM|SLURMD|PMI|PMIX)_"
)
SECRET = re.compile(
    r"(TOKEN|KEY|SECRET|PASS|PASSW(OR)?D|PASSPHRASE|CREDENTIAL|PWD|AUTH|COOKIE|JWT|(?<![A-Z])PAT)S?([_\d]|$)",
    re.IGNORECASE,
)
CPUS_PER_GPU = 4
NO_ANSWER = re.compile(
    r"Unable to contact slurm controller|Unable to establish|Connection refused|timed out|is DOWN"
    r"|Could not establish a configuration source|Unable to process configuration file",
    re.IGNORECASE,
)
# What Slurm's commands print if the controller rejects the credential.
NOT_AUTHENTICATED = re.compile(
    r"authentication error|credential|token|Munge|Zero Bytes were transmitted", re.IGNORECASE
)
FINAL_STATES = {
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
    """The controller does not answer, so the state of a job is unknown."""


@dataclass(frozen=True)
class State:
    """The state of a job, as Slurm reports it."""

    name: str
    """RUNNING, COMPLETED, ..."""
    reason: str = ""
    restarts: int = 0
    nodes: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether the job will not run again."""
        return self.name in FINAL_STATES

    @property
    def is_held(self) -> bool:
        """Whether the job waits until somebody releases it."""
        return self.name == "PENDING" and "held" in self.reason.lower()

    def __str__(self) -> str:
        nodes = f" on {self.nodes}" if self.nodes and not self.has_ended else ""
        reason = f" ({self.reason})" if self.reason not in ("", "None") else ""
        attempt = f", attempt {self.restarts + 1}" if self.restarts else ""
        return f"{self.name}{nodes}{reason}{attempt}"


def script_of(target: str) -> str:
    """Return the script in slurm/ that runs a stage, by DVC's name of it: prep@<source>, train or eval."""
    return "train.sbatch" if target == "train" else "stage.sbatch"


def submit_command(cluster: Cluster, *, target: str, name: str, run: Path, command: tuple[str, ...] = ()) -> list[str]:
    """Return the sbatch command line for a job.

    Args:
        cluster: What the stage requests.
        target: prep@<source>, train or eval.
        name: Name of the job.
        run: Folder of the run, which holds the snapshot of the code.
        command: Command to run instead of the stage, to try a cluster.
    """
    stage = target.partition("@")[0]
    return [
        "sbatch",
        "--parsable",
        f"--job-name={name}",
        f"--partition={cluster.partition}",
        *([f"--account={cluster.account}"] if cluster.account else []),
        f"--nodes={cluster.nodes}",
        "--ntasks-per-node=1",  # one launcher per node, which starts the ranks
        *_resources(cluster, stage),
        f"--time={cluster.time}",
        *([f"--signal=B:USR1@{cluster.save_before_seconds}"] if stage == "train" else []),
        "--requeue",
        "--open-mode=append",
        f"--output={run}/logs/%j.log",
        f"--chdir={run}",
        "--export=ALL",
        *cluster.sbatch_options,
        f"{run}/code/slurm/{script_of(target)}",
        *([] if stage == "train" else [target]),
        *command,
    ]


def _resources(cluster: Cluster, stage: str) -> list[str]:
    """Return the options for GPUs, processors and memory of a node.

    Without --cpus-per-task Slurm gives the launcher one processor, and all its ranks would share it. It cannot be given
    with --cpus-per-gpu.
    """
    options = []
    if cluster.gpus and not cluster.options_given(*GPU_OPTIONS):
        options.append(f"--gpus-per-node={cluster.gpus_per_node}")
    cpus = cluster.cpus_per_node
    if cpus is None and not cluster.options_given(CPUS_OPTION):
        if stage == "prep":
            cpus = cluster.ranks_on_node
        elif not cluster.options_given(WHOLE_NODE):
            cpus = cluster.gpus * CPUS_PER_GPU or cluster.ranks_on_node
    if cpus is not None:
        options.append(f"--cpus-per-task={cpus}")
    if cluster.memory_per_node is not None:
        options.append(f"--mem={cluster.memory_per_node}")
    return options


def check_variables(cluster: Cluster) -> None:
    """Check that every variable that the cluster file names is set. Raises InputError."""
    missing = [name for name in cluster.environment if name not in (ALL, *os.environ)]
    if missing:
        raise InputError(
            f"environment: {', '.join(missing)}: not set in this shell; nothing was submitted. Export it, then rerun."
        )


def job_environment(cluster: Cluster, *, run: Path, python: str) -> dict[str, str]:
    """Return the environment of a job: the variables that are passed on and set here, and those of the scripts."""
    root = project_root()
    container = cluster.container
    # A link in the project, such as runs/ on another disk, needs its target in the container.
    mounts = dict.fromkeys(path for path in (root, run.parent.resolve()) if path == root or root not in path.parents)
    return {
        **{name: os.environ[name] for name in sorted(os.environ) if is_passed(name, cluster.environment)},
        "SFT_CODE": f"{run}/code",
        "SFT_GPUS_PER_NODE": str(cluster.gpus),
        "SFT_IMAGE": image_path(container) if container else "",
        "SFT_MIN_FREE_GB": str(cluster.min_free_gb),
        "SFT_MOUNTS": ",".join([*(f"{path}:{path}" for path in mounts), *container.mounts]) if container else "",
        "SFT_PACKAGES": cluster.packages,
        "SFT_PYTHON": cluster.python or python,
        "SFT_RANKS_PER_NODE": str(cluster.ranks_on_node),
        "SFT_REQUEUES": str(cluster.requeues),
        "SFT_ROOT": str(root),
        "SFT_RUN": str(run),
        "SFT_SAVE_BEFORE_SECONDS": str(cluster.save_before_seconds),
    }


def is_passed(name: str, environment: list[str]) -> bool:
    """Whether a job inherits a variable, by the `environment` of its cluster file.

    >>> names = "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "TOKENIZERS_PARALLELISM"
    >>> [is_passed(name, ["all", "HF_TOKEN"]) for name in names]
    [True, False, True]
    """
    if name in environment or name in ALWAYS_PASSED or name.startswith(ALWAYS_PASSED_PREFIX):
        return True
    return ALL in environment and not NEVER_PASSED.match(name) and not SECRET.search(name)


def submit(cluster: Cluster, command: list[str], environment: dict[str, str]) -> str:
    """Submit a job and return its id. Raises InputError: Slurm rejects it or does not answer."""
    return _run(cluster, *command, environment=environment).split(";")[0].strip()


def test_only(cluster: Cluster, command: list[str], environment: dict[str, str]) -> str:
    """Return what `sbatch --test-only` reports: the expected start. Raises InputError: the job can never run."""
    _run(cluster, "scontrol", "ping", seconds=PING_SECONDS)  # sbatch itself would wait for minutes
    return _run(cluster, command[0], "--test-only", *command[1:], environment=environment)


def find(cluster: Cluster, name: str) -> str | None:
    """Return the id of the user's newest queued or running job of that name, or None."""
    ids = _run(cluster, "squeue", "--me", "--noheader", f"--name={name}", "--format=%i").split()
    return max(ids, key=int) if ids else None


def state(cluster: Cluster, job: str, name: str) -> State | None:
    """Return the state of a job, or None if Slurm no longer knows it.

    The controller forgets a job minutes after it ends; accounting, if there is any, remembers it. After a controller
    lost its state, another job can have the same id: it has another name.
    """
    try:
        line = _run(cluster, "scontrol", "show", "job", "--oneliner", job)
    except UnreachableError:
        raise
    except InputError:
        return _state_in_accounting(cluster, job)
    fields = dict(re.findall(r"(\w+)=(\S*)", line))
    if fields.get("JobName") != name:
        return None
    nodes = fields.get("NodeList", "").replace("(null)", "")
    return State(fields["JobState"], fields.get("Reason", ""), int(fields.get("Restarts", "0")), nodes)


def _state_in_accounting(cluster: Cluster, job: str) -> State | None:
    try:
        line = _run(cluster, "sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={job}", "--format=State")
    except UnreachableError:
        raise
    except InputError:  # this cluster has no accounting
        return None
    return State(line.split()[0]) if line.split() else None


def cancel(cluster: Cluster, job: str) -> None:
    """Cancel a job and its steps."""
    _run(cluster, "scancel", job)


def _run(
    cluster: Cluster, *command: str, environment: dict[str, str] | None = None, seconds: float | None = None
) -> str:
    """Run a Slurm command, with `environment` or else that of this process, and return what it prints."""
    seconds = seconds or TIMEOUT_SECONDS
    variables = dict(os.environ if environment is None else environment)
    if cluster.slurm_conf:
        variables["SLURM_CONF"] = str(project_root() / cluster.slurm_conf)
        if not Path(variables["SLURM_CONF"]).exists():
            raise UnreachableError(
                f"slurm_conf: {variables['SLURM_CONF']}: not found; nothing was submitted. Is the cluster up? "
                "make slurm-up starts the one of slurm/clusters/loopback.yaml."
            )
    try:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=seconds)
    except FileNotFoundError as error:
        raise InputError(f"{command[0]}: not found. Run on a machine with the cluster's Slurm commands.") from error
    except subprocess.TimeoutExpired as error:
        raise UnreachableError(
            f"{command[0]}: no answer from Slurm within {seconds:.0f} s. Try again later."
        ) from error
    ping = done.stdout if command[:2] == ("scontrol", "ping") else ""  # reports a dead controller with status 0
    if done.returncode == 0 and not NO_ANSWER.search(ping):
        return done.stdout or done.stderr
    text = " ".join((done.stderr.strip() or done.stdout.strip()).split("\n"))
    if NO_ANSWER.search(text):
        raise UnreachableError(f"{command[0]}: the Slurm controller does not answer: {text}. Try again later.")
    if NOT_AUTHENTICATED.search(text):
        raise UnreachableError(
            f"{command[0]}: Slurm rejects your credential: {text}. Renew the token (SLURM_JWT), or submit from a "
            "machine whose munge has the cluster's key."
        )
    raise InputError(f"{command[0]}: {text or f'exit status {done.returncode}'}")
