"""rehearse: a profile with a tiny model through every stage, with a kill and a resume, and a table of what is proven.

    make rehearse PROFILE=nemotron3-nano                      on this machine's CPU
    make rehearse PROFILE=nemotron3-nano CLUSTER=loopback     prep, train and eval as jobs of a cluster

Model class, kinds of layers, template, packing and layout are the profile's; sizes are not (sft.rehearse.project). The
scratch project is runs/rehearsal/<profile>, and each stage logs to logs/ there. The first step that is not proven is
the last line of the table, with the reason, and the exit status is 1.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sft.cli import InputError, echo, make_parser, run_or_exit
from sft.cluster import jobs, slurm
from sft.cluster.cluster_file import read_cluster_file
from sft.files import REPOSITORY, file_lock
from sft.params.check import Params, read
from sft.params.read import params_file
from sft.rehearse import project, proofs

FOLDER = Path("runs/rehearsal")
STEPS = ("data", "import", "train, kill", "resume", "loss", "export", "eval")
KILLED_LOG = "train-killed.log"
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

    def command(self, stage: str) -> list[str]:
        """Return the command of a stage; one that submits training must not read a model."""
        submit = ["sft.rehearse.submit"] if self.cluster and stage == "train" else []
        return [sys.executable, "-m", *submit, f"sft.stages.{stage}"]

    def start(self, stage: str, *arguments: str, log: str) -> subprocess.Popen[bytes]:
        """Start a stage in the scratch project."""
        with (self.folder / "logs" / log).open("wb") as file:
            return subprocess.Popen(
                [*self.command(stage), *arguments],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def run(self, stage: str, *arguments: str) -> int:
        """Run a stage to its end; return the most bytes that one of its processes on this machine took.

        Raises:  InputError: it failed, with its last lines.
        """
        log = f"{'-'.join([stage, *arguments[1:]])}.log"
        process = self.start(stage, *arguments, log=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise InputError(f"{stage}: exit status {process.returncode}\n{self.last_lines(log)}")
        return usage.ru_maxrss * 1024

    def last_lines(self, log: str) -> str:
        """Return the end of a log, after its path."""
        path = self.folder / "logs" / log
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        return "\n".join([f"{path}:", *lines])

    def wait_until(self, is_reached: Callable[[], bool], training: subprocess.Popen[bytes]) -> None:
        """Wait until training has reached a point. Raises InputError: it ended before, with its last lines."""
        while not is_reached():
            if training.poll() is not None:
                raise InputError(f"train: exit status {training.returncode}\n{self.last_lines(KILLED_LOG)}")
            time.sleep(POLL_SECONDS)

    def kill(self, training: subprocess.Popen[bytes]) -> None:
        """Kill every process of a training, or cancel its job: then the process that follows the job ends."""
        if training.poll() is not None:
            return
        run = proofs.run_folder(self.folder)
        job = jobs.active_job(run) if self.cluster and run else None
        if self.cluster and job:
            slurm.cancel(read_cluster_file(self.cluster), job.id)
        else:
            parent = psutil.Process(training.pid)
            children = parent.children(recursive=True)
            for process in [parent, *children]:  # the parent first: else it could end by itself
                with contextlib.suppress(psutil.NoSuchProcess):  # it ended with its parent
                    process.kill()
            psutil.wait_procs(children, timeout=10)
        training.wait()


def rehearse(profile: str, cluster: str | None) -> int:
    """Rehearse a profile and print the table; return the exit status."""
    begin = time.monotonic()
    real = read(params_file(profile))
    folder = FOLDER.absolute() / profile
    with file_lock(folder.with_name(f"{profile}.lock"), 0) as is_held:
        if not is_held:
            raise InputError(f"{folder}: another process rehearses this profile. Wait until it has ended.")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        params = project.write_project(folder, profile)
        ranks = project.ranks_of(params)
        if cluster:
            project.write_cluster_file(folder, cluster, ranks)
        table = Table("step", "proven", "seconds", box=box.SIMPLE_HEAD, pad_edge=False)
        table.columns[2].justify = "right"
        status = 0
        with contextlib.closing(proven(Stages(folder, ranks, cluster), params, ranks)) as lines:
            for step in STEPS:
                start = time.monotonic()
                echo(f"{step} ...")
                try:
                    line = next(lines)
                except InputError as error:
                    line, status = f"NOT PROVEN: {error}", 1
                table.add_row(step, escape(line), f"{time.monotonic() - start:.0f}")
                if status:
                    break
    Console(highlight=False, emoji=False).print(table)
    echo(f"{profile}, {folder}: {time.monotonic() - begin:.0f} s. Only GPUs can show:")
    for line in only_on_gpus(real):
        echo(f"  {escape(line)}")
    return status


def proven(stages: Stages, params: Params, ranks: int) -> Generator[str, None, None]:
    """Run the stages; yield what each of STEPS proves. Raises InputError: the next one is not proven."""
    folder = stages.folder
    prepare(stages, params)
    yield proofs.data(folder)

    training = stages.start("train", log=KILLED_LOG)
    try:
        stages.wait_until(lambda: proofs.start_of(folder) is not None, training)
        yield proofs.imported(folder)

        save, kill = project.SAVE_EVERY, project.SAVE_EVERY + KILL_BEHIND
        stages.wait_until(lambda: proofs.last_step(folder) >= kill and proofs.is_hashed(folder, save), training)
    finally:
        stages.kill(training)
    trained, saved = len(proofs.steps_of(folder)), proofs.saved_step(folder)
    yield layout_line(params, ranks, stages.cluster)

    peak = stages.run("train")
    resumed = proofs.resumed(proofs.steps_of(folder), trained, saved, in_job=stages.cluster is not None)
    yield resumed if stages.cluster is None else f"{resumed}; {proofs.submitted(peak)}"
    yield proofs.trained(folder)
    yield proofs.exported(folder)

    stages.run("eval")
    yield proofs.evaluated(folder)


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
