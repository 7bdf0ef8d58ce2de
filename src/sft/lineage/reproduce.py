"""Build a model again from its records, and compare every output of every stage.

--model NAME (as in sft.lineage.graph)  ->  runs/reproduce/<lineage key>/, a git worktree at the model's commit, with
                                        its uncommitted changes, in which every stage runs again
                                    ->  a table on the terminal, or JSON (--json)

--data refetch (the default) downloads data and base model again, verified by their pins, into a new DVC cache. --data
pull takes them by their recorded digests from DVC's cache or remote. --until STAGE stops there: `--until pack` checks
the data on a machine that cannot train the model. The worktree stays for you to inspect.
Exits with 0 if everything is identical, except lineage.json, which names its run.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from sft.cli import InputError, add_json_option, echo, make_parser, print_facts, run_or_exit
from sft.files import flatten, read_json
from sft.inspect.terminal import Screen, visible
from sft.lineage.compare import differing, pairs
from sft.lineage.key import NUMERIC_PACKAGES
from sft.lineage.patch import patch_name
from sft.lineage.record import all_packages, hardware
from sft.lineage.resolve import FINAL, LINEAGE, LOCK, Records, cache_folder, find, of_folder
from sft.lineage.work_tree import data_files
from sft.params.recorded import STAGES, stage_of

REFETCH, PULL = "refetch", "pull"
IDENTICAL, DIFFERS, DECLARED, MISSING = "identical", "differs", "declared", "not recorded"
STYLES = {IDENTICAL: "green", DIFFERS: "bold red", DECLARED: "dim", MISSING: "yellow"}
SHOWN_DIGITS = 8
# Outputs that may differ, and why.
MAY_DIFFER = {LINEAGE: "names its MLflow run"}
# Prefixes of environment variables that belong to this project or run, not to the worktree.
OUTER = ("MAKE", "GIT_", "DVC_ROOT", "DVC_EXP", "DVC_STAGE", "MLFLOW_", "PYTHONPATH")


@dataclass(frozen=True)
class Compared:
    """An output of a stage, as recorded and as rebuilt."""

    stage: str
    path: str
    verdict: str
    recorded: str | None
    rebuilt: str | None
    note: str = ""


@dataclass(frozen=True)
class Rebuilt:
    """A rebuilt model, compared with the recorded one."""

    model: str
    lineage_key: str
    place: Path
    """Folder in which it was rebuilt."""
    compared: list[Compared]
    """All outputs, in the order of the stages."""
    first: str | None
    """The first stage that differs."""
    reasons: list[str]
    """Why it does."""


def make_worktree(records: Records) -> Path:
    """Return a git worktree at the commit of a model, with its uncommitted changes.

    Raises:  InputError: the commit or the changes are nowhere.
    """
    lineage = records.lineage
    if not lineage:
        raise InputError(f"{records.name}: its {LINEAGE} is nowhere. Get the model: dvc fetch {FINAL}")
    commit, patch = str(lineage["git_commit"]), records.patch()
    place = records.root / "runs/reproduce" / str(lineage["lineage_key"])
    if _git(records.root, "cat-file", "-e", f"{commit}^{{commit}}"):
        raise InputError(f"{records.name}: its commit {commit} is not in this repository. Get it: git fetch --all")
    if lineage.get("git_dirty") and patch is None:
        name = patch_name(lineage["patch"]) if lineage.get("patch") else "none was kept"
        raise InputError(
            f"{records.name}: trained with uncommitted changes that are nowhere ({name}). They are in "
            f"runs/{lineage['lineage_key']} of the project that trained it, and in its MLflow run: name that run."
        )
    if place.exists():  # from an earlier rebuild
        _git(records.root, "worktree", "remove", "--force", str(place))
        shutil.rmtree(place, ignore_errors=True)
    _git(records.root, "worktree", "prune")
    if problem := _git(records.root, "worktree", "add", "--quiet", "--detach", str(place), commit):
        raise InputError(f"git worktree add {place} {commit}: {problem}")
    if patch is not None:
        lines = f"{len(patch.splitlines()):,} lines"
        echo(f"{records.name} was trained with uncommitted changes: their patch ({lines}) runs as code on this machine")
        with tempfile.NamedTemporaryFile(suffix=".patch") as file:
            file.write(patch)
            file.flush()
            if problem := _git(place, "apply", "--binary", "--whitespace=nowarn", file.name):
                raise InputError(f"{place}: the recorded changes do not apply: {problem}")
    return place


def fetched_outputs(records: Records) -> list[str]:
    """Return the recorded outputs of the fetch stages: folders of data and models, and reports."""
    names = [name for name in records.lock if stage_of(name) == "fetch"]
    return [out["path"] for name in names for out in records.lock[name]["outs"]]


def stages_after_fetch(records: Records, until: str) -> list[str]:
    """Return the recorded stages to run on fetched data, by their name in dvc.lock and in order, up to `until`."""
    wanted = STAGES[1 : STAGES.index(until) + 1]
    by_stage = {stage: [name for name in records.lock if stage_of(name) == stage] for stage in wanted}
    return [name for stage in wanted for name in by_stage[stage] or [stage]]


def rebuild(records: Records, place: Path, data: str, until: str) -> None:
    """Run the stages in a worktree. Raises InputError if one fails."""
    if data == REFETCH:
        share_data(records.root, place)
        targets = ["fetch", "fetch-model", "fetch-benchmarks"] if until == "fetch" else [until]
        _dvc(place, "repro", "--force", *targets)
        return
    outputs = fetched_outputs(records)
    if not outputs:
        raise InputError(f"{records.name}: found no {LOCK} with the digests of its data. Use DATA={REFETCH}")
    (place / LOCK).write_bytes(records.read(LOCK) or b"")
    _share_cache(records.root, place)
    for path in outputs:
        if path.startswith("reports/") and (content := records.read(path)):
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_bytes(content)
    folders = [path for path in outputs if not path.startswith("reports/")]
    if _dvc(place, "checkout", "--quiet", *folders, may_fail=True):
        _dvc(place, "pull", *folders)
    _dvc(place, "repro", "--force", "--single-item", *stages_after_fetch(records, until))


def share_data(root: Path, place: Path) -> None:
    """Let a worktree use the project's files that file:// names and git does not have."""
    for name in data_files(root, place / "params.yaml"):
        target = place / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link((root / name).resolve(), target)
            except OSError:  # another file system, or one without hard links
                target.symlink_to((root / name).absolute())


