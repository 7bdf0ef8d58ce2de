"""sweep: DVC's own queue with a pipeline of one small stage; docs/experiments.md sweeps the real one."""

import subprocess

import pytest

from sft.command import InputError
from sft.run import sweep
from sft.run.sweep import FAILED, SUCCESS, Member, best_first, members_of, parse_status, plan, sweep_name, varied
from tests.project import commit, environment, run

STAGE = """
import json, os, pathlib, sys
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
    assert "3 experiments are there already" in capsys.readouterr().out
    assert "too high" in run(project, "dvc", "queue", "logs", f"{name}-2")


def exp_ref(project, name):
    refs = run(project, "git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    return next(ref for ref in refs if ref.endswith(f"/{name}"))


def test_a_param_that_does_not_exist_is_dvc_s_to_refuse(project):
    with pytest.raises(InputError, match="optimizer"):
        sweep.main(plan("optimizer.rate=1,2", None), "mine", 1, None)


@pytest.mark.parametrize(
    ("grid", "listed"), [(None, None), ("", ""), (None, "# nothing\n"), ("lr", None), ("a=", None)]
)
def test_what_is_no_sweep_is_refused(grid, listed):
    with pytest.raises(InputError, match=r"nothing to sweep|expected NAME=VALUE"):
        plan(grid, listed)


def test_a_sweep_has_the_same_name_each_time_and_its_members_are_told_from_others():
    assert sweep_name([["a=1,2"]]) == sweep_name([["a=1,2"]]) != sweep_name([["a=1,3"]])
    states = dict.fromkeys(("s-10", "s-2", "s-1", "s", "s-x", "other-1"), SUCCESS)
    assert list(members_of("s", states)) == ["s", "s-1", "s-2", "s-10"]


def test_the_status_is_read_and_workers_are_no_members():
    text = (
        "Task     Name     Created            Status\n"
        "4b3a9c0  s-1      Nov 25, 2026       Running\n"
        "9d22751  s-2      07:01 PM           Queued\n\n"
        "Worker status: 1 active, 0 idle\n"
    )
    assert parse_status(text) == {"s-1": "Running", "s-2": "Queued"}
    assert parse_status("No experiment tasks in the queue.\n") == {}


def test_the_lowest_held_out_loss_comes_first_and_what_failed_last():
    members = [
        Member("a", SUCCESS, {"lr": 1, "seed": 5}, {"held-out loss": 2.0}),
        Member("b", FAILED),
        Member("c", SUCCESS, {"lr": 2, "seed": 5}, {"held-out loss": 1.0}),
    ]
    assert [one.name for one in best_first(members)] == ["c", "a", "b"]
    assert varied(members) == ["lr"]


def test_help_names_the_grid():
    done = subprocess.run(["python", "-m", "sft.run.sweep", "--help"], capture_output=True, text=True, check=True)
    assert "optimizer.lr=1e-5,2e-5" in done.stdout
