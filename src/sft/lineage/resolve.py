"""Find the records of a training (dvc.lock, reports, lineage.json) by any name that it has.

A name is a folder of a model, a version in MLflow (name/version or name@alias), a run id, a lineage key, a git revision
or a DVC experiment  ->  `Records`, which reads files by their path in the project

What git and the folder lack is read from DVC's cache by the digests in dvc.lock. Changes nothing.
"""

import functools
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from sft.cli import InputError, echo
from sft.lineage.patch import patch_name

FINAL = "models/final"
LINEAGE = f"{FINAL}/lineage.json"
LOCK = "dvc.lock"
Read = Callable[[str], bytes | None]


@dataclass(frozen=True)
class Records:
    """The records of one training."""

    name: str
    """As the user typed it."""
    root: Path
    """The project, with git repository and DVC cache."""
    read: Read
    """Return the bytes of a file by its path in the project, None if it is nowhere."""
    folder: Path | None = None
    """The project, if its files on disk are of this training and can be verified."""
    model: Path | None = None
    """A copy of the model without its project, which can be verified too."""
    run: dict[str, Any] | None = None
    """The run in MLflow."""
    version: dict[str, str] | None = None
    """Tags of the registered version."""

    def json(self, path: str) -> Any:
        """Return the value of a JSON file, {} if it is missing. Raises InputError: it is not JSON."""
        content = self.read(path)
        return {} if content is None else parse_json(content, path)

    def text(self, path: str) -> str:
        """Return a text, "" if it is missing."""
        return (self.read(path) or b"").decode("utf-8")

    @functools.cached_property
    def lock(self) -> dict[str, Any]:
        """The stages of dvc.lock."""
        return parse_lock(self.read(LOCK))

    @functools.cached_property
    def lineage(self) -> dict[str, Any]:
        """lineage.json of the model."""
        return dict(self.json(LINEAGE))

    def patch(self) -> bytes | None:
        """Return the uncommitted changes that the model was trained with, None if they are nowhere."""
        if not (digest := self.lineage.get("patch")):
            return None
        path = self.root / "runs" / self.lineage["lineage_key"] / patch_name(digest)
        return path.read_bytes() if path.exists() else self.read(patch_name(digest))


def find(name: str, root: Path, scratch: Path) -> Records:
    """Return the records of a model, run, revision or experiment; `scratch` is for downloads.

    Raises:  InputError: nothing has that name.
    """
    records = _in_folder(name, root) or _in_mlflow(name, root, scratch) or _in_git(name, root)
    if records is None and name == FINAL:
        raise InputError(
            f"{FINAL}: not found in {root}. To train a model: make repro. To get the model of the committed {LOCK}: "
            f"dvc pull {FINAL}."
        )
    if records is None:
        raise InputError(
            f"{name!r}: found no folder with a lineage.json, no version, run or lineage key in MLflow, no git revision "
            f"and no DVC experiment of that name in {root}. Expected a name as in models/final, nano3-sft/1 or "
            "nano3-sft@champion. To list names: make mlflow, make show."
        )
    return records


def of_folder(
    root: Path, name: str = FINAL, run: dict[str, Any] | None = None, version: dict[str, str] | None = None
) -> Records:
    """Return the records of the project in a folder."""
    return Records(
        name, root, _with_cache(root, lambda path: _bytes(root / path)), folder=root, run=run, version=version
    )


def parse_json(content: bytes, path: str) -> Any:
    """Return the value of a JSON file that a stage wrote.

    Raises:  InputError: it is not JSON any more.
    """
    try:
        return json.loads(content)
    except ValueError as error:  # also of bytes that are not UTF-8
        raise InputError(
            f"{path}: expected JSON, found {error}. Restore it: dvc checkout, or git checkout for a report"
        ) from None


def parse_lock(content: bytes | None) -> dict[str, Any]:
    """Return the stages of a dvc.lock, {} if there is none; DVC's own reader reads it."""
    from dvc.utils.serialize import parse_yaml

    return dict(parse_yaml(content.decode("utf-8"), LOCK)["stages"]) if content else {}


def outs(lock: dict[str, Any]) -> dict[str, str]:
    """Return the digests (md5, .dir for folders) of the outputs of all stages, by path."""
    return {out["path"]: out["md5"] for stage in lock.values() for out in stage.get("outs", [])}


