"""MLflow on the command line: sync runs to a store, and serve one.

    python -m sft.tracking.cli sync [--lock] [--run FOLDER]
    python -m sft.tracking.cli server [--store URI] [--artifacts PLACE] [--port 5000] [--folder runs]

`sync` sends all of runs/*/journal.jsonl to the store that MLFLOW_TRACKING_URI names, else to runs/mlflow.db. It
ends attempts whose process on this machine was killed, unless a job trains the run, and exits with 0 when nothing is
pending. Running it twice changes nothing.

DVC writes dvc.lock after the last stage, so the run in MLflow has an older one. If dvc.lock names the model in
models/final, `sync` replaces it; `sync --lock` does only that, and loads MLflow only if there is something to replace.
`make repro` ends with `sync --lock`. `sync --run` sends one run and changes nothing else: a job ends with it.

`server` becomes `mlflow server` on loopback. The store is SQLite in the folder, or postgresql://user@host/database (the
password: PGPASSWORD or ~/.pgpass, never in the address). Artifacts are in the folder, or in s3://bucket/prefix (keys
from the environment; an endpoint other than Amazon's: MLFLOW_S3_ENDPOINT_URL); clients reach them through the server
and need no keys. It answers to its own host names only, runs no jobs and unpickles nothing: MLflow's defaults do both.
From another machine: ssh -L 5000:127.0.0.1:5000 host. Every user who can log in to this machine can read and write it.
"""

import os
import sys
from pathlib import Path

from sft.cli import InputError, at_least, echo, make_parser, run_or_exit
from sft.cluster import jobs
from sft.cluster.run_lock import RunLock
from sft.files import project_root, read_json
from sft.hashing import file_digest
from sft.lineage import locked_params
from sft.lineage.resolve import LINEAGE, LOCK, of_folder
from sft.sources.redact import has_password, redact
from sft.tracking.journal import RECORDS, Journal, end_dead_attempts

OFF = ("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION")


def sync_all() -> None:
    """Send the store the journals of all runs.

    Raises:  InputError: the store refuses, or does not answer.
    """
    from sft.tracking.address import store_name

    attach_lock(Path.cwd())
    folder = project_root() / "runs"
    runs = sorted(path.parent for path in folder.glob("*/journal.jsonl"))
    for run in runs:
        journal = Journal(run)
        if not is_trained(run, journal):
            for attempt in end_dead_attempts(journal):
                echo(f"runs/{run.name}: attempt {attempt} no longer runs: KILLED")
        send(run)
    echo(f"{store_name()} is up to date with {len(runs)} runs")


def send(run: Path) -> None:
    """Send the store the journal of a run. Raises InputError: the store refuses, or does not answer."""
    from sft.tracking.address import store_name
    from sft.tracking.sync import sync_run

    before = Journal(run).pending(store_name())
    result = sync_run(run)
    echo(f"runs/{run.name}: {before - result.pending} sent, {result.pending} pending, run {result.run_id}")
    for note in result.notes:
        echo(note)
    if result.reason:
        raise InputError(result.reason)


def is_trained(run: Path, journal: Journal) -> bool:
    """Whether a job or another process has the run; the process that began an attempt may only have submitted it."""
    return any(journal.attempts().values()) and bool(jobs.active_job(run) or RunLock(run).is_held())


def sync_lock() -> None:
    """Replace dvc.lock in the run of models/final. If the store does not answer, the next sync does it."""
    if run := attach_lock(Path.cwd()):
        from sft.tracking.sync import sync_at_exit

        with sync_at_exit(run) as message:
            pass
        echo(f"MLflow: {LOCK} of runs/{run.name} is that of all stages. {message.text}")


def attach_lock(root: Path) -> Path | None:
    """Attach dvc.lock to the run of models/final if it names that model and is newer; return the run, or None.

    Raises:  InputError: it has other params for that model.
    """
    lineage, lock = root / LINEAGE, root / LOCK
    if not lineage.exists() or not lock.exists():
        return None
    journal = Journal(project_root() / "runs" / read_json(lineage)["lineage_key"])
    if file_digest(lineage) not in {entry["digest"] for entry in journal.entries("model")}:
        return None
    attached = [journal.folder / entry["files"] / LOCK for entry in journal.entries("files")]
    newest = next((file for file in reversed(attached) if file.exists()), None)
    if newest is not None and newest.read_bytes() == lock.read_bytes():
        return None
    if not locked_params.names_model(of_folder(root)):
        return None
    locked_params.refuse_differing(root)
    journal.attach(RECORDS, {LOCK: lock})
    return journal.folder.parent


def server_command(store: str | None, artifacts: str | None, port: int, folder: Path) -> list[str]:
    """Return the command line of `mlflow server`.

    Raises:  InputError: an address holds a password, which every process list would show.
    """
    for address in (store, artifacts):
        if address and has_password(address):
            raise InputError(
                f"{redact(address)}: process lists and logs would show the password in this address. "
                "Leave it out: PostgreSQL reads PGPASSWORD and ~/.pgpass, S3 reads AWS_ACCESS_KEY_ID and profiles."
            )
    from sft.tracking.address import DATABASES, sqlite_uri

    if store and store.partition("://")[0].partition("+")[0] not in DATABASES:
        raise InputError(f"STORE={store}: expected the address of a database: postgresql://..., sqlite:////file.db")
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--allowed-hosts", f"localhost:{port},127.0.0.1:{port}"),
        *("--backend-store-uri", store or sqlite_uri(folder / "mlflow.db")),
        *("--artifacts-destination", artifacts or str(folder.absolute() / "mlflow-artifacts")),
    ]


def serve(store: str | None, artifacts: str | None, port: int, folder: Path) -> None:
    """Become the server."""
    command = server_command(store, artifacts, port, folder)
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    os.execve(command[0], command, {**os.environ, **dict.fromkeys(OFF, "false")})


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    programs = parser.add_subparsers(dest="program", required=True)
    syncing = programs.add_parser("sync", help="send runs to the store")
    syncing.add_argument("--run", type=Path, metavar="FOLDER", help="only this run, runs/<lineage key>")
    syncing.add_argument("--lock", action="store_true", help="only dvc.lock of the run of models/final, if it is newer")
    serving = programs.add_parser("server", help="start a tracking server on loopback")
    serving.add_argument("--store", metavar="URI", help="default: SQLite in the folder")
    serving.add_argument("--artifacts", metavar="PLACE", help="default: mlflow-artifacts in the folder")
    serving.add_argument("--port", type=at_least(1, 65_535), default=5000)
    serving.add_argument("--folder", type=Path, default=Path("runs"))
    options = parser.parse_args()
    if options.program == "sync":
        run_or_exit(lambda: sync_lock() if options.lock else send(options.run) if options.run else sync_all())
    else:
        run_or_exit(lambda: serve(options.store, options.artifacts, options.port, options.folder))
