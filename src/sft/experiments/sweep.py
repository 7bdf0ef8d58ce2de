"""sweep: many experiments from a grid or a list, in DVC's queue.

--grid 'optimizer.lr=1e-5,2e-5 rng.seed=1,2' (all combinations) or --list FILE (a line of params for each experiment)
    ->  experiments NAME-1, NAME-2, ... in `dvc exp show` and in MLflow (tag `sweep`), and a table of them

Values are those of `dvc exp run --queue --set-param`, also choice(...) and range(...). --jobs experiments run at a
time; with CLUSTER set, each training is a job of that cluster. If one fails, the others continue, and the program
exits with 1. If a worker is killed, its experiment runs again. The same command again resumes the sweep: it runs
nothing twice.

Workers of DVC's queue pass their environment (CLUSTER, SFT_SWEEP, MLFLOW_TRACKING_URI, ...) to what they run. So one
sweep runs at a time, nothing else may be in the queue, and workers of an earlier command finish first.
"""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.markup import escape

from sft.cli import InputError, at_least, echo, exit_with, make_parser, run_or_exit
from sft.cluster.cluster_file import is_on, read_cluster_file, requested_cluster
from sft.experiments.check import find_problems
from sft.files import file_lock, read_json, write_json
from sft.hashing import value_digest
from sft.lineage.patch import dirty_patch
from sft.lineage.work_tree import git
from sft.params.check import check_settings

POLL_SECONDS = 5.0
LOG_LINES = 15  # of an experiment that failed, which are printed
LOOKS = 2  # in a row: DVC has no lock on its queue, and a worker that ends is gone before its state is written
WORKERS = Path(".dvc/tmp/exps/celery")  # DVC's files of the processes that it starts
SWEEPS = Path("runs/sweeps")  # what each sweep was made from
QUEUED, RUNNING, SUCCESS, FAILED = "Queued", "Running", "Success", "Failed"
GONE = "Gone"  # removed from the queue while it was there, or its message was lost
METRICS = ("train_loss", "validation_loss", "after.loss", "after.tool_call_fits")


def read_calls(grid: str | None, lines: str | None) -> list[list[str]]:
    """Return the params of a grid or of each line of a list, as words of `--set-param`.

    Raises:  InputError: there is nothing to sweep, or a word is not NAME=VALUE.

    >>> read_calls("optimizer.lr=1e-5,2e-5 rng.seed=1,2", None)
    [['optimizer.lr=1e-5,2e-5', 'rng.seed=1,2']]
    >>> read_calls(None, "optimizer.lr=1e-5 rng.seed=1\\n# a note\\nrng.seed=3\\n")
    [['optimizer.lr=1e-5', 'rng.seed=1'], ['rng.seed=3']]
    """
    texts = [grid] if grid else [line for line in (lines or "").splitlines() if line.split("#")[0].strip()]
    calls = [shlex.split(text, comments=True) for text in texts]
    if not any(calls):
        raise InputError("GRID, LIST: nothing to sweep. Give one of them, as in GRID='optimizer.lr=1e-5,2e-5'")
    for word in (word for call in calls for word in call):
        if not re.fullmatch(r"[A-Za-z_][\w.-]*=\S.*", word):
            raise InputError(f"{word!r}: expected NAME=VALUE, as in optimizer.lr=1e-5,2e-5")
    return calls


def expand(calls: list[list[str]], name: str) -> dict[str, list[str]]:
    """Return the params of each experiment of a sweep, by its name: DVC expands the grids.

    >>> expand([["optimizer.lr=1e-5,2e-5", "rng.seed=1"], ["rng.seed=3"]], "s")["s-2"]
    ['optimizer.lr=2e-05', 'rng.seed=1']
    """
    from dvc.utils.cli_parse import to_path_overrides
    from dvc.utils.hydra import get_hydra_sweeps

    sweeps = (sweep["params.yaml"] for call in calls for sweep in get_hydra_sweeps(to_path_overrides(call)))
    return {f"{name}-{number}": words for number, words in enumerate(sweeps, start=1)}


def check(members: dict[str, list[str]]) -> None:
    """End with exit status 2 and all problems, if one would stop the experiments: a wrong value, a full disk, ..."""
    problems = find_problems([])
    for member, words in members.items():
        try:
            check_settings(as_settings(words))
        except InputError as error:
            problems.append(f"{member} ({shlex.join(words)}): {error}")
    if problems:
        exit_with(*problems, status=2)


