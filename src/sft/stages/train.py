"""train: packed data and a base model -> a fine-tuned model, through Megatron-Bridge's finetune().

data/packed, models/base  ->  models/final/             Hugging Face folder, chat template, lineage.json
                              reports/train.json        losses, steps, the ledger of packs
                              reports/train_loss.csv    iteration, loss, lr
                              reports/validation_loss.csv
Beside DVC: runs/<lineage key>/ (checkpoints, logs, steps), and a run and a model version in MLflow.

One process on a CPU or one GPU; with more GPUs (or SFT_PROCESSES) it starts torchrun on itself, and each
rank trains with `--rank-of FOLDER`. With CLUSTER=<profile> a Slurm job does (slurm/README.md): this process follows
it; with DETACH=1 it does not, with DRY_RUN=1 it only shows it. A killed run goes on from its last checkpoint
when started again; a finished one is exported again without a step.
"""

import argparse
import contextlib
import csv
import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.cli import InputError, echo, run_stage
from sft.cluster import jobs, slurm
from sft.cluster.cluster_file import Cluster, read_cluster_file, requested_cluster
from sft.files import flatten, project_root, publish_file, publish_folder, read_json, write_json
from sft.hashing import file_digest, folder_digest, folder_digests
from sft.ledger import Ledger
from sft.lineage import card
from sft.lineage.key import (
    Lineage,
    code_digest,
    environment_text,
    git_state,
    lineage_json,
    package_versions,
    records,
    sources,
)
from sft.lineage.patch import dirty_patch, keep_patch
from sft.params.read import load, load_training, recorded_data_params
from sft.params.training import Peft, TrainParams
from sft.tracking import data_run, journal

if TYPE_CHECKING:
    from sft.params.check import Params
    from sft.training.bridge import Step

BASE = Path("models/base")
PACKED = Path("data/packed")
FINAL = Path("models/final")
# What the environment tells of an attempt, as tags in MLflow: DVC's name of the experiment, the sweep.
ATTEMPT = {"dvc.experiment": "DVC_EXP_NAME", "sweep": "SFT_SWEEP"}


@dataclass(frozen=True)
class Run:
    """What a rank needs to train: written to runs/<lineage key>/run.json, read by every rank."""

    folder: Path
    """runs/<lineage key>."""
    base: Path
    start: Path
    """Megatron checkpoint to start from."""
    packed: Path


def check_inputs() -> dict[str, Any]:
    """Return the metadata of the packed data. Raises InputError: it or the model is not there."""
    for folder, stage in ((PACKED, "pack"), (BASE, "fetch-model")):
        if not folder.is_dir():
            raise InputError(f"{folder}: not found. Run the stage that makes it: dvc repro {stage}")
    return dict(read_json(PACKED / "metadata.json"))


def find_lineage(params: dict[str, Any]) -> Lineage:
    """Gather what determines the model."""
    start = params["checkpoint"]["pretrained_checkpoint"]
    return Lineage(
        data=folder_digest(PACKED),
        base_model=folder_digest(project_root() / start) if start else folder_digest(BASE),
        params=params,
        code=code_digest("sft.stages.train"),
        numeric_packages=package_versions(),
    )


def open_tracked_run(lineage: Lineage, metadata: dict[str, Any], folder: Path) -> journal.Journal:
    """Begin an attempt at the run in a folder, for MLflow: its data, what determines the model, the attempt."""
    commit, dirty = git_state(Path.cwd())
    lock = Path("dvc.lock")
    tags = {
        "git.commit": str(commit),
        "git.dirty": str(dirty).lower(),
        "mlflow.source.git.commit": str(commit),
        "dvc.lock.sha256": file_digest(lock) if lock.exists() else "none",
        "data.sampled": str(metadata["sampled"]).lower(),
        "cluster": os.environ.get("CLUSTER") or "local",
        **{name: os.environ[key] for name, key in ATTEMPT.items() if os.environ.get(key)},
    }
    place, told = (project_root() / PACKED).as_uri(), {"pack_size": str(metadata["pack_size"])}
    datasets = [journal.Dataset("packed", lineage.data, place, "training", told)]
    for name, source in sources(Path.cwd()).items():
        prepared = Path("data/prepared", name)
        digest = folder_digest(prepared) if prepared.is_dir() else lineage.data
        told = {key: str(value) for key, value in source.items() if isinstance(value, str | int)}
        datasets.append(journal.Dataset(name, digest, (project_root() / prepared).as_uri(), "source", told))
    sampled, made_with, here = metadata["sampled"], recorded_data_params(), Path.cwd()
    sets = data_run.data_sets(here, datasets[0])
    texts = records(here, data_run.RECORDS)
    journal.add_data(folder, lineage.data, made_with, data_run.counts(here), sets, texts, sampled=sampled)
    return journal.open_run(folder, {**lineage.determining(), **made_with}, tags, datasets, sampled=sampled)


