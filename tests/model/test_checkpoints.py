"""Checkpoints: one that is not, file by file, what was written is not loaded."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sft import files
from sft.command import InputError
from sft.model import checkpoints


def checkpoint_of(folder: Path) -> Path:
    checkpoint = checkpoints.iteration_folder(folder, 2)
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_bytes(b"w" * 100)
    (checkpoint / ".metadata").write_bytes(b"m")
    files.write_json(checkpoints.manifest_of(checkpoint), files.folder_digests(checkpoint))
    return checkpoint


def test_a_checkpoint_as_it_was_written_is_the_final_one(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path)
    checkpoints.verify(checkpoint)
    assert checkpoints.final_checkpoint(tmp_path, 2) == checkpoint
    assert checkpoints.final_checkpoint(tmp_path, 3) is None


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (lambda checkpoint: (checkpoint / ".metadata").write_bytes(b"evil"), ".metadata is changed"),
        (lambda checkpoint: (checkpoint / "weights").unlink(), "weights is missing"),
        (lambda checkpoint: (checkpoint / "more").write_bytes(b""), "more is unknown"),
        (lambda checkpoint: checkpoints.manifest_of(checkpoint).unlink(), "no manifest"),
        (lambda checkpoint: shutil.rmtree(checkpoint), "not found"),
    ],
)
def test_a_checkpoint_that_this_program_did_not_write_is_refused(
    tmp_path: Path, harm: Callable[[Path], object], fault: str
) -> None:
    checkpoint = checkpoint_of(tmp_path)
    harm(checkpoint)
    with pytest.raises(InputError, match=fault):
        checkpoints.verify(checkpoint)
    assert checkpoints.final_checkpoint(tmp_path, 2) is None


def test_a_manifest_lies_outside_of_its_checkpoint() -> None:
    assert checkpoints.manifest_of(Path("run/checkpoints/iter_0000012")) == Path("run/manifests/iter_0000012.json")
    assert checkpoints.manifest_of(Path("start")) == Path("start.manifest.json")


def test_keeping_a_checkpoint_removes_the_oldest_with_its_manifest(tmp_path: Path) -> None:
    for iteration in (1, 2, 3):
        folder = checkpoints.iteration_folder(tmp_path, iteration)
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"w")
        checkpoints.keep(tmp_path, iteration, most_recent=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["iter_0000002", "iter_0000003"]
    assert sorted(path.stem for path in (tmp_path / "manifests").iterdir()) == ["iter_0000002", "iter_0000003"]
    assert checkpoints.newest_whole(tmp_path) == checkpoints.iteration_folder(tmp_path, 3)
