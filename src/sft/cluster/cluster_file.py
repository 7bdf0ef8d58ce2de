"""Read a cluster file, slurm/clusters/<name>.yaml: where the jobs of a stage run, and how their nodes are set up.

A cluster file never says what is computed. It is not part of the lineage key and no dependency in dvc.yaml: changing
it reruns nothing.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from sft.cli import InputError
from sft.files import project_root
from sft.params.base import Positive, Section
from sft.params.read import read_yaml

CLUSTER_FILES = Path("slurm/clusters")
# sbatch options that the cluster file's own keys set, or that the job relies on.
RESERVED_OPTIONS = frozenset(
    "account chdir cpus-per-task export gpus-per-node job-name nodes no-requeue ntasks ntasks-per-node open-mode "
    "output parsable partition requeue signal time wait".split()
)
# sbatch options with which a job is not the one job of a run, or cannot be followed.
BREAKING_OPTIONS = {
    "array": "its tasks would all train the same run",
    "clusters": "the job would be on a cluster that is not asked about it. Write a cluster file for it (slurm_conf)",
    "container-image": "the job's script needs Slurm's commands. Set container.image",
    "error": "the log that is followed would lack errors",
    "export-file": "it replaces the variables of the job. Set environment",
    "help": "it submits nothing",
    "no-kill": "the job would continue without a node that failed",
    "ntasks-per-gpu": "each node runs one launcher, which starts a rank for each GPU",
    "test-only": "it submits nothing. For a dry run: DRY_RUN=1",
    "usage": "it submits nothing",
    "version": "it submits nothing",
    "wrap": "it replaces the job's script",
}
# Options of sbatch that request GPUs instead of --gpus-per-node, processors instead of --cpus-per-task, or all of them.
GPU_OPTIONS = ("gres", "gpus", "gpus-per-socket", "gpus-per-task", "tres-per-task")
CPUS_OPTION = "cpus-per-gpu"
WHOLE_NODE = "exclusive"
ALL = "all"  # in `environment`
Gpus = Annotated[
    str, Field(pattern=r"^([A-Za-z0-9_.-]+:)?\d+$"), BeforeValidator(lambda v: str(v) if type(v) is int else v)
]
TimeLimit = Annotated[str, Field(pattern=r"^(\d+-)?\d+(:\d\d){0,2}$"), BeforeValidator(lambda v: str(v) if v else v)]
VariableName = Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]*$")]
Memory = Annotated[str, Field(pattern=r"^\d+[KMGT]?$"), BeforeValidator(lambda v: str(v) if v is not None else v)]
VariableNames = Annotated[list[VariableName], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)]


class Container(Section):
    """The image that pyxis starts on every node."""

    image: str
    """As `srun --container-image` takes it: a .sqsh file or a name in a registry."""
    mounts: list[str] = Field(default_factory=list)
    """Extra mounts, as outside:inside. The project folder is always mounted."""

    @property
    def is_file(self) -> bool:
        """Whether the image is a file, not a name in a registry."""
        return self.image.startswith(("/", ".")) or self.image.endswith(".sqsh")


class StageResources(Section):
    """What prep or eval requests differently from training."""

    partition: str | None = None
    nodes: Positive | None = None
    gpus_per_node: Gpus | None = None
    ranks_per_node: Positive | None = None
    cpus_per_node: Positive | None = None
    memory_per_node: Memory | None = None
    time: TimeLimit | None = None
    sbatch_options: list[str] | None = None


class Cluster(Section):
    """A cluster file. Its top level is what training requests."""

    partition: str
    account: str | None = None
    nodes: Positive
    gpus_per_node: Gpus
    """How many, or type:number, as in h100:8. 0: train on CPUs."""
    gpu: str | None = None
    """GPU model for estimates: H100, H200, ..., or its memory in bytes. null: unknown."""
    ranks_per_node: Positive | None = None
    """Processes per node. null: one per GPU."""
    cpus_per_node: Positive | None = None
    """Processors for all processes of a node. null: 4 for each GPU, one for each rank on CPUs."""
    memory_per_node: Memory | None = None
    """As sbatch --mem takes it: 500G, 0 for all. null: what the cluster gives by default."""
    time: TimeLimit
    """Time limit of one attempt, in the format of sbatch: minutes, or [days-]hours:minutes:seconds."""
    save_before_seconds: Annotated[int, Field(ge=5)] = 600
    """Training saves a checkpoint and is requeued this long before the time limit. Must be less than `time`."""
    requeues: Annotated[int, Field(ge=0)] = 20
    """How often a job may be requeued: time limits, preemptions and node failures together."""
    min_free_gb: Positive = 20
    """Free space that the file system of runs/ needs when an attempt starts."""
    container: Container | None = None
    python: str | None = None
    """Interpreter on the nodes or in the container. null: the one that submits."""
    packages: Literal["exact", "recorded"] = "exact"
    """Versions on the nodes. exact: as in the lineage key. recorded: any, written down for each attempt."""
    job_setup: list[str] = Field(default_factory=list)
    """Lines of bash that run first in the job: modules, NCCL settings."""
    sbatch_options: list[str] = Field(default_factory=list)
    """Extra sbatch options."""
    environment: VariableNames = Field(default_factory=lambda: [ALL])
    """Names of variables that the job inherits from the submitting shell. `all`: every one, as sbatch does, but those
    with a name like TOKEN, KEY, SECRET or PASSWORD only if they are listed too."""
    slurm_conf: str | None = None
    """slurm.conf of this cluster, relative to the project. null: the machine's default."""
    prep: StageResources | None = None
    eval: StageResources | None = None
    """What these stages request. null: they run on this machine."""

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if not self.gpus and self.ranks_per_node is None:
            raise ValueError("gpus_per_node is 0: set ranks_per_node to the number of processes per node")
        if self.gpus and self.ranks_per_node not in (None, self.gpus):
            raise ValueError(
                f"ranks_per_node is {self.ranks_per_node}, gpus_per_node is {self.gpus}: training runs one "
                "process per GPU. Remove ranks_per_node"
            )
        for option in self.sbatch_options:
            check_option(option)
        if self.memory_per_node and (others := self.options_given("mem", "mem-per-cpu", "mem-per-gpu")):
            raise ValueError(f"sbatch_options: {others[0]!r} and memory_per_node: remove one of them")
        return self

    @property
    def gpus(self) -> int:
        """GPUs per node."""
        return int(self.gpus_per_node.rpartition(":")[2])

    def options_given(self, *names: str) -> list[str]:
        """Return those of sbatch_options that set one of these options."""
        return [option for option in self.sbatch_options if option_name(option) in names]

    @property
    def ranks_on_node(self) -> int:
        """Processes per node."""
        return self.ranks_per_node or self.gpus

    @property
    def ranks(self) -> int:
        """Processes on all nodes."""
        return self.nodes * self.ranks_on_node

    def for_stage(self, stage: str) -> "Cluster | None":
        """Return the cluster file with what `stage` requests at its top level, or None: the stage runs locally."""
        if stage == "train":
            return self
        resources: StageResources | None = getattr(self, stage)
        if resources is None:
            return None
        overrides: dict[str, Any] = {name: value for name, value in resources if value is not None}
        if "gpus_per_node" in overrides:
            overrides.setdefault("ranks_per_node", 1 if overrides["gpus_per_node"] == "0" else None)
        if overrides.keys() & {"partition", "gpus_per_node", "ranks_per_node"}:  # another kind of node, or part of one
            overrides = {"cpus_per_node": None, "memory_per_node": None, **overrides}
        return Cluster.model_validate({**self.model_dump(), **overrides, "prep": None, "eval": None})


