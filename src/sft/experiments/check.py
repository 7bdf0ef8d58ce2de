"""check: everything that would stop a run later, in a second, before DVC removes an output.

    python -m sft.experiments.check [STAGE ...]     the stages that are to run; default: all

params.yaml, dvc.lock, MLFLOW_TRACKING_URI, uncommitted changes, files that file:// names, packs for a step, free disk
    ->  exit status 0, or 2 and all problems at once; no file changes, but a damaged dvc.lock is restored from git

`make repro`, the stages and `make sweep` begin with it. It is also the first stage of dvc.yaml, on which all others
depend (--mark FILE), so that `dvc repro` and `dvc exp run -S` refuse a wrong value before they remove an output. That
stage reruns if params.yaml changes, and writes the same file each time, so that nothing else reruns.
"""

import functools
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from sft.cli import InputError, echo, exit_with, make_parser, run_or_exit
from sft.experiments.dvc_lock import restore_lock
from sft.files import project_root, read_json, resolve_repo_file, write_text
from sft.lineage.patch import dirty_patch
from sft.lineage.work_tree import git_problem
from sft.params.check import Changed, check_packs, check_params, check_settings, too_long_warmup
from sft.params.data import Download
from sft.params.recorded import DATA_STAGES, STAGES, changed_params, locked_params, read_lock, stage_of
from sft.params.schema import Params
from sft.tracking.address import store_uri

METADATA = Path("data/packed/metadata.json")
MODEL_REPORT = Path("reports/fetch/model.json")
# Bytes a parameter that a training writes at least: the imported model, a checkpoint with its optimizer, models/final.
IMPORTED, CHECKPOINT, EXPORTED = 4, 12, 2
MARK = "params.yaml and this project were checked before the stages ran.\n"

Lock = Mapping[str, Mapping[str, Any]]


def stages_up_to(targets: Sequence[str]) -> set[str]:
    """Return the stages that DVC targets run; without targets all."""
    last = max((STAGES.index(stage_of(target)) for target in targets), default=len(STAGES) - 1)
    return set(STAGES[: last + 1])


def check_sources(params: Params, lock: Lock) -> None:
    """Raise InputError if an address or what reads it has another shape, or a file:// not yet fetched names nothing."""
    from sft.formats.chat_forms import check_read
    from sft.sources.download import check_address

    wanted: list[tuple[str, str, Download]] = [("fetch.model", "fetch-model", params.fetch.model)]
    wanted += [
        (f"fetch.sources.{name}", f"fetch@{name}", each)
        for name, source in params.fetch.sources.items()
        for each in source.each
    ]
    wanted += [(f"fetch.benchmarks.{name}", "fetch-benchmarks", b) for name, b in params.fetch.benchmarks.items()]
    faults = []
    here = Path.cwd().resolve()

    def note(key: str, check: Callable[[], object]) -> bool:
        found = [f"{key}: {fault}" for fault in _caught(check)]
        faults.extend(found)
        return not found

    for name, source in params.fetch.sources.items():
        read = source.read
        note(f"fetch.sources.{name}", functools.partial(check_read, read.format, read.fields, read.select))
    for key, stage, download in wanted:
        is_model = stage == "fetch-model"
        if not note(f"{key}.uri", functools.partial(check_address, download, is_model=is_model)):
            continue
        fetched = str(locked_params(dict(lock.get(stage, {}))))
        path = local_path(download)
        if path and not path.exists() and download.uri not in fetched:
            faults.append(f"{key}.uri: {download.address}: {path.absolute()} does not exist. Correct the path.")
        if path and not re.search(r"[*?{]", download.address) and path.resolve() in (here, *here.parents):
            faults.append(f"{key}.uri: {download.address}: {path.absolute()} holds this project. Name the data in it.")
    if faults:
        raise InputError("\n".join(faults))


def check_files(params: Params) -> None:
    """Raise InputError if a file that params.yaml names is none, or not what the stages read it as.

    What a stage writes into models/ is not looked at: it may be another one then.
    """
    from sft.filters.judge.verdicts import read_rubric
    from sft.filters.narrative import NarrativePatterns
    from sft.tokens.template import Template

    template, narrative, judge = params.prep.template, params.filter.narrative, params.filter.judge
    readers: dict[str, Callable[[], object]] = {}
    if Path(template).parts[:1] != ("models",):
        readers["prep.template"] = lambda: Template(resolve_repo_file(template), params.prep.date)
    if narrative is not None:
        readers["filter.narrative"] = lambda: NarrativePatterns.load(resolve_repo_file(narrative))
    if judge.model is not None:
        readers["filter.judge.rubric"] = lambda: read_rubric(resolve_repo_file(judge.rubric))
    faults = [(key, fault) for key, read in readers.items() for fault in _caught(read)]
    start = params.checkpoint.pretrained_checkpoint
    if start and not (project_root() / start).is_dir():
        advice = "Name the folder of a checkpoint, as in runs/<lineage key>/checkpoints/iter_0000050."
        faults.append(("checkpoint.pretrained_checkpoint", f"{start}: no such folder. {advice}"))
    if faults:
        raise InputError("\n".join(fault if fault.startswith(key) else f"{key}: {fault}" for key, fault in faults))


def local_path(download: Download) -> Path | None:
    """Return the file or folder that a file:// address names, without its pattern; None for other addresses."""
    if not download.address.startswith("file://"):
        return None
    fixed, *pattern = re.split(r"[*?{]", download.address.removeprefix("file://"), maxsplit=1)
    return Path(fixed.rpartition("/")[0] or ("/" if fixed.startswith("/") else ".")) if pattern else Path(fixed)


