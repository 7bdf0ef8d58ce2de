"""train: packed data and a base model -> a fine-tuned model, with Megatron-Bridge's finetune().

data/packed, models/base  ->  models/final/             Hugging Face folder, chat template, README.md, lineage.json
                              reports/train.json        losses, steps, the ledger of packs
                              reports/train_loss.csv    iteration, loss, lr
                              reports/validation_loss.csv
Outside DVC: runs/<lineage key>/ (checkpoints, logs, journal.jsonl), and a run and a model version in MLflow.

One process trains on a CPU or on one GPU. With more GPUs (or SFT_PROCESSES=N) the stage starts torchrun, and each rank
runs this module with `--rank-of FOLDER`. With CLUSTER=<name> a Slurm job imports, trains and exports (slurm/README.md);
this process follows it, reads configs only, and publishes what it exported. DETACH=1 submits without following,
DRY_RUN=1 only shows the job. Run again, it resumes a killed run, and exports a complete one without training.
"""

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from rich.markup import escape

from sft.chat_files import copy_chat_files
from sft.cli import InputError, echo
from sft.cluster import jobs, node_packages, slurm
from sft.cluster.cluster_file import Cluster, read_cluster_file, requested_cluster
from sft.cluster.run_lock import RunLock
from sft.files import project_root, publish_folder, read_json, write_json
from sft.hashing import folder_digest, folder_digests
from sft.lineage import snapshot
from sft.lineage.key import Lineage, code_digest, package_versions
from sft.lineage.patch import dirty_patch, keep_patch, tracked_changes
from sft.lineage.record import lineage_json, records, write_environment
from sft.params.read import load, load_training
from sft.params.training import TrainParams
from sft.run_stage import run_stage
from sft.tracking import journal
from sft.training import checkpoints, convert
from sft.training.launch import RANK_OPTION, Run, check_in_child, check_run, count_ranks, launch, read_run
from sft.training.report import write_reports
from sft.training.steps import StepLog, last_by_step

BASE = Path("models/base")
PACKED = Path("data/packed")
FINAL = Path("models/final")


def main() -> None:
    """Train a model, or complete its training; export and report it."""
    cluster_name = requested_cluster()
    cluster = read_cluster_file(cluster_name) if cluster_name else None
    if cluster and jobs.is_dry_run():
        show_job(cluster)
        return
    code, params = snapshot.code(Path.cwd()), load_training()  # before slow imports and the lock
    begun_params = recorded_params(params)
    from sft.cluster import train_job
    from sft.tracking import sync, training_run

    metadata = check_inputs()
    lineage = find_lineage(params.model_dump())
    patch, edits = dirty_patch(Path.cwd()), tracked_changes(Path.cwd())
    run, packs = run_of(lineage, params), metadata["splits"]["training"]["packs"]
    with_steps = params.with_steps(packs)
    iterations = with_steps.train.steps
    echo(f"lineage key [bold]{lineage.key}[/]: checkpoints and logs in runs/{lineage.key}")
    lock = RunLock(run.folder)

    def begin() -> None:
        now = snapshot.code(Path.cwd()), tracked_changes(Path.cwd()), recorded_params(load_training())
        if now != (code, edits, begun_params):  # checks and the import take minutes, and a job copies what is there now
            raise InputError("code or params.yaml changed while this waited for the run. Start it again.")
        digests = {PACKED.as_posix(): lineage.data, BASE.as_posix(): folder_digest(BASE)}
        snapshot.take(run.folder, Path.cwd(), begun_params, digests)
        training_run.begin_attempt(lineage, metadata, run.folder, PACKED)

    def begin_job() -> None:
        with lock.held():  # then the job holds it
            begin()
        train_job.copy_inputs(run)

    def is_complete() -> bool:
        find = convert.is_exported if cluster else convert.chosen_checkpoint
        return bool(find(run, with_steps))

    with contextlib.ExitStack() as stack:
        if not cluster and not jobs.has_marker(run.folder):
            jobs.refuse_if_active(run.folder)
        stack.enter_context(jobs.following(run.folder) if cluster else lock.held())
        check(run, with_steps, cluster)
        if not cluster:
            convert.import_start(run, params)
        run_journal = journal.Journal(run.folder)
        attached = [keep_patch(patch, run.folder)] if patch else []
        job: jobs.Job | None = None
        state: slurm.State | None = None
        was_complete = is_complete()
        if was_complete:
            jobs.exit_for_dvc()
        if not was_complete and cluster:  # until the job ends, its attempt has no end to log
            job = jobs.submit(run.folder, "train", cluster_name, cluster, begin_job)
            with sync.follow_in_background(run.folder):
                state = jobs.wait_or_detach(job, cluster)
        elif not jobs.active_job(run.folder):
            begin()
        if cluster:
            stack.enter_context(lock.held(wait=True))
        with sync.sync_at_exit(run.folder) as synced, journal.record_status(run_journal):
            if was_complete:
                echo(f"this run is complete: step {iterations} is exported again without training")
                jobs.record_outcome(run.folder, "complete")
            elif job:
                jobs.finish(job, state, is_complete)
            else:
                launch(run, count_ranks(), train, lock.descriptor)
            chosen = convert.chosen_checkpoint(run, with_steps)
            if chosen is None:
                raise InputError(f"{run.folder}: training ended before step {iterations}. See logs/ there, then rerun.")
            snapshot.check_unchanged(run.folder, Path.cwd(), recorded_params(load_training()))
            if not cluster:
                convert.export(run, with_steps)
            publish(run, lineage, chosen, patch, sync.run_id(run.folder))
            entries = run_journal.entries("step", "validation")
            metrics = write_reports(entries, lineage.key, with_steps, packs)
            snapshot.check_unchanged(run.folder, Path.cwd(), recorded_params(load_training()))
            losses = {name: metrics[name] for name in ("train_loss", "validation_loss")}
            journal.add_model(run_journal, FINAL, losses, iterations)
            attached += write_environment(run.folder, checkpoints.iteration_folder(run.folder, iterations))
            begun = records(run.folder / snapshot.BEGUN)
            files = {**records(Path.cwd()), **begun, **{path.name: path for path in attached}}
            run_journal.attach(journal.RECORDS, files)
    snapshot.check_unchanged(run.folder, Path.cwd(), recorded_params(load_training()))  # the upload can take minutes
    convert.remove_copied(run.folder)
    echo(
        f"loss {metrics['train_loss']:.4f}, validation {metrics['validation_loss']}, {iterations} steps: the model saw "
        f"{metrics['trained_tokens']:,} trained tokens, {metrics['epochs']:.2f} epochs of the packs; {synced.text}"
    )


