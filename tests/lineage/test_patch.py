"""patch: the changes of a work tree since its commit are kept whole, and hold no secret."""

import os
import subprocess
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.lineage import patch
from sft.lineage.patch import dirty_patch, keep_patch, tracked_changes


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q")
    for name in ("edited.py", "deleted.py", "same.py"):
        (folder / name).write_text(f"# {name}\n")
    (folder / ".gitignore").write_text("ignored/\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "one")
    return folder


def change(folder):
    (folder / "edited.py").write_text("# other\n")
    (folder / "deleted.py").unlink()
    (folder / "new").mkdir()
    (folder / "new/module.py").write_text("x = 1\n")
    (folder / "new/binary").write_bytes(bytes(range(256)))
    (folder / "new/run.sh").write_text("true\n")
    (folder / "new/run.sh").chmod(0o755)


def files(folder):
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), os.access(path, os.X_OK))
        for path in folder.rglob("*")
        if path.is_file() and ".git" not in path.relative_to(folder).parts
    }


def test_a_clean_tree_and_a_folder_without_git_have_no_patch(repository, tmp_path):
    assert dirty_patch(repository) is None
    assert dirty_patch(tmp_path) is None


def test_a_log_that_grows_is_no_change_of_a_tracked_file(repository, tmp_path):
    (repository / "repro.log").write_text("stage 1\n")
    assert tracked_changes(repository) == tracked_changes(tmp_path) == b""
    (repository / "edited.py").write_text("# other\n")
    before = tracked_changes(repository)
    (repository / "repro.log").write_text("stage 1\nstage 2\n")
    assert before == tracked_changes(repository) != b""
    (repository / "deleted.py").unlink()
    assert before != tracked_changes(repository)


def test_commit_and_patch_make_the_tree_again_and_leave_it_as_it_was(repository, tmp_path):
    change(repository)
    status, objects = git(repository, "status", "--porcelain"), git(repository, "count-objects")
    changes = dirty_patch(repository)
    assert changes == dirty_patch(repository)
    assert (git(repository, "status", "--porcelain"), git(repository, "count-objects")) == (status, objects)
    kept = keep_patch(changes, tmp_path / "run")
    again = tmp_path / "again"
    git(repository, "worktree", "add", "--quiet", "--detach", str(again), "HEAD")
    git(again, "apply", "--binary", str(kept))
    (again / ".git").unlink()
    assert files(again) == files(repository)
    assert len(files(again)) == 6


def test_what_git_ignores_what_the_pipeline_writes_and_files_of_secrets_are_left_out(repository):
    for name in (
        "ignored/a",
        "reports/pack.json",
        "dvc.lock",
        "data/.gitignore",
        ".env",
        "deep/.env.local",
        "deep/id_rsa",
        "deep/server.PEM",
        "aws-credentials.json",
    ):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text("hidden\n")
    (repository / "seen.py").write_text("seen\n")
    changes = dirty_patch(repository).decode()
    assert "seen" in changes
    assert "hidden" not in changes
    assert changes.count("diff --git") == 1


def test_changes_that_are_too_large_are_refused_with_the_largest_file(repository, monkeypatch):
    monkeypatch.setattr(patch, "MAX_BYTES", 1000)
    (repository / "small.txt").write_text("a" * 10)
    (repository / "large.bin").write_bytes(os.urandom(2000))
    with pytest.raises(InputError, match=r"large\.bin.*\.gitignore"):
        dirty_patch(repository)
    (repository / "large.bin").unlink()
    (repository / "edited.py").write_bytes(os.urandom(5000).hex().encode())
    with pytest.raises(InputError, match=r"project: .*\.gitignore"):
        dirty_patch(repository)


def test_a_secret_of_the_environment_is_refused_by_name_and_not_shown(repository):
    (repository / "notes.txt").write_text("use hunter2hunter2 there\n")
    with pytest.raises(InputError, match="MY_API_KEY") as error:
        dirty_patch(repository, {"MY_API_KEY": "hunter2hunter2", "HOME": "there"})
    assert "hunter2" not in str(error.value)
    assert dirty_patch(repository, {"MY_API_KEY": "use", "OTHER": "hunter2hunter2"}) is not None