def as_settings(words: list[str]) -> list[str]:
    """Return words of `--set-param` as settings, whose values are YAML.

    >>> as_settings(["optimizer.lr=2e-05", "filter.narrative=null", "filter.repetition={min_letters:3}"])
    ['optimizer.lr=2e-05', 'filter.narrative=null', 'filter.repetition={"min_letters": 3}']
    """
    from dvc.utils.hydra import to_hydra_overrides

    return [f"{each.key_or_group}={json.dumps(each.value())}" for each in to_hydra_overrides(words)]


def look() -> dict[str, str]:
    """Return the state of the newest task of each experiment in DVC's queue.

    `dvc queue status` says the same, but also sends a message to each worker. A worker that reads one before it is
    written ends (kombu writes messages in place: kombu/transport/filesystem.py at 5.7.0).
    """
    from dvc.repo import Repo

    with Repo() as repo:
        queue = repo.experiments.celery_queue
        waiting = [entry.name or entry.stash_rev[:7] for entry in queue.iter_queued()]
        tasks = queue.status()  # what runs, then what waits: a task that a worker takes between them is in neither
    states = {task["name"] or task["rev"][:7]: task["status"] for task in reversed(tasks)}  # the newest is first
    return dict.fromkeys(waiting, QUEUED) | states


def count_workers() -> int:
    """Return how many processes of DVC's workers run here. `dvc queue status` counts those that answer at once only."""
    running = 0
    for file in WORKERS.glob("dvc-exp-worker-*.pid"):
        with contextlib.suppress(OSError):  # it has ended
            running += b"queue-worker" in Path("/proc", file.read_text(encoding="ascii"), "cmdline").read_bytes()
    return running


def states_of(members: Iterable[str], queue: dict[str, str]) -> dict[str, str]:
    """Return the states of the members that are in the queue, or in git: `dvc queue remove` leaves results there."""
    refs = git(Path.cwd(), "for-each-ref", "--format=%(refname)", "refs/exps").decode().split()
    states = dict.fromkeys((ref.rpartition("/")[2] for ref in refs), SUCCESS) | queue
    return {member: states[member] for member in members if member in states}


def check_origin(name: str, members: dict[str, list[str]], known: Iterable[str]) -> None:
    """Check that known experiments were made from this commit, these edits and these params; record all of them.

    Raises:  InputError: one was made from something else.
    """
    edits = dirty_patch(Path.cwd()) or b""
    made_from = {
        "commit": git(Path.cwd(), "rev-parse", "HEAD").decode().strip(),
        "uncommitted changes": value_digest(edits.decode("latin-1")),  # any byte is a character
    }
    origins: dict[str, dict[str, Any]] = {member: {**made_from, "params": words} for member, words in members.items()}
    record = SWEEPS / f"{name}.json"
    earlier = read_json(record) if record.exists() else {}
    for member in known:
        recorded = earlier.get(member, {})
        if differing := [key for key, value in origins[member].items() if recorded.get(key) != value]:
            raise InputError(
                f"{member}: exists and has other {', '.join(differing)}. Choose another NAME, or remove it: "
                f"dvc exp remove {member}; dvc queue remove {member}"
            )
    write_json(record, {**earlier, **origins})


def add(member: str, words: list[str]) -> None:
    """Add an experiment to the queue."""
    _dvc("exp", "run", "--queue", "--name", member, *(part for word in words for part in ("--set-param", word)))


def end_earlier_workers() -> None:
    """Wait until the workers of an earlier command have finished what they run."""
    if count_workers():
        echo("waiting for workers of an earlier command: they have its environment, and finish what they run")
        _dvc("queue", "stop")
        while count_workers():
            time.sleep(POLL_SECONDS)


def wait(members: dict[str, list[str]], jobs: int) -> dict[str, str]:
    """Keep workers running until every member has ended; return the state of each.

    A member that runs while there is no worker has lost it to a kill or a reboot: it is queued again.
    """
    shown: dict[str, str] = {}
    lost: set[str] = set()
    understaffed, abandoned = LOOKS, 0  # looks in a row with too few workers; with members that run without one
    while True:
        states, workers = states_of(members, look()), count_workers()
        for member, state in states.items():
            if shown.get(member) != state:
                echo(f"{member}: {state.lower()}")
        shown = states.copy()
        running = [member for member, state in states.items() if state == RUNNING]
        abandoned = abandoned + 1 if running and not workers else 0
        if abandoned >= LOOKS:
            lost |= set(running)
            _dvc("queue", "kill", *running, may_fail=True)  # ends its processes, and DVC records a failure
        for member in [member for member in lost if states.get(member) == FAILED]:
            echo(f"{member}: its worker was killed, running it again")
            _dvc("queue", "remove", member)
            add(member, members[member])
            lost.remove(member)
            states[member] = QUEUED
        if not {QUEUED, RUNNING} & set(states.values()):
            return {member: states.get(member, GONE) for member in members}
        is_understaffed = QUEUED in states.values() and workers < jobs and not abandoned
        understaffed = understaffed + 1 if is_understaffed else 0
        if understaffed > LOOKS:
            _dvc("queue", "start", "--jobs", str(jobs))
            understaffed = 1
        time.sleep(POLL_SECONDS)


