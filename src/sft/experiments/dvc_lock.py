"""Restore a dvc.lock that a killed DVC left empty or cut off: DVC empties the file, then writes it."""

import subprocess
from pathlib import Path

from sft.cli import InputError, echo
from sft.files import publish_file
from sft.params.recorded import LOCK, read_lock

DAMAGED = Path(".dvc/tmp/dvc.lock.damaged")
CONFLICT = b"<<<<<<< "


def restore_lock() -> None:
    """Replace a damaged dvc.lock by the committed one, and say so; the damaged text is kept in .dvc/tmp.

    DVC's own lock is held meanwhile, so that a DVC that is just writing the file is not taken for a killed one.

    Raises:  InputError: dvc.lock has conflicts of a merge, is not in git, or another DVC works for long.
    """
    if is_readable():
        return
    from dvc.lock import LockError
    from dvc.repo import Repo

    if CONFLICT in LOCK.read_bytes():
        raise InputError(f"{LOCK}: has conflicts of a merge. Keep one side: git checkout --ours {LOCK}")
    try:
        with Repo() as repo, repo.lock:
            _restore()
    except LockError as error:
        raise InputError(f"{LOCK}: another DVC is writing it. Try again when it has ended.") from error


def is_readable() -> bool:
    """Whether dvc.lock is missing, or DVC can read it and every file in it has its digest."""
    try:
        stages = read_lock().values()
    except InputError:
        return False
    files = [file for stage in stages for kind in ("deps", "outs") for file in (stage or {}).get(kind) or []]
    return not LOCK.exists() or (LOCK.read_bytes().endswith(b"\n") and all(len(file) > 1 for file in files))


def _restore() -> None:
    if is_readable():  # written meanwhile
        return
    damaged = LOCK.read_bytes()
    show = subprocess.run(["git", "show", f"HEAD:./{LOCK}"], check=False, capture_output=True)
    if show.returncode:
        raise InputError(
            f"{LOCK}: {len(damaged)} bytes that DVC cannot read, and git has no other. Remove it: rm {LOCK}. The "
            "stages then run again; what is in DVC's cache is not computed again."
        )
    if damaged:
        DAMAGED.parent.mkdir(parents=True, exist_ok=True)
        DAMAGED.write_bytes(damaged)
    with publish_file(LOCK) as partial:
        partial.write_bytes(show.stdout)
    kept = f" What was in it is in {DAMAGED}." if damaged else ""
    echo(
        f"{LOCK}: was {'cut off' if damaged else 'empty'}, as a killed DVC leaves it. Restored from the last commit; "
        f"stages that ran since then come from DVC's cache.{kept}"
    )
