"""Read a cluster file, slurm/clusters/<name>.yaml: where the jobs of a stage run, and how their nodes are set up.

A cluster file never says what is computed. It is not part of the lineage key and no dependency in dvc.yaml: changing
it reruns nothing.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from sft.cli import InputError
from sft.files import project_root
from sft.params.base import Positive, Section
from sft.params.read import read_yaml

CLUSTER_FILES = Path("slurm/clusters")
# sbatch options that the cluster file's own keys set, or that the job relies on.
RESERVED_OPTIONS = frozenset(
    "account chdir export gpus-per-node job-name nodes no-requeue ntasks ntasks-per-node open-mode output parsable "
    "partition requeue signal time wait".split()
)
TimeLimit = Annotated[str, Field(pattern=r"^(\d+-)?\d+(:\d\d){0,2}$"), BeforeValidator(lambda v: str(v) if v else v)]
VariableName = Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]*$")]


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
    gpus_per_node: Annotated[int, Field(ge=0)] | None = None
    ranks_per_node: Positive | None = None
    time: TimeLimit | None = None
    sbatch_options: list[str] | None = None


class Cluster(Section):
    """A cluster file. Its top level is what training requests."""

    renamed: ClassVar[dict[str, str]] = {
        "stop_seconds": "save_before_seconds",
        "free_gb": "min_free_gb",
        "options": "sbatch_options",
        "prep.options": "prep.sbatch_options",
        "eval.options": "eval.sbatch_options",
        "setup": "job_setup",
    }
    """Keys of version 0.1.0 and their new names."""

    partition: str
    account: str | None = None
    nodes: Positive
    gpus_per_node: Annotated[int, Field(ge=0)]
    """0: train on CPUs."""
    gpu: str | None = None
    """GPU model for estimates: H100, H200, ..., or its memory in bytes. null: unknown."""
    ranks_per_node: Positive | None = None
    """Processes per node. null: one per GPU."""
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
    environment: list[VariableName] = Field(default_factory=list)
    """Names of variables that the job inherits from the submitting shell: tokens and keys."""
    slurm_conf: str | None = None
    """slurm.conf of this cluster, relative to the project. null: the machine's default."""
    prep: StageResources | None = None
    eval: StageResources | None = None
    """What these stages request. null: they run on this machine."""

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if not self.gpus_per_node and self.ranks_per_node is None:
            raise ValueError("gpus_per_node is 0: set ranks_per_node to the number of processes per node")
        if self.gpus_per_node and self.ranks_per_node not in (None, self.gpus_per_node):
            raise ValueError(
                f"ranks_per_node is {self.ranks_per_node}, gpus_per_node is {self.gpus_per_node}: training runs one "
                "process per GPU. Remove ranks_per_node"
            )
        for option in self.sbatch_options:
            name = option.removeprefix("--").partition("=")[0]
            if name in RESERVED_OPTIONS:
                raise ValueError(f"sbatch_options: {option!r} is set by another key of this file or by the job")
            if not option.startswith("--"):
                raise ValueError(f"sbatch_options: {option!r}: expected --name or --name=value")
        return self

    @property
    def ranks_on_node(self) -> int:
        """Processes per node."""
        return self.ranks_per_node or self.gpus_per_node

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
            overrides.setdefault("ranks_per_node", None if overrides["gpus_per_node"] else 1)
        return Cluster.model_validate({**self.model_dump(), **overrides, "prep": None, "eval": None})


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


def check_image(cluster: Cluster) -> None:
    """Check that an image that is a file exists. Raises InputError."""
    container = cluster.container
    if container and container.is_file and not (project_root() / container.image).exists():
        raise InputError(
            f"container.image: {container.image}: not found; nothing was submitted. Give a path that this machine and "
            "the nodes can see, or a name in a registry."
        )