def _share_cache(root: Path, place: Path) -> None:
    """Let a worktree use the cache and the remotes of the project."""
    local = root / ".dvc/config.local"
    if local.exists():
        shutil.copyfile(local, place / ".dvc/config.local")
        (place / ".dvc/config.local").chmod(0o600)
    _dvc(place, "cache", "dir", "--quiet", "--local", str(cache_folder(root)))


def compare(recorded: Records, rebuilt: Records, until: str = STAGES[-1]) -> list[Compared]:
    """Return all outputs, compared, in the order of the stages."""
    names = dict.fromkeys([*recorded.lock, *rebuilt.lock])
    wanted = STAGES[: STAGES.index(until) + 1]
    return [
        output
        for stage in wanted
        for name in names
        if stage_of(name) == stage
        for output in _stage(name, recorded, rebuilt)
    ]


def _stage(name: str, recorded: Records, rebuilt: Records) -> Iterator[Compared]:
    before, after = (
        {out["path"]: out["md5"] for out in records.lock.get(name, {}).get("outs", [])}
        for records in (recorded, rebuilt)
    )
    for path in before | after:
        if path == FINAL:  # file by file: the folders always differ, because lineage.json names its run
            files, others = (records.lineage.get("files", {}) for records in (recorded, rebuilt))
            if not files and not others:
                yield Compared(name, FINAL, MISSING, None, None)
            for file, pair in sorted(pairs({"lineage.json": None, **files}, others).items()):
                yield _compared(name, f"{FINAL}/{file}", *pair)
        elif path in before:
            yield _compared(name, path, before[path], after.get(path), _changed(path, recorded, rebuilt))
        else:  # not in the recorded dvc.lock, but perhaps in git
            content = recorded.read(path)
            md5 = None if content is None else hashlib.md5(content, usedforsecurity=False).hexdigest()
            yield _compared(name, path, md5, after[path], _changed(path, recorded, rebuilt))


