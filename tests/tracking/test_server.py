"""server: the command line of `mlflow server`; tests/tracking/ talks to one that runs."""

from pathlib import Path

import pytest

from sft.cli import InputError
from sft.tracking import server


def options(line):
    return dict(zip(line[4::2], line[5::2], strict=True))


def test_it_listens_on_loopback_and_answers_to_its_own_names(tmp_path):
    assert options(server.command(None, None, 5001, tmp_path)) == {
        "--host": "127.0.0.1",
        "--port": "5001",
        "--workers": "1",
        "--allowed-hosts": "localhost:5001,127.0.0.1:5001",
        "--backend-store-uri": f"sqlite:///{tmp_path}/mlflow.db",
        "--artifacts-destination": f"{tmp_path}/mlflow-artifacts",
    }


def test_another_store_and_place_of_artifacts_are_taken():
    given = options(server.command("postgresql://me@host/db", "s3://bucket/x", 5000, Path("runs")))
    assert given["--backend-store-uri"] == "postgresql://me@host/db"
    assert given["--artifacts-destination"] == "s3://bucket/x"


@pytest.mark.parametrize("store", ["postgresql://me:s3cr3t@host/db", "postgresql://me:s3/cr3t@host/db"])
def test_a_password_on_the_command_line_is_refused(store):
    with pytest.raises(InputError, match=r"PGPASSWORD") as error:
        server.command(store, None, 5000, Path("runs"))
    assert "cr3t" not in str(error.value)


def test_jobs_and_pickles_are_off(tmp_path, monkeypatch):
    became = []
    monkeypatch.setattr(server.os, "execve", lambda *call: became.append(call))
    server.main(None, None, 5000, tmp_path / "new")
    (_, line, environ) = became[0]
    assert line[1:4] == ["-m", "mlflow", "server"]
    assert (environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"], environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"]) == (
        "false",
        "false",
    )
