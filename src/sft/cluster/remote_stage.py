"""Run a whole stage, prep or eval, as a Slurm job. Its outputs land here as if the stage had run here.

    CLUSTER=x python -m sft.stages.prep --source NAME    replaces itself with this program (sft.cli)
    CLUSTER=x python -m sft.cluster.remote_stage prep    all sources; DETACH=1 submits them all at once

the stage's deps and params in dvc.yaml  ->  runs/<stage>-<key>/work, where the job runs
the outs in `work`                       ->  the outs here, when the job is complete

The key is a hash of all deps, including the code, and params. If the cluster file has no section for the stage, the
stage runs on this machine.
"""

import argparse
import contextlib
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from sft.cli import InputError, echo, make_parser, run_or_exit
from sft.cluster import jobs
from sft.cluster.cluster_file import CLUSTER_FILES, Cluster, is_on, read_cluster_file, requested_cluster
from sft.files import project_root
from sft.hashing import file_digest, value_digest
from sft.lineage.key import KEY_DIGITS, package_versions
from sft.params.check import read
from sft.params.read import PARAMS, load

SWITCHES = ("CLUSTER", "DETACH", "DRY_RUN")
CODE = ("src/", "requirements/")
DVC_FILES = (PARAMS, Path("dvc.yaml"), Path("dvc.lock"))
# A stage reads reports of earlier stages that are not its deps: prep checks its rows against that of filter, eval shows
# them in the model card.
REPORTS = Path("reports")


