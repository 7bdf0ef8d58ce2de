"""sweep: many experiments from a grid or a list, run one after another or several at a time, seen in one page.

--grid 'optimizer.lr=1e-5,2e-5 rng.seed=1,2' (all combinations), --list FILE (a line for each experiment, or grid)
    ->  experiments in DVC's queue, NAME-1, NAME-2, ...; when all have ended: a table, and --html FILE with a
        parallel-coordinates plot

The words are those of `dvc exp run --queue --set-param`, also choice(...) and range(...). --jobs so many at a time;
with CLUSTER set each one's training is a job of that cluster. One that fails does not stop the others; the program
then ends with status 1. Called again with the same grid, nothing is queued twice: what is not finished goes on, also
what the workers of the queue lost; from another commit, or with other params, the same name is refused. Results also
stand in `dvc exp show` and in MLflow, where every run has the tag `sweep`.

A worker of DVC's queue gives its own environment (CLUSTER, SFT_SWEEP, MLFLOW_TRACKING_URI, ...) to all that it runs. So
one sweep runs at a time, nothing else may wait in the queue, and workers of another environment are let go first.
"""

import hashlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from sft.cli import InputError, echo, make_parser, run_or_exit
from sft.cluster.cluster_file import is_on, read_cluster_file, requested_cluster
from sft.files import file_lock, flatten, publish_file, read_json, write_json
from sft.hashing import value_digest
from sft.inspect.terminal import Screen, visible
from sft.lineage.record import OWN_OUTPUTS
from sft.lineage.resolve import Records, find
from sft.pages import parallel

EVERY = 5.0  # seconds between two looks at the queue
LOOKS = 4  # so many in a row make sure of what a single one may see by chance: DVC has no lock for it
WORKERS = Path(".dvc/tmp/exps/celery")  # where DVC keeps the process ids of the queue's workers
ORIGINS = Path("runs/sweeps")  # what each member was made from
MOST_SHOWN = 5
# What of a worker's environment reaches what it runs; and what a cluster's profile names.
CARRIED = ("CLUSTER", "AWS_", "MLFLOW_", "OMP_", "SFT_")
QUEUED, RUNNING, SUCCESS, FAILED = "Queued", "Running", "Success", "Failed"
STATES = (QUEUED, RUNNING, SUCCESS, FAILED)
MEASURED = {
    "training loss": ("reports/train.json", "train_loss"),
    "validation loss": ("reports/train.json", "validation_loss"),
    "held-out loss": ("reports/eval.json", "after.loss"),
    "arguments fit": ("reports/eval.json", "after.tool_call_fits"),
}


@dataclass
class Member:
    """An experiment of a sweep."""

    name: str
    state: str
    params: dict[str, Any] = field(default_factory=dict)
    """All params by which its stages ran, by dotted name."""
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Queue:
    """What `dvc queue status` says."""

    states: dict[str, str]
    """By name of the experiment; the newest task of a name counts."""
    busy: int
    """Workers that run an experiment."""
    idle: int


def plan(grid: str | None, listed: str | None) -> list[list[str]]:
    """Return the calls of `dvc exp run` that queue the experiments: the --set-param words of each.

    Raises:  InputError: there is nothing to sweep, or a word is not NAME=VALUE.

    >>> plan("optimizer.lr=1e-5,2e-5 rng.seed=1,2", None)
    [['optimizer.lr=1e-5,2e-5', 'rng.seed=1,2']]
    >>> plan(None, "optimizer.lr=1e-5 rng.seed=1\\n# a note\\nrng.seed=3\\n")
    [['optimizer.lr=1e-5', 'rng.seed=1'], ['rng.seed=3']]
    """
    lines = [grid] if grid else [line for line in (listed or "").splitlines() if line.split("#")[0].strip()]
    calls = [shlex.split(line, comments=True) for line in lines]
    if not any(calls):
        raise InputError("nothing to sweep: give a grid, as in GRID='optimizer.lr=1e-5,2e-5', or a list of such lines")
    for word in (word for call in calls for word in call):
        if not re.fullmatch(r"[A-Za-z_][\w.-]*=\S.*", word):
            raise InputError(f"{word!r}: expected NAME=VALUE, as in optimizer.lr=1e-5,2e-5")
    return calls


