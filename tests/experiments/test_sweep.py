"""sweep: DVC's queue with a pipeline of one small stage; docs/experiments.md sweeps the real one."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from dvc.repo.experiments.queue.celery import LocalCeleryQueue

from sft.cli import InputError
from sft.experiments import sweep
from sft.experiments.sweep import (
    FAILED,
    QUEUED,
    RUNNING,
    SUCCESS,
    check_origin,
    expand,
    read_calls,
    states_of,
)
from tests.support.dask_cluster import wait_until
from tests.support.project import ROOT, commit, environment, run

STAGE = """
import json, os, pathlib, sys, time
if os.environ.get("SFT_SLOW") and not (done := pathlib.Path(os.environ["SFT_SLOW"])).exists():
    done.write_text(str(os.getpid()))
    time.sleep(600)
rate = float(pathlib.Path("params.yaml").read_text().split("lr:")[1].split()[0])
if rate > 1: sys.exit("too high")
pathlib.Path("reports").mkdir(exist_ok=True)
pathlib.Path("reports/train.json").write_text(json.dumps({"train_loss": rate * 10, "sweep": os.environ["SFT_SWEEP"]}))
pathlib.Path("reports/eval.json").write_text(json.dumps({"before": {}, "after": {"loss": rate}}))
"""
PIPELINE = """
stages:
  train:
    cmd: python stage.py
    deps: [stage.py]
    params: [optimizer]
    metrics:
      - reports/train.json: {cache: false}
      - reports/eval.json: {cache: false}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".gitignore").write_text("/runs/\n/slow\n")
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "params.yaml").write_text("optimizer:\n  lr: 0.5\n")
    run(tmp_path, "git", "init", "-q", "-b", "main")
    run(tmp_path, "dvc", "init", "-q")
    commit(tmp_path, "one")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "POLL_SECONDS", 0.2)
    monkeypatch.setattr(sweep, "check", lambda members: None)  # the params of this pipeline are not in the schema
    return tmp_path


