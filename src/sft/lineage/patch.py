"""The uncommitted changes of a work tree as a patch, so that a model trained with them can be built again.

A git work tree  ->  a patch for `git apply --binary`: changed, deleted and new files, without those that git ignores,
                     those that the pipeline writes, and those whose name says that they hold secrets

The work tree and its index do not change. A patch that is too large, or that holds the value of an environment variable
named like a secret, is an error before training begins.
"""

import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from sft.cli import InputError
from sft.files import publish_file
from sft.lineage.record import OWN_OUTPUTS, git_state

MAX_BYTES = 5 << 20
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
SECRET_NAME = re.compile("TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|PRIVATE_?KEY|CREDENTIAL", re.IGNORECASE)
MIN_SECRET_CHARS = 8  # shorter values are in ordinary text by chance
DIGITS = 16
MAX_NAMED = 3  # files in a message


def dirty_patch(root: Path, environ: Mapping[str, str] = os.environ) -> bytes | None:
    """Return the changes of the work tree at `root` since its commit; None if there are none, or it has no repository.

    Raises:  InputError: the patch is larger than MAX_BYTES, or holds a secret of the environment.
    """
    commit, dirty = git_state(root)
    if commit is None or not dirty:
        return None
    secret_files = [f":(exclude,glob,icase)**/{pattern}" for pattern in SECRET_FILES]
    only = ["--", ".", *OWN_OUTPUTS, *secret_files]
    with tempfile.TemporaryDirectory() as scratch:
        objects = _git(root, "rev-parse", "--path-format=absolute", "--git-path", "objects").decode().strip()
        # A separate index and object folder: new files are in the patch, and git's own index does not change.
        separate = {
            "GIT_INDEX_FILE": str(Path(scratch, "index")),
            "GIT_OBJECT_DIRECTORY": scratch,
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": objects,
        }
        _check_new_files(root, _git(root, "ls-files", "-z", "--others", "--exclude-standard", *only))
        _git(root, "read-tree", "HEAD", **separate)
        _git(root, "add", "--all", *only, **separate)
        patch = _git(root, "diff", "--cached", "--binary", "--no-ext-diff", "--no-textconv", "HEAD", *only, **separate)
    if len(patch) > MAX_BYTES:
        raise InputError(f"{root}: the patch of uncommitted changes has {_mib(len(patch))}. {_remedy()}")
    _check_secrets(patch, environ)
    return patch or None


def keep_patch(patch: bytes, folder: Path) -> Path:
    """Publish a patch in the folder of a run, named by its digest; return its path."""
    path = folder / patch_name(hashlib.sha256(patch).hexdigest())
    with publish_file(path) as partial:
        partial.write_bytes(patch)
    return path


def patch_name(digest: str) -> str:
    """Return the file name of a patch by its digest."""
    return f"{digest[:DIGITS]}.patch"


def _check_new_files(root: Path, listed: bytes) -> None:
    """Check the sizes of new files before any is read."""
    names = [os.fsdecode(name) for name in listed.split(b"\0") if name]
    sizes = sorted((((root / name).lstat().st_size, name) for name in names), reverse=True)
    if (total := sum(size for size, _ in sizes)) > MAX_BYTES:
        largest = ", ".join(f"{name} ({_mib(size)})" for size, name in sizes[:MAX_NAMED])
        raise InputError(f"{root}: {len(sizes)} new files have {_mib(total)}. The largest: {largest}. {_remedy()}")


def _check_secrets(patch: bytes, environ: Mapping[str, str]) -> None:
    for name, value in sorted(environ.items()):
        if SECRET_NAME.search(name) and len(value) >= MIN_SECRET_CHARS and value.encode() in patch:
            raise InputError(
                f"uncommitted changes hold the value of {name}, and the model keeps them. "
                "Remove it from the files, or add the file to .gitignore."
            )


def _remedy() -> str:
    return f"The model keeps at most {_mib(MAX_BYTES)} of changes. Commit the files, or add them to .gitignore."


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB"


def _git(root: Path, *arguments: str, **environ: str) -> bytes:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, env={**os.environ, **environ}).stdout
