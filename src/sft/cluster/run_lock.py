"""One owner for a run: locks that a process holds from start to end, on this machine or on a node of a cluster.

runs/<lineage key>/owner    who trains it: host, pid and since when; locked with flock, touched every BEAT_SECONDS
runs/<run>/follower         the same of the command that submits its job, follows it and collects what it made

The kernel releases a flock when its process ends, even by SIGKILL; processes that the owner starts with `descriptor` in
`pass_fds` keep it. Some network file systems have no flock, which this says, or one that other machines do not see:
there the file counts, as long as it is touched. A second start is an error that names the owner, or with WAIT=1
it waits; an experiment of DVC always waits, because a queue has no one who starts it again.
"""

import contextlib
import json
import os
import shlex
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from sft.cli import InputError, echo
from sft.cluster.cluster_file import is_on
from sft.files import file_lock, flock

OWNER = "owner"
BEAT_SECONDS = 10.0
DEAD_AFTER_SECONDS = 60.0  # without a beat, as the file system's clock has it
POLL_SECONDS = 1.0
TAKE_SECONDS = 60.0


class RunLock:
    """A lock of the run in a folder, runs/<lineage key>; `does`: what its owner does, in words."""

    def __init__(self, run: Path, name: str = OWNER, does: str = "trains this run") -> None:
        self.run, self.file, self.does = run, run / name, does
        self._descriptor: int | None = None
        self._released = threading.Event()
        self._has_said = False

    @property
    def descriptor(self) -> int:
        """The open file that holds the lock, for processes that outlive this one."""
        assert self._descriptor is not None
        return self._descriptor

    @contextlib.contextmanager
    def held(self, *, wait: bool = False) -> Iterator["RunLock"]:
        """Hold the lock while a block runs. Raises InputError: another process holds it, and this does not wait."""
        self.acquire(wait=wait)
        try:
            yield self
        finally:
            self.release()

    def acquire(self, *, wait: bool = False) -> None:
        """Take the lock; with `wait`, WAIT=1 or in an experiment of DVC, wait until it is free."""
        wait = wait or is_on("WAIT") or "DVC_EXP_NAME" in os.environ
        is_waiting = False
        while (owner := self._try()) is not None:
            if not wait:
                raise InputError(
                    f"runs/{self.run.name}: {owner} {self.does}. To wait until it ends: WAIT=1 before the command."
                )
            if not is_waiting:
                echo(f"runs/{self.run.name}: waiting for {owner}")
            is_waiting = True
            time.sleep(POLL_SECONDS)

    def is_held(self) -> bool:
        """Whether another process holds the lock; if none does, this one holds it for a moment."""
        owner = self._try()
        self.release()
        return owner is not None

    def release(self) -> None:
        """Release the lock; a second call changes nothing."""
        if self._descriptor is None:
            return
        self._released.set()
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
        self._descriptor = None

    def _try(self) -> str | None:
        """Take the lock, or return its owner in words."""
        self.run.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644)
        is_locked = flock(descriptor)
        if is_locked is None and not self._has_said:
            echo(f"runs/{self.run.name}: the file system has no flock: the file {self.file.name} is the lock")
            self._has_said = True
        without_flock = file_lock(self.run / f"{self.file.name}.lock", TAKE_SECONDS) if is_locked is None else None
        with without_flock or contextlib.nullcontext(is_locked) as may_write:
            owner = _read(self.file)
            if not may_write or (owner and self._is_alive(owner, has_flock=is_locked is not None)):
                os.close(descriptor)
                return describe(self.file)
            record = {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
                "in_dvc": "DVC_STAGE" in os.environ,
            }
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(record).encode() + b"\n", 0)
            os.fsync(descriptor)
        self._descriptor, self._released = descriptor, threading.Event()
        threading.Thread(target=_beat, args=(self.file, self._released), name="owner", daemon=True).start()
        return None

    def _is_alive(self, owner: dict[str, Any], *, has_flock: bool) -> bool:
        """Whether the owner that the file names still runs, where flock does not say it."""
        if owner["host"] == socket.gethostname():
            return not has_flock and owner["pid"] != os.getpid() and Path("/proc", str(owner["pid"])).exists()
        return _seconds_since_beat(self.file) < DEAD_AFTER_SECONDS


def describe(file: Path) -> str:
    """Return the owner that a lock file names, in words; an orphan with the command that ends it."""
    owner = _read(file)
    if not owner:
        return "another process"
    text = f"process {owner['pid']} on {owner['host']}, since {owner['since']},"
    if owner["host"] != socket.gethostname():
        return text
    pids = holders(file)
    is_gone = owner["pid"] not in pids
    if pids and (is_gone or (owner["in_dvc"] and not _has_dvc_above(owner["pid"]))):
        return f"{text} an orphan: its dvc was killed (to end it: {shlex.join(['kill', *map(str, pids)])}),"
    return text


def holders(file: Path) -> list[int]:
    """Return the processes of this machine that have a file open, as far as this user may see."""
    found, real = [], str(file.resolve())  # runs/ may be a link to another disk
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(os.readlink(link) == real for link in (process / "fd").iterdir()):
                found.append(int(process.name))
    return sorted(found)


def _has_dvc_above(pid: int) -> bool:
    """Whether a process above this one is a dvc."""
    try:
        above = psutil.Process(pid).parents()
        return any(os.path.basename(word) == "dvc" for process in above for word in process.cmdline())
    except psutil.Error:  # one has just ended
        return False


def _read(file: Path) -> dict[str, Any] | None:
    """Return what a lock file says; None if it is empty, or just being written."""
    try:
        return dict(json.loads(file.read_bytes()))
    except (OSError, ValueError):
        return None


def _seconds_since_beat(file: Path) -> float:
    """Return the age of a file by the clock of its file system, which may be that of another machine."""
    probe = file.with_name(f".{file.name}-{socket.gethostname()}-{os.getpid()}")
    probe.touch()
    try:
        return probe.stat().st_mtime - file.stat().st_mtime
    finally:
        probe.unlink()


def _beat(file: Path, released: threading.Event) -> None:
    while not released.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(file)
