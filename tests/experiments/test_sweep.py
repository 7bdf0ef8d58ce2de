"""sweep: DVC's own queue with a pipeline of one small stage; docs/experiments.md sweeps the real one."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.experiments import sweep
from sft.experiments.sweep import (
    FAILED,
    QUEUED,
    SUCCESS,
    Member,
    Queue,
    best_first,
    expand,
    members_of,
    parse_status,
    plan,
    sweep_name,
    varied,
)
from tests.support.dask_cluster import wait_until
from tests.support.project import commit, environment, run

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
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "params.yaml").write_text("optimizer:\n  lr: 0.5\n")
    run(tmp_path, "git", "init", "-q", "-b", "main")
    run(tmp_path, "dvc", "init", "-q")
    commit(tmp_path, "one")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "EVERY", 1.0)
    return tmp_path


def test_a_grid_is_run_a_failed_member_stops_no_other_and_a_second_call_runs_nothing_twice(project, capsys):
    calls = plan("optimizer.lr=0.3,9,0.1", None)
    with pytest.raises(InputError, match=r"1 of 3 failed: sweep-\w+-2\. Why: dvc queue logs sweep-\w+-2"):
        sweep.main(calls, None, 1, project / "sweep.html")
    said = capsys.readouterr().out
    name = sweep_name(calls)
    assert [f"{name}-{n}" for n in (3, 1, 2)] == [line.split()[0] for line in said.splitlines()[-5:-1]][1:]
    page = (project / "sweep.html").read_text()
    assert page.index(f"<td>{name}-3") < page.index(f"<td>{name}-1") < page.index(f"{name}-2: failed")
    shown = run(project, "dvc", "exp", "show", "--csv")
    assert {f"{name}-1", f"{name}-3"} <= {word for line in shown.splitlines() for word in line.split(",")}
    assert name in run(project, "git", "show", f"{exp_ref(project, name + '-1')}:reports/train.json")
    with pytest.raises(InputError, match="1 of 3 failed"):
        sweep.main(calls, None, 1, None)
    assert "3 of 3 experiments are there already" in capsys.readouterr().out
    assert "too high" in run(project, "dvc", "queue", "logs", f"{name}-2")


def test_the_same_name_from_another_commit_or_with_other_params_is_refused_and_what_differs_is_named(project):
    """What is edited in params.yaml and swept anyway does not differ."""
    members = {"s-1": ["optimizer.lr=0.3"], "s-2": ["optimizer.lr=0.1"]}
    first = run(project, "git", "rev-parse", "HEAD").strip()[:8]
    sweep.queue("s-1", members["s-1"])
    with pytest.raises(
        InputError, match=r"experiment s-1 is there already.*: optimizer\.lr 0\.3, now 0\.2\. Give this"
    ):
        sweep.run(plan("optimizer.lr=0.2", None), "s", 1)
    (project / "params.yaml").write_text("optimizer:\n  lr: 0.7\n")
    sweep.refuse_older(members, ["s-1"])
    (project / "params.yaml").write_text("optimizer:\n  lr: 0.7\n  beta: 1\n")
    with pytest.raises(InputError, match=r"s-1 .*: optimizer\.beta nothing, now 1\. Give this sweep a NAME of its own"):
        sweep.refuse_older(members, ["s-1"])
    run(project, "git", "checkout", "params.yaml")
    (project / "stage.py").write_text(STAGE + "# edited\n")
    with pytest.raises(InputError, match=r"s-1 .*: other edits that are not committed"):
        sweep.refuse_older(members, ["s-1"])
    commit(project, "two")
    with pytest.raises(InputError, match=rf"s-1 .*: commit {first}, now [0-9a-f]{{8}}\."):
        sweep.refuse_older(members, ["s-1"])
    with pytest.raises(InputError, match=r"s-2 .*: nothing tells from which commit and params: runs/sweeps/s-2\.json"):
        sweep.refuse_older(members, ["s-2"])


def exp_ref(project, name):
    refs = run(project, "git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    return next(ref for ref in refs if ref.endswith(f"/{name}"))


def test_a_param_that_does_not_exist_is_dvc_s_to_refuse(project):
    with pytest.raises(InputError, match="optimizer"):
        sweep.main(plan("optimizer.rate=1,2", None), "mine", 1, None)


def test_an_experiment_whose_worker_was_killed_is_done_again_with_the_environment_of_this_sweep(
    project, monkeypatch, capsys
):
    """The worker that is killed is of an earlier command, which ended while it queued, and had another environment."""
    slow, calls = project / "slow", plan("optimizer.lr=0.3,0.1", None)
    sweep.queue("s-1", ["optimizer.lr=0.3"])
    with pytest.MonkeyPatch.context() as earlier:
        earlier.setenv("SFT_SLOW", str(slow))
        earlier.setenv("SFT_SWEEP", "earlier")
        sweep._dvc("queue", "start")
    wait_until(lambda: slow.exists() and slow.read_text())

    def kill() -> None:
        wait_until(lambda: "another environment" in capsys.readouterr().out)
        worker = int(Path(".dvc/tmp/exps/celery/dvc-exp-worker-1.pid").read_text())
        os.killpg(os.getpgid(worker), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    members = sweep.run(calls, "s", 1)
    killer.join()
    said = capsys.readouterr().out
    assert "s-1: its worker was lost; it goes on" in said
    assert [(one.name, one.state, one.metrics["held-out loss"]) for one in members] == [
        ("s-1", SUCCESS, 0.3),
        ("s-2", SUCCESS, 0.1),
    ]
    for number in (1, 2):
        assert '"sweep": "s"' in run(project, "git", "show", f"{exp_ref(project, f's-{number}')}:reports/train.json")
    run(project, "dvc", "queue", "remove", "--success")
    assert sweep.run(calls, "s", 1) == members, "git has them"
    assert run(project, "dvc", "queue", "status").startswith("No experiment tasks in the queue.")


def test_what_else_waits_in_the_queue_is_refused():
    sweep.refuse_others({"s-1": []}, {"s-1": QUEUED, "other": SUCCESS})
    with pytest.raises(InputError, match="DVC's queue also holds other, which would be run with the environment"):
        sweep.refuse_others({"s-1": []}, {"s-1": QUEUED, "other": QUEUED})


def test_two_sweeps_at_once_and_switches_of_one_job_are_refused(project, monkeypatch):
    calls = plan("optimizer.lr=0.3", None)
    with (
        sweep.file_lock(project / "runs/sweep.lock", 0),
        pytest.raises(InputError, match="another sweep runs in this project"),
    ):
        sweep.run(calls, "s", 1)
    monkeypatch.setenv("CLUSTER", "mars")
    with pytest.raises(InputError, match=r"no profile slurm/clusters/mars\.yaml"):
        sweep.run(calls, "s", 1)
    monkeypatch.setenv("DETACH", "1")
    with pytest.raises(InputError, match="DETACH=1 is about one job"):
        sweep.run(calls, "s", 1)
    assert parse_status(run(project, "dvc", "queue", "status")) == Queue({}, 0, 0)


@pytest.mark.parametrize(
    ("grid", "listed"), [(None, None), ("", ""), (None, "# nothing\n"), ("lr", None), ("a=", None)]
)
def test_what_is_no_sweep_is_refused(grid, listed):
    with pytest.raises(InputError, match=r"nothing to sweep|expected NAME=VALUE"):
        plan(grid, listed)


def test_a_sweep_has_the_same_name_each_time_and_its_members_are_told_from_others():
    assert sweep_name([["a=1,2"]]) == sweep_name([["a=1,2"]]) != sweep_name([["a=1,3"]])
    members = expand(plan("a=range(10) b=x", "ignored"), "s") | expand([["c=1"]], "t")
    assert list(members) == [*(f"s-{number}" for number in range(1, 11)), "t-1"]
    states = {"s-10": SUCCESS, "s-2": FAILED, "s-x": SUCCESS, "other-1": QUEUED}
    assert members_of(members, states, {"s-1", "s-2"}) == {"s-1": SUCCESS, "s-2": FAILED, "s-10": SUCCESS}


def test_the_status_is_read_and_workers_are_no_members():
    text = (
        "Task     Name     Created            Status\n"
        "4b3a9c0  s-1      Nov 25, 2026       Running\n"
        "9d22751  s-2      07:01 PM           Queued\n\n"
        "Worker status: 1 active, 0 idle\n"
    )
    assert parse_status(text) == Queue({"s-1": "Running", "s-2": "Queued"}, busy=1, idle=0)
    assert parse_status("No experiment tasks in the queue.\n") == Queue({}, 0, 0)


def test_the_lowest_held_out_loss_comes_first_and_what_failed_last():
    members = [
        Member("a", SUCCESS, {"lr": 1, "seed": 5}, {"held-out loss": 2.0}),
        Member("b", FAILED),
        Member("c", SUCCESS, {"lr": 2, "seed": 5}, {"held-out loss": 1.0}),
    ]
    assert [one.name for one in best_first(members)] == ["c", "a", "b"]
    assert varied(members) == ["lr"]


def test_help_names_the_grid():
    done = subprocess.run(
        [sys.executable, "-m", "sft.experiments.sweep", "--help"], capture_output=True, text=True, check=True
    )
    assert "optimizer.lr=1e-5,2e-5" in done.stdout
