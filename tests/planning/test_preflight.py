"""Preflight: what is said of a training before it starts. Its arithmetic: tests/planning/test_estimate.py."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.params.check import read
from sft.params.training import TrainParams
from sft.planning import checks, estimate, preflight
from tests.planning.test_checks import CLUSTER, LLAMA, NANO, nano
from tests.support.project import ROOT

PROFILE = "nemotron3-nano"


def seen(facts: checks.Facts, gpu: preflight.Gpu, params: TrainParams) -> preflight.Preflight:
    found = estimate.estimate(facts.geometry or LLAMA, params, facts.ranks, facts.pack_size or 1, on_gpu=True)
    return preflight.Preflight(params, facts, found, checks.verdicts(params, facts), gpu, Path("models/base"))


def test_the_batch_and_the_layout_are_said_in_numbers() -> None:
    said = "\n".join(preflight.layout_lines(seen(CLUSTER, preflight.gpu_of("H100"), nano())))
    assert "31,577,937,344 parameters, 3,580,073,408 for a token" in said
    assert "16 x H100: tensor 4 x pipeline 1 x context 1 x data 4, experts over 8, sequence parallel" in said
    assert "64 packs of at most 4,096 tokens = 262,144; 16 in turn on each data-parallel rank" in said
    assert "8 steps, 2,097,152 tokens at most, 0.57 epochs of 900 packs" in said


def test_memory_time_and_disk_are_said_with_what_is_sure_of_them() -> None:
    said = "\n".join(preflight.need_lines(seen(CLUSTER, preflight.gpu_of("H100"), nano())))
    assert re.search(r"memory +54\.9 GB on the GPU that needs most: weights 8\.5 GB, gradients 16\.9 GB", said)
    assert "no GPU was measured" in said
    assert "fits a H100: 80.0 GB, 10% of it left" in said
    assert "DOES NOT FIT a GPU with 48 GB" in "\n".join(
        preflight.need_lines(seen(CLUSTER, preflight.gpu_of("48e9"), nano()))
    )
    assert "at 15% to 40% of 989 TFLOP/s" in said
    assert "4 checkpoints of 442 GB at most" in said


def test_every_verdict_is_a_line_and_refusals_are_counted() -> None:
    facts = dataclasses.replace(CLUSTER, pad_segments_to=1, training_packs=None)
    said = preflight.verdict_lines(checks.verdicts(nano(), facts))
    assert len(said) == len(checks.RULES) + 1
    assert [line for line in said if line.startswith("REFUSED  padding")]
    assert [line for line in said if line.startswith("unknown  training-packs")]
    assert said[-1] == f"{len(checks.RULES) - 2} ok, 1 not known here, 1 refused"


def test_adapters_are_said_to_be_what_is_trained() -> None:
    said = preflight.layout_lines(seen(CLUSTER, preflight.gpu_of("H200"), nano(peft={"name": "lora"})))
    assert re.match(r"trained +[\d,]+ parameters of adapters", said[1])


def test_a_gpu_is_one_that_is_known_or_so_many_bytes() -> None:
    assert preflight.gpu_of("H200").memory == 141e9
    assert preflight.gpu_of("96e9").memory == 96e9
    with pytest.raises(InputError, match="GPU=H1000: expected one of A100-40GB"):
        preflight.gpu_of("H1000")


def test_shapes_are_those_of_the_model_that_is_here_or_of_its_published_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = read(ROOT / "profiles" / f"{PROFILE}.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"neither models/base/config\.json"):
        preflight.model_folder(params, own=True)
    name = "NVIDIA-Nemotron-3-Nano-30B-A3B-Base-BF16"
    for folder in (preflight.KNOWN_MODELS / name, preflight.BASE):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        assert preflight.model_folder(params, own=True) == folder
    assert preflight.model_folder(params, own=False) == preflight.KNOWN_MODELS / name


@pytest.mark.pipeline
def test_make_estimate_says_what_a_profile_needs_without_its_model_data_or_gpu(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "sft.planning.preflight", "--profile", PROFILE, "--nodes", "2", "--gpus", "8"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    (tmp_path / "profiles").symlink_to(ROOT / "profiles")
    done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{estimate.count(NANO).total:,} parameters" in done.stdout
    assert "memory     50.8 GB on the GPU that needs most" in done.stdout
    assert "ok       padding" in done.stdout
    assert re.search(r"\d+ ok, 3 not known here, \d refused\n$", done.stdout)
    assert done.stderr == "", "Bridge is not heard"
