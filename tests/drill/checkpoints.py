"""Kill a training, or let it fail, at operations inside a checkpoint save, on one rank and on two; resume and compare.

    make drill           ->  a line for one rank and for two: operations, faults injected, failures

The operations are those of tests/drill/operations.py, from the end of the step that is saved to the first step after
it, in every process that writes. A kill ends all processes of a rank; as torchrun does, the other rank is then ended.

After a fault the next start resumes from a checkpoint that is whole: the one before, or this one if its save ended. The
losses of all steps, to the last digit, and what the last checkpoint holds are those of a run without a fault, and
nothing else is left. An error is one message.
"""

import errno
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sft.cli import run_or_exit
from sft.hashing import folder_digests
from sft.training import checkpoints
from tests.drill.operations import KILL, watch
from tests.support import tiny_model as tiny
from tests.support.checkpoint_contents import contents
from tests.support.servers import free_port

FAULTS = {"kill": KILL, "EIO": errno.EIO, "ENOSPC": errno.ENOSPC}
PACK, STEPS, SAVED = 64, 3, 2  # tokens; the save of step 2 gets the faults
POINTS, POINTS_OF_TWO_RANKS = 40, 10
CHANGED = ("/.metadata", ".distcp", "/run_config.yaml")  # compared by contents; the last has the path that was loaded
SECONDS = 300  # until a rank is said to hang


def prepare(folder: Path) -> None:
    """Write a tiny model and its packs, and import it."""
    from sft.training import bridge

    tiny.make_tiny_base(folder / "base")
    tiny.write_packs(folder / "packed/training", tiny.make_packs(4, PACK, seed=1))
    tiny.write_packs(folder / "packed/validation", tiny.make_packs(2, PACK, seed=2))
    bridge.import_base(base=folder / "base", checkpoint=folder / "start")


def train(folder: Path) -> None:
    """Train folder/run as one rank, from its newest checkpoint; write the losses of the steps beside it."""
    from sft.training import bridge
    from tests.training.test_bridge import train_params

    with (folder / "losses").open("a", encoding="utf-8") as losses:
        bridge.train(
            base=folder / "base",
            start=folder / "start",
            packed=folder / "packed",
            run=folder / "run",
            params=train_params(
                train={"train_iters": STEPS},
                validation={"eval_interval": STEPS, "eval_iters": 1},
                checkpoint={"save_interval": 1, "most_recent_k": 1},
            ),
            pack_size=PACK,
            on_step=lambda step: print(step.iteration, step.loss, file=losses, flush=True),
            on_validation=lambda iteration, loss: None,
        )


