"""deliver: tell MLflow what waits for it, after a server was away, or when another store is to have the runs.

runs/*/mlflow/outbox.jsonl  ->  the store that MLFLOW_TRACKING_URI names, else runs/mlflow.db

Attempts whose process on this machine is gone without a word are ended as KILLED. Told twice, nothing changes.
Ends with status 0 where nothing waits any more.

DVC writes dvc.lock after the last stage has told MLflow of the run: what the run then has is of before that stage.
Where dvc.lock names the model that lies in models/final, and the run has an older one, it is replaced here; with --lock
nothing else is done, and where nothing is to be replaced MLflow is not even loaded. `make repro` ends with that.
"""

import hashlib
from pathlib import Path

from sft.cli import InputError, echo, make_parser, run_or_exit
from sft.files import project_root, read_json
from sft.hashing import file_digest
from sft.lineage.resolve import FINAL, LINEAGE, LOCK, listing, outs, parse_lock
from sft.tracking.journal import RECORDS, Journal, end_dead_attempts


def renew_lock(root: Path) -> Path | None:
    """Have dvc.lock replaced in the run of models/final, if both are of one model and it is news; return the run."""
    lineage, lock = root / LINEAGE, root / LOCK
    if not lineage.exists() or not lock.exists():
        return None
    box = Journal(project_root() / "runs" / read_json(lineage)["lineage_key"])
    things = [thing for _, thing in box.read()]
    if file_digest(lineage) not in {thing.get("digest") for thing in things if thing["kind"] == "model"}:
        return None
    kept = [box.folder / thing["files"] / LOCK for thing in things if thing["kind"] == "files"]
    newest = next((file for file in reversed(kept) if file.exists()), None)
    if newest is not None and newest.read_bytes() == lock.read_bytes():
        return None
    named = listing(root, outs(parse_lock(lock.read_bytes())).get(FINAL, "")) or {}
    if named.get(lineage.name) != hashlib.md5(lineage.read_bytes(), usedforsecurity=False).hexdigest():
        return None
    box.attach(RECORDS, {LOCK: lock})
    return box.folder.parent


def tell_lock() -> None:
    """Replace dvc.lock in the run of models/final, and say so. A store that is away is no error: it is told later."""
    if run := renew_lock(Path.cwd()):
        from sft.tracking import delivery

        with delivery.sync_at_exit(run) as ending:
            pass
        echo(f"MLflow: {LOCK} of runs/{run.name}, as all stages left it. {ending.text}")


def main() -> None:
    """Tell the store of every run.

    Raises:  InputError: the store refuses, or does not answer.
    """
    from sft.tracking import delivery
    from sft.tracking.store import store_name

    renew_lock(Path.cwd())
    folders = sorted(path.parents[1] for path in (project_root() / "runs").glob("*/mlflow/outbox.jsonl"))
    for run in folders:
        for attempt in end_dead_attempts(Journal(run)):
            echo(f"runs/{run.name}: attempt {attempt} is gone without a word: KILLED")
        before = Journal(run).waiting(store_name())
        told = delivery.deliver(run)
        echo(f"runs/{run.name}: {before - told.waiting} told, {told.waiting} wait, run {told.run_id}")
        if told.reason:
            raise InputError(told.reason)
    echo(f"{store_name()} has been told all of {len(folders)} runs")


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--lock", action="store_true", help="only dvc.lock of the run of models/final, if it is news")
    given = parser.parse_args()
    run_or_exit(tell_lock if given.lock else main)