def expand(calls: list[list[str]], name: str) -> dict[str, list[str]]:
    """Return the experiments of a sweep in their order: the params of each, by its name.

    >>> expand([["optimizer.lr=1e-5,2e-5", "rng.seed=1"], ["rng.seed=3"]], "s")["s-2"]
    ['optimizer.lr=2e-05', 'rng.seed=1']
    """
    from dvc.utils.cli_parse import to_path_overrides
    from dvc.utils.hydra import get_hydra_sweeps

    each = [words for call in calls for one in get_hydra_sweeps(to_path_overrides(call)) for words in one.values()]
    return {f"{name}-{number}": words for number, words in enumerate(each, start=1)}


def sweep_name(calls: list[list[str]]) -> str:
    """Return a name that the same grid has each time."""
    return f"sweep-{value_digest(calls)[:6]}"


def parse_status(text: str) -> Queue:
    """Read what `dvc queue status` prints.

    >>> parse_status("Task     Name    Created       Status\\n1a2b3c4  s-1     Nov 25, 2026  Failed\\n")
    Queue(states={'s-1': 'Failed'}, busy=0, idle=0)
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) > 3 and words[-1] in STATES and re.fullmatch("[0-9a-f]{7,}", words[0]):
            found.setdefault(words[1], words[-1])
    workers = re.search(r"^Worker status: (\d+) active, (\d+) idle", text, re.MULTILINE)
    busy, idle = map(int, workers.groups()) if workers else (0, 0)
    return Queue(found, busy, idle)


def look() -> Queue:
    """Look at the queue."""
    return parse_status(_dvc("queue", "status"))


def finished() -> set[str]:
    """Return the names of all experiments that git has: those of members whose tasks were removed from the queue."""
    listed = _git("for-each-ref", "--format=%(refname)", "refs/exps")
    return {ref.rpartition("/")[2] for ref in listed.split()}


def members_of(members: dict[str, list[str]], states: dict[str, str], done: set[str]) -> dict[str, str]:
    """Return the states of those members that are in the queue, or that are done, in their order."""
    known = {member: states.get(member) or (SUCCESS if member in done else None) for member in members}
    return {member: state for member, state in known.items() if state}


def origin(words: list[str]) -> dict[str, Any]:
    """Return what an experiment that is queued now is made from: commit, edits of it, and all params as text."""
    from dvc.utils.serialize import load_yaml

    changed = _git("diff", "--binary", "--no-ext-diff", "HEAD", "--", ".", ":(exclude)params.yaml", *OWN_OUTPUTS)
    params = {name: str(value) for name, value in flatten(load_yaml("params.yaml")).items()}
    for name, _, value in (word.partition("=") for word in words):
        params = {known: text for known, text in params.items() if not known.startswith(f"{name}.")} | {name: value}
    edits = hashlib.sha256(changed.encode("utf-8", "surrogateescape")).hexdigest() if changed else None
    return {"commit": _git("rev-parse", "HEAD").strip(), "edits": edits, "params": params}


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Say in what two origins differ.

    >>> then = {"commit": "1a2b", "edits": None, "params": {"rng.seed": "1"}}
    >>> differences(then, {"commit": "3c4d", "edits": None, "params": {"rng.seed": "2"}})
    ['commit 1a2b, now 3c4d', 'rng.seed 1, now 2']
    """
    found = [f"commit {then['commit'][:8]}, now {now['commit'][:8]}"] if then["commit"] != now["commit"] else []
    for name in sorted(then["params"].keys() | now["params"].keys()):
        before, after = (each["params"].get(name, "nothing") for each in (then, now))
        found += [f"{name} {before}, now {after}"] if before != after else []
    return found + (["other edits that are not committed"] if then["edits"] != now["edits"] else [])


def refuse_older(members: dict[str, list[str]], known: Iterable[str]) -> None:
    """Refuse what has the name of a member and was made from something else: it is no result of now.

    Raises:  InputError: names the first, and what differs.
    """
    for member in known:
        if not (record := ORIGINS / f"{member}.json").exists():
            differing = [f"nothing tells from which commit and params: {record} is missing"]
        elif not (differing := differences(read_json(record), origin(members[member]))):
            continue
        shown = "; ".join([*differing[:MOST_SHOWN], *(["…"] if len(differing) > MOST_SHOWN else [])])
        raise InputError(
            f"an experiment {member} is there already, made from something else: {shown}. Give this sweep a NAME of "
            "its own; or go back to what that one was made from. (dvc exp show shows it; what forgets it: "
            f"dvc exp remove {member}, dvc queue remove {member}.)"
        )


def queue(member: str, words: list[str]) -> None:
    """Put an experiment into the queue."""
    write_json(ORIGINS / f"{member}.json", origin(words))
    _dvc("exp", "run", "--queue", "--name", member, *(one for word in words for one in ("--set-param", word)))


