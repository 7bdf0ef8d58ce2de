"""Checkpoints of Megatron: manifests that protect them, and which ones of a run are kept.

Loading torch_dist unpickles, so a foreign or changed checkpoint could run code. A checkpoint is loaded only if its
files match the manifest that this program wrote outside of it, or the digest that params.yaml gives.

A run's folder: checkpoints/iter_0000012/, manifests/iter_0000012.json, validation_losses.json.
"""

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.markup import escape

from sft.cli import InputError, echo
from sft.files import read_json, write_json
from sft.hashing import folder_digests, value_digest
from sft.params import training as p
from sft.training import manifests

TRACKER = "latest_checkpointed_iteration.txt"
"""Megatron's file in checkpoints/ with the step of the newest checkpoint that is fully on disk."""
LOSSES = "validation_losses.json"


def iteration_folder(run: Path, iteration: int) -> Path:
    """Return the folder of a step's checkpoint, named as Bridge does."""
    return run / "checkpoints" / f"iter_{iteration:07d}"


def step_of(checkpoint: Path) -> int:
    """Return the step of a checkpoint."""
    return int(checkpoint.name.removeprefix("iter_"))


def manifest_of(checkpoint: Path) -> Path:
    """Return the path of a checkpoint's manifest, which is outside of the checkpoint."""
    if checkpoint.name.startswith("iter_"):
        return checkpoint.parent.parent / "manifests" / f"{checkpoint.name}.json"
    return checkpoint.with_name(f"{checkpoint.name}.manifest.json")


def fault_of(checkpoint: Path, sha256: str | None = None, digests: dict[str, str] | None = None) -> str | None:
    """Return how a checkpoint differs from its manifest, or from the digest of a foreign one; None if it does not.

    `digests`: those of its files, if they are known.
    """
    manifest = manifest_of(checkpoint)
    if not checkpoint.is_dir():
        return "not found"
    if sha256 is None and not manifest.exists():
        if manifests.record_of_save(manifest).exists():
            return "not hashed yet: the training of its run does that, or will when it resumes"
        return f"no manifest {manifest}"
    found = folder_digests(checkpoint) if digests is None else digests
    if sha256 is not None:
        digest = value_digest(found)
        return None if digest == sha256 else f"its files have the digest {digest}, expected {sha256}"
    return _difference(read_json(manifest), found)


def _difference(expected: dict[str, Any], found: dict[str, Any]) -> str | None:
    """Return how the files of a checkpoint differ from those of its manifest, both by name; None if they do not."""
    different = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    if not different:
        return None
    name = different[0]
    state = "missing" if name not in found else "unknown" if name not in expected else "changed"
    return f"{name} is {state}" + (f", and {len(different) - 1} more files differ" if different[1:] else "")


def verify(checkpoint: Path, sha256: str | None = None, digests: dict[str, str] | None = None) -> None:
    """Raise InputError unless a checkpoint's files match its manifest, or the digest of a foreign one."""
    fault = fault_of(checkpoint, sha256, digests)
    if fault is not None:
        raise InputError(
            f"{checkpoint}: {fault}. A Megatron checkpoint can run code when it is loaded, so its files must match "
            "their manifest. Remove it and rerun to create it again."
        )


def final_checkpoint(run: Path, iterations: int) -> Path | None:
    """Return the intact checkpoint of the last step, or None while the run is not complete."""
    checkpoint = iteration_folder(run, iterations)
    return checkpoint if fault_of(checkpoint) is None else None


def newest_intact(
    run: Path,
    digests_of: Callable[[Path], dict[str, str]] = folder_digests,
    decide: Callable[[Callable[[], Any]], Any] = lambda function: function(),
) -> Path | None:
    """Return the checkpoint to resume from, or None. Removes newer damaged ones (killed while saving).

    Under torchrun every rank calls it: `digests_of` returns on all of them what they hash together, `decide` what the
    first one decides.
    """
    while (checkpoint := decide(lambda: _newest_whole(run))) is not None:
        digests = digests_of(checkpoint)
        if decide(functools.partial(_is_intact, checkpoint, digests)):
            return Path(checkpoint)
    return None


def _newest_whole(run: Path) -> Path | None:
    """Return the newest checkpoint whose save ended; remove newer ones."""
    for checkpoint in reversed(saved_checkpoints(run)):
        if _is_whole(checkpoint):
            return checkpoint
        _remove_damaged(checkpoint, f"no manifest {manifest_of(checkpoint)}")
    return None


def _is_intact(checkpoint: Path, digests: dict[str, str]) -> bool:
    """Whether a checkpoint is as it was saved; write its manifest if the end of the process came first. Else remove it.

    `digests`: of its files.
    """
    manifest = manifest_of(checkpoint)
    if manifest.exists():
        fault = fault_of(checkpoint, digests=digests)
    else:
        fault = _difference(read_json(manifests.record_of_save(manifest)), manifests.stamps(checkpoint))
        if fault is None:
            write_json(manifest, digests)
    for file in _unfinished(manifest):
        file.unlink()
    if fault is not None:
        _remove_damaged(checkpoint, fault)
    return fault is None


def _remove_damaged(checkpoint: Path, fault: str) -> None:
    echo(f"{checkpoint}: damaged ({fault}). Removed; training resumes from the checkpoint before it.")
    remove(checkpoint)


