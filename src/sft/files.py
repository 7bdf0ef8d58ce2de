"""Files that appear whole or not at all.

Every output of every stage is published through this module: written under a temporary name beside its
place, flushed to disk, renamed, and the folder flushed too. A reader, a killed process or a full disk
never sees half a file. Digests of files and folders live here as well, because they name what was written.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft.cli import InputError

BLOCK_BYTES = 1 << 20
REPOSITORY = Path(__file__).parents[2]
# renameat2(2), which Python's os does not offer.
AT_FDCWD = -100
RENAME_EXCHANGE = 2
CANNOT_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}


@contextlib.contextmanager
def publish_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `target` when the block ends without an error.

    On an error nothing is published and the old `target`, if any, is untouched.
    """
    partial = _begin(target)
    partial.mkdir()
    try:
        yield partial
        for path in sorted(partial.rglob("*"), reverse=True):
            _flush(path)
        _flush(partial)
        if target.exists():
            _exchange(partial, target)
        else:
            os.rename(partial, target)
        _flush(target.parent)
    finally:  # what is there now is unfinished, or the old folder
        _remove(partial)


@contextlib.contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`, on its disk, that is gone when the block ends: for files of workers."""
    scratch = _begin(target.with_name(f"{target.name}-scratch"))
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def publish_file(target: Path) -> Iterator[Path]:
    """Yield a path to write; it becomes `target` when the block ends without an error."""
    partial = _begin(target)
    try:
        yield partial
        _flush(partial)
        os.replace(partial, target)
        _flush(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_json(target: Path, value: Any) -> None:
    """Publish `value` as JSON with sorted keys, two spaces, and a final newline: same value, same bytes."""
    with publish_file(target) as partial:
        partial.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file that a stage wrote. Raises InputError: it is no JSON any more."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: damaged: not JSON: {error}. To make it again, rerun its stage (dvc repro)."
        ) from error


def resolve_repo_file(name: str) -> Path:
    """Return a file that params.yaml names: of this folder, or else of the repository that this code is part of.

    So a stage runs in any folder that holds a params.yaml.
    """
    path = Path(name)
    ours = REPOSITORY / name
    return ours if not path.exists() and ours.exists() else path


def project_root() -> Path:
    """The folder that holds runs/: the repository itself, also for experiments that DVC runs in a copy.

    DVC sets DVC_ROOT to the original repository even where it runs a stage in a temporary one.
    """
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).absolute()


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted names; lists stay as they are.

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


@contextlib.contextmanager
def file_lock(lock: Path, patience: float) -> Iterator[bool]:
    """Be the only process that holds a lock file, waiting some seconds for another; yields whether this one does.

    Let go of when the block ends, or the process, however that ends.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with lock.open("a") as file:
        while not (held := _try_lock(file.fileno())) and time.monotonic() < deadline:
            time.sleep(0.05)
        yield held


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _begin(target: Path) -> Path:
    """Make room for what becomes `target`: its folder, nothing abandoned there; return the temporary name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    return target.with_name(f".{target.name}.partial-{os.uname().nodename}-{os.getpid()}")


def _exchange(one: Path, other: Path) -> None:
    """Swap the names of two folders in one step: at no moment is there none at a name.

    A file system that cannot do it (some network file systems) gets two renames, with a moment between.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return
    if ctypes.get_errno() not in CANNOT_EXCHANGE:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))
    aside = one.with_name(f"{one.name}-{os.getpid()}")
    os.rename(other, aside)
    os.rename(one, other)
    os.rename(aside, one)


def _remove_abandoned(target: Path) -> None:
    """Remove what a killed process of this machine left beside `target`; what a living one writes stays."""
    for path in target.parent.glob(f".{target.name}.partial-{os.uname().nodename}-*"):
        pid = path.name.rpartition("-")[2]
        if pid.isdecimal() and Path(f"/proc/{pid}").exists() and int(pid) != os.getpid():
            continue
        _remove(path)


def _remove(path: Path) -> None:
    """Remove a folder, or a file or a link that stood where a folder was published."""
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
