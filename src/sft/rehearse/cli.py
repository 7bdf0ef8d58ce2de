"""rehearse: a profile with a tiny model through every stage, with a kill and a resume, and a table of what is proven.

    make rehearse PROFILE=nemotron3-nano                      on this machine's CPU
    make rehearse PROFILE=nemotron3-nano CLUSTER=loopback     prep, train and eval as jobs of a cluster

Model class, kinds of layers, template, packing and layout are the profile's; sizes are not (sft.rehearse.project). The
scratch project is runs/rehearsal/<profile>, and each stage logs to logs/ there. The exit status is not 0 at the first
step that is not proven.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sft.cli import InputError, echo, make_parser, run_or_exit
from sft.cluster import jobs, slurm
from sft.cluster.cluster_file import read_cluster_file
from sft.files import REPOSITORY
from sft.params.check import Params
from sft.rehearse import project, proofs
from sft.training import checkpoints

FOLDER = Path("runs/rehearsal")
OUTER = ("DVC_", "MLFLOW_", "SFT_", "MAKE", "CLUSTER", "DETACH", "DRY_RUN", "WAIT")
"""Beginnings of variables that would send the stages elsewhere than to the scratch project."""
KILL_BEHIND = 3
"""Steps behind the first checkpoint after which training is killed: they are trained twice."""
POLL_SECONDS = 0.05
LAST_LINES = 12


class Stages:
    """Runs stages in the scratch project as DVC does, each with a log."""

    def __init__(self, folder: Path, ranks: int, cluster: str | None) -> None:
        self.folder, self.cluster = folder, cluster
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OUTER)}
        self.environment = {
            **kept,
            "PYTHONPATH": str(REPOSITORY / "src"),
            "SFT_PROCESSES": str(ranks),
            "CUDA_VISIBLE_DEVICES": "",
            **({"CLUSTER": cluster} if cluster else {}),
        }
        (folder / "logs").mkdir()

    def start(self, module: str, *arguments: str, log: str) -> subprocess.Popen[bytes]:
        """Start a program of this repository in the scratch project."""
        with (self.folder / "logs" / log).open("wb") as file:
            return subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def run(self, stage: str, *arguments: str, log: str | None = None) -> None:
        """Run a stage to its end. Raises InputError: it failed, with its last lines."""
        log = log or f"{'-'.join([stage, *arguments[1:]])}.log"
        status = self.start(f"sft.stages.{stage}", *arguments, log=log).wait()
        if status:
            raise InputError(f"{stage}: exit status {status}\n{self.last_lines(log)}")

    def last_lines(self, log: str) -> str:
        """Return the end of a log, after its path."""
        path = self.folder / "logs" / log
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        return "\n".join([f"{path}:", *lines])

    def kill_training(self) -> tuple[int, int]:
        """Train and kill every process, or cancel the job, some steps behind the first checkpoint.

        Returns:  steps in the journal, and the step of the newest checkpoint.
        """
        log = "train-killed.log"
        training = self.start("sft.stages.train", log=log)
        behind = project.SAVE_EVERY + KILL_BEHIND
        while not (steps := proofs.steps_of(self.folder)) or steps[-1]["iteration"] < behind:
            if training.poll() is not None:
                raise InputError(f"train: ended with status {training.returncode}\n{self.last_lines(log)}")
            time.sleep(POLL_SECONDS)
        run = proofs.run_folder(self.folder)
        assert run is not None  # its journal has steps
        if self.cluster:
            job = jobs.active_job(run)
            if job is None:
                raise InputError(f"train: no active job after {behind} steps\n{self.last_lines(log)}")
            slurm.cancel(read_cluster_file(self.cluster), job.id)  # the process that follows it ends then
        else:
            for process in [*psutil.Process(training.pid).children(recursive=True), psutil.Process(training.pid)]:
                process.kill()
        training.wait()
        newest = checkpoints.newest_intact(run)
        if newest is None:
            raise InputError(f"{run}: no intact checkpoint after {behind} steps, expected one of step 5")
        return len(proofs.steps_of(self.folder)), checkpoints.step_of(newest)


def rehearse(profile: str, cluster: str | None) -> int:
    """Rehearse a profile and print the table; return the exit status."""
    begin = time.monotonic()
    real = project.read_profile(profile)
    folder = FOLDER.absolute() / profile
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    params = project.write_project(folder, profile)
    ranks = project.ranks_of(params)
    if cluster:
        project.write_cluster_file(folder, cluster, ranks)
    stages = Stages(folder, ranks, cluster)
    table = Table("step", "proven", "seconds", box=box.SIMPLE_HEAD, pad_edge=False)
    table.columns[2].justify = "right"

    def prove(step: str, run: Callable[[], object], proof: Callable[[], str]) -> None:
        start = time.monotonic()
        echo(f"{step} ...")
        try:
            run()
            line = proof()
        except InputError as error:
            raise InputError(f"{step}: {error}") from error
        table.add_row(step, escape(line), f"{time.monotonic() - start:.0f}")

    killed: list[int] = []
    status = 0
    try:
        prove("data", lambda: prepare(stages, params), lambda: proofs.data(folder))
        prove("train, kill", lambda: killed.extend(stages.kill_training()), lambda: layout_line(params, ranks, cluster))
        prove(
            "resume",
            lambda: stages.run("train"),
            lambda: proofs.resumed(proofs.steps_of(folder), killed[0], killed[1]),
        )
        for step, proof in (("import", proofs.imported), ("loss", proofs.trained), ("export", proofs.exported)):
            prove(step, lambda: None, lambda proof=proof: proof(folder))  # type: ignore[misc]
        prove("eval", lambda: stages.run("eval"), lambda: proofs.evaluated(folder))
    except InputError as error:
        table.add_row("NOT PROVEN", escape(str(error)), "")
        status = 1
    Console(highlight=False, emoji=False).print(table)
    echo(f"{profile}, {folder}: {time.monotonic() - begin:.0f} s. Only GPUs can show:")
    for line in only_on_gpus(real):
        echo(f"  {escape(line)}")
    return status


def prepare(stages: Stages, params: Params) -> None:
    """Run the stages from fetch to pack."""
    for name in ("model", "benchmarks"):
        stages.run("fetch", "--source", name)
    for source in params.fetch.sources:
        for stage in ("fetch", "filter", "prep"):
            stages.run(stage, "--source", source)
    stages.run("pack")


def layout_line(params: Params, ranks: int, cluster: str | None) -> str:
    """Return what trains, in words."""
    place = f"on {cluster}" if cluster else "on this CPU"
    return f"{ranks} ranks {place}: {axes(params)}; packs of {params.pack.pack_size}"


def axes(params: Params) -> str:
    """Return the sizes of a layout, as in `tensor 1, pipeline 1, context 1, expert 8`."""
    return ", ".join(f"{name.split('.')[1].split('_')[0]} {size}" for name, size in project.sizes_of(params).items())


def only_on_gpus(params: Params) -> list[str]:
    """Return what a rehearsal of a profile leaves open."""
    training, train = params.training, params.training.train
    length = f"{train.epochs:g} epochs" if train.train_iters is None else f"{train.train_iters:,} steps"
    return [
        f"{training.mixed_precision.name}: the rehearsal trains in fp32",
        f"the layout at full size ({axes(params)}) over NCCL: the rehearsal has at most 2 of each axis, over gloo",
        f"packs of {params.pack.pack_size:,} tokens, {length}, memory and speed",
        "kernels: Transformer Engine, Triton scans of Mamba layers, grouped GEMM, fused permutation and DeepEP",
    ]


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--profile", required=True, metavar="NAME", help="a file of profiles/, without .yaml")
    parser.add_argument("--cluster", metavar="NAME", help="a file of slurm/clusters/, without .yaml")
    options = parser.parse_args()

    def main() -> None:
        """Rehearse, and exit with its status."""
        if status := rehearse(options.profile, options.cluster):
            sys.exit(status)

    run_or_exit(main)
