"""A checkpoint of a run -> a Hugging Face folder, beside models/final.

    make export RUN=3f9c STEP=50 [TO=models/step-50]

RUN is a folder of runs/, a lineage key or its first digits; without STEP the newest checkpoint is taken. Weights come
from the checkpoint (adapters are merged), all else from the base model, the chat template from the data. lineage.json
names the run, the step, and the digests of its files; models/final and MLflow are left as they are.
"""

import shutil
from pathlib import Path
from typing import Any

from sft.cli import InputError, echo, make_parser, run_or_exit
from sft.files import project_root, publish_folder, read_json, write_json
from sft.hashing import folder_digests
from sft.params import training as p
from sft.training import checkpoints


def find_run(name: str) -> Path:
    """Return the folder of a run by its lineage key or the first digits of it. Raises InputError."""
    runs = project_root() / "runs"
    known = sorted(path.parent.name for path in runs.glob("*/run.json"))
    found = [key for key in known if key.startswith(name)]
    if name in known or len(found) == 1:
        return runs / (name if name in known else found[0])
    if not known:
        raise InputError(f"{runs}: no training has begun here yet: make train")
    some = ", ".join((found or known)[:8]) or "none"
    raise InputError(f"RUN={name}: {len(found)} runs of {runs} start so; there are: {some}")


def record(run: Path) -> tuple[dict[str, Any], p.Peft]:
    """Return where a run's base, start and data are, and its adapters. Raises InputError: the run never trained."""
    if not (run / "params.json").exists():
        raise InputError(f"{run}/params.json: not found: this run has not trained a step yet")
    return read_json(run / "run.json"), p.Peft.model_validate(read_json(run / "params.json")["peft"])


def export(run: Path, step: int | None, target: Path) -> Path:
    """Write the checkpoint of a step as a Hugging Face folder; return the checkpoint.

    Raises:  InputError: no such step (those that are there are named), a changed file, another base model than then.
    """
    from sft.training import bridge

    checkpoint = checkpoints.of_step(run, step)
    told, peft = record(run)
    base, start, packed = (Path(told[name]) for name in ("base", "start", "packed"))
    if (start / bridge.BASE_DIGEST).exists():
        bridge.check_origin(base, start)
    with publish_folder(target) as folder:
        bridge.export(checkpoint=checkpoint, base=base, target=folder, start=start, peft=peft)
        if (packed / "chat_template.jinja").exists():
            shutil.copyfile(packed / "chat_template.jinja", folder / "chat_template.jinja")
        number = checkpoints.step_of(checkpoint)
        lineage = {
            "lineage_key": run.name,
            "step": number,
            "validation_loss": checkpoints.losses(run).get(number),
            "checkpoint": folder_digests(checkpoint),
            "files": folder_digests(folder),
        }
        write_json(folder / "lineage.json", lineage)
    return checkpoint


def show(name: str, step: int | None, to: Path | None) -> None:
    """Export, and say what was written."""
    run = find_run(name)
    number = checkpoints.step_of(checkpoints.of_step(run, step))
    target = to or Path("models") / f"{run.name}-{number}"
    if target.exists() and not (target / "lineage.json").exists():
        raise InputError(f"{target}: is there and is no exported model; choose another place: TO=")
    export(run, number, target)
    echo(f"step {number} of run {run.name} -> {target}")


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--run", required=True, metavar="KEY", help="lineage key, or its first digits")
    parser.add_argument("--step", type=int, metavar="N", help="a step with a checkpoint; none: the newest")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="none: models/KEY-STEP")
    asked = parser.parse_args()
    run_or_exit(lambda: show(asked.run, asked.step, asked.to))