def refuse_others(members: dict[str, list[str]], states: dict[str, str]) -> None:
    """Refuse what waits in the queue and is not of the sweep. Raises InputError."""
    if others := [name for name, state in states.items() if state == QUEUED and name not in members]:
        raise InputError(
            f"DVC's queue also holds {', '.join(others)}, which would be run with the environment of this sweep. Run "
            "them first (the command that queued them, or dvc queue start), or take them out: dvc queue remove NAME"
        )


def strangers(cluster: str) -> list[int]:
    """Return the processes of workers that an earlier command left with an environment other than this one's."""
    named = tuple(read_cluster_file(cluster).environment) if cluster else ()

    def carried(environment: dict[str, str]) -> dict[str, str]:
        return {
            name: value for name, value in environment.items() if value and (name.startswith(CARRIED) or name in named)
        }

    found = []
    for file in sorted(WORKERS.glob("dvc-exp-worker-*.pid")):
        process = Path("/proc", file.read_text(encoding="ascii").strip())
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            text = (process / "environ").read_bytes().decode("utf-8", "surrogateescape")
        except OSError:  # it has ended
            continue
        theirs = dict(pair.split("=", 1) for pair in text.split("\0") if "=" in pair)
        if b"queue-worker" in words and carried(theirs) != carried(dict(os.environ)):
            found.append(int(process.name))
    return found


def let_go(cluster: str) -> None:
    """Wait until workers of another environment have ended, each after the experiment that it runs."""
    told = False
    while strangers(cluster):
        if not told:
            echo("workers of an earlier command, with another environment, end after what they run")
            _dvc("queue", "stop")
        told = True
        time.sleep(EVERY)


def wait(members: dict[str, list[str]], jobs: int) -> dict[str, str]:
    """Keep workers at the queue until every member of a sweep has ended; return how.

    A member that runs, while no worker runs anything, was lost with its worker (killed, or the machine was): it is
    queued again.
    """
    seen: dict[str, str] = {}
    unstaffed, unattended = LOOKS, 0  # looks in a row with too few workers, with members that nobody runs
    lost: set[str] = set()
    while True:
        now = look()
        states = members_of(members, now.states, finished())
        for member, state in states.items():
            if seen.get(member) != state:
                echo(f"{member}: {state.lower()}")
        seen = states
        running = [member for member, state in states.items() if state == RUNNING]
        unattended = unattended + 1 if running and not now.busy else 0
        if unattended >= LOOKS:
            lost |= set(running)
            for member in running:
                _dvc("queue", "kill", member, may_fail=True)  # its processes, if any; then DVC's record of it
        for member in [member for member in lost if states.get(member) == FAILED]:
            echo(f"{member}: its worker was lost; it goes on")
            _dvc("queue", "remove", member)
            queue(member, members[member])
            lost.remove(member)
            states[member] = QUEUED
        if not {QUEUED, RUNNING} & set(states.values()):
            return states
        unstaffed = unstaffed + 1 if QUEUED in states.values() and now.busy + now.idle < jobs else 0
        if unstaffed > LOOKS:
            _dvc("queue", "start", "--jobs", str(jobs))
            unstaffed = 1
        time.sleep(EVERY)


def gather(states: dict[str, str], root: Path) -> list[Member]:
    """Read what came of the members, from git and DVC."""
    members = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, state in states.items():
            member = Member(name, state)
            if state == SUCCESS:
                _read(member, find(name, root, Path(scratch)))
            members.append(member)
    return members


def _read(member: Member, records: Records) -> None:
    for stage in records.lock.values():
        member.params |= flatten(stage.get("params", {}).get("params.yaml", {}))
    for label, (path, key) in MEASURED.items():
        value = flatten(records.json(path)).get(key)
        if value is not None:
            member.metrics[label] = float(value)


def varied(members: list[Member]) -> list[str]:
    """Return the params that members differ in.

    >>> varied([Member("a", SUCCESS, {"lr": 1, "seed": 1}), Member("b", SUCCESS, {"lr": 2, "seed": 1})])
    ['lr']
    """
    done = [member for member in members if member.state == SUCCESS]
    names = dict.fromkeys(name for member in done for name in member.params)
    return sorted(name for name in names if len({str(member.params.get(name)) for member in done}) > 1)


def best_first(members: list[Member]) -> list[Member]:
    """Put the lowest held-out loss first; members without one come last."""
    return sorted(members, key=lambda one: (one.metrics.get("held-out loss", float("inf")), len(one.name), one.name))


