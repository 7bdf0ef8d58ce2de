"""How a program of this package starts and ends.

`python -m sft.stages.<stage> [--source NAME]` runs in the folder that holds params.yaml. It ends with exit status 0
and complete outputs, or with a non-zero status, one message and no output. A problem with your data, params or
machine is an `InputError` or an `OSError` and prints a message; anything else is a bug here and prints a traceback.

    run_stage(main, __doc__)          a stage: checks params.yaml, then runs main()
    run_source_stage(main, __doc__)   a stage that works on one source: main(source)
    run_or_exit(main)                 any other program
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
    """A problem with your data, params or machine. The message says where, what was found, and what to do."""


def run_stage(main: Callable[[], None], doc: str | None, *, remote: bool = False) -> None:
    """Run a stage; its only option is --help, which prints `doc`.

    `remote`: where CLUSTER is set, a Slurm job runs the whole stage (sft.cluster.remote_stage).
    """
    parser = make_parser(main.__module__, doc)
    parser.parse_args()
    if remote:
        _run_on_cluster(parser)
    run_or_exit(lambda: _run_checked(main))


def run_source_stage(main: Callable[[str], None], doc: str | None, *, remote: bool = False) -> None:
    """Run a stage on the source that --source names, or else DVC's stage, `filter@NAME`; `remote` as in run_stage.

    DVC passes its stage in DVC_STAGE, so that no name from params.yaml is in a command that a shell reads.
    """
    parser = make_parser(main.__module__, doc)
    stage_source = os.environ.get("DVC_STAGE", "").partition("@")[2]
    parser.add_argument(
        "--source",
        required=not stage_source,
        default=stage_source,
        metavar="NAME",
        help="a source of fetch.sources in params.yaml",
    )
    source = parser.parse_args().source
    if remote:
        _run_on_cluster(parser, "--source", source)
    run_or_exit(lambda: _run_checked(lambda: main(source)))


def run_or_exit(main: Callable[[], None]) -> None:
    """Run a program; print what is wrong with its input or its machine, and exit with 1 (Ctrl-C: 130)."""
    try:
        main()
    except InputError as error:
        _exit_with(str(error))
    except OSError as error:
        advice = " Free some space and rerun: nothing was half-written." if error.errno in DISK_FULL else ""
        _exit_with(f"{error.strerror or type(error).__name__}: {error.filename or error}.{advice}")
    except KeyboardInterrupt:
        _exit_with("interrupted. Rerun to continue: nothing was half-written.", status=130)


def make_parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """Return an argument parser with a module's name and docstring."""
    spec = sys.modules["__main__"].__spec__
    name = spec.name if spec is not None else module
    return argparse.ArgumentParser(
        prog=f"python -m {name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def echo(*parts: object) -> None:
    """Print a line. Rich markup works; colors appear on a terminal only."""
    Console(highlight=False, emoji=False, soft_wrap=True).print(*parts)


def end_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends, even by SIGKILL (Linux, prctl 2)."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _run_checked(main: Callable[[], None]) -> None:
    """Check all of params.yaml before a stage, so that the first stage shows every mistake in it."""
    from sft.params.check import check_params

    check_params()
    main()


def _run_on_cluster(parser: argparse.ArgumentParser, *arguments: str) -> None:
    """Replace this process by the one that runs the stage on a cluster, where CLUSTER is set."""
    if os.environ.get("CLUSTER"):
        stage = parser.prog.rpartition(".")[2]
        os.execv(sys.executable, [sys.executable, "-m", "sft.cluster.remote_stage", stage, *arguments])


def _exit_with(message: str, status: int = 1) -> None:
    sys.stdout.flush()
    console = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
    console.print(f"error: {message}", style="red", markup=False)
    sys.stderr.flush()
    if "RANK" in os.environ:  # under torchrun: other ranks may hang in a collective, so exit at once
        os._exit(status)
    raise SystemExit(status)