def check_data(params: Params, changed: Iterable[str]) -> None:
    """Raise InputError if the warm-up is too long, or there can only be too few packs for a step of the training."""
    if message := too_long_warmup(params.training):
        raise InputError(message)
    if not params.pack.validation and params.validation.eval_iters:
        raise InputError(
            "params.yaml: pack.validation: 0 leaves no packs for the validation.eval_iters batches of a validation. "
            "Raise pack.validation, or set validation.eval_iters to 0."
        )
    if METADATA.exists() and not {stage_of(name) for name in changed} & {*DATA_STAGES}:
        splits = read_json(METADATA)["splits"]
        check_packs({split: counts["packs"] for split, counts in splits.items()}, params.training)


def check_bridge(params: Params) -> None:
    """Raise InputError if `bridge` has what the installed Megatron-Bridge does not; only then is it imported."""
    if params.bridge.fields:
        from sft.training import config

        with config.quiet():
            config.check_bridge(params.bridge)


def check_tasks(params: Params) -> None:
    """Raise InputError if there are benchmarks, but lm-eval is not installed."""
    if params.eval.tasks:
        from sft.evaluation import tasks

        tasks.require_packages(params.eval.tasks)


def check_disk(params: Params, lock: Lock, changed: set[str], stages: set[str]) -> None:
    """Raise InputError if stages write more than is free, by what they wrote the last time.

    The least that is certain: an output that is there counts only if its stage has other params now; copies in DVC's
    cache count nothing, because the file system may share them.
    """
    needed = {
        out["path"]: out.get("size", 0)
        for name, stage in lock.items()
        if stage_of(name) in stages
        for out in stage.get("outs", [])
        if name in changed or not Path(out["path"]).exists()
    }
    if "train" in stages & changed and (size := training_bytes(params)):
        needed["runs and models/final"] = size
    free = shutil.disk_usage(Path.cwd()).free
    if (total := sum(needed.values())) > free:
        largest = sorted(filter(needed.get, needed), key=lambda path: -needed[path])[:3]
        parts = ", ".join(f"{path} {needed[path] / 1e9:,.1f} GB" for path in largest)
        raise InputError(
            f"{Path.cwd()}: {free / 1e9:,.1f} GB free, expected at least {total / 1e9:,.1f} GB ({parts}). Free some "
            "space, or make runs/ and .dvc/cache links to a larger disk."
        )


def training_bytes(params: Params) -> int:
    """Return the least bytes that a new training writes; 0 if they are not known, or elsewhere, or written in part."""
    runs = project_root() / "runs"
    report = read_json(MODEL_REPORT) if MODEL_REPORT.exists() else {}
    is_other_disk = runs.exists() and os.stat(runs).st_dev != os.stat(Path.cwd()).st_dev
    if params.peft.name or report.get("uri") != params.fetch.model.address or is_other_disk:
        return 0
    begun = [path for path in runs.glob("*/params.json") if read_json(path) == params.training.model_dump()]
    imported = 0 if any(runs.glob("imports/*")) else IMPORTED
    return 0 if begun else int(report["parameters"]) * (imported + CHECKPOINT + EXPORTED)


def find_problems(targets: Sequence[str], settings: Sequence[str] = (), *, is_stage: bool = False) -> list[str]:
    """Return everything that would stop these stages: where, what was found, what to do.

    Args:
        targets: Stages of dvc.yaml that are to run; none: all.
        settings: Params to set first, `optimizer.lr=1e-5`.
        is_stage: DVC runs the check as a stage. It has read dvc.lock, and whether it trains is not known.
    """
    stages, problems = stages_up_to(targets), list[str]()
    lock: dict[str, Any] = {}
    changed: Changed | None = None

    def note(check: Callable[[], object]) -> None:
        problems.extend(_caught(check))

    def read_params() -> None:
        nonlocal changed
        check_params()
        changed = check_settings(settings)

    def lock_stages() -> None:
        if not is_stage:
            restore_lock()
        lock.update(read_lock())

    note(read_params)
    note(lock_stages)
    note(store_uri)
    if "train" in stages:
        note(lambda: dirty_patch(Path.cwd()))
        if not is_stage and (fault := git_problem(Path.cwd())):
            echo(f"[yellow]{escape(fault)}: the model's record will have neither a commit nor uncommitted changes.[/]")
    if changed is None:
        return problems
    params, others = changed.params, set(changed_params(changed.values, lock))
    note(lambda: check_sources(params, lock))
    note(lambda: check_files(params))
    if "train" in stages:
        note(lambda: check_data(params, others))
        note(lambda: check_bridge(params))
    if "eval" in stages:
        note(lambda: check_tasks(params))
    note(lambda: check_disk(params, lock, others, {*DATA_STAGES} if is_stage else stages))
    return problems


def _caught(check: Callable[[], object]) -> Iterator[str]:
    try:
        check()
    except InputError as error:
        yield str(error)


def require_no_problem(targets: Sequence[str], settings: Sequence[str] = (), *, is_stage: bool = False) -> None:
    """End the program with exit status 2 and all problems, if there are any; as `find_problems`."""
    if problems := find_problems(targets, settings, is_stage=is_stage):
        exit_with(*problems, status=2)


def main(targets: Sequence[str], mark: Path | None) -> None:
    """Check; as DVC's stage, write the mark."""
    require_no_problem(targets, is_stage=mark is not None)
    if mark is not None:
        write_text(mark, MARK)


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--mark", type=Path, metavar="FILE", help="DVC's stage: write this file if there is no problem")
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="up to these; default: all")
    options = parser.parse_args()
    run_or_exit(lambda: main(options.stages, options.mark))
