"""A dvc.lock that a killed DVC left empty or cut off comes back from git."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.experiments.dvc_lock import DAMAGED, LOCK, restore_lock
from tests.support.finished_project import commit_all, make_recorded
from tests.support.project import ROOT


@pytest.fixture
def whole(tmp_path, monkeypatch):
    """The dvc.lock of a committed project, in which the test runs."""
    project = make_recorded(tmp_path / "project")
    commit_all(project)
    monkeypatch.chdir(project)
    return LOCK.read_bytes()


@pytest.mark.parametrize("kept", [0, 5, 100, 101, 900, -1])  # 100: at the end of a line
def test_it_is_restored_and_said_and_what_was_left_of_it_is_kept(whole, capsys, kept):
    left = whole[:kept]
    LOCK.write_bytes(left)
    restore_lock()
    assert LOCK.read_bytes() == whole
    said = capsys.readouterr().out
    assert said.startswith(f"{LOCK}: was {'cut off' if left else 'empty'}")
    assert "Restored from the last commit" in said
    assert (DAMAGED.read_bytes() if left else b"") == left


def test_a_whole_or_missing_one_is_left_alone(whole, capsys):
    restore_lock()
    assert LOCK.read_bytes() == whole
    LOCK.unlink()
    restore_lock()
    assert not LOCK.exists()
    assert capsys.readouterr().out == ""


def test_conflicts_of_a_merge_are_left_to_the_user(whole):
    conflict = b"<<<<<<< HEAD\n" + whole + b"=======\n>>>>>>> other\n"
    LOCK.write_bytes(conflict)
    with pytest.raises(InputError, match="git checkout --ours"):
        restore_lock()
    assert LOCK.read_bytes() == conflict


def test_one_that_git_does_not_have_is_an_error_that_says_what_to_do(whole):
    subprocess.run(["git", "update-ref", "-d", "HEAD"], check=True)
    LOCK.write_bytes(b"")
    with pytest.raises(InputError, match=r"rm dvc\.lock"):
        restore_lock()
    assert LOCK.read_bytes() == b""


def test_a_dvc_that_is_just_writing_it_is_not_taken_for_a_killed_one(whole):
    """DVC holds its own lock while it writes: then nothing is restored."""
    from dvc.repo import Repo

    LOCK.write_bytes(whole[:100])
    with Repo(str(Path.cwd())) as repo, repo.lock:
        program = [sys.executable, "-c", "from sft.experiments.dvc_lock import restore_lock; restore_lock()"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        done = subprocess.run(program, check=False, capture_output=True, text=True, env=environment)
    assert "another DVC is writing it" in done.stderr
    assert LOCK.read_bytes() == whole[:100]