def processes() -> int:
    """How many ranks train on this machine: one for each GPU, or SFT_PROCESSES; one on a CPU."""
    if asked := os.environ.get("SFT_PROCESSES"):
        if not asked.isdecimal() or int(asked) < 1:
            raise InputError(f"SFT_PROCESSES={asked}: expected a number of processes, 1 or more")
        return int(asked)
    import torch

    return max(1, torch.cuda.device_count())


def train(run: Run) -> None:
    """Train on this rank: the same call on a laptop and on every rank of a cluster."""
    from sft.tracking import delivery
    from sft.training import bridge

    params = load_training()
    metadata = read_json(run.packed / "metadata.json")
    with contextlib.ExitStack() as stack:
        steps = None
        if int(os.environ.get("RANK", "0")) == 0:
            metrics = journal.Metrics(journal.Journal(run.folder))
            steps = stack.enter_context(contextlib.closing(StepLog(run.folder, params.train.train_iters, metrics)))
            stack.enter_context(delivery.delivering(run.folder))
        bridge.train(
            base=run.base,
            start=run.start,
            packed=run.packed,
            run=run.folder,
            params=params,
            pack_size=metadata["pack_size"],
            on_step=steps.step if steps else _say_nothing,
            on_validation=steps.validation if steps else _say_nothing,
            stop=Path(stop) if (stop := os.environ.get("SFT_STOP_FILE")) else None,
        )


def _say_nothing(*values: object) -> None:
    """Take the place of the journal on ranks other than the first."""


class StepLog:
    """The steps of a run: a file in its folder, metrics in MLflow, one line on the terminal."""

    def __init__(self, folder: Path, iterations: int, metrics: Any) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "steps.jsonl").open("a", encoding="utf-8")
        self._iterations, self._metrics = iterations, metrics
        self._bar = Progress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tokens/s  left"),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task("train", total=iterations, loss="-", speed="-")
        self._bar.start()

    def step(self, step: "Step") -> None:
        """Write one training step down."""
        speed = step.tokens / step.seconds if step.seconds else math.nan
        self._write(asdict(step))
        self._metrics.log(step.iteration, loss=step.loss, lr=step.lr, grad_norm=step.grad_norm, tokens_per_second=speed)
        self._bar.update(self._task, completed=step.iteration, loss=f"{step.loss:.4f}", speed=f"{speed:,.0f}")
        every = max(1, self._iterations // 10)
        if not self._bar.console.is_terminal and (step.iteration % every == 0 or step.iteration == 1):
            echo(f"step {step.iteration}/{self._iterations}: loss {step.loss:.4f}, {speed:,.0f} tokens/s")

    def validation(self, iteration: int, loss: float) -> None:
        """Write one validation down."""
        self._write({"iteration": iteration, "validation_loss": loss})
        self._metrics.log(iteration, validation_loss=loss)
        self._bar.console.print(f"step {iteration}/{self._iterations}: validation loss {loss:.4f}", highlight=False)

    def close(self) -> None:
        """Close the file and the line."""
        self._bar.stop()
        self._file.close()

    def _write(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry, sort_keys=True) + "\n")
        self._file.flush()


