"""Real servers on loopback, started and stopped by tests: MLflow, and S3."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.project import environment

START_SECONDS = 300  # MLflow's first start makes its tables
# Below the ports that the system gives to connections, so that none takes the port of a server before it listens.
PORTS = range(10_000, 32_000)


def free_port(*offsets: int) -> int:
    """Return a port p of which all p + offset are free, by default p itself; drawn, because tests run at once."""
    while True:
        port = secrets.choice(PORTS)
        with contextlib.ExitStack() as bound, contextlib.suppress(OSError):
            for offset in offsets or (0,):
                bound.enter_context(socket.socket()).bind(("127.0.0.1", port + offset))
            return port


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
def mlflow_server(folder: Path, *options: str, **environ: str) -> Iterator[Server]:
    """An MLflow server as `make mlflow-server` starts it, with its store in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "sft.tracking.cli",
        "server",
        "--port",
        str(port),
        "--folder",
        str(folder),
        *options,
    ]
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


@contextlib.contextmanager
def postgres_server(password: str) -> Iterator[str]:
    """A PostgreSQL server with a database of its own; yields its address, without the password."""
    import psycopg

    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]  # Debian's place; they are not on the PATH
    port, folder = free_port(), Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's own is closed to other users
    (folder / "password").write_text(password)
    as_user: list[str] = []
    if os.getuid() == 0:  # it refuses to run as root
        for path in (folder, folder / "password"):
            shutil.chown(path, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    made = [*as_user, str(programs / "initdb"), "-D", str(folder / "data"), "-U", "postgres", "--no-sync"]
    login = ["--auth=scram-sha-256", f"--pwfile={folder / 'password'}"]
    subprocess.run([*made, *login], check=True, capture_output=True, cwd=folder)
    listen = ["-D", str(folder / "data"), "-h", "127.0.0.1", "-p", str(port), "-k", str(folder)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*as_user, str(programs / "postgres"), *listen], cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    address = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                psycopg.connect(address, password=password).close()
                break
            except psycopg.OperationalError:
                alive = process.poll() is None and time.monotonic() < deadline
                assert alive, (folder / "log").read_text()[-3000:]
                time.sleep(0.1)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGINT)  # its fast shutdown
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


class Proxy:
    """Passes connections on to a server, until it is told to cut them: after so many more bytes, and from then on."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._target = (host, int(port))
        self._left: int | None = None
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, size: int) -> None:
        with self._lock:
            self._left = size

    def restore(self) -> None:
        with self._lock:
            self._left = None

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                incoming, _ = self._listener.accept()
                outgoing = socket.create_connection(self._target)
                for one, other in ((incoming, outgoing), (outgoing, incoming)):
                    threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError), one, other:
            while data := one.recv(1 << 16):
                with self._lock:
                    if self._left is not None:
                        self._left -= len(data)
                        if self._left < 0:
                            self.cuts += 1
                            for end in (one, other):
                                end.shutdown(socket.SHUT_RDWR)
                            return
                other.sendall(data)


S3_KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


def client(server: Server) -> Any:
    """A client of an S3 server."""
    import boto3

    return boto3.client("s3", endpoint_url=server.url, aws_access_key_id="test", aws_secret_access_key="test")
