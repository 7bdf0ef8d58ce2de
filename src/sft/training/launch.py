"""Checks a run, and starts its ranks on this machine: this process, or several processes under torchrun."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

from sft.cli import InputError, end_with_parent, run_child
from sft.files import read_json, write_json
from sft.params.training import TrainParams

RANK_MODULE = "sft.stages.train"
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
"""Variables that torchrun, a container or a cluster's operator sets for each rank."""
RANK_OPTION = "--rank-of"  # not --run: torchrun reads that as an abbreviation of its own --run-path


@dataclass(frozen=True)
class Run:
    """What a rank needs to train; runs/<lineage key>/run.json holds it for every rank."""

    folder: Path
    """runs/<lineage key>."""
    base: Path
    """Hugging Face folder of the base model."""
    start: Path
    """Megatron checkpoint to start from."""
    packed: Path
    """Packed data."""

    def write(self) -> None:
        """Write run.json."""
        write_json(self.folder / "run.json", {name: str(value) for name, value in asdict(self).items()})


def read_run(folder: Path) -> Run:
    """Return what run.json of a run's folder holds."""
    return Run(**{name: Path(value) for name, value in read_json(folder / "run.json").items()})


def count_ranks() -> int:
    """Return how many ranks train on this machine: SFT_PROCESSES, or one for each GPU, or one on a CPU.

    Removes the variables of a launcher that started one rank alone (RANK=0 WORLD_SIZE=1): there is nothing to join.

    Raises:  InputError: SFT_PROCESSES is no number, or variables say that this process is a rank of another launcher.
    """
    if os.environ.get("WORLD_SIZE") == "1" and os.environ.get("RANK", "0") == "0":
        for name in LAUNCHER:
            os.environ.pop(name, None)
    if others := [f"{name}={os.environ[name]}" for name in ("RANK", "WORLD_SIZE") if name in os.environ]:
        raise InputError(
            f"{' '.join(others)}: set, as by torchrun, but this stage starts its ranks itself (SFT_PROCESSES, or "
            "CLUSTER for several machines) and would wait for the others for ever. Unset: unset RANK WORLD_SIZE"
        )
    if number := os.environ.get("SFT_PROCESSES"):
        if not number.isdecimal() or int(number) < 1:
            raise InputError(f"SFT_PROCESSES={number}: expected a number of processes, 1 or more")
        return int(number)
    import torch

    return max(1, torch.cuda.device_count())


def check_run(run: Run, params: TrainParams, ranks: int, on_gpu: bool | None = None) -> list[str]:
    """Check a run as `bridge.check` does; return its warnings."""
    from sft.training import bridge

    return bridge.check(
        base=run.base, start=run.start, packed=run.packed, run=run.folder, params=params, ranks=ranks, on_gpu=on_gpu
    )


def check_in_child(run: Run, params: TrainParams, ranks: int, on_gpu: bool) -> list[str]:
    """Check a run that a job will train, in a process that ends: Megatron takes 1 GB, and a job is followed for days.

    It reads configs only, no weights but the embeddings of the template's control tokens.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as child:
        try:
            return child.submit(check_run, run, params, ranks, on_gpu).result()
        except BrokenProcessPool as error:
            raise InputError(
                "the process that checks the params was killed. It needs 1.5 GB of memory on this machine."
            ) from error


def launch(run: Run, ranks: int, train: Callable[[Run], None], lock: int) -> None:
    """Train in this process, or start torchrun with several ranks, each of which calls `train`.

    `lock`: an open file that locks the run; torchrun keeps it open, also if this process is killed.
    """
    run.write()
    if ranks == 1:
        train(run)
        return
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += ["-m", RANK_MODULE, RANK_OPTION, str(run.folder)]
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)  # torchrun's default is 1, with a warning
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(threads)}
    if status := run_child(command, env=environment, pass_fds=(lock,)):
        raise InputError(f"{run.folder}: torchrun ended with status {status}. Its messages are above.")