def run(calls: list[list[str]], name: str, jobs: int) -> dict[str, str]:
    """Queue the experiments that are not known yet, run all, and return the state of each.

    Ends with exit status 2 if a value is wrong, or something else would stop every experiment.

    Raises:  InputError: another sweep runs, the cluster file is wrong, something else is in the queue, an earlier sweep
    has this name, DVC rejects a param.
    """
    for switch in ("DETACH", "DRY_RUN"):
        if is_on(switch):
            raise InputError(f"{switch}=1: not for a sweep. It is for one job: make train CLUSTER=<name> {switch}=1")
    if cluster := requested_cluster():
        read_cluster_file(cluster)
    os.environ["SFT_SWEEP"] = name
    members = expand(calls, name)
    check(members)
    with file_lock(Path("runs/sweep.lock"), 0) as is_mine:
        if not is_mine:
            raise InputError("runs/sweep.lock: another sweep runs in this project. Wait for it, or stop it")
        queue = look()
        if others := [other for other, state in queue.items() if state == QUEUED and other not in members]:
            raise InputError(
                f"dvc queue: also holds {', '.join(others)}, which would run with the environment of this sweep. Run "
                "them first (dvc queue start), or remove them (dvc queue remove NAME)"
            )
        states = states_of(members, queue)
        check_origin(name, members, states)
        if states:
            echo(f"{name}: {len(states)} of {len(members)} experiments exist, running the unfinished ones")
        if len(states) < len(members) or {QUEUED, RUNNING} & set(states.values()):
            end_earlier_workers()
        for member, words in members.items():
            if member not in states:
                add(member, words)
        return wait(members, jobs)


def show(states: dict[str, str], params: set[str]) -> None:
    """Print the table of `dvc exp show` with these params and METRICS, the lowest held-out loss first."""
    columns = "|".join(map(re.escape, ["Experiment", "State", *sorted(params), *METRICS]))
    command = [sys.executable, "-m", "dvc", "exp", "show", "--md", "--hide-workspace"]
    command += ["--drop", rf"^(?!(.*:)?({columns})$)"]
    if SUCCESS in states.values():
        command += ["--sort-by", "reports/eval.json:after.loss"]
    subprocess.run(command, check=True)


def _dvc(*arguments: str, may_fail: bool = False) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    with tempfile.TemporaryFile("w+") as output:  # workers keep inherited files open: a pipe would have no end
        done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        output.seek(0)
        text = output.read()
    if done.returncode and not may_fail:
        raise InputError(f"dvc {shlex.join(arguments)}: {text.strip()}")
    return text


def main(calls: list[list[str]], name: str | None, jobs: int) -> None:
    """Run a sweep and show its table.

    Raises:  InputError: as `run`, or an experiment failed or is no longer in the queue.
    """
    states = run(calls, name or f"sweep-{value_digest(calls)[:6]}", jobs)
    show(states, {word.partition("=")[0] for call in calls for word in call})
    if missing := [member for member, state in states.items() if state == GONE]:
        raise InputError(
            f"dvc queue: no longer holds {', '.join(missing)}. To run what is missing: the same command again"
        )
    if failed := [member for member, state in states.items() if state == FAILED]:
        for member in failed:
            log = _dvc("queue", "logs", member, may_fail=True).rstrip().splitlines()
            echo(f"{member}: failed. Its log (dvc queue logs {member}) ends with")
            echo(escape("\n".join(log[-LOG_LINES:])))
        raise InputError(
            f"{len(failed)} of {len(states)} experiments failed: {', '.join(failed)}. To run them again: dvc queue "
            "remove --failed, then the same command"
        )


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--grid", metavar="WORDS", help="params and their values; every combination is an experiment")
    parser.add_argument("--list", type=Path, metavar="FILE", help="a line of params for each experiment")
    parser.add_argument("--name", metavar="NAME", help="default: sweep- and a digest of the params")
    parser.add_argument("--jobs", type=at_least(1), default=1, help="experiments at a time; default: 1")
    arguments = parser.parse_args()

    run_or_exit(
        lambda: main(
            read_calls(arguments.grid, arguments.list and arguments.list.read_text(encoding="utf-8")),
            arguments.name,
            arguments.jobs,
        )
    )
