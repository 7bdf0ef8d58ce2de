"""Publish files and folders so that they appear whole or not at all; read JSON; lock files.

Every output of a stage goes through this module: it is written under a temporary name in the same folder, flushed to
disk and renamed, and the folder is flushed too. Neither a killed process nor a full disk leaves half a file.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.markup import escape

from sft.cli import InputError, echo

REPOSITORY = Path(__file__).parents[2]
# renameat2(2), which the os module lacks.
AT_FDCWD = -100
RENAME_EXCHANGE = 2
NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
NAMELESS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
"""Errors of a file system that write() and Arrow raise without the name of the file."""
CANNOT_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}


@contextlib.contextmanager
def publish_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `target` when the block ends without an error.

    After an error nothing is published, and an existing `target` is unchanged.
    """
    partial = _partial_path(target)
    try:
        partial.mkdir()
        with _naming(target):
            yield partial
        for path in sorted(partial.rglob("*"), reverse=True):
            _flush(path)
        _flush(partial)
        if target.exists():
            _exchange(partial, target)
        else:
            os.rename(partial, target)
        _flush(target.parent)
    finally:  # it is unfinished, or the old folder
        _remove(partial)


@contextlib.contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder next to `target`, on the same disk, for files of workers; removed when the block ends."""
    scratch = _partial_path(target.with_name(f"{target.name}-scratch"))
    try:
        scratch.mkdir()
        with _naming(target):
            yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def publish_file(target: Path) -> Iterator[Path]:
    """Yield a path to write to; the file replaces `target` when the block ends without an error."""
    partial = _partial_path(target)
    try:
        with _naming(target):
            yield partial
        _flush(partial)
        os.replace(partial, target)
        _flush(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Publish a text."""
    with publish_file(target) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(target: Path, value: Any) -> None:
    """Publish a value as JSON with sorted keys: the same value gives the same bytes."""
    write_text(target, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the value of a JSON file that a stage wrote. Raises InputError: not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}. Run its stage again: dvc repro --force <stage>") from error


def resolve_repo_file(name: str) -> Path:
    """Return the path of a file that params.yaml names: in the current folder, or else in this repository.

    With this a stage runs in any folder that holds a params.yaml. What stages write is never taken from the
    repository: it is of another run.
    """
    path = Path(name)
    ours = REPOSITORY / name
    is_written = path.parts[:1] in {("data",), ("models",)}
    return ours if not path.exists() and not is_written and ours.exists() else path


def project_root() -> Path:
    """Return the folder that holds runs/: the original repository, also when DVC runs an experiment in a copy.

    DVC sets DVC_ROOT to the original repository.
    """
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).absolute()


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one mapping with dotted names; lists stay as they are.

    >>> flatten({"optimizer": {"lr": 0.1}, "rng": {"seed": 1}})
    {'optimizer.lr': 0.1, 'rng.seed': 1}
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a file a second name, which takes no space; copy it to another file system or one without hard links."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


@contextlib.contextmanager
def file_lock(lock: Path, seconds: float) -> Iterator[bool]:
    """Lock a file, waiting up to some seconds for another process; yield whether it is locked.

    The lock ends with the block, or with the process, even when it is killed. Where the file system has no flock (some
    mounts of Lustre and NFS), the file `<lock>.held` is the lock, and one that a killed process of another machine left
    must be removed by hand.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    created = lock.with_name(f"{lock.name}.held")
    with lock.open("a") as file:
        has_flock = flock(file.fileno()) is not None
        while not (held := flock(file.fileno()) if has_flock else _create_lock(created)):
            if time.monotonic() >= deadline:
                break
            time.sleep(0.05)
        try:
            yield bool(held)
        finally:
            if held and not has_flock:
                created.unlink(missing_ok=True)


def flock(file: int) -> bool | None:
    """Lock an open file and return whether it is locked now; None: its file system has no such locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
        return None
    return True


def _create_lock(path: Path) -> bool:
    """Create the file of a lock; return False if another process has it. Removes that of a process that has ended."""
    host, pid = os.uname().nodename, os.getpid()
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(f"{host} {pid}")
        return True
    except FileExistsError:
        pass
    with contextlib.suppress(FileNotFoundError):  # just released
        owner = path.read_text(encoding="utf-8")
        if owner.startswith(f"{host} ") and not Path("/proc", owner.split()[1]).exists():
            aside = path.with_name(f"{path.name}-{pid}")
            os.rename(path, aside)
            if aside.read_text(encoding="utf-8") != owner:  # another process was faster, and has it now
                os.rename(aside, path)
            else:
                aside.unlink()
    return False


def _partial_path(target: Path) -> Path:
    """Create the parent folder, remove what killed processes left, and return a temporary path for `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    return target.with_name(f".{target.name}.partial-{os.uname().nodename}-{os.getpid()}")


@contextlib.contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Name `target` in an error of its file system that names no file."""
    try:
        yield
    except OSError as error:
        if error.errno in NAMELESS and error.filename is None:
            error.filename = str(target)
        raise


def _exchange(new: Path, old: Path) -> None:
    """Swap the names of two folders atomically.

    On file systems that cannot do that (some network file systems) these are three renames.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old), RENAME_EXCHANGE) == 0:
        return
    if ctypes.get_errno() not in CANNOT_EXCHANGE:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(old))
    aside = new.with_name(f"{new.name}-{os.getpid()}")
    os.rename(old, aside)
    os.rename(new, old)
    os.rename(aside, new)


def _remove_abandoned(target: Path) -> None:
    """Remove what killed processes of this machine left next to `target`; running ones keep their files.

    What another machine, or a container of another name, left is only named: its process may run.
    """
    for path in target.parent.glob(f".{target.name}.partial-*"):
        host, _, pid = path.name.rpartition(".partial-")[2].rpartition("-")
        if host != os.uname().nodename:
            line = f"{path}: of process {pid} on {host}. If that has ended, remove it: rm -r {shlex.quote(str(path))}"
            echo(escape(line))
        elif not (pid.isdecimal() and Path(f"/proc/{pid}").exists() and int(pid) != os.getpid()):
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a folder, a file or a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
