"""train: what is checked before a step, what the key depends on, what is reported. tests/test_pipeline.py trains."""

from pathlib import Path

import pytest

from sft.cli import InputError
from sft.cluster.cluster_file import Cluster
from sft.files import write_json
from sft.hashing import file_digest
from sft.params.read import load_training
from sft.stages import train as stage
from sft.tracking.journal import Journal
from sft.training.launch import Run
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
    metadata = {"tokenizer_sha256": tokenizer, "splits": {"training": {"packs": 20}}}
    write_json(tmp_path / "data/packed/metadata.json", metadata)
    return tmp_path


def run_of(folder: Path) -> Run:
    return Run(folder, folder, folder, folder)


@pytest.mark.parametrize(("folder", "stage_name"), [("data/packed", "pack"), ("models/base", "fetch-model")])
def test_what_is_missing_says_which_stage_makes_it(project, folder, stage_name):
    assert stage.check_inputs()["tokenizer_sha256"]
    (project / folder).rename(project / "elsewhere")
    with pytest.raises(InputError, match=f"{folder}: not found.*dvc repro {stage_name}"):
        stage.check_inputs()


def test_a_cluster_needs_its_file(project, monkeypatch):
    monkeypatch.setenv("CLUSTER", "big")
    with pytest.raises(InputError, match=r"slurm/clusters/big\.yaml"):
        stage.main()


def test_a_run_that_a_job_trains_is_not_trained_here_too(project, monkeypatch):
    monkeypatch.setattr(stage, "check", lambda *_: None)
    set_params(project, **{"checkpoint.pretrained_checkpoint": "models/base"})
    run = project / "runs" / stage.find_lineage(load_training().model_dump()).key
    write_json(run / "job.json", {"cluster": "big", "stage": "train", "job": "7", "outcome": None})
    with pytest.raises(InputError, match="job 7 on big"):
        stage.main()
    assert Journal(run).attempts() == {}, "the job's attempt is not touched"


@pytest.mark.parametrize("cluster", [None, "big"])
@pytest.mark.parametrize("name", ["load_training", "dirty_patch", "check"])
def test_params_that_change_while_it_waits_for_the_run_stop_it_before_a_step(project, monkeypatch, name, cluster):
    """They are read before anything slow: an edit afterwards is not what the user started, and a job would train it."""
    monkeypatch.setattr(stage, "check", lambda *_: None)
    monkeypatch.setattr(stage.convert, "import_start", lambda *_: None)
    monkeypatch.setattr(stage, "read_cluster_file", lambda _: Cluster.model_construct())
    monkeypatch.setattr(stage.jobs, "submit", lambda run, stage, name, cluster, prepare: prepare())
    if cluster:
        monkeypatch.setenv("CLUSTER", cluster)
    original = getattr(stage, name)

    def edit_after_the_first_call(*arguments):
        found = original(*arguments)
        set_params(project, **{"optimizer.lr": 0.0077})
        return found

    monkeypatch.setattr(stage, name, edit_after_the_first_call)
    with pytest.raises(InputError, match=r"params\.yaml changed while this waited"):
        stage.main()
    assert not list(project.glob("runs/*/begun"))


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


def test_params_are_checked_before_anything_is_made(project):
    set_params(project, **{"optimizer.lr": "fast"})
    with pytest.raises(InputError, match=r"optimizer\.lr"):
        stage.main()
    assert not (project / "runs").exists()
