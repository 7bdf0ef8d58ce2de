"""measure: the base model is measured once, however many models are compared with it."""

import os
import shutil

import pytest
from safetensors.torch import load_file, save_file

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
    shutil.copytree(base, final)
    change(final)
    measured = []

    def record(task, work=measure.measure_shard):
        if task["prompts"]:
            measured.append(os.path.basename(task["model"]))
        return work(task)

    monkeypatch.setattr(measure, "measure_shard", record)
    return base, final, measured


def change(model, factor=1.25):
    weights = load_file(model / "model.safetensors")
    name = sorted(weights)[0]
    save_file({**weights, name: weights[name] * factor}, model / "model.safetensors", {"format": "pt"})


def run(base, final, params=PARAMS, segments=SEGMENTS, prompts=PROMPTS):
    return measure.measure_models(base, final, segments, prompts, [2], params)


def test_a_model_is_measured_once_and_again_only_for_other_questions(models):
    base, final, measured = models
    first = run(base, final)
    assert run(base, final) == first
    assert measured == ["base", "final"]
    assert [count for _, count in first[0].losses] == [2]
    assert len(first[0].answers[0]) <= 3
    assert first[0].losses != first[1].losses

    run(base, final, PARAMS.model_copy(update={"max_new_tokens": 2}))
    (base / "config.json").write_text((base / "config.json").read_text() + "\n")
    run(base, final)
    assert measured[2:] == ["base", "final", "base"]
    before, after = run(base, base)
    assert before == after == first[0]
    assert len(measured) == 5


def test_a_sweep_of_six_measures_the_base_model_once(models, monkeypatch):
    base, _, measured = models
    for number in range(6):  # DVC's queue runs each experiment in a folder of its own
        experiment = base.parents[1] / f"experiment-{number}"
        shutil.copytree(base.parent, experiment / "models")
        change(experiment / "models/final", 2 + number)
        monkeypatch.chdir(experiment)
        run(experiment / "models/base", experiment / "models/final")
    assert measured == ["base", *["final"] * 6]


def test_every_sample_and_prompt_is_in_one_shard_and_a_sample_with_the_prompt_that_it_starts_with():
    samples = [([7, n], []) for n in range(20)] + [([1, 2, 3], [])]
    shards = measure.plan_shards(samples, [[1], [1, 2], [5]], 2)
    assert shards[:2] == [([20], [1, 0]), ([], [2])]
    assert [shard.samples for shard in shards[2:]] == [[*range(16)], [*range(16, 20)]]
    assert measure.plan_shards([], [], 2) == [([], [])]


def test_figures_depend_neither_on_workers_nor_on_what_is_known(models, monkeypatch):
    base, final, _ = models
    monkeypatch.undo()
    monkeypatch.chdir(base.parents[1])
    monkeypatch.setenv("DVC_ROOT", str(base.parents[1]))
    monkeypatch.setattr(measure, "PARAMETERS_SIDE_BY_SIDE", 0)
    segments = [Segment("r", "s", "c", [5, 6, *range(3, 9 + n)], [1] * (8 + n)) for n in range(5)]
    prompts = [
        Prompt("r", "chat", "s", "c", "?", False, segment.ids[:n], [], {}) for n, segment in enumerate(segments, 2)
    ]
    processes = []

    def count(*args, map_shards=measure.map_shards, **more):
        processes.append(more["at_most"])
        return map_shards(*args, **more)

    monkeypatch.setattr(measure, "map_shards", count)
    monkeypatch.setenv("SFT_WORKERS", "2")
    run(base, final, segments=segments, prompts=prompts)
    known = {path: path.read_bytes() for path in (base.parents[1] / "runs/measured").iterdir()}
    assert len(known) == 2
    for workers, missing in (("1", 1), ("1", 2)):
        for path in sorted(known)[:missing]:
            path.unlink()
        monkeypatch.setenv("SFT_WORKERS", workers)
        run(base, final, segments=segments, prompts=prompts)
        assert {path: path.read_bytes() for path in known} == known
    assert processes == [2]
