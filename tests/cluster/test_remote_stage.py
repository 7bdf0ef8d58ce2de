"""remote_stage: the inputs, key and outs of a job. tests/test_submission.py runs such jobs on a real Slurm."""

from pathlib import Path

import pytest

from sft.cli import InputError
from sft.cluster import remote_stage
from tests.support.project import ROOT, link_project, run


@pytest.fixture
def project(tmp_path, monkeypatch):
    link_project(tmp_path)
    (tmp_path / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
    (tmp_path / "src").symlink_to(ROOT / "src")
    (tmp_path / "requirements").symlink_to(ROOT / "requirements")
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    if not (tmp_path / "templates").exists():
        (tmp_path / "templates").symlink_to(ROOT / "templates")
    run(tmp_path, "git", "init", "-q")
    run(tmp_path, "dvc", "init", "-q")
    for name in ("data/filtered/calls/kept.parquet", "models/base/tokenizer.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    for name in ("tokenizer_config.json", "generation_config.json"):
        (tmp_path / "models/base" / name).write_text("{}")
    (tmp_path / "reports/filter").mkdir(parents=True)
    (tmp_path / "reports/prep").mkdir()
    (tmp_path / "reports/filter/calls.json").write_text("{}")
    (tmp_path / "reports/prep/calls.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for name in ("CLUSTER", "DVC_ROOT", "DETACH", "DRY_RUN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_job_gets_the_declared_deps_and_each_of_them_changes_its_key(project):
    stage = remote_stage.read_stage("prep@calls")
    assert {path.as_posix() for path in stage.data} == {
        "templates/nano3.jinja",
        "data/filtered/calls",
        "models/base/tokenizer.json",
        "models/base/tokenizer_config.json",
        "models/base/generation_config.json",
    }
    assert {path.as_posix() for path in stage.outs} == {"data/prepared/calls", "reports/prep/calls.json"}
    assert stage.params["prep"]["template"] == "templates/nano3.jinja"
    keys = {stage.key, remote_stage.DeclaredStage("prep@calls", stage.deps, {"prep": 1}, stage.outs).key}
    for name in ("data/filtered/calls/kept.parquet", "models/base/tokenizer.json"):
        (project / name).write_text("[]")
        keys.add(remote_stage.read_stage("prep@calls").key)
    assert len(keys) == 4
    remote_stage.copy_inputs(stage, project / "runs/x")
    copied = {path.relative_to(project / "runs/x/work").as_posix() for path in (project / "runs/x").rglob("*.*")}
    assert {"params.yaml", "dvc.yaml", "templates/nano3.jinja", "data/filtered/calls/kept.parquet"} <= copied
    assert "reports/filter/calls.json" in copied, "prep checks its rows against this ledger"
    assert "reports/prep/calls.json" not in copied, "an old out would look like one that the job made"


def test_a_later_edit_does_not_reach_the_job(project):
    stage = remote_stage.read_stage("prep@calls")
    remote_stage.copy_inputs(stage, project / "runs/x")
    with (project / "params.yaml").open("a") as params:
        params.write("# edited\n")
    assert "# edited" not in (project / "runs/x/work/params.yaml").read_text()


def test_a_missing_dep_is_an_error_that_names_it(project):
    (project / "models/base/tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"models/base/tokenizer\.json: not found"):
        _ = remote_stage.read_stage("prep@calls").key


def test_compiled_python_files_do_not_change_the_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("code/__pycache__").mkdir(parents=True)
    Path("code/a.py").write_text("1")
    stage = remote_stage.DeclaredStage("prep@calls", (Path("code"),), {}, ())
    key = stage.key
    Path("code/__pycache__/a.pyc").write_text("1")
    assert stage.key == key
    Path("code/a.py").write_text("2")
    assert stage.key != key


def test_outs_are_published_and_the_job_folder_is_removed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stage = remote_stage.DeclaredStage("prep@calls", (), {}, (Path("data/out"), Path("reports/out.json")))
    run = tmp_path / "runs/prep-x"
    assert not remote_stage.has_outs(stage, run)
    for name in ("data/out/a/b", "reports/out.json"):
        (run / "work" / name).parent.mkdir(parents=True, exist_ok=True)
        (run / "work" / name).write_text(name)
    assert remote_stage.has_outs(stage, run)
    (tmp_path / "data/out").mkdir(parents=True)
    (tmp_path / "data/out/old").touch()
    remote_stage.collect_outs(stage, run)
    assert (tmp_path / "data/out/a/b").read_text() == "data/out/a/b"
    assert not (tmp_path / "data/out/old").exists()
    assert (tmp_path / "reports/out.json").read_text() == "reports/out.json"
    assert not (run / "work").exists()


def test_a_stage_without_a_section_runs_on_this_machine(project):
    """Locally it fails, because the data is fake."""
    output = run(project, "python", "-m", "sft.stages.eval", CLUSTER="example", PYTHONPATH="src", fails=True)
    assert "no section `eval`" not in output
    text = (ROOT / "slurm/clusters/loopback.yaml").read_text()
    (project / "slurm").unlink()
    (project / "slurm/clusters").mkdir(parents=True)
    (project / "slurm/clusters/bare.yaml").write_text(
        "\n".join(line for line in text.splitlines() if not line.startswith(("eval", "prep")))
    )
    output = run(project, "python", "-m", "sft.stages.eval", CLUSTER="bare", PYTHONPATH="src", fails=True)
    assert "eval: slurm/clusters/bare.yaml has no section `eval`" in output
    assert "not found" in output
