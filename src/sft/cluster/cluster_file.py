"""A cluster's profile: where a stage's job runs, and how its nodes are made ready. It never says what is computed.

slurm/clusters/<name>.yaml, checked -> `Cluster`, as one stage asks for it. Nothing here is part of a lineage key,
and no stage of dvc.yaml depends on a profile: changing one reruns nothing.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from sft.cli import InputError
from sft.files import project_root
from sft.params.base import Positive, Section
from sft.params.read import read_yaml

PROFILES = Path("slurm/clusters")
STAGES = ("prep", "train", "eval")
# Options of sbatch that follow from the profile's own keys, or that a job relies on.
OURS = frozenset(
    "account chdir export gpus-per-node job-name nodes no-requeue ntasks ntasks-per-node open-mode output parsable "
    "partition requeue signal time wait".split()
)
Minutes = Annotated[str, Field(pattern=r"^(\d+-)?\d+(:\d\d){0,2}$"), BeforeValidator(lambda v: str(v) if v else v)]
Name = Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]*$")]


class Container(Section):
    """An image that pyxis starts on every node."""

    image: str
    """What `srun --container-image` takes: a .sqsh file, or a registry's name."""
    mounts: list[str] = Field(default_factory=list)
    """More mounts, as outside:inside; the project's own folder is always there."""

    @property
    def is_file(self) -> bool:
        """Whether the image is a file, which must be there, or a name that a registry knows."""
        return self.image.startswith(("/", ".")) or self.image.endswith(".sqsh")


class Asked(Section):
    """What another stage asks for where it differs from training."""

    partition: str | None = None
    nodes: Positive | None = None
    gpus_per_node: Annotated[int, Field(ge=0)] | None = None
    ranks_per_node: Positive | None = None
    time: Minutes | None = None
    options: list[str] | None = None


class Cluster(Section):
    """A profile. What stands at its top is what training asks for."""

    partition: str
    account: str | None = None
    nodes: Positive
    gpus_per_node: Annotated[int, Field(ge=0)]
    """0 = train on CPUs."""
    gpu: str | None = None
    """Which, for estimates: H100, H200, …, or its memory in bytes; null = not known."""
    ranks_per_node: Positive | None = None
    """Processes on a node; null = one for each GPU."""
    time: Minutes
    """Time limit of one life of the job, as sbatch reads it: minutes, or [days-]hours:minutes:seconds."""
    stop_seconds: Annotated[int, Field(ge=5)] = 600
    """So long before the limit training saves a checkpoint and makes way for the next life; less than `time`."""
    requeues: Annotated[int, Field(ge=0)] = 20
    """Lives after the first: time limit, preemption and lost nodes together."""
    free_gb: Positive = 20
    """Free space that the file system of runs/ must have when a life starts."""
    container: Container | None = None
    python: str | None = None
    """Interpreter on the nodes, or in the container; null = the one that submits."""
    setup: list[str] = Field(default_factory=list)
    """Lines of bash before the job's own: modules, NCCL settings."""
    options: list[str] = Field(default_factory=list)
    """More options of sbatch."""
    environment: list[Name] = Field(default_factory=list)
    """Variables that the job gets from the shell that submits, by name: tokens and keys."""
    slurm_conf: str | None = None
    """slurm.conf of this cluster, where it is not the machine's own; relative to the project."""
    prep: Asked | None = None
    eval: Asked | None = None
    """What these stages ask for; null = they are run by the machine that asks."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.gpus_per_node and self.ranks_per_node is None:
            raise ValueError("gpus_per_node is 0, so ranks_per_node must say how many processes train on a node")
        if self.gpus_per_node and self.ranks_per_node not in (None, self.gpus_per_node):
            raise ValueError(f"ranks_per_node is {self.ranks_per_node}: with GPUs it is their number; leave it out")
        for option in self.options:
            name = option.removeprefix("--").partition("=")[0]
            if not option.startswith("--") or name in OURS:
                why = "is set by the profile's own keys or by the job" if name in OURS else "expected --name=value"
                raise ValueError(f"options: {option!r}: {why}")
        return self

    @property
    def ranks_on_node(self) -> int:
        """Processes on a node."""
        return self.ranks_per_node or self.gpus_per_node

    @property
    def ranks(self) -> int:
        """Processes in all."""
        return self.nodes * self.ranks_on_node

    def asked_by(self, stage: str) -> "Cluster | None":
        """Return the profile as a stage asks for it; None: the stage is not for this cluster."""
        if stage == "train":
            return self
        asked: Asked | None = getattr(self, stage)
        if asked is None:
            return None
        differing: dict[str, Any] = {name: value for name, value in asked if value is not None}
        if "gpus_per_node" in differing:
            differing.setdefault("ranks_per_node", None if differing["gpus_per_node"] else 1)
        return Cluster.model_validate({**self.model_dump(), **differing, "prep": None, "eval": None})


def is_on(switch: str) -> bool:
    """Whether a switch of the environment is on: DETACH=1."""
    return os.environ.get(switch, "") not in ("", "0")


def requested_cluster() -> str:
    """Return the profile's name that the environment asks for (CLUSTER), or an empty text.

    Raises:  InputError: DETACH or DRY_RUN is on, without a cluster that it could be about.
    """
    name = os.environ.get("CLUSTER", "")
    for switch in ("DETACH", "DRY_RUN"):
        if not name and is_on(switch):
            raise InputError(f"{switch}=1 is about a cluster's job: name the cluster with CLUSTER=<profile>, too")
    return name


def read_cluster_file(name: str) -> Cluster:
    """Read and check a profile.

    Raises:  InputError: there is none of that name, it is wrong, or a training by it would stop as soon as it starts.
    """
    folder = project_root() / PROFILES
    path = folder / f"{name}.yaml"
    if not re.fullmatch(r"[\w-]+", name) or not path.exists():
        known = ", ".join(sorted(profile.stem for profile in folder.glob("*.yaml"))) or "none"
        what = f"CLUSTER={name}: no profile {PROFILES}/{name}.yaml" if name else "CLUSTER= names no profile"
        raise InputError(f"{what}. Profiles here: {known}. Copy {PROFILES}/example.yaml and fill it in.")
    cluster = read_yaml(path, Cluster)
    if 0 < (limit := seconds(cluster.time)) <= cluster.stop_seconds:
        raise InputError(
            f"{PROFILES}/{name}.yaml: time is {cluster.time}, {limit} seconds, and stop_seconds is "
            f"{cluster.stop_seconds}: a training would be requeued from its first second on, without a step. Raise "
            f"time, or set stop_seconds to less than {limit}: what a checkpoint takes, and some."
        )
    return cluster


def seconds(time: str) -> int:
    """Return how long a time limit is, as sbatch reads it; 0: there is none.

    >>> [seconds(time) for time in ("30", "30:15", "4:00:00", "1-0", "1-2:30", "1-2:30:15")]
    [1800, 1815, 14400, 86400, 95400, 95415]
    """
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    return int(days or 0) * 86_400 + sum(part * unit for part, unit in zip(parts, units, strict=False))


def find_image(cluster: Cluster) -> None:
    """Refuse an image that is a file and is not there. Raises InputError."""
    container = cluster.container
    if container and container.is_file and not (project_root() / container.image).exists():
        raise InputError(
            f"{container.image}: no such image (profile: container.image). Nothing was submitted. Give the path of a "
            "file that this machine and the nodes see, or a registry's name."
        )
