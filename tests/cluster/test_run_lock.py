"""run_lock: one process trains a run; a second one waits, or names the first, also where that is an orphan."""

import errno
import fcntl
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.cluster import run_lock
from sft.cluster.run_lock import RunLock
from sft.tracking.journal import Journal
from tests.support.dask_cluster import wait_until
from tests.support.project import ROOT

FORK = multiprocessing.get_context("fork")
STEPS = 6


@pytest.fixture(autouse=True)
def _no_experiment(monkeypatch):
    monkeypatch.setattr(run_lock, "POLL_SECONDS", 0.01)
    for name in ("WAIT", "DVC_EXP_NAME", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)


def train(run: Path) -> None:
    """Train as the stage does: from the last step on, each step in the journal."""
    with RunLock(run).held(wait=True):
        journal = Journal(run)
        done = [entry["iteration"] for entry in journal.entries("step")]
        for iteration in range(len(done) + 1, STEPS + 1):
            journal.add("step", iteration=iteration)
            time.sleep(random.random() / 200)


def no_flock(*_: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("has_flock", [True, False])
def test_of_20_races_no_step_is_trained_twice(tmp_path, monkeypatch, has_flock):
    """Three processes at once, one of which is killed at some time; also on a file system without flock."""
    if not has_flock:
        monkeypatch.setattr(fcntl, "flock", no_flock)
    for number in range(20):
        run = tmp_path / str(number)
        processes = [FORK.Process(target=train, args=(run,)) for _ in range(3)]
        for process in processes:
            process.start()
        time.sleep(random.random() / 50)
        processes[0].kill()
        processes[0].join()
        for process in processes:
            process.join(600)
        steps = [entry["iteration"] for entry in Journal(run).entries("step")]
        assert steps == list(range(1, STEPS + 1)), number


def test_a_second_start_names_the_first(tmp_path, monkeypatch):
    assert not RunLock(tmp_path / "key").is_held()
    with RunLock(tmp_path / "key").held():
        assert RunLock(tmp_path / "key").is_held()
        with pytest.raises(InputError) as refused:
            RunLock(tmp_path / "key").acquire()
        message = str(refused.value)
        assert f"process {os.getpid()} on {socket.gethostname()}, since 20" in message
        assert "WAIT=1" in message
        assert "orphan" not in message
    for name in ("WAIT", "DVC_EXP_NAME"):
        monkeypatch.setenv(name, "1")
        with RunLock(tmp_path / "key").held():
            pass
        monkeypatch.delenv(name)


def test_with_wait_it_begins_when_the_first_ends(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WAIT", "1")
    child = FORK.Process(target=train, args=(tmp_path / "key",))
    child.start()
    while not (tmp_path / "key/owner").exists() or not (tmp_path / "key/owner").read_bytes():
        time.sleep(0.001)
    with RunLock(tmp_path / "key").held():
        assert len(list(Journal(tmp_path / "key").entries("step"))) == STEPS
    child.join()
    assert f"waiting for process {child.pid}" in capsys.readouterr().out


ORPHAN = """
import os, sys, time
from pathlib import Path
from sft.cluster.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.acquire()
print(os.getpid(), flush=True)
time.sleep(900)
"""


@pytest.mark.parametrize("is_killed", [False, True])
def test_an_orphan_is_named_with_the_command_that_ends_it(tmp_path, is_killed):
    """A program with the name of dvc starts the training through a shell, as dvc does, and is killed."""
    dvc = tmp_path / "dvc"
    dvc.write_text('#!/bin/bash\n/bin/bash -c "\\"$PYTHON\\" -c \\"$ORPHAN\\" \\"$RUN\\"; true"\n')
    dvc.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "DVC_STAGE": "train", "ORPHAN": ORPHAN}
    environment |= {"PYTHON": sys.executable, "RUN": str(tmp_path / "key")}
    parent = subprocess.Popen(["bash", dvc], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert parent.stdout
    pid = int(parent.stdout.readline())
    try:
        if is_killed:
            parent.kill()
            parent.wait()
        with pytest.raises(InputError) as refused:
            RunLock(tmp_path / "key").acquire()
        assert (f"kill {pid})" in str(refused.value)) == is_killed
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
    wait_until(lambda: not RunLock(tmp_path / "key").is_held())  # its threads end one after another


def test_a_process_that_outlives_the_owner_keeps_the_lock_and_is_named(tmp_path):
    """Also where runs/ is a link to another disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    run = tmp_path / "runs/key"
    program = (
        "import subprocess, sys; from pathlib import Path; from sft.cluster.run_lock import RunLock\n"
        "lock = RunLock(Path(sys.argv[1])); lock.acquire()\n"
        "child = subprocess.Popen(['sleep', '900'], pass_fds=(lock.descriptor,)); print(child.pid, flush=True)\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", program, str(run)]
    owner = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert owner.stdout
    ranks = int(owner.stdout.readline())
    owner.wait()
    try:
        with pytest.raises(InputError, match=f"orphan.*kill {ranks}"):
            RunLock(run).acquire()
    finally:
        os.kill(ranks, signal.SIGKILL)


def write_owner(run: Path, seconds_ago: float, **record: object) -> None:
    run.mkdir(exist_ok=True)
    owner = {"host": "another", "pid": 1, "since": "2026-01-01T00:00:00+00:00", "in_dvc": False, **record}
    (run / "owner").write_text(json.dumps(owner))
    os.utime(run / "owner", (time.time() - seconds_ago,) * 2)


def test_another_machine_holds_it_as_long_as_it_shows_signs_of_life(tmp_path):
    """Its flock may not be seen here."""
    write_owner(tmp_path / "key", seconds_ago=5)
    with pytest.raises(InputError, match="process 1 on another"):
        RunLock(tmp_path / "key").acquire()
    write_owner(tmp_path / "key", seconds_ago=run_lock.DEAD_AFTER_SECONDS + 5)
    with RunLock(tmp_path / "key").held():
        assert json.loads((tmp_path / "key/owner").read_text())["pid"] == os.getpid()
    assert (tmp_path / "key/owner").read_bytes() == b""


def test_a_file_system_without_flock_goes_by_the_file_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fcntl, "flock", no_flock)
    write_owner(tmp_path / "key", seconds_ago=5, host=socket.gethostname(), pid=os.getppid())
    with pytest.raises(InputError, match=f"process {os.getppid()}"):
        RunLock(tmp_path / "key").acquire()
    assert "has no flock" in capsys.readouterr().out
    write_owner(tmp_path / "key", seconds_ago=5, host=socket.gethostname(), pid=4194305)  # above any pid
    with RunLock(tmp_path / "key").held():
        pass


def test_a_beat_is_written_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 0.01)
    with RunLock(tmp_path / "key").held() as lock:
        os.utime(lock.file, (0, 0))
        wait_until(lambda: lock.file.stat().st_mtime > 0)
