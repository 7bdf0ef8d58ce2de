"""Checkpoints of Megatron, and the manifests that say what belongs in them.

Loading torch_dist unpickles, so a foreign or tampered checkpoint could run code: one is loaded only after
its files agree with the manifest that this program wrote outside of it.

A run's folder: checkpoints/iter_0000012/, manifests/iter_0000012.json.
"""

import shutil
from pathlib import Path

from sft.command import InputError, say
from sft.files import folder_digests, read_json, write_json


def iteration_folder(run: Path, iteration: int) -> Path:
    """Name the checkpoint of a step, as Bridge does."""
    return run / "checkpoints" / f"iter_{iteration:07d}"


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
        say(f"{checkpoint} is torn ({fault}): removed, going on from the one before it")
        remove(checkpoint)
    return None


def keep(run: Path, iteration: int, most_recent: int) -> None:
    """Write the manifest of the checkpoint that was just saved, then remove all but the newest."""
    checkpoint = iteration_folder(run, iteration)
    write_json(manifest_of(checkpoint), folder_digests(checkpoint))
    for old in sorted(checkpoint.parent.glob("iter_*"))[:-most_recent]:
        remove(old)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint; killed half-way, it counts as torn, for its manifest goes first."""
    manifest_of(checkpoint).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)