def table(members: list[Member], params: list[str]) -> Table:
    """Lay the members out, the best first."""
    labels = [label for label in MEASURED if any(label in member.metrics for member in members)]
    laid = Table(box=None, header_style="bold")
    for head in ("experiment", "is", *params, *labels):
        laid.add_column(Text(visible(head)), overflow="fold")
    for member in best_first(members):
        values = [str(member.params.get(name, "")) for name in params]
        numbers = [f"{member.metrics[label]:.6g}" if label in member.metrics else "-" for label in labels]
        style = "red" if member.state == FAILED else ""
        laid.add_row(
            *(Text(visible(cell)) for cell in (member.name, member.state.lower(), *values, *numbers)), style=style
        )
    return laid


def page(name: str, members: list[Member]) -> str:
    """Render the page of a sweep."""
    params = varied(members)
    done = best_first([member for member in members if member.state == SUCCESS])
    labels = [label for label in MEASURED if any(label in member.metrics for member in done)]
    rows = [
        {
            "name": one.name,
            **{p: one.params.get(p) for p in params},
            **{label: one.metrics.get(label) for label in labels},
        }
        for one in done
    ]
    ended = {one.name: one.state.lower() for one in members if one.state != SUCCESS}
    return parallel.page(name, rows, [*params, *labels], ended)


def _git(*arguments: str) -> str:
    asked = ["git", *arguments]
    return subprocess.run(asked, check=True, capture_output=True, text=True, errors="surrogateescape").stdout


def _dvc(*arguments: str, may_fail: bool = False) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    with tempfile.TemporaryFile("w+") as said:  # workers keep what they inherit open: a pipe would have no end
        done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)
        said.seek(0)
        text = said.read()
    if done.returncode and not may_fail:
        raise InputError(f"dvc {shlex.join(arguments)}: {text.strip()}")
    return text


def run(calls: list[list[str]], name: str, jobs: int) -> list[Member]:
    """Queue what is not in the queue yet, run all, and read what came of it.

    Raises:  InputError: another sweep runs, the profile is wrong, something else waits, a member of that name was made
    from something else, DVC refuses a param.
    """
    for switch in ("DETACH", "DRY_RUN"):
        if is_on(switch):
            raise InputError(f"{switch}=1 is about one job: make train CLUSTER=<profile> {switch}=1")
    if cluster := requested_cluster():
        read_cluster_file(cluster)
    os.environ["SFT_SWEEP"] = name  # what the workers of the queue run gets this environment
    members = expand(calls, name)
    with file_lock(Path("runs/sweep.lock"), 0) as alone:
        if not alone:
            raise InputError("another sweep runs in this project, and one runs at a time: wait for it, or end it")
        states = look().states
        refuse_others(members, states)
        refuse_older(members, members_of(members, states, finished()))
        let_go(cluster)
        known = members_of(members, states, finished())
        if known:
            echo(f"{name}: {len(known)} of {len(members)} experiments are there already; what is not finished goes on")
        for member in members:
            if member not in known:
                queue(member, members[member])
        return gather(wait(members, jobs), Path.cwd())


def main(calls: list[list[str]], name: str | None, jobs: int, html_file: Path | None) -> None:
    """Sweep.

    Raises:  InputError: as `run` raises it, or a member failed.
    """
    name = name or sweep_name(calls)
    members = run(calls, name, jobs)
    Screen().print(table(members, varied(members)))
    if html_file:
        with publish_file(html_file) as partial:
            partial.write_text(page(name, members), encoding="utf-8")
        echo(f"see {html_file}")
    if failed := [member.name for member in members if member.state == FAILED]:
        raise InputError(
            f"{len(failed)} of {len(members)} failed: {', '.join(failed)}. Why: dvc queue logs {failed[0]}. "
            "To try them again: dvc queue remove --failed, then the same command."
        )


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--grid", metavar="WORDS", help="params and their values; every combination is run")
    parser.add_argument("--list", type=Path, metavar="FILE", help="a line of params for each experiment")
    parser.add_argument("--name", metavar="NAME", help="default: sweep- and a digest of what is swept")
    parser.add_argument("--jobs", type=int, default=1, help="experiments at a time")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page")
    given = parser.parse_args()
    run_or_exit(
        lambda: main(
            plan(given.grid, given.list and given.list.read_text(encoding="utf-8")), given.name, given.jobs, given.html
        ),
    )
