"""A real Dask cluster on loopback, and functions to start and watch processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "src"


def alive(pid):
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=300):
    """Wait for a state; the time is one that a loaded machine keeps, too."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not true within {seconds} s"
        time.sleep(0.02)


def stopped_when(start, condition, tries=10):
    """Return a driver, stopped by SIGSTOP while a condition of it holds. SIGCONT lets it continue.

    A driver that ends before the condition is seen is started again: a loaded machine may look late.
    """
    for _ in range(tries):
        driver = start()
        while driver.poll() is None:
            if condition(driver):
                driver.send_signal(signal.SIGSTOP)
                if condition(driver):
                    return driver
                driver.send_signal(signal.SIGCONT)
            time.sleep(0.005)
        output, _ = driver.communicate()
        assert driver.returncode == 0, output
    raise AssertionError(f"{tries} drivers ended before the condition was seen")


def finish(driver, seconds=600):
    """Let a driver continue; return what it printed. It must end with 0."""
    driver.send_signal(signal.SIGCONT)
    output, _ = driver.communicate(timeout=seconds)
    assert driver.returncode == 0, output
    return output


def start_driver(folder, *command, **environment):
    """Start the driver of a stage, by default with two workers of this machine."""
    surroundings = {name: value for name, value in os.environ.items() if name != "SFT_EXECUTOR"}
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**surroundings, "PYTHONPATH": str(SOURCES), "SFT_WORKERS": "2", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def children(process):
    """Return the ids of the child processes of a process."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=False
    )
    return [int(pid) for pid in listed.stdout.split()]


class Cluster:
    """A real scheduler and workers on loopback."""

    def __init__(self, folder):
        self.folder, self.file, self.processes, self.workers = folder, folder / "scheduler.json", [], 0
        self.scheduler = self._start("scheduler", "--port", "0", "--scheduler-file", str(self.file), "--no-dashboard")
        wait_until(lambda: self.file.exists() and self.file.stat().st_size)  # it is created before it is written
        self.address = json.loads(self.file.read_text())["address"].replace("tcp://", "dask://")

    def add_worker(self, *options):
        self.workers += 1
        return self._start(
            "worker", self.address.replace("dask://", "tcp://"), "--nthreads", "1", "--no-dashboard", *options
        )

    def wait_for_workers(self):
        """Wait until the scheduler knows every worker."""
        wait_until(lambda: (self.folder / "dask.log").read_text().count("Registered to:") >= self.workers)

    def _start(self, command, *options):
        local = ["--host", "127.0.0.1"] + (["--local-directory", str(self.folder)] if command == "worker" else [])
        process = subprocess.Popen(
            [Path(sys.prefix, "bin", "dask"), command, *options, *local],
            cwd=self.folder,
            stdout=(self.folder / "dask.log").open("a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
