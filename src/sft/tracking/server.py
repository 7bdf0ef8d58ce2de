"""server: an MLflow tracking server, on loopback, as this project wants it.

[--store URI] [--artifacts PLACE] [--port 5000] [--folder runs]  ->  `mlflow server`, until it is stopped

The store is SQLite in the folder, or postgresql://user@host/database (its password: PGPASSWORD or ~/.pgpass, never
in the address). Artifacts go to the folder, or to s3://bucket/prefix (keys from the environment; another endpoint
than Amazon's: MLFLOW_S3_ENDPOINT_URL); clients reach them through the server and need no keys. It answers to its
own names only, runs no jobs and unpickles nothing: MLflow turns the last two on by default. From another machine:
ssh -L 5000:127.0.0.1:5000 host. On a machine that others use, loopback is not private: whoever can log in there
can read and write.
"""

import os
import sys
from pathlib import Path

from sft.cli import InputError, make_parser, run_or_exit
from sft.tracking.journal import without_secret

OFF = ("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION")


def command(store: str | None, artifacts: str | None, port: int, folder: Path) -> list[str]:
    """Return the command line of `mlflow server`.

    Raises:  InputError: an address holds a password, which every process list would show.
    """
    for address in (store, artifacts):
        if address and without_secret(address) != address and ":" in address.split("://")[-1].split("@")[0]:
            raise InputError(
                f"{without_secret(address)}: an address with a password is seen in process lists and logs. "
                "Leave it out: PostgreSQL reads PGPASSWORD and ~/.pgpass, S3 reads AWS_ACCESS_KEY_ID and profiles."
            )
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--allowed-hosts", f"localhost:{port},127.0.0.1:{port}"),
        *("--backend-store-uri", store or f"sqlite:///{folder.absolute()}/mlflow.db"),
        *("--artifacts-destination", artifacts or str(folder.absolute() / "mlflow-artifacts")),
    ]


def main(store: str | None, artifacts: str | None, port: int, folder: Path) -> None:
    """Become the server."""
    line = command(store, artifacts, port, folder)
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    os.execve(line[0], line, {**os.environ, **dict.fromkeys(OFF, "false")})


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--store", metavar="URI", help="default: SQLite in the folder")
    parser.add_argument("--artifacts", metavar="PLACE", help="default: mlflow-artifacts in the folder")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    given = parser.parse_args()
    run_or_exit(lambda: main(given.store, given.artifacts, given.port, given.folder))
