"""overview: what is up to date, what reruns and why, and the last run. `make` prints it below the targets.

dvc.yaml, dvc.lock, params.yaml, the files  ->  a line for each stage
reports/train.json, reports/eval.json, runs/  ->  the run in models/final, and a newer one that has not ended

It reads only, in about a second: files that DVC would have to hash for long are not waited for. A dvc.lock that a
killed DVC left empty is restored.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from types import FrameType

from rich.markup import escape

from sft.cli import InputError, echo, make_parser, run_or_exit
from sft.experiments.dvc_lock import restore_lock
from sft.files import read_json
from sft.params.read import PARAMS, read_text
from sft.params.recorded import STAGES, changed_params, read_lock, stage_of
from sft.tracking.journal import Journal

PATIENCE = 10  # seconds
MOST_REASONS = 3  # in a line
TRAIN, EVAL, FINAL, RUNS = Path("reports/train.json"), Path("reports/eval.json"), Path("models/final"), Path("runs")

UP_TO_DATE, NOT_RUN, MISSING = "up to date", "has not run", "its output is not here"


def find_reasons() -> dict[str, list[str]]:
    """Return why each stage of dvc.yaml would run, by name; [] if it is up to date. Raises InputError."""
    from dvc.dependency.param import ParamsDependency
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCMError

    lock, (_, values) = read_lock(), read_text(PARAMS)
    changed = changed_params(values, lock)
    reasons: dict[str, list[str]] = {}
    try:
        with Repo() as repo:
            for stage in repo.index.stages:
                name = stage.addressing
                if name not in lock:
                    reasons[name] = [NOT_RUN]
                    continue
                outs = {state for out in stage.outs for state in out.status().values()}
                found = [MISSING] if {"deleted", "not in cache"} & outs else ["its output was edited"] if outs else []
                found += changed.get(name, [])
                deps = [dep for dep in stage.deps if not isinstance(dep, ParamsDependency)]
                states = {str(path): state for dep in deps for path, state in dep.status().items()}
                found += [path for path, state in sorted(states.items()) if state != "deleted"]  # an earlier stage's
                reasons[name] = found + (["its command"] if stage.cmd_changed else [])
    except (DvcException, SCMError) as error:
        raise InputError(f"not known: {error}") from error
    return reasons


def stage_lines(reasons: Mapping[str, list[str]]) -> Iterator[str]:
    """Yield a line for each of the six stages: up to date, or what reruns and why."""
    stale_before = False
    for stage in STAGES:
        parts = {name: found for name, found in reasons.items() if stage_of(name) == stage}
        stale = {name: found for name, found in parts.items() if found}
        yield f"  {stage:8} {describe(parts, stale, stale_before)}"
        stale_before = stale_before or bool(stale)


def describe(parts: Mapping[str, list[str]], stale: Mapping[str, list[str]], stale_before: bool) -> str:
    """Return the state of a stage of some parts, one for each source, of which some are stale."""
    if not stale:
        return "up to date; reruns if what is before it changes" if stale_before else UP_TO_DATE
    names = [name.partition("@")[2] for name in stale if "@" in name]
    which = f"{len(stale)} of {len(parts)} rerun" if len(parts) > 1 else "reruns"
    if names and len(stale) < len(parts):
        which += f" ({shorten(names)})"
    return f"{which}: {shorten(dict.fromkeys(reason for found in stale.values() for reason in found))}"


def shorten(texts: Iterable[str]) -> str:
    """Return texts in a line, the first ones if there are many.

    >>> shorten("abcde")
    'a, b, c and 2 more'
    """
    texts = list(texts)
    more = f" and {len(texts) - MOST_REASONS} more" if len(texts) > MOST_REASONS else ""
    return ", ".join(texts[:MOST_REASONS]) + more


def run_lines() -> Iterator[str]:
    """Yield lines about the run in models/final, and about a newer one. Raises InputError: a report is not JSON."""
    key = None
    if TRAIN.exists():
        trained = read_json(TRAIN)
        key = str(trained["lineage_key"])
        validation = trained["validation_loss"]
        losses = f"loss {trained['train_loss']:.4f}" + ("" if validation is None else f", validation {validation:.4f}")
        yield f"  {key}  {time_of(RUNS / key)}{trained['iterations']} steps, {losses}"
        if EVAL.exists():
            evaluated = read_json(EVAL)
            before, after = evaluated["before"]["loss"], evaluated["after"]["loss"]
            gate = evaluated.get("gate", {})
            passed = (
                "passed the gate" if gate.get("passed") else f"failed the gate: {shorten(gate.get('failures', []))}"
            )
            yield f"  held-out loss {before:.4f} -> {after:.4f}; {passed}"
        if not FINAL.exists():
            yield f"  {FINAL} is not here, only its reports: make repro builds it, dvc pull gets it from a remote"
    newest = max((path.parent for path in RUNS.glob("*/journal.jsonl")), key=last_step, default=None)
    if newest and newest.name != key and last_step(newest):
        yield f"  {newest.name}  {time_of(newest)}newer, and not in {FINAL}: to resume it, make train"


def last_step(run: Path) -> int:
    """Return when a run made its last step, in milliseconds since 1970; 0 if it made none, or is not here.

    The time of the file says less: evaluation and sync append to the journal too.
    """
    return max((int(entry["time"]) for entry in Journal(run).entries("step")), default=0)


def time_of(run: Path) -> str:
    """Return when a run made its last step, local time, and a comma; "" if the run is not here."""
    step = last_step(run)
    return f"{datetime.fromtimestamp(step / 1000):%Y-%m-%d %H:%M}, " if step else ""


def main() -> None:
    """Print the overview; what cannot be known is a line of it."""
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(PATIENCE)
    echo("\n[bold]Last run[/]")
    _print(run_lines, "none yet")
    echo("\n[bold]Stages[/] (make repro runs what is not up to date)")
    _print(_stage_lines, "none")
    signal.alarm(0)


def _stage_lines() -> Iterator[str]:
    restore_lock()
    yield from stage_lines(find_reasons())


def _print(lines: Callable[[], Iterator[str]], otherwise: str) -> None:
    try:
        for line in list(lines()) or [f"  {otherwise}"]:
            echo(escape(line))
    except (InputError, OSError, KeyError, TypeError) as error:
        echo(escape(f"  {error}"))


def _give_up(signal_number: int, frame: FrameType | None) -> None:
    """End while DVC hashes files, in threads that cannot be stopped otherwise."""
    echo(f"  not known after {PATIENCE} s: many files are new to DVC. See: dvc status")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    make_parser(__name__, __doc__).parse_args()
    run_or_exit(main)
