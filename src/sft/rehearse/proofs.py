"""What a rehearsal proves: each function reads the outputs of stages and returns a line with numbers.

Raises InputError: it is not proven, with what was found and what was expected.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sft.cli import InputError
from sft.files import read_json
from sft.tracking.journal import Journal
from sft.training import checkpoints
from sft.weight_files import count_parameters, stored_tensors

Json = dict[str, Any]
RELATIVE = 1e-6
"""Largest relative difference of a loss of the same step, trained again from a checkpoint."""
SUBMITTER_BYTES = 2_000_000_000
"""Most memory of a process that submits training: it reads configs of any model, and no weights."""


def run_folder(project: Path) -> Path | None:
    """Return the folder of the training run, or None before it has begun."""
    return next((path.parent for path in sorted(project.glob("runs/*/journal.jsonl"))), None)


def steps_of(project: Path) -> list[Json]:
    """Return the entries of the run's steps, in the order in which they were trained."""
    folder = run_folder(project)
    return list(Journal(folder).entries("step")) if folder else []


def last_step(project: Path) -> int:
    """Return the step that the run trained last, 0 before the first."""
    return max((entry["iteration"] for entry in steps_of(project)), default=0)


def is_hashed(project: Path, step: int) -> bool:
    """Whether the run's checkpoint of a step has its manifest."""
    run = run_folder(project)
    return run is not None and checkpoints.manifest_of(checkpoints.iteration_folder(run, step)).exists()


def start_of(project: Path) -> Path | None:
    """Return the Megatron checkpoint that was imported from the base model, or None before it is there."""
    manifest = next(project.glob("runs/imports/*.manifest.json"), None)
    return manifest.with_name(manifest.name.removesuffix(".manifest.json")) if manifest else None


def saved_step(project: Path) -> int:
    """Return the step of the run's newest checkpoint. Raises InputError: there is none, or it is damaged."""
    run = run_folder(project)
    step = checkpoints.last_finished_step(run) if run else None
    if run is None or step is None:
        raise InputError(f"{run}: no checkpoint, expected one")
    checkpoint = checkpoints.iteration_folder(run, step)
    if is_hashed(project, step) and (fault := checkpoints.fault_of(checkpoint)):
        raise InputError(f"{checkpoint}: {fault}")
    return step


def data(project: Path) -> str:
    """Rows became packs, and every row is accounted for."""
    rows = {path.stem: read_json(path) for path in sorted(project.glob("reports/filter/*.json"))}
    found, kept = (sum(report[name] for report in rows.values()) for name in ("rows_found", "rows_out"))
    prepared = [read_json(path) for path in sorted(project.glob("reports/prep/*.json"))]
    samples = sum(report["samples"] for report in prepared)
    splits = read_json(project / "reports/pack.json")["splits"]
    packs = ", ".join(f"{splits[name]['packs']} {name}" for name in ("training", "validation", "test"))
    if not kept or not samples:
        raise InputError(f"{kept} of {found} rows kept, {samples} samples, expected some")
    trained = sum(report["trained_tokens"] for report in prepared)
    return f"{kept} of {found} rows kept, {samples} samples, {trained:,} trained tokens; packs: {packs}"


def imported(project: Path) -> str:
    """Every tensor of the base is a parameter of Megatron's model, and both compute the same."""
    base = project / "models/base"
    tensors, parameters = len(stored_tensors(base)), count_parameters(base)
    start = start_of(project)
    agrees = parity_line(read_json(start / "parity.json") if start else None)
    architecture = read_json(base / "config.json")["architectures"][0]
    return f"{architecture}: {tensors} tensors, {parameters:,} parameters; {agrees}"


def trained(project: Path) -> str:
    """The loss fell."""
    losses = {entry["iteration"]: entry["loss"] for entry in steps_of(project)}
    first, last = losses[min(losses)], losses[max(losses)]
    if not last < first:
        raise InputError(f"loss {first:.4f} became {last:.4f} in {len(losses)} steps, expected less")
    return f"{len(losses)} steps, loss {first:.4f} to {last:.4f}"