@dataclass(frozen=True)
class DeclaredStage:
    """A stage as dvc.yaml declares it: paths relative to the project, and params with their values."""

    target: str
    """DVC's name of it: prep@<source>, eval."""
    deps: tuple[Path, ...]
    params: dict[str, Any]
    outs: tuple[Path, ...]

    @property
    def data(self) -> tuple[Path, ...]:
        """The deps that are not code."""
        return tuple(path for path in self.deps if not path.as_posix().startswith(CODE))

    @property
    def key(self) -> str:
        """Digest of everything that determines the outs. Raises InputError: a dep is missing."""
        for path in self.deps:
            if not path.exists():
                raise InputError(f"{path}: not found. Run the earlier stages: dvc repro makes what is missing.")
        files = [file for path in self.deps for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
        digests = {file.as_posix(): file_digest(file) for file in files if file.is_file() and not _is_bytecode(file)}
        return value_digest([digests, self.params, package_versions()])[:KEY_DIGITS]

    def run(self) -> Path:
        """Return the folder of its run. Raises InputError: a dep is missing."""
        return project_root() / "runs" / f"{self.target.replace('@', '-')}-{self.key}"


def _is_bytecode(file: Path) -> bool:
    return "__pycache__" in file.parts


def read_stage(target: str) -> DeclaredStage:
    """Read a stage from dvc.yaml; DVC resolves the placeholders."""
    from dvc.dependency import ParamsDependency
    from dvc.repo import Repo

    with contextlib.closing(Repo()) as repo:
        (stage,) = repo.stage.collect(target)
        deps = [Path(dep.def_path) for dep in stage.deps if not isinstance(dep, ParamsDependency)]
        names = [name for dep in stage.deps if isinstance(dep, ParamsDependency) for name in dep.params]
        outs = tuple(Path(out.def_path) for out in stage.outs)
    params = read().model_dump()
    values = {}
    for name in names:
        values[name] = params
        for part in name.split("."):
            values[name] = values[name][part]
    return DeclaredStage(target, tuple(sorted(deps)), values, outs)


def has_changed(target: str) -> bool:
    """Whether DVC would run a stage."""
    from dvc.repo import Repo

    with contextlib.closing(Repo()) as repo:
        return target in repo.status(targets=[target])


def copy_inputs(stage: DeclaredStage, run: Path) -> None:
    """Copy what the job reads into the folder where it runs."""
    for path in stage.data:
        jobs.publish_copy(path, run / "work" / path)
    reports = [path for path in sorted(REPORTS.rglob("*")) if path.is_file() and path not in stage.outs]
    for path in (*DVC_FILES, *reports):
        if path.exists():
            jobs.publish_copy(path, run / "work" / path)


def collect_outs(stage: DeclaredStage, run: Path) -> None:
    """Publish the outs of a complete job here, then remove the folder where it ran."""
    for out in stage.outs:
        jobs.publish_copy(run / "work" / out, out)
    shutil.rmtree(run / "work")


def has_outs(stage: DeclaredStage, run: Path) -> bool:
    """Whether all outs exist in the folder where the job ran."""
    return all((run / "work" / out).exists() for out in stage.outs)


def job_of(stage: DeclaredStage, run: Path, name: str, cluster: Cluster) -> jobs.Job | None:
    """Return the active job of a stage's run, or a new one; None if one is complete and its outs are not collected."""
    if not jobs.active_job(run) and jobs.has_marker(run) and has_outs(stage, run):
        return None
    return jobs.submit(run, stage.target, name, cluster, lambda: copy_inputs(stage, run))


def run_and_wait(target: str, name: str, cluster: Cluster) -> None:
    """Run a stage as a job, wait until it ends, and collect its outs."""
    stage = read_stage(target)
    run = stage.run()
    with jobs.following(run):
        if job := job_of(stage, run, name, cluster):
            jobs.finish(job, jobs.wait_or_detach(job, cluster), lambda: has_outs(stage, run))
        collect_outs(stage, run)


def submit_and_detach(targets: list[str], name: str, cluster: Cluster) -> NoReturn:
    """Submit the jobs of all targets that DVC would run. Ends with READY_FOR_DVC if all have ended, or else with 0."""
    active = 0
    for target in targets:
        if not has_changed(target):
            echo(f"{target}: unchanged")
            continue
        stage = read_stage(target)
        with jobs.following(stage.run()):
            if job := job_of(stage, stage.run(), name, cluster):
                active += not jobs.has_ended(job, cluster)
    if not active:
        raise SystemExit(jobs.READY_FOR_DVC)
    make = f"make {targets[0].partition('@')[0]} CLUSTER={name}"
    echo(f"detached (DETACH=1). To follow the jobs or collect their outputs: {make}")
    raise SystemExit(0)


def show_job(target: str, cluster: Cluster) -> None:
    """Print what would be submitted for a stage, and the result of every check."""
    stage = read_stage(target)
    is_ready = all(path.exists() for path in stage.deps)
    run = stage.run() if is_ready else project_root() / "runs" / f"{target.replace('@', '-')}-not-known-yet"

    def list_inputs() -> str:
        return "ok\n" + "\n".join(f"  {path}" for path in stage.data) if stage.key else ""

    jobs.print_verdict([*jobs.dry_run(run, target, cluster), jobs.verdict("inputs", list_inputs)])


def run_locally(stage_name: str, source: str | None, cluster_name: str) -> None:
    """Run a stage on this machine, because the cluster file has no section for it."""
    echo(f"{stage_name}: {CLUSTER_FILES}/{cluster_name}.yaml has no section `{stage_name}`: running on this machine")
    if jobs.is_dry_run():
        return
    if source is None and stage_name == "prep":
        raise SystemExit(jobs.READY_FOR_DVC)
    for switch in SWITCHES:
        os.environ.pop(switch, None)
    options = ["--source", source] if source else []
    os.execv(sys.executable, [sys.executable, "-m", f"sft.stages.{stage_name}", *options])


def run_stage(stage_name: str, source: str | None) -> None:
    """Run a stage as the environment says: CLUSTER, DETACH, DRY_RUN."""
    name = requested_cluster()
    cluster = read_cluster_file(name).for_stage(stage_name)
    if cluster is None:
        run_locally(stage_name, source, name)
        return
    sources = [source] if source else load("fetch").sources
    targets = ["eval"] if stage_name == "eval" else [f"{stage_name}@{each}" for each in sources]
    if jobs.is_dry_run():
        for target in targets:
            show_job(target, cluster)
    elif is_on("DETACH") and not jobs.in_dvc():
        submit_and_detach(targets, name, cluster)
    else:
        for target in targets:
            run_and_wait(target, name, cluster)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__name__, __doc__)
    parser.add_argument("stage", choices=["prep", "eval"])
    parser.add_argument("--source", metavar="NAME", help="a source of fetch.sources. Default: all of them")
    return parser.parse_args()


if __name__ == "__main__":
    args = parse_arguments()
    run_or_exit(lambda: run_stage(args.stage, args.source))
