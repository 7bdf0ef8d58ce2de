"""away: a stage of which a cluster's job does all, prep or eval; its outputs land here as if they had been made here.

    CLUSTER=x python -m sft.stages.prep --source NAME      becomes this program (sft.cli)
    CLUSTER=x python -m sft.cluster.remote_stage prep                  for all sources: DETACH=1 submits them at once

what dvc.yaml declares as the stage's deps and params  ->  `work` in runs/<stage>-<key>, where the job runs it
the outs in `work`  ->  the outs here, when the job is complete

The key is a hash of all deps and params, code among them. A profile without a section for the stage leaves it to this
machine.
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
from sft.cluster.cluster_file import Cluster, is_on, read_cluster_file, requested_cluster
from sft.files import project_root, publish_file, publish_folder
from sft.hashing import file_digest, folder_digest, value_digest
from sft.lineage.key import KEY_DIGITS, package_versions
from sft.params.check import read
from sft.params.read import PARAMS, load

SWITCHES = ("CLUSTER", "DETACH", "DRY_RUN")
NOT_DATA = ("src/", "requirements/")
ALSO_READ = (PARAMS, Path("dvc.yaml"), Path("dvc.lock"))


@dataclass(frozen=True)
class Declared:
    """A stage as dvc.yaml declares it: paths below the project, params with their values."""

    deps: tuple[Path, ...]
    params: dict[str, Any]
    outs: tuple[Path, ...]

    @property
    def data(self) -> tuple[Path, ...]:
        """The deps that are no code."""
        return tuple(path for path in self.deps if not path.as_posix().startswith(NOT_DATA))

    @property
    def key(self) -> str:
        """Digest of all that determines the outs. Raises InputError: a dep is not there."""
        for path in self.deps:
            if not path.exists():
                raise InputError(f"{path}: not found. Run the stages before this one: dvc repro makes what is missing")
        digests = {path.as_posix(): folder_digest(path) if path.is_dir() else file_digest(path) for path in self.deps}
        return value_digest([digests, self.params, package_versions()])[:KEY_DIGITS]


def declared(target: str) -> Declared:
    """Return what dvc.yaml declares of a stage, placeholders filled in by DVC."""
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
    return Declared(tuple(sorted(deps)), values, outs)


def has_changed(target: str) -> bool:
    """Whether DVC would run a stage."""
    from dvc.repo import Repo

    with contextlib.closing(Repo()) as repo:
        return target in repo.status(targets=[target])


def keep_inputs(stage: Declared, run: Path) -> None:
    """Put what a job reads into the folder in which it runs."""
    for path in stage.data:
        jobs.keep(path, run / "work" / path)
    for path in ALSO_READ:
        if path.exists():
            jobs.keep(path, run / "work" / path)


def collect(stage: Declared, run: Path) -> None:
    """Publish here what a job made, all of which is there; then let its folder go."""
    for out in stage.outs:
        made = run / "work" / out
        if made.is_dir():
            with publish_folder(out) as partial:
                shutil.copytree(made, partial, dirs_exist_ok=True, copy_function=os.link)
        else:
            with publish_file(out) as partial:
                shutil.copyfile(made, partial)
    shutil.rmtree(run / "work")


def target_of(stage: str, source: str | None) -> str:
    """Name a stage as DVC does."""
    return f"{stage}@{source}" if source else stage


def run_of(target: str, stage: Declared) -> Path:
    """Name the folder of a stage's run."""
    return project_root() / "runs" / f"{target.replace('@', '-')}-{stage.key}"


def is_made(stage: Declared, run: Path) -> bool:
    """Whether all outs are there."""
    return all((run / "work" / out).exists() for out in stage.outs)


def is_done(stage: Declared, run: Path) -> bool:
    """Whether a run's job has ended well, and its outs can be collected."""
    return not jobs.living(run) and jobs.is_marked(run) and is_made(stage, run)


def submit(run: Path, name: str, cluster: Cluster, stage: str, source: str | None, found: Declared) -> jobs.Job:
    """Submit a stage's job, or find the one that does it."""
    environment = {"SFT_SOURCE": source} if source else {}
    job = jobs.submit(run, stage, name, cluster, lambda: keep_inputs(found, run), more=environment)
    echo(f"{job}: {'submitted' if job.is_new else 'does this already'}; logs in {run / 'logs'}")
    return job


def follow(name: str, cluster: Cluster, stage: str, source: str | None) -> None:
    """Let a job do a stage, and publish its outs here."""
    found = declared(target_of(stage, source))
    run = run_of(target_of(stage, source), found)
    if not is_done(found, run):
        job = submit(run, name, cluster, stage, source, found)
        jobs.finish(job, jobs.wait_or_detach(job, cluster), lambda: is_made(found, run))
    collect(found, run)


def detach(name: str, cluster: Cluster, stage: str, sources: list[str | None]) -> NoReturn:
    """Submit the jobs of all sources that DVC would run; end with TO_COLLECT as soon as all have ended."""
    waiting = 0
    for source in sources:
        target = target_of(stage, source)
        if not has_changed(target):
            echo(f"{target}: has not changed")
            continue
        found = declared(target)
        run = run_of(target, found)
        if not is_done(found, run):
            waiting += not jobs.has_ended(submit(run, name, cluster, stage, source, found), cluster)
    if not waiting:
        raise SystemExit(jobs.TO_COLLECT)
    echo(f"left to themselves (DETACH=1). Follow them, or collect what they made: make {stage} CLUSTER={name}")
    raise SystemExit(0)


def show(cluster: Cluster, stage: str, source: str | None) -> None:
    """Print what would be submitted for a stage, and what every check says of it."""
    found = declared(target_of(stage, source))
    missing = [path for path in found.deps if not path.exists()]
    run = project_root() / "runs" / f"{stage}-not-known" if missing else run_of(target_of(stage, source), found)

    def inputs() -> str:
        return "ok\n" + "\n".join(f"  {path}" for path in found.data) if found.key else ""

    jobs.print_verdict([*jobs.dry_run(run, stage, cluster), jobs.verdict("inputs", inputs)])


def do(stage: str, source: str | None) -> None:
    """Do what the environment asks."""
    name = requested_cluster()
    cluster = read_cluster_file(name).asked_by(stage)
    sources: list[str | None] = [source] if source or stage == "eval" else [*load("fetch").sources]
    if cluster is None:
        echo(f"{stage}: slurm/clusters/{name}.yaml has no section `{stage}`, so this machine does it")
        if jobs.is_dry_run():
            return
        if source is None and stage == "prep":
            raise SystemExit(jobs.TO_COLLECT)
        for switch in SWITCHES:
            os.environ.pop(switch, None)
        arguments = ["--source", source] if source else []
        os.execv(sys.executable, [sys.executable, "-m", f"sft.stages.{stage}", *arguments])
    if jobs.is_dry_run():
        for one in sources:
            show(cluster, stage, one)
    elif is_on("DETACH") and not jobs.in_dvc():
        detach(name, cluster, stage, sources)
    else:
        for one in sources:
            follow(name, cluster, stage, one)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__name__, __doc__)
    parser.add_argument("stage", choices=["prep", "eval"])
    parser.add_argument("--source", metavar="NAME", help="a source of fetch.sources; none: all of them")
    return parser.parse_args()


if __name__ == "__main__":
    asked = arguments()
    run_or_exit(lambda: do(asked.stage, asked.source))
