"""How a program of this package starts and ends; a stage starts with sft.run_stage.

    run_or_exit(main)
    print_facts(gather, show, as_json=...)    what it has found: on the screen, or as JSON (--json)

A program ends with exit status 0 and complete outputs, or with a non-zero status, one message and no output. A problem
with your data, params or machine is an `InputError` or an `OSError` and prints a message; anything else is a bug here
and prints a traceback.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import errno
import io
import json
import math
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NoReturn

from rich.console import Console

from sft import STOPPING, end_at_once

# Libraries that report to their makers, unless the environment turns that on. They read it when they are imported.
NO_TELEMETRY = {"MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_DISABLE_TELEMETRY": "1", "DVC_NO_ANALYTICS": "true"}
os.environ.update({**NO_TELEMETRY, **os.environ})

DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
OUT_OF_MEMORY = (
    "out of memory. Set a smaller SFT_WORKERS, or run where more memory is allowed (ulimit -v, the container's limit). "
    "Nothing was half-written."
)
PR_SET_PDEATHSIG = 1
PATIENCE = 5.0  # seconds in which a second signal does not cut short what ends a program
EVIDENCE_CHARS = 200
"""Longest line that is quoted from outside."""


class InputError(ValueError):
    """A problem with your data, params or machine. The message says where, what was found, and what to do."""


class Stopped(KeyboardInterrupt):
    """A signal that asks the program to end: Ctrl-C (SIGINT), SIGTERM or SIGHUP."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = number


def run_or_exit(main: Callable[[], object]) -> None:
    """Run a program; print what is wrong with its input or its machine, and exit with 1.

    Ctrl-C, SIGTERM and SIGHUP end it alike, with status 128 + the signal; one that is ignored (nohup) stays so.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding (LC_ALL=C) gets \\u2500, no traceback
            stream.reconfigure(errors="backslashreplace")
    if threading.current_thread() is threading.main_thread():
        for number in STOPPING:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler, end_at_once):
                signal.signal(number, _stop)
    try:
        main()
    except InputError as error:
        exit_with(str(error))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error.strerror or type(error).__name__  # Arrow's is long
        exit_with(f"{reason}: {error.filename or error}.{_free_space(error) if error.errno in DISK_FULL else ''}")
    except MemoryError:
        exit_with(OUT_OF_MEMORY)
    except _dvc_errors() as error:
        exit_with(f"DVC: {str(error).rstrip('.')}. Run in the project's folder; see: dvc status")
    except subprocess.CalledProcessError as error:
        output = error.stderr.decode(errors="replace") if isinstance(error.stderr, bytes) else error.stderr or ""
        last = (output.strip().splitlines() or ["its message, if any, is above"])[-1]
        exit_with(f"{shlex.join(map(str, error.cmd))}: ended with status {error.returncode}: {last}")
    except KeyboardInterrupt as interrupt:
        asked = signal.Signals(interrupt.number if isinstance(interrupt, Stopped) else signal.SIGINT)
        exit_with(f"ended by {asked.name}. Rerun to continue: nothing was half-written.", status=128 + asked)


def _free_space(error: OSError) -> str:
    """Return what to do where a disk is full; what was begun is removed by now."""
    folder = Path(error.filename or ".").absolute()
    while not folder.is_dir():
        folder = folder.parent
    disk = shutil.disk_usage(folder)
    return (
        f" Free some space on the file system of {folder} ({disk.free / 1e9:.1f} of {disk.total / 1e9:.1f} GB are free "
        "now) and rerun: nothing was half-written."
    )


def _dvc_errors() -> tuple[type[Exception], ...]:
    """Return what DVC, and its library for git, raise of a project that they cannot read, if they are loaded."""
    names = {"dvc.exceptions": "DvcException", "scmrepo.exceptions": "SCMError"}
    return tuple(getattr(sys.modules[module], name) for module, name in names.items() if module in sys.modules)


def run_child(command: Sequence[str], **options: Any) -> int:
    """Run a program and return its status. If this one is asked to end, it asks the other one and waits for it."""
    with subprocess.Popen(command, **options) as child:
        try:
            return child.wait()
        except KeyboardInterrupt:
            child.terminate()
            raise


_asked_at = -PATIENCE


def _stop(number: int, _frame: object) -> None:
    global _asked_at
    if (now := time.monotonic()) - _asked_at >= PATIENCE:
        _asked_at = now
        raise Stopped(number)


def end_with_dvc() -> None:
    """Let a stage end when its dvc does, as for SIGTERM: a dvc that is ended alone leaves the stage running."""
    parent = os.getppid()
    with contextlib.suppress(OSError):
        if b"python -m sft." in Path(f"/proc/{parent}/cmdline").read_bytes():  # a shell between them, as dash
            parent = int(Path(f"/proc/{parent}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        dvc = os.pidfd_open(parent)
        threading.Thread(target=_end_after, args=(dvc,), name="dvc", daemon=True).start()


def _end_after(process: int) -> None:
    select.select([process], [], [])
    os.kill(os.getpid(), signal.SIGTERM)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as those of the programs are."""

    def error(self, message: str) -> NoReturn:
        exit_with(f"{message.removeprefix('argument ')}. Options: {self.prog} --help", status=2)


