"""Real servers on loopback, started and stopped by tests: MLflow, and S3."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.project import environment

START_SECONDS = 120  # MLflow's first start makes its tables


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def answers(url: str) -> bool:
    """Whether something answers there, whatever it says."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


class Server:
    """A program that listens; can be stopped and started again."""

    def __init__(self, command: list[str], url: str, folder: Path, **environ: str) -> None:
        self.command, self.url, self.folder, self.environ = command, url, folder, environ
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=environment(**self.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not answers(self.url):
            alive = self._process.poll() is None and time.monotonic() < deadline
            assert alive, (self.folder / "server.log").read_text()[-3000:]
            time.sleep(0.1)

    def stop(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None


@contextlib.contextmanager
def mlflow_server(folder: Path, **environ: str) -> Iterator[Server]:
    """An MLflow server as `make mlflow-server` starts it, with its store in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [sys.executable, "-m", "sft.run.server", "--port", str(port), "--folder", str(folder)]
    server = Server(command, f"http://127.0.0.1:{port}", folder, **environ)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def s3_server(folder: Path, *buckets: str) -> Iterator[Server]:
    """An S3 server with buckets, in memory; `environ` of the server is what its clients need."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = Server(command, f"http://127.0.0.1:{port}", folder, **S3_KEYS)
    try:
        server.start()
        for bucket in buckets:
            client(server).create_bucket(Bucket=bucket)
        yield server
    finally:
        server.stop()


S3_KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


def client(server: Server) -> Any:
    """A client of an S3 server."""
    import boto3

    return boto3.client("s3", endpoint_url=server.url, aws_access_key_id="test", aws_secret_access_key="test")
