"""train: what is refused before a step, how steps are kept, what is reported. tests/test_pipeline.py trains."""

import json
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.files import read_json, write_json
from sft.hashing import file_digest
from sft.stages import train as stage
from tests.support.project import link_project, set_params


@pytest.fixture
def project(tmp_path, monkeypatch):
    link_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLUSTER", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (tmp_path / "models").mkdir()
    (tmp_path / "inputs/model").rename(tmp_path / "models/base")
    (tmp_path / "data/packed").mkdir(parents=True)
    tokenizer = file_digest(tmp_path / "models/base/tokenizer.json")
    write_json(tmp_path / "data/packed/metadata.json", {"tokenizer_sha256": tokenizer})
    return tmp_path


def run_of(folder: Path) -> stage.Run:
    return stage.Run(folder, folder, folder, folder)


def write_steps(folder: Path, *lines: dict | str) -> None:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / "steps.jsonl").write_text(text)


def step(iteration: int, loss: float) -> dict:
    return {"iteration": iteration, "loss": loss, "lr": 0.1, "grad_norm": 1.0, "tokens": 10, "seconds": 1.0}


@pytest.mark.parametrize(("folder", "stage_name"), [("data/packed", "pack"), ("models/base", "fetch-model")])
def test_what_is_missing_says_which_stage_makes_it(project, folder, stage_name):
    assert stage.check_inputs()["tokenizer_sha256"]
    (project / folder).rename(project / "elsewhere")
    with pytest.raises(InputError, match=f"{folder}: not found.*dvc repro {stage_name}"):
        stage.check_inputs()


def test_a_cluster_without_a_profile_is_refused(project, monkeypatch):
    monkeypatch.setenv("CLUSTER", "big")
    with pytest.raises(InputError, match="CLUSTER=big: no profile"):
        stage.main()


def test_torchrun_understands_how_ranks_are_started(monkeypatch, tmp_path):
    """It took --run, as the option once was called, for an abbreviation of its own --run-path."""
    from torch.distributed.run import get_args_parser

    asked = []
    monkeypatch.setattr(stage.subprocess, "run", lambda command, **_: asked.append(command) or Ended())
    stage.launch(run_of(tmp_path), 2)
    parsed = get_args_parser().parse_args(asked[0][3:])
    assert (parsed.nproc_per_node, parsed.module, parsed.training_script) == ("2", True, "sft.stages.train")
    assert parsed.training_script_args == ["--rank-of", str(tmp_path)]


@pytest.mark.parametrize(("ranks", "asked", "given"), [(2, None, "4"), (3, None, "2"), (16, None, "1"), (2, "7", "7")])
def test_ranks_share_the_cores_of_this_machine(monkeypatch, tmp_path, ranks, asked, given):
    """torchrun by itself gives each rank one thread, whatever the machine has, and says so between rows of stars."""
    told = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr(stage.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(stage.subprocess, "run", lambda _, env, check: told.append(env["OMP_NUM_THREADS"]) or Ended())
    stage.launch(run_of(tmp_path), ranks)
    assert told == [given]


class Ended:
    returncode = 0


def test_what_a_cluster_s_job_computes_is_not_trained_here_too(project):
    write_json(project / "k/job.json", {"cluster": "big", "stage": "train", "job": "7", "outcome": None})
    with pytest.raises(InputError, match="job 7 on big computes this run"):
        stage.launch(run_of(project / "k"), 1)


@pytest.mark.parametrize("asked", ["0", "two", "-1", "1.5"])
def test_a_number_of_processes_that_is_none_is_refused(monkeypatch, asked):
    monkeypatch.setenv("SFT_PROCESSES", asked)
    with pytest.raises(InputError, match=f"SFT_PROCESSES={asked}"):
        stage.processes()


def test_the_lineage_changes_with_data_model_and_params(project):
    keys = set()
    for number in range(2):
        params = {"checkpoint": {"pretrained_checkpoint": None}, "rng": {"seed": number}}
        keys.add(stage.find_lineage(params).key)
    (project / "data/packed/more").write_text("x")
    keys.add(stage.find_lineage(params).key)
    (project / "models/base/more").write_text("x")
    keys.add(stage.find_lineage(params).key)
    assert len(keys) == 4
    assert stage.find_lineage(params).key in keys


def test_a_step_done_twice_counts_as_it_was_last_and_a_cut_line_not_at_all(tmp_path):
    write_steps(
        tmp_path, step(1, 3.0), step(2, 2.0), '{"iteration": 3, "lo', step(2, 1.5), step(3, 1.0),
        {"iteration": 3, "validation_loss": 0.5},
    )  # fmt: skip
    steps, validations = stage.read_steps(tmp_path, 3)
    assert [entry["loss"] for entry in steps] == [3.0, 1.5, 1.0]
    assert [entry["validation_loss"] for entry in validations] == [0.5]


def test_a_missing_step_is_a_fault(tmp_path):
    write_steps(tmp_path, step(1, 3.0), step(3, 1.0))
    with pytest.raises(AssertionError, match="expected each of 1 to 3"):
        stage.read_steps(tmp_path, 3)


def test_the_report_counts_packs_and_says_which_were_not_reached(project):
    write_steps(project, step(1, 3.0), step(2, 2.0), {"iteration": 2, "validation_loss": 0.5})
    written = stage.report(run_of(project), 2, 3, {"splits": {"training": {"packs": 10}}})
    assert written == read_json(project / "reports/train.json")
    assert (written["rows_in"], written["rows_out"], written["rejected"]) == (10, 6, {"not-reached": 4})
    assert (written["train_loss"], written["validation_loss"], written["tokens"]) == (2.0, 0.5, 20)
    assert written["epochs"] == 0.6
    assert (project / "reports/train_loss.csv").read_text() == "iteration,loss,lr\n1,3.0,0.1\n2,2.0,0.1\n"
    assert (project / "reports/validation_loss.csv").read_text() == "iteration,validation_loss\n2,0.5\n"


def test_params_are_checked_before_anything_is_made(project):
    set_params(project, **{"optimizer.lr": "fast"})
    with pytest.raises(InputError, match=r"optimizer\.lr"):
        stage.main()
    assert not (project / "runs").exists()
