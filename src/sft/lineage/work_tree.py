"""Which new files of a work tree belong to the code: not your data, and not what looks like a secret.

A git work tree, the file:// addresses in its params.yaml  ->  new files that a patch holds; files that are your data

Data is known by its digests and is yours: it is in no patch unless git has it.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sft.cli import InputError
from sft.params.read import PARAMS, read_text

# What the pipeline writes while it runs: a change there does not make the code dirty.
OWN_OUTPUTS = (":(exclude)reports", ":(exclude)dvc.lock", ":(exclude,glob)**/.gitignore")
SECRET_FILES = (
    ".env*",
    ".netrc",
    ".npmrc",
    ".pypirc",
    "id_rsa*",
    "id_ed25519*",
    "*.pem",
    "*.key",
    "*.p12",
    "*credentials*",
    "*kubeconfig*",
    "config.local",
)
NOT_SECRET = tuple(f":(exclude,glob,icase)**/{pattern}" for pattern in SECRET_FILES)
# New files of rows, in any format of a source, are data, also those that params.yaml no longer names.
ROW_FILES = ("jsonl", "jsonlines", "ndjson", "json", "parquet", "arrow", "feather", "csv", "tsv")
NOT_ROWS = tuple(f":(exclude,glob,icase)**/*.{kind}{more}" for kind in ROW_FILES for more in ("", ".*"))
FILE = "file://"


@contextmanager
def index_of_head(root: Path) -> Iterator[dict[str, str]]:
    """Yield the environment in which git has the index of the commit: what was added but not committed is new."""
    objects = git(root, "rev-parse", "--path-format=absolute", "--git-path", "objects").decode().strip()
    with tempfile.TemporaryDirectory() as scratch:
        environ = {
            "GIT_INDEX_FILE": str(Path(scratch, "index")),
            "GIT_OBJECT_DIRECTORY": scratch,
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": objects,
        }
        git(root, "read-tree", "HEAD", environ=environ)
        yield environ


def new_files(root: Path, environ: Mapping[str, str]) -> list[str]:
    """Return the paths of new files, without your data and what git ignores; `environ`: of `index_of_head`."""
    only = ("--exclude-standard", "--", ".", *OWN_OUTPUTS, *NOT_SECRET, *NOT_ROWS)
    data = set(_others(root, environ, "--exclude-standard", "--", *specs)) if (specs := data_paths(root)) else set()
    return [name for name in _others(root, environ, *only) if name not in data]


def data_files(root: Path, params: Path) -> list[str]:
    """Return the files below `root` that a params.yaml names as data and that no commit has, ignored or not."""
    specs = data_paths(root, params)
    if not specs:
        return []
    with index_of_head(root) as separate:
        return _others(root, separate, "--", *specs)


def data_paths(root: Path, params: Path | None = None) -> list[str]:
    """Return git's patterns of the files below `root` that file:// addresses in params.yaml name."""
    try:
        _, values = read_text(params or root / PARAMS)
    except (InputError, OSError):  # the check of params.yaml says so
        return []
    found = []
    for address in _addresses(values.get("fetch") if isinstance(values, dict) else None):
        path = address.removeprefix(FILE).partition("#sha256=")[0]
        for base in dict.fromkeys((root.absolute(), root.resolve())):  # an address may name it by either
            relative = os.path.relpath(os.path.join(base, path), base)
            if relative == "." or relative.partition("/")[0] == "..":
                continue
            is_pattern = re.search(r"[*?{]", relative)
            found += [f":(glob){each}" for each in _alternatives(relative)] if is_pattern else [f":(literal){relative}"]
    return list(dict.fromkeys(found))


def git(root: Path, *arguments: str, environ: Mapping[str, str] | None = None, given: bytes | None = None) -> bytes:
    """Run git in a folder with some text on its stdin; return what it prints."""
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, input=given, env={**os.environ, **(environ or {})}
    ).stdout


def git_problem(root: Path) -> str | None:
    """Return why git does not name the commit of a folder that has a repository, in its words; None if it does."""
    if not any((folder / ".git").exists() for folder in (root.absolute(), *root.absolute().parents)):
        return None
    try:
        git(root, "rev-parse", "--verify", "HEAD")
    except FileNotFoundError:
        return "git is not on PATH"
    except subprocess.CalledProcessError as error:
        return str((error.stderr.decode(errors="replace").strip().splitlines() or ["git fails"])[0])
    return None


def _addresses(value: Any) -> Iterator[str]:
    """Yield the file:// addresses below a section of params.yaml."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "uri":
                uris = inner if isinstance(inner, list) else [inner]
                yield from (uri for uri in uris if isinstance(uri, str) and uri.startswith(FILE))
            yield from _addresses(inner)


def _alternatives(pattern: str) -> list[str]:
    """Return the patterns of git that a pattern of a source means.

    >>> _alternatives("a/{b,c}/[1]-*.json")
    ['a/b/\\\\[1]-*.json', 'a/c/\\\\[1]-*.json']
    """
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if braces is None:
        return [re.sub(r"([\[\\])", r"\\\1", pattern)]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [path for part in braces[1].split(",") for path in _alternatives(f"{before}{part}{after}")]


def _others(root: Path, environ: Mapping[str, str], *arguments: str) -> list[str]:
    listed = git(root, "ls-files", "-z", "--others", *arguments, environ=environ)
    return [os.fsdecode(name) for name in listed.split(b"\0") if name]
