"""Records: the texts that tell of one training (lock, reports, lineage.json), wherever they are.

A model is named by its folder, by a version in MLflow (name/version or name@alias), by the id of a run, by a
lineage key, or by a git revision or DVC experiment; what is found is one thing to read from. What git and the
folder lack, DVC's cache may hold: dvc.lock names it. Nothing is changed.
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
    """What tells of one training."""

    name: str
    """As it was asked for."""
    root: Path
    """The project: its git repository has the commit, its cache may have the data."""
    read: Read
    """Bytes of a file, by its place in the project; None where nobody has it."""
    folder: Path | None = None
    """The project whose files on disk belong to this training: what can be verified."""
    model: Path | None = None
    """A copy of the model, without its project: it can be verified too."""
    run: dict[str, Any] | None = None
    """What MLflow knows of the run."""
    version: dict[str, str] | None = None
    """Tags of the registered version."""

    def json(self, path: str) -> Any:
        """Return the value of a JSON file, {} where it is missing. Raises InputError where it is none."""
        content = self.read(path)
        return {} if content is None else parse_json(content, path)

    def text(self, path: str) -> str:
        """Return a text, "" where it is missing."""
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
        """Return the uncommitted changes that the model was trained with, where somebody kept them."""
        if not (digest := self.lineage.get("patch")):
            return None
        kept = self.root / "runs" / self.lineage["lineage_key"] / patch_name(digest)
        return kept.read_bytes() if kept.exists() else self.read(patch_name(digest))


def find(name: str, root: Path, scratch: Path) -> Records:
    """Find what tells of a model, a run, a revision or an experiment; `scratch` takes what has to be brought.

    Raises:  InputError: nothing has that name.
    """
    found = _in_folder(name, root) or _in_mlflow(name, root, scratch) or _in_git(name, root)
    if found is None and name == FINAL:
        raise InputError(
            f"{FINAL}: not in {root}: no model was trained or brought here yet. Train one: make repro. Bring the one "
            f"that the committed {LOCK} names: dvc pull {FINAL}."
        )
    if found is None:
        raise InputError(
            f"{name!r}: no folder with a lineage.json, no version, run or lineage key in MLflow, no git revision and "
            f"no DVC experiment in {root}. Name a model as in models/final, nano3-sft/1, nano3-sft@champion; "
            "`make mlflow` and `make show` list what there is."
        )
    return found


def of_folder(
    root: Path, name: str = FINAL, run: dict[str, Any] | None = None, version: dict[str, str] | None = None
) -> Records:
    """Return the records of the project in a folder."""
    return Records(
        name, root, _with_cache(root, lambda path: _bytes(root / path)), folder=root, run=run, version=version
    )


def parse_json(content: bytes, path: str) -> Any:
    """Return the value of a JSON file that a stage wrote.

    Raises:  InputError: somebody has spoilt it.
    """
    try:
        return json.loads(content)
    except ValueError as error:  # also of bytes that are no UTF-8
        raise InputError(
            f"{path}: not what the model was made with: expected JSON, found {error}. Bring it again: dvc checkout, "
            "or git checkout for a report"
        ) from None


def parse_lock(content: bytes | None) -> dict[str, Any]:
    """Return the stages of a dvc.lock; {} of none. DVC's own reader reads it."""
    from dvc.utils.serialize import parse_yaml

    return dict(parse_yaml(content.decode("utf-8"), LOCK)["stages"]) if content else {}


def outs(lock: dict[str, Any]) -> dict[str, str]:
    """Return the digests (md5, .dir for folders) of all that stages make, by path, in order of the stages."""
    return {out["path"]: out["md5"] for stage in lock.values() for out in stage.get("outs", [])}


def _in_folder(name: str, root: Path) -> Records | None:
    model = (root / name).absolute()
    if not (model / "lineage.json").is_file():
        return None
    if model.parts[-2:] == ("models", "final"):
        return of_folder(model.parents[1], name, *_tracked(model))
    # A copy of a model, as from a hub: it brings lineage.json and its own files, nothing else.
    prefix = f"{FINAL}/"
    return Records(
        name,
        root,
        lambda path: _bytes(model / path.removeprefix(prefix)) if path.startswith(prefix) else None,
        model=model,
    )


