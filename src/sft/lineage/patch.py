"""The uncommitted changes of a work tree as a patch, so that a model trained with them can be built again.

A git work tree  ->  a patch for `git apply --binary`: changed, deleted and new files, without those that git ignores,
                     those that the pipeline writes, those whose name says that they hold secrets, and new files that
                     are your data (file:// in params.yaml)

The work tree and its index do not change. A patch that is too large, or that holds the value of an environment variable
named like a secret, is an error before training begins.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from sft.cli import InputError
from sft.files import publish_file
from sft.lineage.record import git_state
from sft.lineage.work_tree import NOT_SECRET, OWN_OUTPUTS, git, index_of_head, new_files

MAX_BYTES = 5 << 20
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
    only = ["--", ".", *OWN_OUTPUTS, *NOT_SECRET]
    # A separate index and object folder: new files are in the patch, and git's own index does not change.
    with index_of_head(root) as separate:
        new = new_files(root, separate)
        _check_sizes(root, new)
        git(root, "add", "--update", *only, environ=separate)
        names = b"".join(os.fsencode(name) + b"\0" for name in new)
        if names:
            add = ("--literal-pathspecs", "add", "--pathspec-from-file=-", "--pathspec-file-nul")
            git(root, *add, given=names, environ=separate)
        patch = git(
            root, "diff", "--cached", "--binary", "--no-ext-diff", "--no-textconv", "HEAD", *only, environ=separate
        )
    if len(patch) > MAX_BYTES:
        raise InputError(f"{root}: the patch of uncommitted changes has {_mib(len(patch))}. {_remedy()}")
    _check_secrets(patch, environ)
    return patch or None


def tracked_changes(root: Path) -> bytes:
    """Return the changes of the files that git tracks at `root`, without new ones, such as a log being written."""
    if git_state(root)[0] is None:
        return b""
    with index_of_head(root) as separate:
        only = ("--", ".", *OWN_OUTPUTS, *NOT_SECRET)
        return git(root, "diff", "--binary", "--no-ext-diff", "--no-textconv", "HEAD", *only, environ=separate)


def keep_patch(patch: bytes, folder: Path) -> Path:
    """Publish a patch in the folder of a run, named by its digest; return its path."""
    path = folder / patch_name(hashlib.sha256(patch).hexdigest())
    with publish_file(path) as partial:
        partial.write_bytes(patch)
    return path


def patch_name(digest: str) -> str:
    """Return the file name of a patch by its digest."""
    return f"{digest[:DIGITS]}.patch"


def _check_sizes(root: Path, names: list[str]) -> None:
    """Check the sizes of new files before any is read."""
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
