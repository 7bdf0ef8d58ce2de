"""A real Slurm for tests: two nodes on this machine, in a temporary folder, stopped by pid."""

import os
import re
import shutil
import signal
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
from tests.support.servers import free_port

# Submits a job with a command of its own, then follows and finishes it as the train stage does.
DRIVER = """
import os
import sys
from pathlib import Path
from sft.cli import run_or_exit
from sft.cluster import jobs, slurm
from sft.cluster.cluster_file import read_cluster_file
jobs.SHARED_FILES_SECONDS = 1.0
jobs.LONGEST_PAUSE_SECONDS = 1.0
slurm.TIMEOUT_SECONDS = float(os.environ.get("SFT_TEST_SLURM_SECONDS", slurm.TIMEOUT_SECONDS))
def main():
    run, stage, name, *command = sys.argv[1:]
    cluster = read_cluster_file(name)
    run = Path(run).absolute()
    with jobs.following(run):
        job = jobs.submit(run, stage, name, cluster, command=tuple(command))
        jobs.finish(job, jobs.wait_or_detach(job, cluster))
run_or_exit(main)
"""

# What is printed when a job is submitted, or found: its id, and which of both.
FOUND = re.compile(r"^job (\d+) on \S+: (submitted|found)[;,]", re.MULTILINE)


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
            timeout=300,
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
        """Wait until n2 is idle and n1 is up; resume a node that is down or drained."""

        def ready() -> bool:
            nodes = dict(line.split() for line in self.ask("sinfo", "-hN", "-o", "%N %T").splitlines())
            for name, state in nodes.items():
                if state.rstrip("*") in ("down", "drained", "draining"):
                    self.ask("scontrol", "update", f"nodename={name}", "state=resume", may_fail=True)
            return nodes["n2"] == "idle" and nodes["n1"] in ("idle", "mixed", "allocated")

        wait_for(ready, describe=lambda: self.ask("sinfo", "--Node", "--long") + self.ask("squeue", "--long"))


@contextmanager
def running_cluster() -> Iterator[Loopback]:
    """Start a cluster and stop it when the block ends. Skips the test if this user cannot start one."""
    if os.geteuid() or subprocess.run(["unshare", "--mount", "--uts", "true"], capture_output=True).returncode:
        pytest.skip("a cluster on one machine needs root and private host names (unshare --mount --uts)")
    folder = Path(tempfile.mkdtemp(prefix="sft-slurm-"))
    cluster = Loopback(folder / "s", free_port(0, 101, 102))  # the controller and two nodes
    try:
        cluster.script("up")
        yield cluster
    finally:
        cluster.script("purge")
        shutil.rmtree(folder)


def write_cluster_file(root: Path, name: str, cluster: Loopback | None = None, **keys: Any) -> Path:
    """Write a cluster file: by default one node, one rank."""
    values = {"partition": "main", "nodes": 1, "gpus_per_node": 0, "ranks_per_node": 1, "min_free_gb": 1}
    values |= {"time": 10, "save_before_seconds": 60}
    if cluster:
        values["slurm_conf"] = str(cluster.conf)
    path = root / f"slurm/clusters/{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    YAML().dump({**values, **keys}, path)
    return path


class Driver:
    """A process that submits a run's job, follows it and prints how it ended."""

    def __init__(self, root: Path, run: str, cluster: str, *command: str, stage: str = "train", **environ: str):
        self.run = root / "runs" / run
        self.output = root / f"driver-{time.monotonic_ns()}.txt"
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", DRIVER, str(self.run), stage, cluster, *command],
                cwd=root,
                env={**environment(**environ), "PYTHONPATH": str(ROOT / "src")},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def text(self) -> str:
        """What it has printed."""
        return self.output.read_text()

    def job(self) -> str:
        """Wait for the id of its job and return it."""
        wait_for(lambda: FOUND.search(self.text()) or self.process.poll() is not None)
        return FOUND.search(self.text())[1]

    def end(self, status: int, timeout: float = 600) -> str:
        """Wait until it ends, check its exit status, and return what it printed."""
        try:
            actual = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the driver did not end:\n{self.text()}") from None
        assert actual == status, f"exit status {actual}:\n{self.text()}"
        return self.text()

    def kill(self) -> None:
        """Kill it and all processes it started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def wait_for(condition: Callable[[], Any], seconds: float = 300, describe: Callable[[], str] = str) -> None:
    """Wait until a condition holds; `describe` returns the text of the failure."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"timed out: {describe()}"
        time.sleep(0.1)
