"""checkpoints: one whose files differ from its manifest is not loaded; which ones are kept."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft import files
from sft.cli import InputError
from sft.hashing import folder_digests
from sft.params import training as p
from sft.training import checkpoints, manifests


def checkpoint_of(folder: Path) -> Path:
    checkpoint = checkpoints.iteration_folder(folder, 2)
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_bytes(b"w" * 100)
    (checkpoint / ".metadata").write_bytes(b"m")
    files.write_json(checkpoints.manifest_of(checkpoint), folder_digests(checkpoint))
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
def test_a_checkpoint_that_differs_from_its_manifest_is_not_loaded(
    tmp_path: Path, harm: Callable[[Path], object], fault: str
) -> None:
    checkpoint = checkpoint_of(tmp_path)
    harm(checkpoint)
    with pytest.raises(InputError, match=f"iter_0000002: {fault}"):
        checkpoints.verify(checkpoint)
    assert checkpoints.final_checkpoint(tmp_path, 2) is None


def test_a_run_whose_folder_cannot_be_read_does_not_start_again_at_step_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shared disk that fails for a moment; a run without a folder has no checkpoint yet."""
    assert checkpoints.last_finished_step(tmp_path) is None

    def fail(*path: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO), *path)

    monkeypatch.setattr(os, "listdir", fail)
    monkeypatch.setattr(os, "scandir", fail)
    for look in (checkpoints.last_finished_step, checkpoints.newest_intact):
        with pytest.raises(OSError, match="Input/output"):
            look(tmp_path)


def test_a_manifest_is_outside_of_its_checkpoint() -> None:
    assert checkpoints.manifest_of(Path("run/checkpoints/iter_0000012")) == Path("run/manifests/iter_0000012.json")
    assert checkpoints.manifest_of(Path("start")) == Path("start.manifest.json")


def checkpoint_params(**changes: Any) -> p.Checkpoint:
    values = {
        "save_interval": 2,
        "most_recent_k": 2,
        "save_retain_interval": None,
        "async_save": False,
        "export": "last",
        "pretrained_checkpoint": None,
    }
    return p.Checkpoint.model_validate(values | changes)


def save(run: Path, iteration: int, params: p.Checkpoint, loss: float | None = None) -> None:
    """Do what a training does at a step: validate, write a checkpoint, remove those that are not kept."""
    if loss is not None:
        checkpoints.record_loss(run, iteration, loss)
    folder = checkpoints.iteration_folder(run, iteration)
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"w")
    checkpoints.finish_save(folder, folder_digests(folder), params)


def saved_steps(run: Path) -> list[int]:
    """Steps with a checkpoint; exactly these have a manifest."""
    steps = sorted(int(path.name.removeprefix("iter_")) for path in (run / "checkpoints").iterdir())
    assert [f"iter_{step:07d}" for step in steps] == sorted(path.stem for path in (run / "manifests").iterdir())
    return steps


def test_keeping_a_checkpoint_removes_the_oldest_with_its_manifest(tmp_path: Path) -> None:
    for iteration in (1, 2, 3):
        save(tmp_path, iteration, checkpoint_params())
    assert saved_steps(tmp_path) == [2, 3]
    assert checkpoints.newest_intact(tmp_path) == checkpoints.iteration_folder(tmp_path, 3)


def write_shards(run: Path, iteration: int, ranks: int) -> Path:
    """Write a checkpoint as torch_dist lays it out: shards of each rank, and files of the first one."""
    folder = checkpoints.iteration_folder(run, iteration)
    folder.mkdir(parents=True)
    for rank in range(ranks):
        (folder / f"__{rank}_0.distcp").write_bytes(b"w" * rank)
    (folder / "metadata.json").write_bytes(b"{}")
    return folder


@pytest.mark.parametrize("is_changed", [False, True])
def test_a_checkpoint_whose_hashing_was_interrupted_is_resumed_from_unless_it_changed(
    tmp_path: Path, is_changed: bool
) -> None:
    save(tmp_path, 2, checkpoint_params())
    folder = write_shards(tmp_path, 4, ranks=2)
    manifest = checkpoints.manifest_of(folder)
    files.write_json(manifests.record_of_save(manifest), manifests.stamps(folder))
    files.write_json(manifest.with_suffix(".rank-1.json"), {})
    write_shards(tmp_path, 6, ranks=2)  # killed inside the save
    if is_changed:
        (folder / "__1_0.distcp").write_bytes(b"evil")
    assert checkpoints.last_finished_step(tmp_path) == 4
    newest = checkpoints.newest_intact(tmp_path)
    assert newest == checkpoints.iteration_folder(tmp_path, 2 if is_changed else 4)
    assert newest is not None
    checkpoints.verify(newest)
    assert saved_steps(tmp_path) == ([2] if is_changed else [2, 4])


