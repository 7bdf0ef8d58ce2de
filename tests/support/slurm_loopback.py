"""A real Slurm for tests: two nodes on this machine, in a folder with a short name, ended by its pids."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.support.project import ROOT, environment

# Submits a run's job with a command of its own, and does with it what the train stage does.
DRIVER = """
import sys
from pathlib import Path
from sft.cli import run_or_exit
from sft.cluster import jobs, slurm
from sft.cluster.cluster_file import read_profile
jobs.SHARED_FILES_SECONDS = 1.0
jobs.LONGEST_PAUSE_SECONDS = 1.0
slurm.ANSWER_SECONDS = 5
def main():
    run, stage, name, *command = sys.argv[1:]
    cluster = read_profile(name)
    job = jobs.submit(Path(run).absolute(), stage, name, cluster, command=tuple(command))
    print("submitted" if job.is_new else "found", job.id, flush=True)
    jobs.settle(job, jobs.attend(job, cluster))
run_or_exit(main)
"""


@dataclass
class Loopback:
    """A running cluster."""

    state: Path
    port: int

    @property
    def conf(self) -> Path:
        """Its slurm.conf."""
        return self.state / "etc/slurm.conf"

    def script(self, what: str) -> None:
        """Call slurm/loopback.sh: up, down or purge."""
        done = subprocess.run(
            [ROOT / "slurm/loopback.sh", what],
            env={**environment(), "SFT_SLURM": str(self.state), "SFT_SLURM_PORT": str(self.port)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout

    def ask(self, *command: str, may_fail: bool = False) -> str:
        """Run a command of Slurm; return what it prints."""
        done = subprocess.run(
            command,
            env={**environment(), "SLURM_CONF": str(self.conf)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert may_fail or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def pid(self, daemon: str) -> int:
        """The process of a daemon: slurmctld, munged, slurmd-n1, slurmd-n2."""
        return int((self.state / f"run/{daemon}.pid").read_text())

    def jobs(self, name: str = "") -> list[str]:
        """Ids of queued and running jobs."""
        return self.ask("squeue", "--noheader", "--format=%i", *([f"--name={name}"] if name else [])).split()

    def state_of(self, job: str) -> str:
        """State of a job: RUNNING, PENDING, ..."""
        shown = self.ask("scontrol", "show", "job", "--oneliner", job)
        return shown.partition("JobState=")[2].split()[0]

    def free(self) -> None:
        """Wait until both nodes are idle but for n1's long jobs; resume one that was left down or drained."""

        def ready() -> bool:
            nodes = dict(line.split() for line in self.ask("sinfo", "-hN", "-o", "%N %T").splitlines())
            for name, state in nodes.items():
                if state.rstrip("*") in ("down", "drained", "draining"):
                    self.ask("scontrol", "update", f"nodename={name}", "state=resume", may_fail=True)
            return nodes["n2"] == "idle" and nodes["n1"] in ("idle", "mixed", "allocated")

        wait_for(ready, tell=lambda: self.ask("sinfo", "--Node", "--long") + self.ask("squeue", "--long"))


@contextmanager
def running_cluster() -> Iterator[Loopback]:
    """A cluster that ends with the block. Skips the test where this user cannot start one."""
    if os.geteuid() or subprocess.run(["unshare", "--mount", "--uts", "true"], capture_output=True).returncode:
        pytest.skip("a cluster on one machine needs root, and host names of its own (unshare --mount --uts)")
    folder = Path(tempfile.mkdtemp(prefix="sft-slurm-"))
    cluster = Loopback(folder / "s", free_port())
    try:
        cluster.script("up")
        yield cluster
    finally:
        cluster.script("purge")
        shutil.rmtree(folder)


def free_port() -> int:
    """A port from which three are free that a cluster takes: its controller's and its two nodes'."""
    for port in range(10_000 + os.getpid() % 5_000, 20_000):
        try:
            for wanted in (port, port + 101, port + 102):
                with socket.socket() as trial:
                    trial.bind(("127.0.0.1", wanted))
            return port
        except OSError:
            continue
    raise AssertionError("no free ports")


def write_profile(root: Path, name: str, cluster: Loopback | None = None, **keys: Any) -> Path:
    """Write a profile: one node of the cluster, one rank, unless told otherwise."""
    profile = {"partition": "main", "nodes": 1, "gpus_per_node": 0, "ranks_per_node": 1, "free_gb": 1}
    profile |= {"time": 10, "stop_seconds": 60}
    if cluster:
        profile["slurm_conf"] = str(cluster.conf)
    path = root / f"slurm/clusters/{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    YAML().dump({**profile, **keys}, path)
    return path


class Driver:
    """A process that submits a run's job, follows it, and says what became of it."""

    def __init__(self, root: Path, run: str, profile: str, *command: str, stage: str = "train", **environ: str):
        self.run = root / "runs" / run
        self.output = root / f"driver-{time.monotonic_ns()}.txt"
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", DRIVER, str(self.run), stage, profile, *command],
                cwd=root,
                env={**environment(**environ), "PYTHONPATH": str(ROOT / "src")},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self) -> str:
        """What it has printed."""
        return self.output.read_text()

    def job(self) -> str:
        """The id of its job, waited for."""
        wait_for(lambda: "submitted " in self.said() or "found " in self.said() or self.process.poll() is not None)
        return next(line.split()[1] for line in self.said().splitlines() if line.startswith(("submitted", "found")))

    def end(self, status: int, timeout: float = 120) -> str:
        """Wait for its end with this exit status; return what it printed."""
        try:
            found = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the driver did not end:\n{self.said()}") from None
        assert found == status, f"status {found}:\n{self.said()}"
        return self.said()

    def kill(self) -> None:
        """End it and what it started, as a closed connection does not even do it."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def wait_for(condition: Callable[[], Any], seconds: float = 90, tell: Callable[[], str] = str) -> None:
    """Wait until something is so; `tell` says how things are where it never is."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {tell()}"
        time.sleep(0.1)
