"""A checkpoint of a run -> a Hugging Face folder of your choice; models/final and MLflow stay as they are.

    make export RUN=3f9c STEP=50 [TO=models/step-50]

RUN is a lineage key or its first digits (a folder of runs/). Without STEP, the newest checkpoint is exported. Weights
come from the checkpoint (adapters are merged), the chat template from the data, all other files from the base model.
lineage.json names the run, the step, and the digests of the files.
"""

from pathlib import Path

from sft.chat_files import copy_chat_files
from sft.cli import InputError, at_least, echo, make_parser, run_or_exit
from sft.files import project_root, publish_folder, read_json, write_json
from sft.hashing import folder_digests
from sft.params.training import Peft
from sft.training import checkpoints
from sft.training.launch import read_run

OUTPUTS = (Path("models/base"), Path("models/final"))


def find_run(name: str) -> Path:
    """Return the folder of a run by its lineage key or the first digits of it. Raises InputError."""
    runs = project_root() / "runs"
    keys = sorted(path.parent.name for path in runs.glob("*/run.json"))
    matches = [key for key in keys if key.startswith(name)]
    if name in keys or len(matches) == 1:
        return runs / (name if name in keys else matches[0])
    if not keys:
        raise InputError(f"{runs}: no training has started yet. Run make train.")
    raise InputError(f"RUN={name}: {len(matches)} runs match. Runs: {', '.join((matches or keys)[:8])}.")


def export(run: Path, step: int | None, target: Path) -> Path:
    """Write the checkpoint of a step, or the newest, as a Hugging Face folder; return the checkpoint.

    Raises:  InputError: no such step, a changed file, another base model, or a run that has not trained yet.
    """
    from sft.training import bridge

    checkpoint = checkpoints.find_checkpoint(run, step)
    if not (run / bridge.PARAMS).exists():
        raise InputError(f"{run / bridge.PARAMS}: not found: this run has not trained a step yet.")
    trained, params = read_run(run), read_json(run / bridge.PARAMS)
    if (trained.start / bridge.BASE_DIGEST).exists():
        bridge.check_origin(trained.base, trained.start)
    with publish_folder(target) as folder:
        parity = bridge.export(
            checkpoint=checkpoint,
            base=trained.base,
            target=folder,
            start=trained.start,
            peft=Peft.model_validate(params["peft"]),
            start_sha256=params.get("checkpoint", {}).get("pretrained_sha256"),
        )
        if (trained.packed / "chat_template.jinja").exists():
            copy_chat_files(trained.packed, folder)
        number = checkpoints.step_of(checkpoint)
        lineage = {
            "lineage_key": run.name,
            "step": number,
            "validation_loss": checkpoints.losses(run).get(number),
            "parity": parity,
            "checkpoint": folder_digests(checkpoint),
            "files": folder_digests(folder),
        }
        write_json(folder / "lineage.json", lineage)
    return checkpoint


def main(name: str, step: int | None, target: Path | None) -> None:
    """Export a checkpoint and print where it is."""
    run = find_run(name)
    number = checkpoints.step_of(checkpoints.find_checkpoint(run, step))
    target = target or Path("models") / f"{run.name}-{number}"
    if target.exists() and not (target / "lineage.json").exists():
        raise InputError(f"TO={target}: exists and is not an exported model. Choose another folder.")
    if {path.resolve() for path in OUTPUTS} & {target.resolve(), *target.resolve().parents}:
        raise InputError(f"TO={target}: the pipeline writes this folder. Choose another one, such as models/mine.")
    export(run, number, target)
    echo(f"step {number} of run {run.name} -> {target}")


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--run", required=True, metavar="KEY", help="lineage key, or its first digits")
    parser.add_argument("--step", type=at_least(0), metavar="N", help="a step with a checkpoint; default: the newest")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="default: models/KEY-STEP")
    options = parser.parse_args()
    run_or_exit(lambda: main(options.run, options.step, options.to))