def _in_folder(name: str, root: Path) -> Records | None:
    model = (root / name).absolute()
    if not (model / "lineage.json").is_file():
        return None
    if model.parts[-2:] == ("models", "final"):
        return of_folder(model.parents[1], name, *_tracked(model))
    # A copy of a model, as from a hub: it has lineage.json and its own files, nothing else.
    prefix = f"{FINAL}/"
    return Records(
        name,
        root,
        lambda path: _bytes(model / path.removeprefix(prefix)) if path.startswith(prefix) else None,
        model=model,
    )


def _tracked(model: Path) -> tuple[dict[str, Any] | None, dict[str, str] | None]:
    """Return the MLflow run and version of a model's folder; (None, None) without a store that answers."""
    from sft.tracking import address, store

    lineage = parse_json((model / "lineage.json").read_bytes(), str(model / "lineage.json"))
    if not address.has_store():
        return None, None
    try:
        tracked = store.look_up(lineage.get("mlflow_run_id") or lineage["lineage_key"])
    except address.StoreError as error:
        echo(f"[yellow]{escape(str(error))} The following is without it.[/]")
        return None, None
    return (tracked.facts, tracked.version) if tracked else (None, None)


def _in_mlflow(name: str, root: Path, scratch: Path) -> Records | None:
    from sft.tracking import address, store

    tracked = store.look_up(name) if address.has_store() else None
    if tracked is None:
        return None
    content = _bytes(root / LINEAGE)
    if content is not None and _is_of(parse_json(content, LINEAGE), tracked.run_id, tracked.version or {}):
        return of_folder(root, name, tracked.facts, tracked.version)
    folder = store.fetch_records(tracked.run_id, Path(tempfile.mkdtemp(dir=scratch)))
    read = _with_cache(root, lambda path: _bytes(folder / path))
    return Records(name, root, read, run=tracked.facts, version=tracked.version)


def _is_of(lineage: dict[str, Any], run_id: str, version: dict[str, str]) -> bool:
    """Whether a lineage.json is of a run, by the run id or, if MLflow did not answer during training, by the key."""
    if lineage["mlflow_run_id"]:
        return bool(lineage["mlflow_run_id"] == run_id)
    return bool(lineage["lineage_key"] == version.get("lineage_key"))


def _in_git(name: str, root: Path) -> Records | None:
    experiments = _git(root, "for-each-ref", "--format=%(refname)", "refs/exps") or b""
    named = [ref for ref in experiments.decode().split() if ref.rpartition("/")[2] == name]
    commit = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{[*named, name][0]}^{{commit}}")
    if commit is None:
        return None
    revision = commit.decode().strip()
    return Records(name, root, _with_cache(root, lambda path: _git(root, "show", f"{revision}:./{path}")))


def _with_cache(root: Path, read: Read) -> Read:
    """Return a reader that falls back to DVC's cache, by the digest in dvc.lock."""
    known = functools.cache(lambda: outs(parse_lock(read(LOCK))))

    def anywhere(path: str) -> bytes | None:
        content = read(path)
        if content is not None or path == LOCK:
            return content
        for out, md5 in known().items():
            if out == path:
                return _bytes(cached(root, md5))
            if path.startswith(f"{out}/") and md5.endswith(".dir"):
                inner = (listing(root, md5) or {}).get(path.removeprefix(f"{out}/"))
                return _bytes(cached(root, inner)) if inner else None
        return None

    return anywhere


def listing(root: Path, md5: str) -> dict[str, str] | None:
    """Return {path: md5} of the files of a folder in DVC's cache; None if it is not there, or damaged."""
    content = _bytes(cached(root, md5))
    if content is None or hashlib.md5(content, usedforsecurity=False).hexdigest() != md5.removesuffix(".dir"):
        return None
    return {entry["relpath"]: entry["md5"] for entry in json.loads(content)}


def cached(root: Path, md5: str) -> Path:
    """Return the path of an object in DVC's cache."""
    return cache_folder(root) / "files/md5" / md5[:2] / md5[2:]


@functools.cache
def cache_folder(root: Path) -> Path:
    """Return the folder of DVC's cache."""
    command = [sys.executable, "-m", "dvc", "cache", "dir"]
    done = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
    return Path(done.stdout.strip()) if done.returncode == 0 else root / ".dvc/cache"


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _git(root: Path, *arguments: str) -> bytes | None:
    done = subprocess.run(["git", "-C", str(root), *arguments], check=False, capture_output=True)
    return done.stdout if done.returncode == 0 else None
