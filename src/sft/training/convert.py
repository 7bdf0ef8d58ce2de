"""Import and export: the first and the last step of a training, on the machine that trains.

    models/base             ->  runs/imports/<digest>          import_start: a Megatron checkpoint
    a checkpoint of a run   ->  runs/<lineage key>/exported/   export: a Hugging Face folder; exported.json, last

Both hold the model in memory. A job runs each on its first node, as a process of its own:

    python -m sft.training.convert import runs/<lineage key>
    python -m sft.training.convert export runs/<lineage key>
"""

import shutil
from pathlib import Path
from typing import Any

from sft.cli import InputError, echo, make_parser, run_or_exit
from sft.files import file_lock, link_or_copy, read_json, write_json
from sft.hashing import folder_digests
from sft.params.read import load_training
from sft.params.training import TrainParams
from sft.training import checkpoints
from sft.training.launch import Run, read_run

EXPORTED = "exported"
IMPORT_SECONDS = 6 * 3600.0
"""How long to wait for another run that imports the same model."""


def import_start(run: Run, params: TrainParams) -> None:
    """Import the base model of a run, unless it starts from a checkpoint or another run has imported the model."""
    from sft.training import bridge

    if params.checkpoint.pretrained_checkpoint:
        return
    lock = run.start.with_name(f"{run.start.name}.lock")
    with file_lock(lock, IMPORT_SECONDS) as is_held:
        if not is_held:
            raise InputError(f"{lock}: another run has imported this model for {IMPORT_SECONDS / 3600:.0f} hours.")
        bridge.import_base(base=run.base, checkpoint=run.start)


def chosen_checkpoint(run: Run, params: TrainParams) -> Path | None:
    """Return the checkpoint of a run that becomes the model; None while the run is not complete."""
    return checkpoints.checkpoint_to_export(run.folder, params.train.steps, params.checkpoint)


def is_exported(run: Run, params: TrainParams) -> bool:
    """Whether the run is complete, and its model exported and intact."""
    checkpoint = chosen_checkpoint(run, params)
    return checkpoint is not None and read_exported(run.folder, checkpoint) is not None


def export(run: Run, params: TrainParams) -> None:
    """Export the chosen checkpoint of a complete run, unless it is exported already."""
    from sft.training import bridge

    checkpoint = chosen_checkpoint(run, params)
    if checkpoint is None:
        raise InputError(f"{run.folder}: training ended before step {params.train.steps}: nothing to export.")
    if read_exported(run.folder, checkpoint):
        return
    remove_exported(run.folder)
    target = run.folder / EXPORTED
    parity = bridge.export(
        checkpoint=checkpoint,
        base=run.base,
        target=target,
        start=run.start,
        peft=params.peft,
        start_sha256=params.checkpoint.pretrained_sha256,
    )
    for when, certificate in parity.items():
        if certificate and "skipped" in certificate:
            echo(f"[yellow]parity of Megatron and transformers at {when}: not measured: {certificate['skipped']}[/]")
    record = {"checkpoint": checkpoint.name, "parity": parity, "files": folder_digests(target)}
    write_json(_record(run.folder), record)


def read_exported(run: Path, checkpoint: Path) -> dict[str, Any] | None:
    """Return exported.json (checkpoint, parity, files) if that checkpoint is exported and every file is intact."""
    if not _record(run).exists():
        return None
    record = dict(read_json(_record(run)))
    is_intact = record["checkpoint"] == checkpoint.name and record["files"] == folder_digests(run / EXPORTED)
    return record if is_intact else None


def copy_exported(run: Path, checkpoint: Path, target: Path) -> dict[str, Any]:
    """Copy the exported model into a folder and return exported.json; weights become hard links where possible.

    Raises:  InputError: another checkpoint is exported, or a file changed after the export.
    """
    record = read_exported(run, checkpoint)
    if record is None:
        raise InputError(f"{run / EXPORTED}: is not what was exported of {checkpoint.name}. To export again: rerun.")
    shutil.copytree(run / EXPORTED, target, dirs_exist_ok=True, copy_function=_link_weights)
    return record


def remove_copied(run: Path) -> None:
    """Remove the exported model of a run if models/final has a copy of its weights; as links they take no space."""
    if not all(file.stat().st_nlink > 1 for file in (run / EXPORTED).glob("*.safetensors")):
        remove_exported(run)


def remove_exported(run: Path) -> None:
    """Remove the exported model of a run, the record first."""
    _record(run).unlink(missing_ok=True)
    shutil.rmtree(run / EXPORTED, ignore_errors=True)


def _record(run: Path) -> Path:
    return run / f"{EXPORTED}.json"


def _link_weights(source: str, target: str) -> None:
    (link_or_copy if source.endswith(".safetensors") else shutil.copyfile)(source, target)


def main(step: str, folder: Path) -> None:
    """Run one step of the run in a folder, with the params of this folder."""
    run = read_run(folder)
    packs = read_json(run.packed / "metadata.json")["splits"]["training"]["packs"]
    params = load_training().with_steps(packs)
    if step == "import":
        import_start(run, params)
    else:
        export(run, params)
    echo(f"{step}: done")


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("step", choices=["import", "export"])
    parser.add_argument("run", type=Path, help="runs/<lineage key>")
    options = parser.parse_args()
    run_or_exit(lambda: main(options.step, options.run))