def _compared(stage: str, path: str, before: str | None, after: str | None, note: str = "") -> Compared:
    if path in MAY_DIFFER:
        return Compared(stage, path, DECLARED, before, after, MAY_DIFFER[path])
    verdict = MISSING if before is None else IDENTICAL if before == after else DIFFERS
    return Compared(stage, path, verdict, before, after, note if verdict == DIFFERS else "")


def _changed(path: str, recorded: Records, rebuilt: Records) -> str:
    """Return the numbers of a report that differ, as text."""
    if not path.endswith(".json") or recorded.read(path) is None or rebuilt.read(path) is None:
        return ""
    numbers = differing(flatten(recorded.json(path)), flatten(rebuilt.json(path)))
    changed = [f"{key} {before} -> {after}" for key, (before, after) in numbers.items()]
    return "; ".join(changed[:3]) + (f"; {len(changed) - 3} more" if len(changed) > 3 else "")


def explain(stage: str, recorded: Records, rebuilt: Records) -> list[str]:
    """Return why a stage differs: the data, code, params, packages or hardware that are not the recorded ones."""
    before, after = recorded.lock.get(stage, {}), rebuilt.lock.get(stage, {})
    deps = ({dep["path"]: dep.get("md5") for dep in entry.get("deps", [])} for entry in (before, after))
    reasons = [f"{_kind(path)}: {path} differs" for path in differing(*deps)]
    params = (flatten(entry.get("params", {}).get("params.yaml", {})) for entry in (before, after))
    reasons += _differences("params", *params)
    reasons += _differences("code", *({"the command": entry.get("cmd")} for entry in (before, after)))
    packages, installed = recorded.lineage.get("packages", {}), all_packages()
    numeric = (*NUMERIC_PACKAGES, "rapidfuzz", "datasketch")
    if packages:
        reasons += _differences(
            "packages", *({name: side.get(name) for name in numeric} for side in (packages, installed))
        )
    if stage_of(stage) in ("train", "eval"):
        then, now = recorded.lineage.get("hardware", {}), hardware()
        reasons += _differences("hardware", then, {name: now.get(name) for name in then})
    if not reasons and stage.startswith("fetch"):
        reasons.append("data: the source now has other bytes")
    return reasons or ["data, code, params, packages and hardware are the same: the stage is not deterministic"]


def _kind(path: str) -> str:
    if path.startswith(("data/", "models/", "reports/")):
        return "data"
    return "packages" if path.startswith("requirements/") else "code"


