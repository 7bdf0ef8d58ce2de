"""A fresh clone of this checkout, for tests that run commands of its documentation or its whole pipeline."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def clone_checkout(folder: Path) -> Path:
    """Make `folder` a git repository with one commit: this checkout with its uncommitted edits.

    Its .venv is a link to the environment that runs the tests, so that nothing is installed.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():  # a deletion that is not committed yet is a deletion there too
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    run_in(
        folder,
        "git init -q -b main && echo /.venv >> .git/info/exclude && git add -A && git commit -q -m clone",
    )
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def run_in(folder: Path, script: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run a shell script in a clone, with the programs of this environment; it must end with 0."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("MAKE", "GIT_", "DVC_"))
            },
            "PATH": f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "DVC_SITE_CACHE_DIR": str(folder / ".dvc" / "tmp" / "site"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_AUTHOR_NAME": "test",
            "GIT_AUTHOR_EMAIL": "test@example.org",
            "GIT_COMMITTER_NAME": "test",
            "GIT_COMMITTER_EMAIL": "test@example.org",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    return done


@pytest.fixture(scope="session")
def tiny_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the pipeline runs in minutes."""
    return clone_checkout(tmp_path_factory.mktemp("tiny") / "project")
