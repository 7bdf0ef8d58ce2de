"""work_tree: new files are code, unless params.yaml names them as data or their name says that they hold secrets."""

import subprocess
from pathlib import Path

import pytest

from sft.lineage.patch import dirty_patch
from sft.lineage.record import git_state
from sft.lineage.work_tree import data_files, git_problem


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "edited.py").write_text("# one\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "one")
    return folder


ADDRESSES = ["file://mine.jsonl", "file://deep/{a,b}/[x]*.jsonl", "file://folder", "file://edited.py", "file://."]


@pytest.mark.parametrize("is_added", [False, True])
def test_your_data_is_in_no_patch_unless_git_has_it(repository, is_added):
    """Added to git's index is not committed yet."""
    uris = [*ADDRESSES, f"file://{repository}/absolute.jsonl", "file:///elsewhere/x"]
    entries = "".join(f"    s{number}: {{uri: '{uri}'}}\n" for number, uri in enumerate(uris))
    (repository / "params.yaml").write_text(f"fetch:\n  sources:\n{entries}")
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "two")
    mine = ("mine.jsonl", "deep/a/[x]1.jsonl", "deep/b/[x].jsonl", "folder/deep/x.jsonl", "absolute.jsonl")
    for name in mine:
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text("private\n")
    if is_added:
        git(repository, "add", "-A")
    assert git_state(repository)[1] is False
    assert dirty_patch(repository) is None
    assert set(data_files(repository, repository / "params.yaml")) == set(mine)
    (repository.parent / "link").symlink_to(repository)
    assert dirty_patch(repository.parent / "link") is None
    (repository / "deep/a/code.py").write_text("new\n")
    (repository / "deep/c").mkdir()
    (repository / "deep/c/[x]1.jsonl").write_text("private: of params.yaml before, or of the next\n")
    (repository / "rows.JSON.zst").write_text("private\n")
    (repository / "edited.py").write_text("edited\n")
    changes = dirty_patch(repository).decode()
    assert git_state(repository)[1] is True
    assert "private" not in changes
    assert changes.count("diff --git") == 2


def test_a_new_file_that_looks_like_a_secret_does_not_make_the_code_dirty(repository):
    """There would be no patch to build the model with."""
    (repository / ".env").write_text("hidden\n")
    assert git_state(repository)[1] is False


def test_a_repository_that_git_does_not_read_is_named_and_a_folder_without_one_is_not(
    repository, tmp_path, monkeypatch
):
    assert git_problem(tmp_path) is None
    assert git_problem(repository) is None
    with monkeypatch.context() as patch:
        patch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
        assert "dubious ownership" in git_problem(repository)
        patch.setenv("PATH", str(tmp_path))
        assert git_problem(repository) == "git is not on PATH"
    (tmp_path / "empty").mkdir()
    git(tmp_path / "empty", "init", "-q")
    assert git_problem(tmp_path / "empty") is not None