def last_saved_step(run: Path) -> int:
    """Return the step of the newest checkpoint on disk; with async_save, training is already further."""
    return int((run / "checkpoints" / TRACKER).read_text(encoding="utf-8"))


def last_finished_step(run: Path) -> int | None:
    """Return the newest step whose save ended, or None; reads no checkpoint, removes none."""
    return max((step_of(path) for path in saved_checkpoints(run) if _is_whole(path)), default=None)


def saved_checkpoints(run: Path) -> list[Path]:
    """Return the folders of the checkpoints of a run by step, also of saves that did not end.

    Raises:  OSError: the folder cannot be read. `Path.glob` would find none, and the run would start again at step 1.
    """
    folder = run / "checkpoints"
    try:
        return sorted(folder / name for name in os.listdir(folder) if name.startswith("iter_"))
    except FileNotFoundError:
        return []


def _is_whole(checkpoint: Path) -> bool:
    manifest = manifest_of(checkpoint)
    return manifest.exists() or manifests.record_of_save(manifest).exists()


def finish_save(checkpoint: Path, digests: dict[str, str], params: p.Checkpoint) -> None:
    """Write the manifest of a new checkpoint of a run, then remove the checkpoints that are not kept.

    `digests`: of its files.
    """
    run = checkpoint.parent.parent
    write_json(manifest_of(checkpoint), digests)
    saved = {step_of(path): path for path in saved_checkpoints(run) if path <= checkpoint}
    finished = [step for step in sorted(saved) if manifest_of(saved[step]).exists()]
    for step in saved.keys() - steps_to_keep(finished, losses(run), params):
        remove(saved[step])  # also the rest of one whose removal was interrupted


def steps_to_keep(steps: list[int], losses: dict[int, float], params: p.Checkpoint) -> set[int]:
    """Return the steps whose checkpoints are kept: the newest, every save_retain_interval, the best if exported.

    >>> params = p.Checkpoint(save_interval=2, most_recent_k=1, save_retain_interval=4, async_save=False,
    ...                       export="best", pretrained_checkpoint=None)
    >>> sorted(steps_to_keep([2, 4, 6, 8, 10], {2: 0.5, 6: 0.4, 10: 0.7}, params))
    [4, 6, 8, 10]
    """
    kept = set(steps[-params.most_recent_k :])
    if params.save_retain_interval:
        kept |= {step for step in steps if step % params.save_retain_interval == 0}
    if params.export == "best":
        kept |= {step for step in [best_step(steps, losses)] if step is not None}
    return kept


def best_step(steps: list[int], losses: dict[int, float]) -> int | None:
    """Return the saved step with the lowest validation loss, the first of equals; None if none was validated."""
    return min((step for step in steps if step in losses), key=lambda step: (losses[step], step), default=None)


def record_loss(run: Path, iteration: int, loss: float) -> None:
    """Record the validation loss of a step."""
    write_json(run / LOSSES, {str(step): value for step, value in sorted({**losses(run), iteration: loss}.items())})


def losses(run: Path) -> dict[int, float]:
    """Return the validation losses of a run by step."""
    if not (run / LOSSES).exists():
        return {}
    return {int(step): loss for step, loss in read_json(run / LOSSES).items()}


def checkpoint_to_export(run: Path, iterations: int, params: p.Checkpoint) -> Path | None:
    """Return the checkpoint that becomes the model; None while the run is not complete.

    Raises:  InputError: the best checkpoint is missing or damaged.
    """
    last = final_checkpoint(run, iterations)
    if last is None or params.export == "last":
        return last
    best = best_step(list(map(step_of, saved_checkpoints(run))), losses(run))
    if best is None:
        raise InputError(f"{run}: no checkpoint has a validation loss. Set checkpoint.export to last.")
    verify(iteration_folder(run, best))
    return iteration_folder(run, best)


def find_checkpoint(run: Path, step: int | None) -> Path:
    """Return the intact checkpoint of a step, or the newest. Warns about others that are not.

    Raises:  InputError: there is none; the message has the steps that exist.
    """
    faults = {path: fault_of(path) for path in saved_checkpoints(run)}
    intact = [path for path, fault in faults.items() if fault is None]
    unusable = [f"{path.name} ({fault})" for path, fault in faults.items() if fault]
    chosen = intact[-1:] if step is None else [path for path in intact if path == iteration_folder(run, step)]
    if chosen and unusable:
        echo(f"[yellow]{escape(f'{run}: skipped: {", ".join(unusable)}')}[/]")
    if chosen:
        return chosen[0]
    raise InputError(
        f"{run}: no intact checkpoint{'' if step is None else f' of step {step}'}. "
        f"Steps: {', '.join(str(step_of(path)) for path in intact) or 'none'}. "
        f"{f'Not usable: {", ".join(unusable)}. ' if unusable else ''}"
        "checkpoint.most_recent_k and save_retain_interval say which are kept."
    )


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint, its manifest first: if this is killed half-way, the rest counts as damaged."""
    manifest = manifest_of(checkpoint)
    for file in (manifest, *_unfinished(manifest)):
        file.unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def _unfinished(manifest: Path) -> list[Path]:
    """Return what a hashing that was interrupted left beside a manifest."""
    return [
        file for name in ("{}.*.json", ".{}.*.partial-*") for file in manifest.parent.glob(name.format(manifest.stem))
    ]
