"""away: what a job is given, how it is named, and what is taken from it. tests/test_submission.py runs the jobs."""

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
    for name in ("data/filtered/calls/kept.parquet", "models/base/tokenizer.json", "reports/filter/calls.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "models/base/tokenizer_config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for name in ("CLUSTER", "DVC_ROOT", "DETACH", "DRY_RUN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_job_is_given_what_dvc_yaml_declares_and_its_key_changes_with_each_of_it(project):
    found = remote_stage.declared("prep@calls")
    assert {path.as_posix() for path in found.data} == {
        "templates/nano3.jinja",
        "data/filtered/calls",
        "models/base/tokenizer.json",
        "models/base/tokenizer_config.json",
        "reports/filter/calls.json",
    }
    assert {path.as_posix() for path in found.outs} == {"data/prepared/calls", "reports/prep/calls.json"}
    assert found.params["prep"]["template"] == "templates/nano3.jinja"
    keys = {found.key, remote_stage.Declared(found.deps, {"prep": 1}, found.outs).key}
    for name in ("data/filtered/calls/kept.parquet", "reports/filter/calls.json"):
        (project / name).write_text("[]")
        keys.add(remote_stage.declared("prep@calls").key)
    assert len(keys) == 4
    remote_stage.keep_inputs(found, project / "runs/x")
    kept = {path.relative_to(project / "runs/x/work").as_posix() for path in (project / "runs/x").rglob("*.*")}
    assert {"params.yaml", "dvc.yaml", "templates/nano3.jinja", "data/filtered/calls/kept.parquet"} <= kept


def test_a_file_that_is_edited_later_does_not_reach_the_job(project):
    found = remote_stage.declared("prep@calls")
    remote_stage.keep_inputs(found, project / "runs/x")
    with (project / "params.yaml").open("a") as params:
        params.write("# edited\n")
    assert "# edited" not in (project / "runs/x/work/params.yaml").read_text()


def test_without_its_inputs_a_stage_has_no_key(project):
    (project / "reports/filter/calls.json").unlink()
    with pytest.raises(InputError, match=r"reports/filter/calls.json: not found. Run the stages before this one"):
        _ = remote_stage.declared("prep@calls").key


def test_outs_are_published_and_the_folder_of_the_job_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = remote_stage.Declared((), {}, (Path("data/out"), Path("reports/out.json")))
    run = tmp_path / "runs/prep-x"
    assert not remote_stage.is_made(found, run)
    for name in ("data/out/a/b", "reports/out.json"):
        (run / "work" / name).parent.mkdir(parents=True, exist_ok=True)
        (run / "work" / name).write_text(name)
    assert remote_stage.is_made(found, run)
    (tmp_path / "data/out").mkdir(parents=True)
    (tmp_path / "data/out/old").touch()
    remote_stage.collect(found, run)
    assert (tmp_path / "data/out/a/b").read_text() == "data/out/a/b"
    assert not (tmp_path / "data/out/old").exists()
    assert (tmp_path / "reports/out.json").read_text() == "reports/out.json"
    assert not (run / "work").exists()


def test_a_stage_without_a_section_is_done_here(project):
    """Here: it finds that its data is no data."""
    said = run(project, "python", "-m", "sft.stages.eval", CLUSTER="example", PYTHONPATH="src", fails=True)
    assert "has no section `eval`" not in said
    profile = (ROOT / "slurm/clusters/loopback.yaml").read_text()
    (project / "slurm").unlink()
    (project / "slurm/clusters").mkdir(parents=True)
    (project / "slurm/clusters/bare.yaml").write_text(
        "\n".join(line for line in profile.splitlines() if not line.startswith(("eval", "prep")))
    )
    said = run(project, "python", "-m", "sft.stages.eval", CLUSTER="bare", PYTHONPATH="src", fails=True)
    assert "eval: slurm/clusters/bare.yaml has no section `eval`, so this machine does it" in said
    assert "Run the" in said