def resumed(steps: Iterable[Json], before: int, saved: int, *, in_job: bool = False) -> str:
    """Training resumed at the last checkpoint and repeated the losses of the steps behind it.

    A job that is cancelled saves its last step in the grace time that Slurm gives, so no step is behind it.

    Args:
        steps: Entries of all steps, in the order in which they were trained.
        before: How many of them were there when training was killed.
        saved: Step of the last checkpoint then.
        in_job: Whether it was cancelled as a job.
    """
    entries = [(entry["iteration"], entry["loss"]) for entry in steps]
    killed, again = entries[:before], entries[before:]
    if not again or again[0][0] != saved + 1:
        raise InputError(
            f"killed after step {killed[-1][0]} with a checkpoint of step {saved}; resumed at step "
            f"{again[0][0] if again else 'none'}, expected {saved + 1}"
        )
    losses, repeated = dict(killed), dict(again)
    both = sorted(losses.keys() & repeated.keys())
    if not both and in_job:
        return f"cancelled after step {killed[-1][0]}, which was saved; resumed at step {again[0][0]}"
    if not both:
        raise InputError(f"no step behind the checkpoint of step {saved} was trained twice, expected one or more")
    difference = max(abs(losses[step] - repeated[step]) / abs(losses[step]) for step in both)
    if not difference <= RELATIVE:
        raise InputError(
            f"losses of steps {both[0]} to {both[-1]} differ by {difference:.1e} when they are trained again from "
            f"step {saved}, expected at most {RELATIVE:.0e}"
        )
    return (
        f"killed after step {killed[-1][0]}, resumed from step {saved}; losses of {len(both)} steps trained twice "
        f"differ by {difference:.0e}"
    )


def submitted(peak: int) -> str:
    """The process that submitted training, and those it started, held no model. Args: peak: bytes of the largest."""
    if peak > SUBMITTER_BYTES:
        raise InputError(f"submitting took {peak / 1e9:.1f} GB, expected at most {SUBMITTER_BYTES / 1e9:.0f} GB")
    return f"submitted without a model, in {peak / 1e9:.1f} GB"


def exported(project: Path) -> str:
    """models/final has the tensors of the base: names, shapes and number formats; both engines compute the same."""
    base, final = (stored_tensors(project / folder) for folder in ("models/base", "models/final"))
    different = sorted(name for name in base.keys() | final.keys() if base.get(name) != final.get(name))
    if different:
        name = different[0]
        raise InputError(
            f"models/final: {len(different)} tensors differ from the base's, such as {name}: {final.get(name)}, "
            f"expected {base.get(name)}"
        )
    certificate = read_json(project / "models/final/lineage.json")["parity"]["export"]
    return f"{len(final)} tensors with the base's names, shapes and formats; {parity_line(certificate)}"


def evaluated(project: Path) -> str:
    """The trained model is better than the base on held-out conversations."""
    report = read_json(project / "reports/eval.json")
    before, after = report["before"]["loss"], report["after"]["loss"]
    answers = (project / "reports/answers.jsonl").read_text(encoding="utf-8").count("\n")
    if not after < before:
        raise InputError(f"held-out loss {before:.4f} became {after:.4f}, expected less")
    return f"held-out loss {before:.4f} to {after:.4f}, {answers} prompts answered by both models"


def parity_line(certificate: Json | None) -> str:
    """Return a certificate of parity in words. Raises InputError: it was not measured."""
    if not certificate or "logits" not in certificate:
        raise InputError(f"parity of Megatron and transformers was not measured: {certificate}")
    return (
        f"logits of Megatron and transformers differ by {certificate['logits']:.0e} of the largest "
        f"(prompts of {' and '.join(map(str, certificate['tokens']))} tokens, at most {certificate['tolerance']:.0e})"
    )