def _tracked(model: Path) -> tuple[dict[str, Any] | None, dict[str, str] | None]:
    """What MLflow knows of the run of a model's folder; a project without a store, or whose store is away, has none."""
    from sft.tracking import store

    told = parse_json((model / "lineage.json").read_bytes(), str(model / "lineage.json"))
    if not store.has_store():
        return None, None
    try:
        tracked = store.look_up(told.get("mlflow_run_id") or told["lineage_key"])
    except store.NoAnswerError as error:
        echo(f"[yellow]{escape(str(error))} What is known without it:[/]")
        return None, None
    return (tracked.facts, tracked.version) if tracked else (None, None)


def _in_mlflow(name: str, root: Path, scratch: Path) -> Records | None:
    from sft.tracking import store

    tracked = store.look_up(name) if store.has_store() else None
    if tracked is None:
        return None
    here = _bytes(root / LINEAGE)
    if here is not None and _is_of(parse_json(here, LINEAGE), tracked.run_id, tracked.version or {}):
        return of_folder(root, name, tracked.facts, tracked.version)
    folder = store.fetch_records(tracked.run_id, Path(tempfile.mkdtemp(dir=scratch)))
    read = _with_cache(root, lambda path: _bytes(folder / path))
    return Records(name, root, read, run=tracked.facts, version=tracked.version)


def _is_of(told: dict[str, Any], run_id: str, version: dict[str, str]) -> bool:
    """Whether a lineage.json is of a run; that of a training that MLflow was not there for names none, but its key."""
    return bool(
        told["mlflow_run_id"] == run_id if told["mlflow_run_id"] else told["lineage_key"] == version.get("lineage_key")
    )


def _in_git(name: str, root: Path) -> Records | None:
    experiments = _git(root, "for-each-ref", "--format=%(refname)", "refs/exps") or b""
    named = [ref for ref in experiments.decode().split() if ref.rpartition("/")[2] == name]
    commit = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{[*named, name][0]}^{{commit}}")
    if commit is None:
        return None
    revision = commit.decode().strip()
    return Records(name, root, _with_cache(root, lambda path: _git(root, "show", f"{revision}:./{path}")))


def _with_cache(root: Path, read: Read) -> Read:
    """Read, and what is not there from DVC's cache, by the digest that dvc.lock has for it."""
    known = functools.cache(lambda: outs(parse_lock(read(LOCK))))

    def anywhere(path: str) -> bytes | None:
        content = read(path)
        if content is not None or path == LOCK:
            return content
        for out, md5 in known().items():
            if out == path:
                return _bytes(cached(root, md5))
            if path.startswith(f"{out}/") and md5.endswith(".dir"):
                listed = listing(root, md5) or {}
                inner = listed.get(path.removeprefix(f"{out}/"))
                return _bytes(cached(root, inner)) if inner else None
        return None

    return anywhere


def listing(root: Path, md5: str) -> dict[str, str] | None:
    """Return {path: md5} of the files of a folder that DVC's cache knows; None where it does not, or it is spoilt."""
    content = _bytes(cached(root, md5))
    if content is None or hashlib.md5(content, usedforsecurity=False).hexdigest() != md5.removesuffix(".dir"):
        return None
    return {entry["relpath"]: entry["md5"] for entry in json.loads(content)}


def cached(root: Path, md5: str) -> Path:
    """Return where DVC's cache keeps an object."""
    return _cache_folder(root) / "files/md5" / md5[:2] / md5[2:]


@functools.cache
def _cache_folder(root: Path) -> Path:
    asked = [sys.executable, "-m", "dvc", "cache", "dir"]
    done = subprocess.run(asked, cwd=root, check=False, capture_output=True, text=True)
    return Path(done.stdout.strip()) if done.returncode == 0 else root / ".dvc/cache"


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _git(root: Path, *arguments: str) -> bytes | None:
    done = subprocess.run(["git", "-C", str(root), *arguments], check=False, capture_output=True)
    return done.stdout if done.returncode == 0 else None