@pytest.mark.parametrize("is_hashed", [False, True])
def test_a_lost_shard_is_named_when_training_resumes_and_when_it_is_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_hashed: bool
) -> None:
    save(tmp_path, 2, checkpoint_params())
    folder = write_shards(tmp_path, 4, ranks=2)
    manifest = checkpoints.manifest_of(folder)
    if is_hashed:
        files.write_json(manifest, folder_digests(folder))
    else:
        files.write_json(manifests.record_of_save(manifest), manifests.stamps(folder))
    (folder / "__1_0.distcp").unlink()
    if is_hashed:
        with pytest.raises(InputError, match=r"iter_0000004: __1_0.distcp is missing"):
            checkpoints.verify(folder)
        with pytest.raises(InputError, match=r"of step 4.* Not usable: iter_0000004 \(__1_0.distcp is missing\)"):
            checkpoints.find_checkpoint(tmp_path, 4)
    assert checkpoints.newest_intact(tmp_path) == checkpoints.iteration_folder(tmp_path, 2)
    shown = " ".join(capsys.readouterr().out.split())
    assert "damaged (__1_0.distcp is missing). Removed; training resumes from the checkpoint before it" in shown


def test_checkpoints_at_the_retain_interval_are_kept_for_good(tmp_path: Path) -> None:
    for iteration in range(2, 14, 2):
        save(tmp_path, iteration, checkpoint_params(most_recent_k=1, save_retain_interval=6))
    assert saved_steps(tmp_path) == [6, 12]


def test_the_best_checkpoint_stays_and_becomes_the_model(tmp_path: Path) -> None:
    by_loss = checkpoint_params(most_recent_k=1, export="best")
    for iteration, loss in ((2, 0.9), (4, 0.5), (6, None), (8, 0.7)):
        save(tmp_path, iteration, by_loss, loss)
    assert saved_steps(tmp_path) == [4, 8]
    assert checkpoints.checkpoint_to_export(tmp_path, 8, by_loss) == checkpoints.iteration_folder(tmp_path, 4)
    assert checkpoints.checkpoint_to_export(tmp_path, 8, checkpoint_params()) == checkpoints.iteration_folder(
        tmp_path, 8
    )
    assert checkpoints.checkpoint_to_export(tmp_path, 10, by_loss) is None, "the run is not complete"


def test_a_checkpoint_that_is_being_written_is_not_removed(tmp_path: Path) -> None:
    checkpoints.iteration_folder(tmp_path, 9).mkdir(parents=True)
    for iteration in (2, 4):
        save(tmp_path, iteration, checkpoint_params(most_recent_k=1))
    assert checkpoints.last_finished_step(tmp_path) == 4
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["iter_0000004", "iter_0000009"]


def test_the_rest_of_a_checkpoint_whose_removal_was_interrupted_is_removed_with_the_next(tmp_path: Path) -> None:
    for iteration in (2, 4):
        save(tmp_path, iteration, checkpoint_params())
    checkpoints.manifest_of(checkpoints.iteration_folder(tmp_path, 2)).unlink()
    save(tmp_path, 6, checkpoint_params())
    assert saved_steps(tmp_path) == [4, 6]


def test_a_checkpoint_that_is_being_hashed_is_not_called_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 2, checkpoint_params())
    folder = write_shards(tmp_path, 4, ranks=2)
    files.write_json(manifests.record_of_save(checkpoints.manifest_of(folder)), manifests.stamps(folder))
    assert checkpoints.find_checkpoint(tmp_path, None) == checkpoints.iteration_folder(tmp_path, 2)
    shown = " ".join(capsys.readouterr().out.split())
    assert "skipped: iter_0000004 (not hashed yet" in shown
    assert "damaged" not in shown


def test_equally_good_checkpoints_give_the_first_and_none_validated_none() -> None:
    assert checkpoints.best_step([2, 4, 6], {4: 0.5, 6: 0.5, 8: 0.1}) == 4
    assert checkpoints.best_step([2, 4], {}) is None


def test_a_best_checkpoint_that_was_changed_is_not_exported(tmp_path: Path) -> None:
    by_loss = checkpoint_params(most_recent_k=1, export="best")
    for iteration, loss in ((2, 0.1), (4, 0.5)):
        save(tmp_path, iteration, by_loss, loss)
    (checkpoints.iteration_folder(tmp_path, 2) / "weights").write_bytes(b"evil")
    with pytest.raises(InputError, match="weights is changed"):
        checkpoints.checkpoint_to_export(tmp_path, 4, by_loss)


def test_a_step_is_found_or_the_message_has_those_that_exist(tmp_path: Path) -> None:
    for iteration in (2, 4):
        save(tmp_path, iteration, checkpoint_params())
    assert checkpoints.find_checkpoint(tmp_path, 2) == checkpoints.iteration_folder(tmp_path, 2)
    assert checkpoints.find_checkpoint(tmp_path, None) == checkpoints.iteration_folder(tmp_path, 4)
    with pytest.raises(InputError, match=r"of step 3\..* 2, 4\."):
        checkpoints.find_checkpoint(tmp_path, 3)


def test_a_changed_checkpoint_is_skipped_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for iteration in (2, 4):
        save(tmp_path, iteration, checkpoint_params())
    (checkpoints.iteration_folder(tmp_path, 4) / "weights").write_bytes(b"evil")
    with pytest.raises(InputError, match=r"iter_0000004 \(weights is changed\)"):
        checkpoints.find_checkpoint(tmp_path, 4)
    assert checkpoints.find_checkpoint(tmp_path, None) == checkpoints.iteration_folder(tmp_path, 2)
    assert "iter_0000004 (weights is changed)" in " ".join(capsys.readouterr().out.split())


def test_the_retain_interval_is_a_multiple_of_the_save_interval() -> None:
    with pytest.raises(ValueError, match=r"save_retain_interval 3 .*save_interval 2"):
        checkpoint_params(save_retain_interval=3)