def inject(folder: Path, point: int, fault: int) -> None:
    """Count the operations of one save by all processes of a training; at one of them let it fail, or kill its rank."""
    count = os.open(folder / "count", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def begin(path: str) -> None:
        seen = os.fstat(count).st_size
        if f"iter_{SAVED + 1:07d}" in path and not (folder / "ended").exists():
            (folder / "ended").touch()
        begun = seen or f"iter_{SAVED:07d}" in path
        if not begun or "/run/logs/" in path or os.path.exists(folder / "ended"):
            return
        os.write(count, b".")
        if seen + 1 == point and fault == KILL:
            os.killpg(os.getpgrp(), signal.SIGKILL)
        if seen + 1 == point:
            raise OSError(fault, os.strerror(fault), path)

    watch(folder / "run", begin)


def start(folder: Path, work: Callable[[], None], **environment: str) -> int:
    """Run a function in a fork of this process, a group of its own; its output is folder/log. Returns its id."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    os.environ |= environment
    output = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))
    status = 70
    try:
        run_or_exit(work)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 (a child must not return)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run(folder: Path, ranks: int, point: int = 0, fault: int = KILL) -> tuple[list[int], str]:
    """Train on some ranks with a fault at an operation (0: none). Returns the statuses, and what they printed."""
    for name in ("count", "ended", "log"):
        (folder / name).unlink(missing_ok=True)

    def work() -> None:
        inject(folder, point, fault)
        train(folder)

    port = str(free_port())
    together = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    children = []
    for rank in range(ranks):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": port} if ranks > 1 else {}
        children.append(start(folder, work, **({**together, **place} if place else {})))
    statuses: dict[int, int] = {}
    end = time.monotonic() + SECONDS
    while len(statuses) < ranks:
        for child in set(children) - statuses.keys():
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                statuses[child] = os.waitstatus_to_exitcode(status)
        if any(statuses.values()) or time.monotonic() > end:
            for child in set(children) - statuses.keys():
                os.killpg(child, signal.SIGKILL)
        time.sleep(0.05)
    hangs = "hangs\n" if time.monotonic() > end else ""
    return [statuses[child] for child in children], (folder / "log").read_text() + hangs


def kept(folder: Path) -> dict[str, Any]:
    """Return what a run keeps: digests of its files, and what its last checkpoint holds."""
    digests = {name: digest for name, digest in folder_digests(folder / "run").items() if not name.startswith("logs/")}
    changed = {name: "" for name in digests if name.endswith(CHANGED) or name.startswith("manifests/")}
    return {**digests, **changed, **contents(checkpoints.iteration_folder(folder / "run", STEPS))}


def wrong(folder: Path, ranks: int, expected: dict[str, Any], losses: list[str], point: int, fault: int) -> list[str]:
    """Train with a fault and again without; return what was not as in a run without a fault."""
    found = []
    statuses, output = run(folder, ranks, point, fault)
    shown = output[-600:]
    if fault == KILL and -signal.SIGKILL not in statuses:
        found.append(f"statuses {statuses}")
    if fault != KILL and (statuses[0] not in (0, 1) or (statuses[0] and not is_one_message(output))):
        found.append(f"no message, or more than one: statuses {statuses} {shown}")
    statuses, output = run(folder, ranks)
    if any(statuses):
        return [*found, f"the next run ended with {statuses}: {output[-600:]}"]
    if fault_found := checkpoints.fault_of(checkpoints.iteration_folder(folder / "run", STEPS)):
        found.append(f"the last checkpoint: {fault_found}")
    left = kept(folder)
    if differing := sorted(name for name in left | expected if left.get(name) != expected.get(name)):
        found.append(f"other files or contents: {differing[:6]}")
    trained = (folder / "losses").read_text(encoding="utf-8").splitlines()
    if set(trained) != set(losses) or trained.count(losses[0]) != 1:
        found.append(f"other losses, or step 1 is trained again: {trained}, expected {losses}")
    return found


def is_one_message(output: str) -> bool:
    """Whether a run printed one error, and nothing else."""
    return output.startswith("error: ") and output.count("\n") == 1


def drill(folder: Path, ranks: int, points: int | None) -> list[str]:
    """Inject faults at some operations of a save; print a line. Returns the failures."""
    statuses, output = run(folder, ranks)
    assert not any(statuses), output
    operations, losses = (folder / "count").stat().st_size, (folder / "losses").read_text(encoding="utf-8").splitlines()
    expected, failures = kept(folder), []
    faults = FAULTS if ranks == 1 else {"kill": KILL}
    injected = 0
    step = max(1, len(faults) * operations // points) if points else 1
    for offset, (name, fault) in enumerate(faults.items()):
        for point in range(1 + offset * step // len(faults), operations + 1, step):
            shutil.rmtree(folder / "run")
            (folder / "losses").unlink()
            found = wrong(folder, ranks, expected, losses, point, fault)
            failures += [f"{name} at operation {point} of {operations}: {what}" for what in found]
            injected += 1
    shutil.rmtree(folder / "run")
    (folder / "losses").unlink()
    line = f"checkpoint save, {ranks} ranks: {operations} operations, {injected} faults, {len(failures)} failures"
    print(line, *failures, sep="\n  ", flush=True)  # noqa: T201
    return failures


def main(points: int | None) -> list[str]:
    """Drill a save on one rank and on two. Returns the failures."""
    from sft.training import config

    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    config.prepare_imports()
    import megatron.bridge.training.finetune  # noqa: F401 (once, for all forks)

    import sft.training.bridge  # noqa: F401
    import tests.training.test_bridge  # noqa: F401

    with tempfile.TemporaryDirectory(prefix="sft-drill-") as name:
        folder = Path(name)
        assert os.waitpid(start(folder, lambda: prepare(folder)), 0)[1] == 0, (folder / "log").read_text()
        return drill(folder, 1, points) + drill(folder, 2, points and min(points, POINTS_OF_TWO_RANKS))