def recorded_params(params: TrainParams) -> dict[str, Any]:
    """Return the params that DVC records for this stage."""
    return {**params.model_dump(), "fetch.model": load("fetch.model").model_dump()}


def check_inputs() -> dict[str, Any]:
    """Return the metadata of the packed data. Raises InputError: the data or the model is missing."""
    for folder, stage in ((PACKED, "pack"), (BASE, "fetch-model")):
        if not folder.is_dir():
            raise InputError(f"{folder}: not found. Run the stage that makes it: dvc repro {stage}")
    return dict(read_json(PACKED / "metadata.json"))


def find_lineage(params: dict[str, Any]) -> Lineage:
    """Return all that determines the model."""
    start = params["checkpoint"]["pretrained_checkpoint"]
    return Lineage(
        data=folder_digest(PACKED),
        base_model=folder_digest(project_root() / start) if start else folder_digest(BASE),
        params=params,
        code=code_digest("sft.stages.train"),
        numeric_packages=package_versions(),
    )


def run_of(lineage: Lineage, params: TrainParams) -> Run:
    """Return the run of a lineage; it starts from the imported base model or from a checkpoint of another run."""
    runs, start = project_root() / "runs", params.checkpoint.pretrained_checkpoint
    imported = project_root() / start if start else runs / "imports" / lineage.base_model[:16]
    return Run(runs / lineage.key, BASE.absolute(), imported, PACKED.absolute())


def check(run: Run, params: TrainParams, cluster: Cluster | None) -> None:
    """Check params, data and model before a node is used. Raises InputError: all checks that fail."""
    if cluster:
        warnings = check_in_child(run, params, cluster.ranks, cluster.gpus > 0)
    else:
        warnings = check_run(run, params, count_ranks())
    for warning in warnings:
        echo(f"[yellow]{escape(warning)}[/]")


def show_job(cluster: Cluster) -> None:
    """Print the job that a cluster would get. Raises InputError: a check fails."""
    from sft.cluster import train_job
    from sft.params.check import read

    params = read()
    key = find_lineage(params.training.model_dump()).key if PACKED.is_dir() and BASE.is_dir() else None
    train_job.show(params, cluster, key, check_inputs)


def train(run: Run) -> None:
    """Train as one rank, on a laptop as on a cluster; the first rank logs."""
    from sft.tracking import sync
    from sft.training import bridge

    metadata = read_json(run.packed / "metadata.json")
    params = load_training().with_steps(metadata["splits"]["training"]["packs"])
    with contextlib.ExitStack() as stack:
        log, losses, stop = None, None, os.environ.get("SFT_STOP_FILE")
        if int(os.environ.get("RANK", "0")) == 0:
            if "SFT_RUN" in os.environ:  # in a job; an attempt before it may be ending
                stack.enter_context(RunLock(run.folder).held(wait=True))
            run_journal = journal.Journal(run.folder)
            steps = last_by_step(run_journal.entries("step"), "step")
            losses = {step: entry["loss"] for step, entry in steps.items()}
            log = stack.enter_context(contextlib.closing(StepLog(run_journal.add, params.train.steps)))
            stack.enter_context(sync.sync_in_background(run.folder))
        bridge.train(
            base=run.base,
            start=run.start,
            packed=run.packed,
            run=run.folder,
            params=params,
            pack_size=metadata["pack_size"],
            on_step=log.log_step if log else lambda step: None,
            on_validation=log.log_validation if log else lambda step, loss: None,
            stop=Path(stop) if stop else None,
            losses=losses,
        )
        if log and stop:  # slurm/train.sbatch does not requeue the job: not reached if training stopped for it
            Path(stop).with_name("trained").touch()


def publish(run: Run, lineage: Lineage, checkpoint: Path, patch: bytes | None, run_id: str | None) -> None:
    """Publish models/final: the exported model, the chat template of the data, README.md, lineage.json."""
    from sft.lineage import card

    with publish_folder(FINAL) as folder:
        exported = convert.copy_exported(run.folder, checkpoint, folder)
        copy_chat_files(run.packed, folder)
        begun, git = run.folder / snapshot.BEGUN, snapshot.begun_at(run.folder)
        facts = {**lineage_json(lineage, run_id, begun, load("fetch.model"), patch, git), "parity": exported["parity"]}
        facts |= node_packages.recorded(run.folder)
        text = card.render(facts, lambda path: read_json(begun / path) if (begun / path).exists() else {})
        (folder / "README.md").write_text(text, encoding="utf-8")
        write_json(folder / "lineage.json", {**facts, "files": folder_digests(folder)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(RANK_OPTION, type=Path, dest="rank_of")
    options, others = parser.parse_known_args()
    if options.rank_of:
        sys.argv = [sys.argv[0], *others]
        run_stage(lambda: train(read_run(options.rank_of)), __doc__)
    else:
        run_stage(main, __doc__)