def exp_ref(project, name):
    refs = run(project, "git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    return next(ref for ref in refs if ref.endswith(f"/{name}"))


def test_a_failed_experiment_stops_no_other_and_the_same_command_again_runs_nothing_twice(project, capfd):
    calls = read_calls("optimizer.lr=0.3,9,0.1", None)
    with pytest.raises(InputError, match="s-2"):
        sweep.main(calls, "s", 1)
    output = capfd.readouterr().out
    rows = re.findall(r"\[(s-\d)\] \| (\w+) +\| (\S+) +\| (\S+) +\| (\S+)", output)
    assert rows == [
        ("s-3", "Success", "1", "0.1", "0.1"),
        ("s-1", "Success", "3", "0.3", "0.3"),
        ("s-2", "Failed", "!", "!", "9"),
    ]
    assert '"sweep": "s"' in run(project, "git", "show", f"{exp_ref(project, 's-1')}:reports/train.json")
    with pytest.raises(InputError, match="s-2"):
        sweep.main(calls, "s", 1)
    assert "s: 3 of 3 experiments exist" in capfd.readouterr().out
    assert "too high" in run(project, "dvc", "queue", "logs", "s-2")


def test_an_experiment_of_the_same_name_must_be_of_this_commit_these_edits_and_these_params(project):
    members = {"s-1": ["optimizer.lr=0.3"], "s-2": ["optimizer.lr=0.1"]}
    check_origin("s", members, [])
    check_origin("s", members, members)
    check_origin("s", {**members, "s-3": ["optimizer.lr=0.2"]}, members)
    with pytest.raises(InputError, match=r"s-1: .* params"):
        check_origin("s", {"s-1": ["optimizer.lr=0.2"]}, ["s-1"])
    with pytest.raises(InputError, match=r"t-1: .* commit, uncommitted changes, params"):
        check_origin("t", {"t-1": []}, ["t-1"])
    (project / "reports").mkdir()
    (project / "reports/eval.json").write_text("{}")
    check_origin("s", members, members)
    (project / "stage.py").write_text(STAGE + "# edited\n")
    with pytest.raises(InputError, match=r"s-1: .* uncommitted changes"):
        check_origin("s", members, members)
    (project / "stage.py").write_text(STAGE)
    check_origin("s", members, members)
    (project / "new.py").write_text("# not added to git\n")
    with pytest.raises(InputError, match=r"s-1: .* uncommitted changes"):
        check_origin("s", members, members)
    commit(project, "two")
    with pytest.raises(InputError, match=r"s-1: .* commit"):
        check_origin("s", members, members)


def test_a_param_that_does_not_exist_is_rejected_by_dvc(project):
    with pytest.raises(InputError, match="optimizer"):
        sweep.main(read_calls("optimizer.rate=1,2", None), "mine", 1)


def test_an_experiment_whose_worker_was_killed_runs_again_with_the_environment_of_this_sweep(
    project, monkeypatch, capsys
):
    """The worker that is killed is of an earlier command, which ended after queueing and had another environment."""
    slow, calls = project / "slow", read_calls("optimizer.lr=0.3,0.1", None)
    members = expand(calls, "s")
    check_origin("s", members, [])
    sweep.add("s-1", members["s-1"])
    with pytest.MonkeyPatch.context() as earlier:
        earlier.setenv("SFT_SLOW", str(slow))
        earlier.setenv("SFT_SWEEP", "earlier")
        sweep._dvc("queue", "start")
    wait_until(lambda: slow.exists() and slow.read_text())

    def kill() -> None:
        wait_until(lambda: "waiting for workers" in capsys.readouterr().out)
        worker = int(Path(".dvc/tmp/exps/celery/dvc-exp-worker-1.pid").read_text())
        os.killpg(os.getpgid(worker), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    states = sweep.run(calls, "s", 1)
    killer.join()
    assert "s-1: its worker was killed" in capsys.readouterr().out
    assert states == {"s-1": SUCCESS, "s-2": SUCCESS}
    for number in (1, 2):
        assert '"sweep": "s"' in run(project, "git", "show", f"{exp_ref(project, f's-{number}')}:reports/train.json")
    run(project, "dvc", "queue", "remove", "--success")
    assert sweep.run(calls, "s", 1) == states, "git has them"
    assert run(project, "dvc", "queue", "status").startswith("No experiment tasks in the queue.")


def test_an_experiment_of_something_else_in_the_queue_is_an_error(project):
    sweep.add("other", ["optimizer.lr=0.3"])
    with pytest.raises(InputError, match="other"):
        sweep.run(read_calls("optimizer.lr=0.3", None), "s", 1)


def test_two_sweeps_at_once_and_switches_of_one_job_are_errors(project, monkeypatch):
    calls = read_calls("optimizer.lr=0.3", None)
    with sweep.file_lock(project / "runs/sweep.lock", 0), pytest.raises(InputError, match=r"runs/sweep\.lock"):
        sweep.run(calls, "s", 1)
    monkeypatch.setenv("CLUSTER", "mars")
    with pytest.raises(InputError, match=r"slurm/clusters/mars\.yaml"):
        sweep.run(calls, "s", 1)
    monkeypatch.setenv("DETACH", "1")
    with pytest.raises(InputError, match="DETACH=1"):
        sweep.run(calls, "s", 1)
    assert sweep.look() == {}


@pytest.mark.parametrize(
    ("grid", "lines", "place"),
    [
        (None, None, "GRID, LIST"),
        ("", "", "GRID, LIST"),
        (None, "# nothing\n", "GRID, LIST"),
        ("lr", None, "'lr'"),
        ("a=", None, "'a='"),
    ],
)
def test_nothing_to_sweep_and_malformed_params_are_errors(grid, lines, place):
    with pytest.raises(InputError, match=place):
        read_calls(grid, lines)


def test_all_combinations_of_a_grid_are_experiments_and_each_has_a_state(project):
    members = expand(read_calls("a=range(10) b=x", "ignored"), "s") | expand([["c=1,2", "d=3,4"]], "t")
    assert list(members) == [*(f"s-{number}" for number in range(1, 11)), "t-1", "t-2", "t-3", "t-4"]
    assert members["t-2"] == ["c=1", "d=4"]
    queue = {"s-10": SUCCESS, "s-2": FAILED, "s-x": SUCCESS, "other-1": QUEUED}
    head = run(project, "git", "rev-parse", "HEAD").strip()
    for name in ("s-1", "s-2"):
        run(project, "git", "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", "HEAD")
    assert states_of(members, queue) == {"s-1": SUCCESS, "s-2": FAILED, "s-10": SUCCESS}


def test_looking_at_the_queue_sends_no_message_to_a_worker_and_an_experiment_that_is_removed_is_named(project):
    """A worker ends when it reads a message that is not written yet."""
    sweep.add("s-1", ["optimizer.lr=0.3"])
    broker = project / ".dvc/tmp/exps/celery/broker"
    messages = sorted(broker.rglob("*.msg"))
    assert sweep.look() == {"s-1": QUEUED}
    assert sorted(broker.rglob("*.msg")) == messages
    run(project, "dvc", "queue", "remove", "s-1")
    assert sweep.wait({"s-1": ["optimizer.lr=0.3"]}, 1) == {"s-1": sweep.GONE}


def test_an_experiment_that_a_worker_takes_during_a_look_is_seen(project, monkeypatch):
    sweep.add("s-1", ["optimizer.lr=0.3"])
    broker, iter_active = project / ".dvc/tmp/exps/celery/broker", LocalCeleryQueue.iter_active

    def taken_behind(queue):
        yield from iter_active(queue)
        for message in (broker / "in").glob("*.celery.msg"):
            message.rename(broker / "processed" / message.name)

    monkeypatch.setattr(LocalCeleryQueue, "iter_active", taken_behind)
    assert sweep.look() == {"s-1": QUEUED}
    assert sweep.look() == {"s-1": RUNNING}


def test_help_names_the_grid():
    done = subprocess.run(
        [sys.executable, "-m", "sft.experiments.sweep", "--help"], capture_output=True, text=True, check=True
    )
    assert "optimizer.lr=1e-5,2e-5" in done.stdout


def test_a_wrong_value_of_any_experiment_is_refused_before_one_is_queued(tmp_path, monkeypatch, capsys):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "look", lambda: pytest.fail("the queue was asked"))
    with pytest.raises(SystemExit) as end:
        sweep.run(read_calls("optimizer.lr=1e-5,abc train.train_itres=5", None), "s", 1)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "s-1 (optimizer.lr=1e-05 train.train_itres=5): " in said
    assert "'train.train_iters'" in said
    assert "s-2 (optimizer.lr=abc " in said
