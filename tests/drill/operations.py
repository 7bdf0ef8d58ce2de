"""Kill a stage, or let it fail, at each of its file operations; then run it again and compare every byte.

    make drill           ->  a line for each stage: operations, faults injected, failures; then checkpoints.py in 40
    make drill POINTS=5  ->  5 operations of each stage, spread evenly; 5 of a checkpoint save

An operation is an audit event of Python (open, mkdir, rename, remove, ...) on a path of the project. What Arrow writes
itself is not seen; how a full disk ends that is in tests/stages/test_pack_faults.py.

After a fault each output is absent or complete, an error is one line, and the next run leaves the bytes of a run
without a fault and nothing else.
"""

import errno
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from sft.cli import at_least, make_parser, run_or_exit
from sft.hashing import file_digest
from tests.support.project import link_project

EVENTS = {
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.scandir",
}
KILL = 0
FAULTS = {"kill": KILL, "EIO": errno.EIO, "ENOSPC": errno.ENOSPC}
FOLDERS = ("data", "models", "reports")


class Stage(NamedTuple):
    """A stage of one process, and what it publishes."""

    name: str
    main: Callable[[], object]
    outputs: tuple[str, ...]


def stages() -> list[Stage]:
    """Return the data stages, in order, as they run for one source."""
    from sft.stages import fetch, filter, pack, prep

    return [
        Stage("fetch", lambda: fetch.main("calls"), ("data/raw/calls", "reports/fetch/calls.json")),
        Stage(
            "fetch-benchmarks", lambda: fetch.main("benchmarks"), ("data/benchmarks", "reports/fetch/benchmarks.json")
        ),
        Stage("fetch-model", lambda: fetch.main("model"), ("models/base",)),
        Stage("filter", lambda: filter.main("calls"), ("data/filtered/calls", "reports/filter/calls.json")),
        Stage("prep", lambda: prep.main("calls"), ("data/prepared/calls", "reports/prep/calls.json")),
        Stage("pack", pack.main, ("data/packed", "reports/pack.json", "reports/mixture.csv")),
    ]


def snapshot(project: Path) -> dict[str, str]:
    """Return the digest of every file of the outputs, by its path; empty folders too."""
    paths = [path for name in FOLDERS for path in (project / name).rglob("*")]
    return {str(path.relative_to(project)): file_digest(path) if path.is_file() else "folder" for path in paths}


def watch(folder: Path, begin: Callable[[str], None]) -> None:
    """Call a function with the path of each operation of this process, and of its forks, on files of a folder."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in EVENTS and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if path.startswith(f"{folder}/"):
                begin(path)

    sys.addaudithook(hook)


def inject(project: Path, point: int, fault: int, count: Callable[[int], None]) -> None:
    """Count the operations of this process on files of a project; at one of them let it fail, or kill it."""
    seen = 0

    def begin(path: str) -> None:
        nonlocal seen
        if "/log-" in path:
            return
        seen += 1
        count(seen)
        if seen == point and fault == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if seen == point:
            raise OSError(fault, os.strerror(fault), path)

    watch(project, begin)


def run(stage: Stage, project: Path, point: int = 0, fault: int = KILL) -> tuple[int, int, str]:
    """Run a stage in a fork of this process, which has only imported it. Returns status, operations, its output."""
    log, counted = project / "log-output", project / "log-count"
    child = os.fork()
    if not child:
        os.chdir(project)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # not what a test captures
        count = os.open(counted, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        inject(project, point, fault, lambda seen: os.pwrite(count, str(seen).encode(), 0) and None)
        status = 70
        try:
            run_or_exit(stage.main)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:  # noqa: BLE001 (a child must not return)
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(ended), int(counted.read_text() or 0), log.read_text()


def wrong(stage: Stage, project: Path, expected: dict[str, str], status: int, output: str, fault: int) -> Iterator[str]:
    """Yield what a fault did that it must not do."""
    if status not in ({-signal.SIGKILL, 0} if fault == KILL else {0, 1}):
        yield f"status {status}"
    if "Traceback" in output or (status == 1 and sum(line.startswith("error: ") for line in output.splitlines()) != 1):
        yield f"not one message: {output[-300:]}"
    after = snapshot(project)
    for name in stage.outputs:
        published = {path: digest for path, digest in after.items() if (path + "/").startswith(f"{name}/")}
        if published and published != {
            path: expected[path] for path in expected if (path + "/").startswith(f"{name}/")
        }:
            yield f"{name}: half written, or other bytes"


def drill(stage: Stage, project: Path, points: int | None) -> tuple[str, list[str]]:
    """Inject every fault at `points` operations of a stage (None: at all). Returns the line to print, and failures."""
    before = shutil.copytree(project, project.with_name("before"))
    status, operations, output = run(stage, project)
    assert status == 0, output
    expected, failures, injected = snapshot(project), [], 0
    step = max(1, operations // points) if points else 1
    for name, fault in FAULTS.items():
        for point in range(1, operations + 1, step):
            shutil.rmtree(project)
            shutil.copytree(before, project)
            status, _, output = run(stage, project, point, fault)
            found = list(wrong(stage, project, expected, status, output, fault))
            again, _, output = run(stage, project)
            if again or snapshot(project) != expected:
                differing = sorted(set(snapshot(project).items()) ^ set(expected.items()))[:4]
                found.append(f"the next run ended with {again} and differs: {differing} {output[-300:]}")
            injected += 1
            failures += [f"{stage.name}: {name} at operation {point} of {operations}: {what}" for what in found]
    shutil.rmtree(before)
    return f"{stage.name}: {operations} operations, {injected} faults, {len(failures)} failures", failures


def main(points: int | None) -> list[str]:
    """Drill every stage; print a line for each and every failure."""
    os.environ |= {"SFT_WORKERS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="sft-drill-") as folder:
        project = Path(folder, "project")
        link_project(project)
        one_source(project)
        for stage in stages():
            line, found = drill(stage, project, points)
            print(line, *found, sep="\n  ", flush=True)  # noqa: T201
            failures += found
    return failures


def one_source(project: Path) -> None:
    """Leave one source in params.yaml."""
    from ruamel.yaml import YAML

    yaml = YAML()
    params = yaml.load(project / "params.yaml")
    del params["fetch"]["sources"]["chats"]
    yaml.dump(params, project / "params.yaml")


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--points", type=at_least(1), help="operations of each stage; default: all")
    chosen = parser.parse_args().points
    from tests.drill import checkpoints  # it imports Megatron, after the stages that are forked without it

    sys.exit(1 if main(chosen) + checkpoints.main(chosen or checkpoints.POINTS) else 0)