def _differences(kind: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [f"{kind}: {name} was {was}, is {now}" for name, (was, now) in differing(before, after).items()]


def table(compared: list[Compared]) -> Table:
    """Return the compared outputs as a table."""
    rows = Table(box=None, header_style="bold")
    for head in ("stage", "output", "verdict", "recorded", "rebuilt"):
        rows.add_column(head, overflow="fold")
    for output in compared:
        verdict = Text(output.verdict, style=STYLES[output.verdict])
        if output.note:
            verdict.append(f" ({visible(output.note)})", style="not bold")
        digests = ((digest or "-").removesuffix(".dir")[:SHOWN_DIGITS] for digest in (output.recorded, output.rebuilt))
        rows.add_row(visible(output.stage), visible(output.path), verdict, *digests)
    return rows


def reproduce(name: str, data: str, until: str) -> Rebuilt:
    """Rebuild and compare. Raises InputError: the records are incomplete, or a stage fails."""
    with tempfile.TemporaryDirectory() as scratch:
        recorded = find(name, Path.cwd(), Path(scratch))
        place = make_worktree(recorded)
        lineage = recorded.lineage
        echo(f"rebuilding {name} (lineage key {lineage['lineage_key']}, commit {lineage['git_commit'][:8]}) in {place}")
        rebuild(recorded, place, data, until)
        rebuilt = of_folder(place)
        compared = compare(recorded, rebuilt, until)
        if not compared:
            raise InputError(f"{name}: nothing to compare with: found no {LOCK} of it")
        first = next((output.stage for output in compared if output.verdict == DIFFERS), None)
        reasons = explain(first, recorded, rebuilt) if first else []
    return Rebuilt(name, lineage["lineage_key"], place, compared, first, reasons)


def show(rebuilt: Rebuilt) -> None:
    """Print the table of outputs."""
    Screen().print(table(rebuilt.compared))
    echo(f"rebuilt in {rebuilt.place}. To remove it: git worktree remove --force {rebuilt.place}")


def main(name: str, data: str, until: str, *, as_json: bool) -> None:
    """Rebuild and compare.

    Raises:  InputError: as `reproduce`, or an output differs.
    """
    rebuilt = print_facts(lambda: reproduce(name, data, until), show, as_json=as_json)
    if rebuilt.first:
        path = next(output.path for output in rebuilt.compared if output.verdict == DIFFERS)
        listed = "\n".join(visible(reason) for reason in rebuilt.reasons)
        raise InputError(f"first differs at {rebuilt.first}, {path}:\n{listed}")
    if until in STAGES[4:]:
        key = read_json(rebuilt.place / LINEAGE)["lineage_key"]
        if key != rebuilt.lineage_key:
            raise InputError(
                f"the lineage key was {rebuilt.lineage_key}, is {key}: data, code, params or packages differ"
            )
    verdicts = [output.verdict for output in rebuilt.compared]
    others = "".join(f", {verdicts.count(kind)} {kind}" for kind in (DECLARED, MISSING) if kind in verdicts)
    echo(f"[green]identical: {verdicts.count(IDENTICAL)} of {len(verdicts)} outputs[/]{others}")


def _dvc(place: Path, *arguments: str, may_fail: bool = False) -> int:
    """Run DVC in a worktree, with the packages of this process; print its messages."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(OUTER)}
    environ["PATH"] = f"{Path(sys.prefix) / 'bin'}{os.pathsep}{environ['PATH']}"
    sys.stdout.flush()
    output = subprocess.DEVNULL if may_fail else None
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=place, env=environ, check=False, stdout=output, stderr=output)
    if done.returncode and not may_fail:
        raise InputError(
            f"{place}: dvc {' '.join(arguments)} exited with status {done.returncode}; see its messages above. "
            f"If a file:// is missing, put the file back at its path in this project: git has no copy of your data. "
            f"If a source no longer exists, use DATA={PULL}. If no cache or remote has the data, use DATA={REFETCH}."
        )
    return done.returncode


def _git(folder: Path, *arguments: str) -> str:
    """Run git; return its error, "" if it has none."""
    done = subprocess.run(["git", "-C", str(folder), *arguments], check=False, capture_output=True, text=True)
    return (done.stderr.strip() or f"status {done.returncode}") if done.returncode else ""


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--model", default=FINAL, metavar="NAME", help="default: models/final")
    parser.add_argument("--data", choices=(REFETCH, PULL), default=REFETCH, help="where the data comes from")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage to run")
    add_json_option(parser)
    options = parser.parse_args()
    run_or_exit(lambda: main(options.model, options.data, options.until, as_json=options.json))
