"""measure: the base model is measured once, however many models are compared with it."""

import os
import shutil

import pytest

from sft.evaluation import measure
from sft.evaluation.prompts import Prompt, Segment
from tests.support.eval_params import eval_params
from tests.support.tiny_model import make_tiny_base

PARAMS = eval_params(1, max_prompt_tokens=40, max_new_tokens=3, batch_size=2)
SEGMENTS = [Segment("r", "s", "c", [5, 6, 7, 8], [0, 1, 1, 0])]
PROMPTS = [Prompt("r", "chat", "s", "c", "?", False, [5, 6], [], {})]


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    base, final = tmp_path / "models" / "base", tmp_path / "models" / "final"
    make_tiny_base(base)
    make_tiny_base(final)
    measured = []

    def record(task, work=measure.measure_model):
        measured.append(os.path.basename(task["model"]))
        work(task)

    monkeypatch.setattr(measure, "measure_model", record)
    return base, final, measured


def run(base, final, params=PARAMS):
    return measure.measure_models(base, final, SEGMENTS, PROMPTS, [2], params)


def test_the_base_model_is_measured_once_and_again_only_for_other_questions(models, monkeypatch):
    base, final, measured = models
    monkeypatch.setenv("SFT_WORKERS", "1")
    first = run(base, final)
    assert run(base, final) == first
    assert measured == ["base", "final", "final"]
    assert [count for _, count in first[0].losses] == [2]
    assert len(first[0].answers[0]) <= 3
    assert first[0] == first[1], "the same weights"

    run(base, final, PARAMS.model_copy(update={"max_new_tokens": 2}))
    (base / "config.json").write_text((base / "config.json").read_text() + "\n")
    run(base, final)
    assert measured[3:] == ["base", "final", "base", "final"]


def test_a_sweep_of_six_measures_the_base_model_once(models, monkeypatch):
    base, _, measured = models
    monkeypatch.setenv("SFT_WORKERS", "1")
    for number in range(6):  # DVC's queue runs each experiment in a folder of its own
        experiment = base.parents[1] / f"experiment-{number}"
        shutil.copytree(base.parent, experiment / "models")
        monkeypatch.chdir(experiment)
        run(experiment / "models/base", experiment / "models/final")
    assert measured == ["base", *["final"] * 6]


def test_both_models_can_run_side_by_side(models, monkeypatch):
    base, final, _ = models
    monkeypatch.undo()
    monkeypatch.chdir(base.parents[1])
    monkeypatch.setenv("DVC_ROOT", str(base.parents[1]))
    monkeypatch.setenv("SFT_WORKERS", "2")
    monkeypatch.setattr(measure, "PARAMETERS_SIDE_BY_SIDE", 0)
    side_by_side = run(base, final)
    monkeypatch.setattr(measure, "_fit_side_by_side", lambda *_: False)
    for known in (base.parents[1] / "runs/measured").iterdir():
        known.unlink()
    assert run(base, final) == side_by_side
