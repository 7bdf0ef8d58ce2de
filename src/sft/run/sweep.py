"""sweep: many experiments from a grid or a list, run one after another or several at a time, seen in one page.

--grid 'optimizer.lr=1e-5,2e-5 rng.seed=1,2' (all combinations), --list FILE (a line for each experiment)
    ->  experiments in DVC's queue, NAME-1, NAME-2, ...; when all have ended: a table, and --html FILE with a
        parallel-coordinates plot

The words are those of `dvc exp run --queue --set-param`, also choice(...) and range(...). --jobs so many at a time;
with CLUSTER set each one's training is a job of that cluster. One that fails does not stop the others; the program
then ends with status 1. Called again with the same grid, nothing is queued twice: what is not finished goes on.
Results also stand in `dvc exp show` and in MLflow, where every run has the tag `sweep`.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from sft.command import InputError, guard, parser_of, say
from sft.files import flatten, publish_file, value_digest
from sft.run import parallel
from sft.run.records import Records, find
from sft.view.terminal import Screen, visible

EVERY = 5.0  # seconds between two looks at the queue
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


def sweep_name(calls: list[list[str]]) -> str:
    """Return a name that the same grid has each time."""
    return f"sweep-{value_digest(calls)[:6]}"


def parse_status(text: str) -> dict[str, str]:
    """Read what `dvc queue status` prints: state by name of the experiment; the newest task of a name counts.

    >>> parse_status("Task     Name    Created       Status\\n1a2b3c4  s-1     Nov 25, 2026  Failed\\n")
    {'s-1': 'Failed'}
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) > 3 and words[-1] in STATES and re.fullmatch("[0-9a-f]{7,}", words[0]):
            found.setdefault(words[1], words[-1])
    return found


def members_of(name: str, states: dict[str, str]) -> dict[str, str]:
    """Return the states of the members of a sweep, in their order."""
    own = {member: state for member, state in states.items() if re.fullmatch(rf"{re.escape(name)}(-\d+)?", member)}
    return dict(sorted(own.items(), key=lambda one: (len(one[0]), one[0])))


def queue(calls: list[list[str]], name: str) -> None:
    """Put the experiments of a sweep into the queue."""
    for number, words in enumerate(calls, start=1):
        call = name if len(calls) == 1 else f"{name}-{number}"
        _dvc("exp", "run", "--queue", "--name", call, *(one for word in words for one in ("--set-param", word)))


def wait(name: str, jobs: int) -> dict[str, str]:
    """Start the workers of the queue and wait until every member of a sweep has ended; return how."""
    seen: dict[str, str] = {}
    started = False
    while True:
        states = members_of(name, parse_status(_dvc("queue", "status")))
        for member, state in states.items():
            if seen.get(member) != state:
                say(f"{member}: {state.lower()}")
        seen = states
        waiting = [member for member, state in states.items() if state in (QUEUED, RUNNING)]
        if not waiting:
            return states
        if not started:
            _dvc("queue", "start", "--jobs", str(jobs))
            started = True
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


def _dvc(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"dvc {shlex.join(arguments)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def main(calls: list[list[str]], name: str | None, jobs: int, html_file: Path | None) -> None:
    """Sweep.

    Raises:  InputError: DVC refuses a param, or a member failed.
    """
    name = name or sweep_name(calls)
    os.environ["SFT_SWEEP"] = name  # what the workers of the queue run gets this environment
    states = members_of(name, parse_status(_dvc("queue", "status")))
    if states:
        say(f"{name}: {len(states)} experiments are there already; what is not finished goes on")
    else:
        queue(calls, name)
    members = gather(wait(name, jobs), Path.cwd())
    if not members:
        raise InputError(f"{name}: DVC queued no experiment")
    Screen().print(table(members, varied(members)))
    if html_file:
        with publish_file(html_file) as partial:
            partial.write_text(page(name, members), encoding="utf-8")
        say(f"see {html_file}")
    if failed := [member.name for member in members if member.state == FAILED]:
        raise InputError(
            f"{len(failed)} of {len(members)} failed: {', '.join(failed)}. Why: dvc queue logs {failed[0]}. "
            "To try them again: dvc queue remove --failed, then the same sweep under another name."
        )


if __name__ == "__main__":
    parser = parser_of(__name__, __doc__)
    parser.add_argument("--grid", metavar="WORDS", help="params and their values; every combination is run")
    parser.add_argument("--list", type=Path, metavar="FILE", help="a line of params for each experiment")
    parser.add_argument("--name", metavar="NAME", help="default: sweep- and a digest of what is swept")
    parser.add_argument("--jobs", type=int, default=1, help="experiments at a time")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page")
    given = parser.parse_args()
    guard(
        "sweep",
        lambda: main(
            plan(given.grid, given.list and given.list.read_text(encoding="utf-8")), given.name, given.jobs, given.html
        ),
    )
