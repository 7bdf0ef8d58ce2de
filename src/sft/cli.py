"""How a program of this package starts and ends; a stage starts with sft.run_stage.

    run_or_exit(main)

A program ends with exit status 0 and complete outputs, or with a non-zero status, one message and no output. A problem
with your data, params or machine is an `InputError` or an `OSError` and prints a message; anything else is a bug here
and prints a traceback.
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


def _exit_with(message: str, status: int = 1) -> None:
    sys.stdout.flush()
    console = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
    console.print(f"error: {message}", style="red", markup=False)
    sys.stderr.flush()
    if "RANK" in os.environ:  # under torchrun: other ranks may hang in a collective, so exit at once
        os._exit(status)
    raise SystemExit(status)
