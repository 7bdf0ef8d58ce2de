"""Checkpoints of Megatron: the manifests that say what belongs in them, and which of a run are kept.

Loading torch_dist unpickles, so a foreign or tampered checkpoint could run code: one is loaded only after
its files agree with the manifest that this program wrote outside of it.

A run's folder: checkpoints/iter_0000012/, manifests/iter_0000012.json, validation_losses.json.
"""

import shutil
from pathlib import Path

from rich.markup import escape

from sft.cli import InputError, echo
from sft.files import read_json, write_json
from sft.hashing import folder_digests
from sft.params import training as p

TRACKER = "latest_checkpointed_iteration.txt"
"""File of Megatron in checkpoints/: the step of the newest checkpoint that is all on disk."""
LOSSES = "validation_losses.json"


def iteration_folder(run: Path, iteration: int) -> Path:
    """Name the checkpoint of a step, as Bridge does."""
    return run / "checkpoints" / f"iter_{iteration:07d}"


def step_of(checkpoint: Path) -> int:
    """Return the step of a checkpoint of a run."""
    return int(checkpoint.name.removeprefix("iter_"))


def manifest_of(checkpoint: Path) -> Path:
    """Name the manifest of a checkpoint: outside of it, since it says what belongs in it."""
    if checkpoint.name.startswith("iter_"):
        return checkpoint.parent.parent / "manifests" / f"{checkpoint.name}.json"
    return checkpoint.with_name(f"{checkpoint.name}.manifest.json")


def fault_of(checkpoint: Path) -> str | None:
    """Say what differs between a checkpoint and its manifest; None: it is whole."""
    manifest = manifest_of(checkpoint)
    if not checkpoint.is_dir():
        return "not found"
    if not manifest.exists():
        return f"no manifest {manifest}"
    expected, found = read_json(manifest), folder_digests(checkpoint)
    different = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    if not different:
        return None
    name = different[0]
    state = "missing" if name not in found else "unknown" if name not in expected else "changed"
    return f"{name} is {state}" + (f", and {len(different) - 1} more files differ" if different[1:] else "")


def verify(checkpoint: Path) -> None:
    """Refuse a checkpoint that is not, file by file, what this program wrote. Raises InputError."""
    fault = fault_of(checkpoint)
    if fault is not None:
        raise InputError(
            f"{checkpoint}: {fault}. Loading a Megatron checkpoint can run code, so only one that agrees "
            "with the manifest this program wrote is loaded. Remove it and rerun: it is made again."
        )


def final_checkpoint(run: Path, iterations: int) -> Path | None:
    """Return the checkpoint of the last step if the run is complete and the checkpoint whole, else None."""
    checkpoint = iteration_folder(run, iterations)
    return checkpoint if fault_of(checkpoint) is None else None


def newest_whole(run: Path) -> Path | None:
    """Return the checkpoint to go on from. A torn one (killed while saving) is removed and said."""
    for checkpoint in sorted((run / "checkpoints").glob("iter_*"), reverse=True):
        fault = fault_of(checkpoint)
        if fault is None:
            return checkpoint
        echo(f"{checkpoint} is torn ({fault}): removed, going on from the one before it")
        remove(checkpoint)
    return None


def written(run: Path) -> int:
    """Return the step of the checkpoint that was just finished; with async_save, training is further by then."""
    return int((run / "checkpoints" / TRACKER).read_text(encoding="utf-8"))


def keep(run: Path, iteration: int, rules: p.Checkpoint) -> None:
    """Write the manifest of the checkpoint that was just saved, then remove those that nothing asks to keep."""
    checkpoint = iteration_folder(run, iteration)
    write_json(manifest_of(checkpoint), folder_digests(checkpoint))
    saved = {step_of(path): path for path in checkpoint.parent.glob("iter_*")}
    whole = [step for step in sorted(saved) if manifest_of(saved[step]).exists()]
    for step in whole:
        if step not in kept(whole, losses(run), rules):
            remove(saved[step])


def kept(steps: list[int], losses: dict[int, float], rules: p.Checkpoint) -> set[int]:
    """Return which of the saved steps are kept: the newest, each of save_retain_interval, and the best if it counts.

    >>> rules = p.Checkpoint(save_interval=2, most_recent_k=1, save_retain_interval=4, async_save=False,
    ...                      export="best", pretrained_checkpoint=None)
    >>> sorted(kept([2, 4, 6, 8, 10], {2: 0.5, 6: 0.4, 10: 0.7}, rules))
    [4, 6, 8, 10]
    """
    stay = set(steps[-rules.most_recent_k :])
    if rules.save_retain_interval:
        stay |= {step for step in steps if step % rules.save_retain_interval == 0}
    if rules.export == "best":
        stay |= {step for step in [best_of(steps, losses)] if step is not None}
    return stay


def best_of(steps: list[int], losses: dict[int, float]) -> int | None:
    """Return the saved step with the lowest validation loss, the first of equals; None if none was validated."""
    return min((step for step in steps if step in losses), key=lambda step: (losses[step], step), default=None)


def note_loss(run: Path, iteration: int, loss: float) -> None:
    """Write down the validation loss of a step."""
    write_json(run / LOSSES, {str(step): value for step, value in sorted({**losses(run), iteration: loss}.items())})


def losses(run: Path) -> dict[int, float]:
    """Return the validation losses of a run by step."""
    if not (run / LOSSES).exists():
        return {}
    return {int(step): loss for step, loss in read_json(run / LOSSES).items()}


def to_export(run: Path, iterations: int, rules: p.Checkpoint) -> Path | None:
    """Return the checkpoint that becomes the model; None while the run is not complete.

    Raises:  InputError: the best one is gone or changed.
    """
    last = final_checkpoint(run, iterations)
    if last is None or rules.export == "last":
        return last
    steps = sorted(map(step_of, last.parent.glob("iter_*")))
    best = best_of(steps, losses(run))
    if best is None:
        raise InputError(f"{run}: no checkpoint that is there was validated. Set checkpoint.export to last.")
    verify(iteration_folder(run, best))
    return iteration_folder(run, best)


def of_step(run: Path, step: int | None) -> Path:
    """Return the whole checkpoint of a step of a run, or the newest. One that is changed or torn is named, not taken.

    Raises:  InputError: there is none, naming those that are there.
    """
    faults = {path: fault_of(path) for path in sorted((run / "checkpoints").glob("iter_*"))}
    there = [path for path, fault in faults.items() if fault is None]
    torn = [f"{path.name} ({fault})" for path, fault in faults.items() if fault]
    chosen = there[-1:] if step is None else [path for path in there if path == iteration_folder(run, step)]
    if chosen and torn:
        echo(f"[yellow]{escape(f'{run}: not whole, and not taken: {", ".join(torn)}')}[/]")
    if chosen:
        return chosen[0]
    known = ", ".join(str(step_of(path)) for path in there)
    spoilt = f"Not whole: {', '.join(torn)}. " if torn else ""
    raise InputError(
        f"{run}: no whole checkpoint{'' if step is None else f' of step {step}'}. Steps there: {known or 'none'}. "
        f"{spoilt}checkpoint.most_recent_k and save_retain_interval say which are kept."
    )


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint; killed half-way, it counts as torn, for its manifest goes first."""
    manifest_of(checkpoint).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)
