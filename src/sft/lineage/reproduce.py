"""reproduce: build a model again from what was recorded, and say stage by stage what came out the same.

--model NAME (as in sft.lineage.graph)  ->  runs/reproduce/<lineage key>/, a git worktree at the model's commit, with
                                        its uncommitted changes, in which every stage is run again
                                    ->  a table on the terminal; --json FILE

--data refetch (the default) brings data and base model from their publishers, verified by their pins, into a
cache of its own. --data pull takes them by their recorded digests from DVC's cache or remote. --until STAGE stops
there: `--until pack` proves the data where the model cannot be trained. The worktree stays, to be looked at.
Ends with status 0 where all is identical, less what is declared to differ: lineage.json, which names its run.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from sft.cli import InputError, echo, make_parser, run_or_exit
from sft.files import flatten, read_json, write_json
from sft.inspect.terminal import Screen, visible
from sft.lineage.key import NUMERIC_PACKAGES
from sft.lineage.patch import patch_name
from sft.lineage.record import all_packages, hardware
from sft.lineage.resolve import FINAL, LINEAGE, LOCK, Records, find, listing, of_folder

STAGES = ("fetch", "filter", "prep", "pack", "train", "eval")
REFETCH, PULL = "refetch", "pull"
IDENTICAL, DIFFERS, DECLARED, MISSING = "identical", "differs", "declared", "not recorded"
STYLES = {IDENTICAL: "green", DIFFERS: "bold red", DECLARED: "dim", MISSING: "yellow"}
SHOWN_DIGITS = 8
# What may differ, and why.
MAY_DIFFER = {LINEAGE: "names its run in MLflow"}
# Of the environment of who asks, what is another project's or another run's.
OUTER = ("MAKE", "GIT_", "DVC_ROOT", "DVC_EXP", "DVC_STAGE", "MLFLOW_", "PYTHONPATH")


@dataclass(frozen=True)
class Compared:
    """One thing that a stage made, as recorded and as made again."""

    stage: str
    path: str
    verdict: str
    recorded: str | None
    rebuilt: str | None
    note: str = ""


def make_worktree(records: Records) -> Path:
    """Make a git worktree at the commit of a model, with its uncommitted changes.

    Raises:  InputError: the commit is not here, or the changes were not kept.
    """
    told = records.lineage
    if not told:
        raise InputError(f"{records.name}: its {LINEAGE} is nowhere at hand. Bring the model: dvc fetch {FINAL}")
    commit, patch = str(told["git_commit"]), records.patch()
    place = records.root / "runs/reproduce" / str(told["lineage_key"])
    if _git(records.root, "cat-file", "-e", f"{commit}^{{commit}}"):
        raise InputError(f"{records.name}: its commit {commit} is not in this repository. Bring it: git fetch --all")
    if told.get("git_dirty") and patch is None:
        kept = patch_name(told["patch"]) if told.get("patch") else "none was kept"
        raise InputError(
            f"{records.name}: trained from uncommitted changes that are nowhere at hand ({kept}). They lie in "
            f"runs/{told['lineage_key']} of the project that trained it, and in its run in MLflow: name that run."
        )
    if place.exists():  # of an earlier rebuild
        _git(records.root, "worktree", "remove", "--force", str(place))
        shutil.rmtree(place, ignore_errors=True)
    _git(records.root, "worktree", "prune")
    if problem := _git(records.root, "worktree", "add", "--quiet", "--detach", str(place), commit):
        raise InputError(f"git worktree add {place} {commit}: {problem}")
    if patch is not None:
        with tempfile.NamedTemporaryFile(suffix=".patch") as file:
            file.write(patch)
            file.flush()
            if problem := _git(place, "apply", "--binary", "--whitespace=nowarn", file.name):
                raise InputError(f"{place}: the recorded changes do not apply: {problem}")
    return place


def stage_of(name: str) -> str:
    """Return the stage that a name in dvc.lock belongs to.

    >>> stage_of("filter@chats"), stage_of("fetch-model"), stage_of("pack")
    ('filter', 'fetch', 'pack')
    """
    return name.partition("@")[0].partition("-")[0]


def rebuild(records: Records, place: Path, data: str, until: str) -> None:
    """Run the stages in a worktree. Raises InputError where one fails."""
    wanted = STAGES[: STAGES.index(until) + 1]
    if data == REFETCH:
        targets = ["fetch", "fetch-model", "fetch-benchmarks"] if until == "fetch" else [until]
        _dvc(place, "repro", "--force", *targets)
        return
    names = [name for name in records.lock if stage_of(name) in STAGES]
    brought = [out["path"] for name in names if name.startswith("fetch") for out in records.lock[name]["outs"]]
    if not brought:
        raise InputError(f"{records.name}: no {LOCK} is recorded that names the data. Use DATA={REFETCH}")
    (place / LOCK).write_bytes(records.read(LOCK) or b"")
    _share_cache(records.root, place)
    for path in (path for path in brought if path.startswith("reports/") and (content := records.read(path))):
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes(content)
    folders = [path for path in brought if not path.startswith("reports/")]
    if _dvc(place, "checkout", "--quiet", *folders, may_fail=True):
        _dvc(place, "pull", *folders)
    later = [name for stage in wanted[1:] for name in names if name.partition("@")[0] == stage]
    later += [stage for stage in wanted[1:] if stage not in {name.partition("@")[0] for name in names}]
    _dvc(place, "repro", "--force", "--single-item", *later)


def _share_cache(root: Path, place: Path) -> None:
    """Let a worktree use the cache and the remotes of the project."""
    local = root / ".dvc/config.local"
    if local.exists():
        shutil.copyfile(local, place / ".dvc/config.local")
        (place / ".dvc/config.local").chmod(0o600)
    asked = [sys.executable, "-m", "dvc", "cache", "dir"]
    cache = subprocess.run(asked, cwd=root, check=True, capture_output=True, text=True).stdout.strip()
    _dvc(place, "cache", "dir", "--quiet", "--local", cache)


def compare(recorded: Records, rebuilt: Records, until: str = STAGES[-1]) -> list[Compared]:
    """Compare what the stages made, in their order."""
    compared: list[Compared] = []
    names = dict.fromkeys([*recorded.lock, *rebuilt.lock])
    for stage in STAGES[: STAGES.index(until) + 1]:
        for name in (name for name in names if stage_of(name) == stage):
            compared += _stage(name, recorded, rebuilt)
    return compared


def _stage(name: str, recorded: Records, rebuilt: Records) -> Iterator[Compared]:
    before, after = (
        {out["path"]: out["md5"] for out in records.lock.get(name, {}).get("outs", [])}
        for records in (recorded, rebuilt)
    )
    for path in dict.fromkeys([*before, *after]):
        if path == FINAL:
            yield from _model_files(name, recorded, rebuilt)
        elif path not in before and (content := recorded.read(path)) is not None:
            same = content == rebuilt.read(path)
            yield Compared(
                name, path, IDENTICAL if same else DIFFERS, None, after.get(path), _changed(path, recorded, rebuilt)
            )
        else:
            yield _compared(name, path, before.get(path), after.get(path), _changed(path, recorded, rebuilt))


def _model_files(stage: str, recorded: Records, rebuilt: Records) -> Iterator[Compared]:
    """Compare the files of the model one by one: lineage.json names its run, so the folders always differ."""
    before, after = (records.lineage.get("files", {}) for records in (recorded, rebuilt))
    if not before or not after:  # a model of before lineage.json named its files: by DVC's cache
        before, after = (
            listing(
                records.root,
                {out["path"]: out["md5"] for out in records.lock.get(stage, {}).get("outs", [])}.get(FINAL, ""),
            )
            or {}
            for records in (recorded, rebuilt)
        )
    before, after = ({f"{FINAL}/{name}": digest for name, digest in one.items()} for one in (before, after))
    if not before and not after:
        yield Compared(stage, FINAL, MISSING, None, None)
    for path in sorted(before.keys() | after.keys() | {LINEAGE}):
        yield _compared(stage, path, before.get(path), after.get(path), "")


def _compared(stage: str, path: str, before: str | None, after: str | None, note: str) -> Compared:
    if path in MAY_DIFFER:
        return Compared(stage, path, DECLARED, before, after, MAY_DIFFER[path])
    verdict = MISSING if before is None else IDENTICAL if before == after else DIFFERS
    return Compared(stage, path, verdict, before, after, note if verdict == DIFFERS else "")


def _changed(path: str, recorded: Records, rebuilt: Records) -> str:
    """Name the numbers of a report that differ."""
    if not path.endswith(".json") or recorded.read(path) is None or rebuilt.read(path) is None:
        return ""
    before, after = flatten(recorded.json(path)), flatten(rebuilt.json(path))
    changed = [
        f"{key} {before.get(key)} -> {after.get(key)}" for key in before | after if before.get(key) != after.get(key)
    ]
    return "; ".join(changed[:3]) + (f"; {len(changed) - 3} more" if len(changed) > 3 else "")


def explain(stage: str, recorded: Records, rebuilt: Records) -> list[str]:
    """Say why the first stage that differs does: what of data, code, params, packages and hardware is another."""
    before, after = recorded.lock.get(stage, {}), rebuilt.lock.get(stage, {})
    reasons = []
    deps_before, deps_after = ({dep["path"]: dep.get("md5") for dep in one.get("deps", [])} for one in (before, after))
    for path in dict.fromkeys([*deps_before, *deps_after]):
        if deps_before.get(path) != deps_after.get(path):
            kind = "packages" if path.startswith("requirements/") else "data" if _is_data(path) else "code"
            reasons.append(f"{kind}: {path} is another")
    params_before, params_after = flatten(before.get("params", {})), flatten(after.get("params", {}))
    for key in params_before | params_after:
        if params_before.get(key) != params_after.get(key):
            name = key.removeprefix("params.yaml.")
            reasons.append(f"params: {name} was {params_before.get(key)}, is {params_after.get(key)}")
    if before.get("cmd") != after.get("cmd"):
        reasons.append(f"code: the command was {before.get('cmd')!r}, is {after.get('cmd')!r}")
    told = recorded.lineage
    packages, now = told.get("packages", {}), all_packages()
    decisive = [name for name in (*NUMERIC_PACKAGES, "rapidfuzz", "datasketch") if name in packages or name in now]
    reasons += [
        f"packages: {name} was {packages.get(name)}, is {now.get(name)}"
        for name in decisive
        if packages and packages.get(name) != now.get(name)
    ]
    if stage.partition("@")[0] in ("train", "eval") and "hardware" in told:
        machine = hardware()
        reasons += [
            f"hardware: {name} was {value}, is {machine.get(name)}"
            for name, value in told["hardware"].items()
            if machine.get(name) != value
        ]
    if not reasons and stage.startswith("fetch"):
        reasons.append("data: the publisher gives other bytes")
    return reasons or ["data, code, params, packages and hardware are those that were recorded: not deterministic"]


def _is_data(path: str) -> bool:
    return path.startswith(("data/", "models/", "reports/"))


def table(compared: list[Compared]) -> Table:
    """Lay out what was compared."""
    laid = Table(box=None, header_style="bold")
    for head in ("stage", "what", "is", "recorded", "rebuilt"):
        laid.add_column(head, overflow="fold")
    for one in compared:
        verdict = Text(one.verdict, style=STYLES[one.verdict])
        if one.note:
            verdict.append(f" ({visible(one.note)})", style="not bold")
        digests = ((digest or "-").removesuffix(".dir")[:SHOWN_DIGITS] for digest in (one.recorded, one.rebuilt))
        laid.add_row(visible(one.stage), visible(one.path), verdict, *digests)
    return laid


def main(name: str, data: str, until: str, json_file: Path | None) -> None:
    """Rebuild and compare.

    Raises:  InputError: what was recorded cannot be brought, a stage fails, or something differs.
    """
    with tempfile.TemporaryDirectory() as scratch:
        recorded = find(name, Path.cwd(), Path(scratch))
        place = make_worktree(recorded)
        told = recorded.lineage
        echo(f"rebuilding {name} (lineage key {told['lineage_key']}, commit {told['git_commit'][:8]}) in {place}")
        rebuild(recorded, place, data, until)
        rebuilt = of_folder(place)
        compared = compare(recorded, rebuilt, until)
        wrong = [one for one in compared if one.verdict == DIFFERS]
        reasons = explain(wrong[0].stage, recorded, rebuilt) if wrong else []
    if not compared:
        raise InputError(f"{name}: nothing is recorded to compare with: no {LOCK} of it is at hand")
    Screen().print(table(compared))
    if json_file:
        found = [asdict(one) for one in compared]
        first = wrong[0].stage if wrong else None
        write_json(
            json_file,
            {"model": name, "lineage_key": told["lineage_key"], "compared": found, "first": first, "reasons": reasons},
        )
    echo(f"rebuilt in {place}; remove it: git worktree remove --force {place}")
    if wrong:
        listed = "\n".join(visible(reason) for reason in reasons)
        raise InputError(f"first differs at {wrong[0].stage}, {wrong[0].path}:\n{listed}")
    if until in STAGES[4:]:
        key = read_json(place / LINEAGE)["lineage_key"]
        if key != told["lineage_key"]:
            raise InputError(
                f"the lineage key was {told['lineage_key']}, is {key}: data, code, params or packages differ"
            )
    verdicts = [one.verdict for one in compared]
    others = "".join(f", {verdicts.count(kind)} {kind}" for kind in (DECLARED, MISSING) if kind in verdicts)
    echo(f"[green]identical: {verdicts.count(IDENTICAL)} of {len(verdicts)} outputs[/]{others}")


def _dvc(place: Path, *arguments: str, may_fail: bool = False) -> int:
    """Run DVC in a worktree with the packages that run here; its messages are shown."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(OUTER)}
    own["PATH"] = f"{Path(sys.prefix) / 'bin'}{os.pathsep}{own['PATH']}"
    sys.stdout.flush()
    shown = subprocess.DEVNULL if may_fail else None
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=place, env=own, check=False, stdout=shown, stderr=shown)
    if done.returncode and not may_fail:
        raise InputError(
            f"{place}: dvc {' '.join(arguments)} ended with status {done.returncode}; its messages stand above. "
            f"A source that is gone: DATA={PULL}. Data that no cache or remote has: DATA={REFETCH}."
        )
    return done.returncode


def _git(folder: Path, *arguments: str) -> str:
    """Run git; return its complaint, "" where it has none."""
    done = subprocess.run(["git", "-C", str(folder), *arguments], check=False, capture_output=True, text=True)
    return (done.stderr.strip() or f"status {done.returncode}") if done.returncode else ""


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--model", default=FINAL, metavar="NAME", help="default: models/final")
    parser.add_argument("--data", choices=(REFETCH, PULL), default=REFETCH, help="where data comes from")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage that is run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was compared as JSON")
    given = parser.parse_args()
    run_or_exit(lambda: main(given.model, given.data, given.until, given.json))