def make_parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """Return an argument parser with a module's name and docstring."""
    spec = sys.modules["__main__"].__spec__
    name = spec.name if spec is not None else module
    return _Parser(prog=f"python -m {name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a type of argparse: a whole number of at least `least`, and at most `most`."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
            bounds = f"at least {least}" if most is None else f"{least} to {most}"
            raise argparse.ArgumentTypeError(f"{text!r}: expected a number, {bounds}")
        return int(text)

    return number


def file_to_write(text: str) -> Path:
    """Return a file that a program will write, as a type of argparse: refused before the work if it is a folder."""
    if not text or Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: a folder, expected the name of a file")
    return Path(text)


def echo(*parts: object) -> None:
    """Print a line. Rich markup works; colors appear on a terminal only."""
    Console(highlight=False, emoji=False, soft_wrap=True).print(*parts)


def one_line(text: str) -> str:
    """Return a text as one line of at most EVIDENCE_CHARS; a terminal obeys none of its characters."""
    text = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in " ".join(text.split()))
    return text if len(text) <= EVIDENCE_CHARS else text[: EVIDENCE_CHARS - 3] + "..."


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add --json to a program that calls `print_facts`."""
    parser.add_argument("--json", action="store_true", help="print JSON on stdout; messages go to stderr")


def print_facts[T](
    gather: Callable[[], T],
    show: Callable[[T], None],
    *,
    as_json: bool,
    values: Callable[[T], Any] = lambda facts: facts,
) -> T:
    """Gather facts, print them, and return them.

    Args:
        gather: Returns the facts.
        show: Prints them for people.
        as_json: Print `values(facts)` as one JSON document instead. It is alone on stdout: what this process and its
            children print otherwise, now and later, goes to stderr.
        values: Turns the facts into what `json_values` takes.
    """
    if not as_json:
        facts = gather()
        show(facts)
        return facts
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="ascii") as stdout:
        os.dup2(2, 1)
        facts = gather()
        stdout.write(json.dumps(json_values(values(facts)), indent=2, allow_nan=False) + "\n")
    return facts


def json_values(value: Any) -> Any:
    """Return facts as JSON has them: records as objects, paths as text, null for a number that is not finite.

    >>> json_values({"loss": float("nan"), "path": PurePath("a/b"), "packs": (1, 2)})
    {'loss': None, 'path': 'a/b', 'packs': [1, 2]}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: json_values(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return json_values(value._asdict())
    if isinstance(value, Mapping):
        return {str(name): json_values(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.as_posix() if isinstance(value, PurePath) else value


def confirm(question: str, otherwise: str) -> bool:
    """Ask on the terminal; return whether the answer is yes. Raises InputError: nobody can be asked; `otherwise`."""
    if not sys.stdin.isatty():
        raise InputError(f"this is not a terminal, so nobody can be asked. {otherwise}")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def num_threads(default: int) -> int:
    """Return the threads of a process: OMP_NUM_THREADS, of a list such as "4,2" the first; `default` if it is empty.

    Raises:  InputError: it is no number.
    """
    text = os.environ.get("OMP_NUM_THREADS", "").strip()
    first = text.partition(",")[0].strip()
    if text and not (first.isdecimal() and int(first) > 0):
        raise InputError(f"OMP_NUM_THREADS={text}: expected a number of threads, 1 or more. Or unset it.")
    return int(first) if text else default


def end_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends, even by SIGKILL (Linux, prctl 2)."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def exit_with(*messages: str, status: int = 1) -> NoReturn:
    """Print each message as an error and end the program."""
    sys.stdout.flush()
    console = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
    for message in messages:
        console.print(f"error: {message}", style="red", markup=False)
    sys.stderr.flush()
    if "RANK" in os.environ:  # under torchrun: other ranks may hang in a collective, so exit at once
        os._exit(status)
    raise SystemExit(status)