def read_steps(folder: Path, iterations: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return (training steps, validations) of a run in order; a step done twice counts as it was last."""
    steps: dict[int, dict[str, Any]] = {}
    validations: dict[int, dict[str, Any]] = {}
    for line in (folder / "steps.jsonl").read_text(encoding="utf-8").splitlines():
        if not line.endswith("}"):
            continue  # the line that a kill cut; its step was done again
        entry = json.loads(line)
        (validations if "validation_loss" in entry else steps)[entry["iteration"]] = entry
    if sorted(steps) != list(range(1, iterations + 1)):
        raise AssertionError(f"{folder}/steps.jsonl: steps {len(steps)}, expected each of 1 to {iterations}")
    return [steps[i] for i in sorted(steps)], [validations[i] for i in sorted(validations)]


def launch(run: Run, number: int) -> None:
    """Train on this machine: in this process, or with several ranks under torchrun."""
    jobs.refuse_if_active(run.folder)
    write_run(run)
    if number == 1:
        train(run)
        return
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"]
    command += ["-m", "sft.stages.train", "--rank-of", str(run.folder)]
    threads = max(1, len(os.sched_getaffinity(0)) // number)  # torchrun would give each rank one, with a warning
    done = subprocess.run(command, env={"OMP_NUM_THREADS": str(threads), **os.environ}, check=False)
    if done.returncode:
        raise InputError(
            f"training ended with status {done.returncode}; its messages stand above, logs in {run.folder}"
        )


def write_run(run: Run) -> None:
    """Write down what a rank needs."""
    write_json(run.folder / "run.json", {name: str(value) for name, value in asdict(run).items()})


def submit(run: Run, name: str, cluster: Cluster, begin: Callable[[], None]) -> jobs.Job:
    """Let a cluster train the run; return its job, which may be one that does already. `begin` is called if not."""
    inputs = run.folder / "inputs"

    def prepare() -> None:
        begin()
        for folder in (run.base, run.packed):
            jobs.copy_input(folder, inputs / folder.name)
        write_run(replace(run, base=inputs / run.base.name, packed=inputs / run.packed.name))

    job = jobs.submit(run.folder, "train", name, cluster, prepare)
    echo(f"{job}: {'submitted' if job.is_new else 'trains this run already'}; logs in {run.folder / 'logs'}")
    return job


def check(run: Run, params: TrainParams, cluster: Cluster | None) -> None:
    """Refuse, before anything is made or a node is spent, what would fail. Raises InputError with the reasons."""
    from sft.training import bridge

    bridge.check(
        base=run.base,
        start=run.start,
        packed=run.packed,
        run=run.folder,
        params=params,
        ranks=cluster.ranks if cluster else processes(),
        on_gpu=cluster.gpus_per_node > 0 if cluster else None,
    )


def show_job(params: "Params", cluster: Cluster) -> None:
    """Print what would be submitted, every value that Bridge would train with, the estimate and all verdicts.

    Before there are data and a model, the lineage key is not known, and the packs are those that params.yaml plans.
    """
    from sft.planning import preflight

    on_gpu, own = cluster.gpus_per_node > 0, PACKED.is_dir() and BASE.is_dir()
    key = find_lineage(params.training.model_dump()).key if own else "not-known-yet"
    gpu = None
    if on_gpu:
        gpu = preflight.gpu_of(cluster.gpu) if cluster.gpu else preflight.Gpu("GPU", None, 0.0)
    told = jobs.dry_run(project_root() / "runs" / key, "train", cluster)

    def resolved() -> str:
        values, relaxed = preflight.resolved(params, cluster.ranks, on_gpu=on_gpu, own=own)
        lines = [f"  {name}: {json.dumps(value)}" for name, value in flatten(values).items()]
        unseen = f"; not validated on this machine: {', '.join(relaxed)}" if relaxed else ""
        return f"ok: {len(lines)} values{unseen}\n" + "\n".join(lines)

    told.append(jobs.verdict("Megatron-Bridge", resolved))
    told.append(
        jobs.verdict(
            "estimate and rules",
            lambda: "\n".join(["ok", *preflight.lines(preflight.look(params, cluster.ranks, gpu, own=own))]),
        )
    )
    told.append(jobs.verdict("data and model", lambda: check_inputs() and None))
    jobs.print_verdict(told)


def export(run: Run, lineage: Lineage, checkpoint: Path, peft: Peft, patch: bytes | None, run_id: str | None) -> None:
    """Publish models/final: weights, tokenizer, the chat template it was trained on, README.md, lineage.json."""
    from sft.training import bridge

    with publish_folder(FINAL) as folder:
        bridge.export(checkpoint=checkpoint, base=run.base, target=folder, start=run.start, peft=peft)
        (folder / "chat_template.jinja").write_bytes((run.packed / "chat_template.jinja").read_bytes())
        told = lineage_json(lineage, run_id, Path.cwd(), load("fetch.model"), patch)
        text = card.render(told, lambda path: read_json(Path(path)) if Path(path).exists() else {})
        (folder / "README.md").write_text(text, encoding="utf-8")
        write_json(folder / "lineage.json", {**told, "files": folder_digests(folder)})


def environment(folder: Path, checkpoint: Path) -> list[Path]:
    """Write down what is installed and Bridge's whole configuration, as they were; return the files."""
    installed, config = folder / "environment.txt", folder / "effective_config.yaml"
    for path, text in (
        (installed, environment_text()),
        (config, (checkpoint / "run_config.yaml").read_text(encoding="utf-8")),
    ):
        with publish_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
    return [installed, config]


def report(run: Run, iterations: int, batch: int, metadata: dict[str, Any]) -> dict[str, Any]:
    """Publish the reports of a finished run; return the metrics."""
    steps, validations = read_steps(run.folder, iterations)
    for path, header, entries in (
        (Path("reports/train_loss.csv"), ("iteration", "loss", "lr"), steps),
        (Path("reports/validation_loss.csv"), ("iteration", "validation_loss"), validations),
    ):
        with publish_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows([entry[name] for name in header] for entry in entries)
    packs = metadata["splits"]["training"]["packs"]
    seen = min(packs, iterations * batch)
    ledger = Ledger(packs, seen, Counter({"not-reached": packs - seen} if packs > seen else {}))
    last = steps[-max(1, iterations // 10) :]
    return ledger.write(
        Path("reports/train.json"),
        train_loss=round(sum(entry["loss"] for entry in last) / len(last), 6),
        validation_loss=round(validations[-1]["validation_loss"], 6) if validations else None,
        iterations=iterations,
        epochs=round(iterations * batch / packs, 4),
        tokens=sum(entry["tokens"] for entry in steps),
        lineage_key=run.folder.name,
    )


def main() -> None:
    """Prepare, train, export, register."""
    from sft.tracking import delivery
    from sft.training import bridge, checkpoints

    place = requested_cluster()
    cluster = read_cluster_file(place) if place else None
    if cluster and jobs.is_dry_run():
        from sft.params.check import read

        show_job(read(), cluster)
        return
    params = load_training()
    metadata = check_inputs()
    lineage = find_lineage(params.model_dump())
    patch = dirty_patch(Path.cwd())
    runs = project_root() / "runs"
    iterations, start = params.train.train_iters, params.checkpoint.pretrained_checkpoint
    imported = project_root() / start if start else runs / "imports" / lineage.base_model[:16]
    run = Run(runs / lineage.key, BASE.absolute(), imported, PACKED.absolute())
    echo(f"lineage key [bold]{lineage.key}[/]: checkpoints and logs in runs/{lineage.key}")
    check(run, params, cluster)
    if not start:
        bridge.import_base(base=run.base, checkpoint=run.start)
    box = journal.Journal(run.folder)
    kept = [keep_patch(patch, run.folder)] if patch else []
    checkpoint = checkpoints.final_checkpoint(run.folder, iterations)
    job: jobs.Job | None = None
    state: slurm.State | None = None

    def begin() -> None:
        open_tracked_run(lineage, metadata, run.folder)
        try:
            delivery.check_server(run.folder)
        except InputError:
            box.add("end", attempt=max(box.attempts()), status=journal.FAILED)
            raise

    if checkpoint is not None:
        jobs.exit_for_dvc()
    if checkpoint is None and cluster:  # as long as its job runs, the attempt has no end that could be told
        job = submit(run, place, cluster, begin)
        state = jobs.wait_or_detach(job, cluster)
    elif not jobs.active_job(run.folder):
        begin()
    with delivery.sync_at_exit(run.folder) as told, journal.record_status(box):
        if checkpoint is None:
            if job:
                jobs.finish(job, state, lambda: checkpoints.final_checkpoint(run.folder, iterations) is not None)
            else:
                launch(run, processes())
            checkpoint = checkpoints.final_checkpoint(run.folder, iterations)
            if checkpoint is None:
                raise InputError(f"{run.folder}: training ended before step {iterations}; see logs/ there, then rerun")
        else:
            echo(f"this run is complete: exporting step {iterations} again, no step is trained")
            jobs.record_outcome(run.folder, "complete")
        chosen = checkpoints.to_export(run.folder, iterations, params.checkpoint)
        assert chosen is not None  # the run is complete
        export(run, lineage, chosen, params.peft, patch, delivery.run_id(run.folder))
        metrics = report(run, iterations, params.train.global_batch_size, metadata)
        journal.add_model(box, FINAL, {name: metrics[name] for name in ("train_loss", "validation_loss")})
        kept += environment(run.folder, checkpoint)
        box.attach(journal.RECORDS, {**records(Path.cwd()), **{path.name: path for path in kept}})
    echo(f"loss {metrics['train_loss']:.4f}, validation {metrics['validation_loss']}, {iterations} steps; {told.text}")


def _rank(folder: Path) -> None:
    """Train as one rank of several."""
    train(Run(**{name: Path(path) for name, path in read_json(folder / "run.json").items()}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--rank-of", type=Path)  # torchrun would take a --run for an abbreviation of its own options
    known, others = parser.parse_known_args()
    if known.rank_of:
        sys.argv = [sys.argv[0], *others]
        run_stage(lambda: _rank(known.rank_of), __doc__)
    else:
        run_stage(main, __doc__)