def option_name(option: str) -> str:
    """Return the name of an sbatch option: of --mem=0, mem."""
    return option.removeprefix("--").partition("=")[0]


def check_option(option: str) -> None:
    """Raise ValueError unless a job can have an sbatch option. sbatch also takes the beginning of a name."""
    name = option_name(option)
    if not option.startswith("--") or re.search(r"\s", name) or not name:
        raise ValueError(f"sbatch_options: {option!r}: expected --name or --name=value")
    for broken, reason in BREAKING_OPTIONS.items():
        if broken.startswith(name):
            raise ValueError(f"sbatch_options: {option!r}: --{broken} is not possible here: {reason}")
    if name in RESERVED_OPTIONS or (name != "mem" and any(key.startswith(name) for key in RESERVED_OPTIONS)):
        raise ValueError(f"sbatch_options: {option!r} is set by another key of this file or by the job")


def is_on(switch: str) -> bool:
    """Whether an environment variable switches something on, such as DETACH=1."""
    return os.environ.get(switch, "") not in ("", "0")


def requested_cluster() -> str:
    """Return the name in the environment variable CLUSTER, or an empty string.

    Raises:  InputError: DETACH or DRY_RUN is on without CLUSTER.
    """
    name = os.environ.get("CLUSTER", "")
    for switch in ("DETACH", "DRY_RUN"):
        if not name and is_on(switch):
            raise InputError(f"{switch}=1 needs a cluster. Add CLUSTER=<name of a file in {CLUSTER_FILES}/>.")
    return name


def read_cluster_file(name: str) -> Cluster:
    """Read and check slurm/clusters/<name>.yaml.

    Raises:  InputError: no such file, a wrong key or value, or a time limit that leaves no time to train.
    """
    folder = project_root() / CLUSTER_FILES
    path = folder / f"{name}.yaml"
    if not re.fullmatch(r"[\w-]+", name) or not path.exists():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "none"
        problem = f"CLUSTER={name}: {CLUSTER_FILES}/{name}.yaml: not found" if name else "CLUSTER= is empty"
        raise InputError(f"{problem}. Clusters: {known}. To add one, copy {CLUSTER_FILES}/example.yaml.")
    cluster = read_yaml(path, Cluster)
    if 0 < (limit := parse_time_limit(cluster.time)) <= cluster.save_before_seconds:
        raise InputError(
            f"{CLUSTER_FILES}/{name}.yaml: save_before_seconds: {cluster.save_before_seconds} is not less than the "
            f"time limit, {limit} seconds (time: {cluster.time}): training would be requeued before its first step. "
            f"Raise time, or set save_before_seconds to less than {limit}."
        )
    return cluster


def parse_time_limit(time: str) -> int:
    """Return the seconds in an sbatch time limit; 0 means no limit.

    >>> [parse_time_limit(time) for time in ("30", "30:15", "4:00:00", "1-0", "1-2:30", "1-2:30:15")]
    [1800, 1815, 14400, 86400, 95400, 95415]
    """
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    return int(days or 0) * 86_400 + sum(part * unit for part, unit in zip(parts, units, strict=False))


def image_path(container: Container) -> str:
    """Return the image as srun takes it: an absolute path, or a name in a registry."""
    return str(project_root() / container.image) if container.is_file else container.image


def check_image(cluster: Cluster) -> None:
    """Check that an image that is a file exists. Raises InputError."""
    container = cluster.container
    if container and container.is_file and not Path(image_path(container)).exists():
        raise InputError(
            f"container.image: {container.image}: not found; nothing was submitted. Give a path that this machine and "
            "the nodes can see, or a name in a registry."
        )
