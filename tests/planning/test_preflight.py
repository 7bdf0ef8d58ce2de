"""preflight: the report of make estimate. Its arithmetic: tests/planning/test_estimate.py."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sft.cli import InputError, json_values
from sft.params.check import read
from sft.params.training import TrainParams
from sft.planning import checks, estimate, preflight
from tests.planning.test_checks import CLUSTER, LLAMA, NANO, nano
from tests.support.printed_json import printed_json
from tests.support.project import ROOT

PROFILE = "nemotron3-nano"


def report(facts: checks.Facts, gpu: preflight.Gpu, params: TrainParams) -> preflight.Preflight:
    needs = estimate.estimate(facts.geometry or LLAMA, params, facts.ranks, facts.pack_size or 1, on_gpu=True)
    return preflight.Preflight(params, facts, needs, checks.run_checks(params, facts), gpu, Path("models/base"))


def lines_of(write: Any, facts: checks.Facts, gpu: str, params: TrainParams) -> list[str]:
    found = report(facts, preflight.gpu_of(gpu), params)
    return list(write(found, preflight.values(found)))


def test_layout_and_step_are_numbers() -> None:
    lines = "\n".join(lines_of(preflight.layout_lines, CLUSTER, "H100", nano()))
    assert "31,577,937,344 parameters, 3,580,073,408 per token" in lines
    assert "16 x H100: tensor 4 x pipeline 1 x context 1 x data 4, experts over 8, sequence parallel" in lines
    assert "64 packs of at most 4,096 tokens = 262,144; 16 in turn on each data-parallel rank" in lines
    assert "8 steps, at most 2,097,152 tokens, 0.57 epochs of 900 packs" in lines


def test_memory_time_and_disk_have_their_uncertainty() -> None:
    lines = "\n".join(lines_of(preflight.need_lines, CLUSTER, "H100", nano()))
    assert re.search(r"memory +54\.9 GB on the GPU that needs most: weights 8\.5 GB, gradients 16\.9 GB", lines)
    assert "within 35% as measured on a CPU, not measured on a GPU" in lines
    assert "fits on H100: 80.0 GB, 10% of it" in lines
    assert "DOES NOT FIT on GPU with 48 GB" in "\n".join(lines_of(preflight.need_lines, CLUSTER, "48e9", nano()))
    assert "at 15% to 40% of 989 TFLOP/s" in lines
    assert "at most 4 checkpoints of 442 GB" in lines


def test_every_result_is_a_line_and_failed_checks_are_counted() -> None:
    facts = dataclasses.replace(CLUSTER, pad_segments_to=1, training_packs=None)
    lines = preflight.check_lines(preflight.values(report(facts, preflight.gpu_of("H100"), nano()))["checks"])
    assert len(lines) == len(checks.CHECKS) + 1
    assert [line for line in lines if line.startswith("FAILED   padding ")]
    assert [line for line in lines if line.startswith("unknown  training-packs ")]
    assert lines[-1] == f"{len(checks.CHECKS) - 2} ok, 1 not known here, 1 failed"


def test_adapters_have_a_line_with_their_parameters() -> None:
    lines = lines_of(preflight.layout_lines, CLUSTER, "H200", nano(peft={"name": "lora"}))
    assert re.match(r"trained +[\d,]+ parameters of adapters", lines[1])


def test_a_gpu_is_a_known_name_or_a_number_of_bytes() -> None:
    assert preflight.gpu_of("H200").memory == 141e9
    assert preflight.gpu_of("96e9").memory == 96e9
    with pytest.raises(InputError, match=r"^GPU=H1000: .*A100-40GB"):
        preflight.gpu_of("H1000")


def test_shapes_come_from_the_model_or_from_its_published_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = read(ROOT / "profiles" / f"{PROFILE}.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"fetch\.model\.uri: hf://nvidia/.*profiles/models/NVIDIA"):
        preflight.model_folder(params, has_inputs=True)
    name = "NVIDIA-Nemotron-3-Nano-30B-A3B-Base-BF16"
    for folder in (preflight.KNOWN_MODELS / name, preflight.BASE):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        assert preflight.model_folder(params, has_inputs=True) == folder
    assert preflight.model_folder(params, has_inputs=False) == preflight.KNOWN_MODELS / name


def test_the_numbers_of_the_report_are_json() -> None:
    facts = dataclasses.replace(CLUSTER, pad_segments_to=1, training_packs=None)
    found = json_values(preflight.values(report(facts, preflight.gpu_of("48e9"), nano())))
    assert found == json.loads(json.dumps(found, allow_nan=False))
    assert found["model"]["parameters"] == 31_577_937_344
    assert (found["layout"]["tensor"], found["layout"]["data"]) == (4, 4)
    assert found["memory"]["total"] == pytest.approx(54.9e9, abs=0.1e9)
    assert found["memory"]["fits"] is False
    assert found["run"]["epochs"] is None
    assert found["time"]["step_seconds"]["least"] < found["time"]["step_seconds"]["most"]
    states = {entry["check"]: entry["state"] for entry in found["checks"]}
    assert (states["padding"], states["training-packs"]) == ("FAILED", "unknown")
    no_speed = preflight.values(report(CLUSTER, preflight.Gpu("CPU", None, 0.0), nano()))
    assert (no_speed["time"], no_speed["memory"]["fits"]) == (None, None)


def test_a_model_without_an_estimate_has_every_other_line() -> None:
    facts = dataclasses.replace(CLUSTER, geometry=None, start_geometry=None)
    unknown = dataclasses.replace(report(facts, preflight.gpu_of("H100"), nano()), estimate=None)
    lines = "\n".join(preflight.report_lines(unknown))
    assert "64 packs of at most 4,096 tokens = 262,144" in lines
    assert all(f"{name:10} unknown: " in lines for name in ("memory", "time", "disk"))
    assert not [result for result in unknown.results if result.failed]
    found = json_values(preflight.values(unknown))
    assert (found["memory"], found["time"], found["disk"], found["model"]["parameters"]) == (None, None, None, None)


@pytest.mark.pipeline
def test_make_estimate_prints_json_alone(tmp_path: Path) -> None:
    (tmp_path / "profiles").symlink_to(ROOT / "profiles")
    program = ("sft.planning.preflight", "--profile", PROFILE, "--nodes", "2", "--gpus", "8")
    assert printed_json(tmp_path, *program)["layout"]["ranks"] == 16
    assert printed_json(tmp_path, "sft.planning.preflight", "--profile", "x", message="error: ") is None


@pytest.mark.pipeline
def test_make_estimate_reports_a_profile_without_its_model_data_or_gpu(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "sft.planning.preflight", "--profile", PROFILE, "--nodes", "2", "--gpus", "8"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    (tmp_path / "profiles").symlink_to(ROOT / "profiles")
    done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{estimate.count(NANO).total:,} parameters" in done.stdout
    assert "memory     66.0 GB on the GPU that needs most" in done.stdout
    assert "ok       padding" in done.stdout
    assert re.search(r"\d+ ok, 5 not known here, \d failed\n$", done.stdout)
    assert done.stderr == "", "Bridge prints nothing"
