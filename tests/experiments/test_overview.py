"""overview: the state of each stage and the last run, also where there is no git, no data, no run."""

import contextlib
import json
import re
import shutil
import time
from pathlib import Path

import pytest

from sft.experiments import overview
from sft.experiments.overview import MISSING, NOT_RUN, find_reasons, run_lines, stage_lines
from sft.files import write_json
from sft.tracking import journal
from sft.training.steps import Step, StepLog
from tests.support.finished_project import make_recorded
from tests.support.project import environment, run

PIPELINE = """
stages:
  fetch:
    foreach: ${fetch.sources}
    do:
      cmd: mkdir -p data/raw; cp in.txt data/raw/${key}
      deps: [in.txt]
      params: ["fetch.sources.${key}.uri"]
      outs: ["data/raw/${key}"]
  pack:
    cmd: cat data/raw/* > data/packed
    deps: [data/raw]
    params: [pack]
    outs: [data/packed]
"""


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A DVC project of two sources that has run, in which the test runs."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").write_text(PIPELINE)
    Path("params.yaml").write_text("fetch: {sources: {a: {uri: x}, b: {uri: x}}}\npack: {seed: 1}\n")
    Path("in.txt").write_text("text")
    run(tmp_path, "git", "init", "-q")
    run(tmp_path, "dvc", "init", "-q")
    run(tmp_path, "dvc", "repro", "-q")
    return tmp_path


def test_each_stage_has_the_reasons_for_which_dvc_would_run_it(small):
    assert find_reasons() == {"fetch@a": [], "fetch@b": [], "pack": []}
    Path("params.yaml").write_text("fetch: {sources: {a: {uri: y}, c: {uri: x}}}\npack: {seed: 1}\n")
    assert find_reasons() == {"fetch@a": ["fetch.sources.a.uri"], "fetch@c": [NOT_RUN], "pack": []}
    Path("params.yaml").write_text("fetch: {sources: {a: {uri: x}, b: {uri: x}}}\npack: {seed: 2}\n")
    Path("in.txt").write_text("other")
    Path("data/raw/b").unlink()
    assert find_reasons() == {"fetch@a": ["in.txt"], "fetch@b": [MISSING, "in.txt"], "pack": ["pack", "data/raw"]}


def test_where_nothing_has_run_there_is_no_git_or_no_data_it_is_said(small, capsys):
    shutil.rmtree("data")
    assert find_reasons() == {"fetch@a": [MISSING], "fetch@b": [MISSING], "pack": [MISSING]}
    Path("dvc.lock").unlink()
    assert {tuple(reasons) for reasons in find_reasons().values()} == {(NOT_RUN,)}
    overview.main()
    assert "  none yet\n" in capsys.readouterr().out
    shutil.rmtree(".git")
    overview.main()
    assert "not known: " in capsys.readouterr().out.splitlines()[-1]


def test_a_stage_has_one_line_with_its_sources_and_reasons():
    reasons = {
        "check": ["params.yaml"],
        "fetch@a": [],
        "fetch@b": [],
        "fetch-model": [],
        "filter@a": ["filter"],
        "filter@b": [],
        "prep@a": [],
        "pack": [],
        "train": ["optimizer", "scheduler", "src/sft/training", "models/base"],
        "eval": [],
    }
    assert list(stage_lines(reasons)) == [
        "  fetch    up to date",
        "  filter   1 of 2 rerun (a): filter",
        "  prep     up to date; reruns if what is before it changes",
        "  pack     up to date; reruns if what is before it changes",
        "  train    reruns: optimizer, scheduler, src/sft/training and 1 more",
        "  eval     up to date; reruns if what is before it changes",
    ]


def train_a_step(run: Path) -> journal.Journal:
    """Log a step as training does."""
    run_journal = journal.open_run(run, {}, {}, [])
    with contextlib.closing(StepLog(run_journal.add, iterations=2)) as log:
        log.log_step(Step(1, 0.5, lr=0.1, grad_norm=1.0, tokens=10, trained_tokens=4, seconds=1.0))
    return run_journal


def test_the_last_run_is_named_with_its_losses_its_gate_and_a_newer_one(tmp_path, monkeypatch):
    make_recorded(tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    evaluated = json.loads(Path("reports/eval.json").read_text())
    write_json(Path("reports/eval.json"), {**evaluated, "gate": {"passed": False, "failures": ["loss: 2 after"]}})
    trained = json.loads(Path("reports/train.json").read_text())
    write_json(Path("reports/train.json"), {**trained, "validation_loss": 0.7})
    first, second = run_lines()
    assert first.split() == [trained["lineage_key"], "2", "steps,", "loss", "0.5000,", "validation", "0.7000"]
    assert second.endswith("failed the gate: loss: 2 after")
    shutil.rmtree("models/final")
    key = trained["lineage_key"]
    ours = train_a_step(Path("runs", key))
    journal.open_run(Path("runs/begun"), {}, {}, [])
    first, *_, missing = run_lines()
    assert re.match(rf"  {key}  20\d\d-\d\d-\d\d \d\d:\d\d, 2 steps, loss 0\.5000", first)
    assert "models/final is not here" in missing, "no run is newer: one has made no step"
    time.sleep(0.002)  # the journal counts milliseconds
    train_a_step(Path("runs/0123"))
    ours.add("evaluation")
    *_, missing, newer = run_lines()
    assert "models/final is not here" in missing
    assert re.match(r"  0123  20\d\d-\d\d-\d\d \d\d:\d\d, newer", newer)
    Path("reports/train.json").write_text("{")
    overview.main()


def test_files_that_take_long_to_hash_are_not_waited_for(small, monkeypatch):
    program = (
        "import time; from sft.experiments import overview; overview.PATIENCE = 1\n"
        "overview.find_reasons = lambda: time.sleep(600)\noverview.main()"
    )
    said = run(small, "python", "-c", program, PYTHONPATH=str(Path(overview.__file__).parents[2]), timeout=600)
    assert said.splitlines()[-1].startswith("  not known after 1 s: ")
