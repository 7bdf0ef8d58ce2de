"""How a stage is called, and how it ends.

`python -m sft.stages.<stage> [--source NAME]` runs in the folder that holds params.yaml. It ends with
exit status 0 and its outputs whole, or with a non-zero status, one message and no output. A fault of the
user's data, params or machine is an `InputError` or an `OSError` and prints a message; anything else is
a fault of this program and prints its traceback.
"""

import argparse
import ctypes
import errno
import os
import signal
import sys
from collections.abc import Callable

from rich.console import Console

DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
PR_SET_PDEATHSIG = 1


class InputError(ValueError):
    """The user's data, params or machine: says where, what was found, what was expected, what to do."""


def run_stage(stage: Callable[[], None], doc: str | None, *, away: bool = False) -> None:
    """Run a stage that takes no source: parse no arguments but --help, then end as the module says.

    `away`: where CLUSTER names a cluster, its job does all of the stage (sft.cluster.remote_stage).
    """
    parser = make_parser(stage.__module__, doc)
    parser.parse_args()
    if away:
        _let_cluster_do(parser)
    guard(stage.__module__, lambda: _checked(stage))


def run_source_stage(stage: Callable[[str], None], doc: str | None, *, away: bool = False) -> None:
    """Run a stage that works on one source of the blend, named by --source; `away` as above."""
    parser = make_parser(stage.__module__, doc)
    parser.add_argument("--source", required=True, metavar="NAME", help="a source of fetch.sources in params.yaml")
    source = parser.parse_args().source
    if away:
        _let_cluster_do(parser, "--source", source)
    guard(f"{stage.__module__} {source}", lambda: _checked(lambda: stage(source)))


def _checked(stage: Callable[[], None]) -> None:
    """Run a stage after a check of the whole of params.yaml, so that any mistake in it shows at the first stage."""
    from sft.params.check import check_params

    check_params()
    stage()


def _let_cluster_do(parser: argparse.ArgumentParser, *arguments: str) -> None:
    """Become the program that lets a cluster do this stage, if one is asked for. It is no dep of the stage."""
    if os.environ.get("CLUSTER"):
        stage = parser.prog.rpartition(".")[2]
        os.execv(sys.executable, [sys.executable, "-m", "sft.cluster.remote_stage", stage, *arguments])


def echo(*parts: object) -> None:
    """Print a line for people: rich markup is read, colour only on a terminal."""
    Console(highlight=False, emoji=False, soft_wrap=True).print(*parts)


def end_with_parent() -> None:
    """Ask the kernel to end this process when the one that started it ends, also by SIGKILL (Linux prctl 2)."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def make_parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """Return a parser that describes a program by its module's docstring."""
    spec = sys.modules["__main__"].__spec__
    name = spec.name if spec is not None else module
    return argparse.ArgumentParser(
        prog=f"python -m {name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def guard(name: str, stage: Callable[[], None]) -> None:
    """Run what a program does, and end as the module says."""
    try:
        stage()
    except InputError as error:
        _fail(name, str(error))
    except OSError as error:
        remedy = " Free some space and rerun: nothing was half-written." if error.errno in DISK_FULL else ""
        _fail(name, f"{error.strerror or type(error).__name__}: {error.filename or error}.{remedy}")
    except KeyboardInterrupt:
        _fail(name, "interrupted; rerun to go on. Nothing was half-written.", status=130)


def _fail(name: str, message: str, status: int = 1) -> None:
    sys.stdout.flush()
    console = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
    console.print(f"error: {message}", style="red", markup=False)
    sys.stderr.flush()
    if "RANK" in os.environ:  # under torchrun: other ranks may hang in a collective, so leave at once
        os._exit(status)
    raise SystemExit(status)
