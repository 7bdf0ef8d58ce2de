"""A profile becomes params.yaml, checked, and nothing of the user's is lost."""

import shutil
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.experiments import profile
from sft.params import check
from tests.support.project import ROOT, commit, run, set_params


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    run(tmp_path, "git", "init", "-q")
    commit(tmp_path, "start")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_profile_becomes_params_yaml_byte_for_byte_and_what_changed_is_told(project: Path) -> None:
    said = profile.apply("nemotron3-nano")
    assert (project / "params.yaml").read_bytes() == (project / "profiles/nemotron3-nano.yaml").read_bytes()
    assert "optimizer.lr: 0.0002 -> 1e-05" in said
    assert "model.tensor_model_parallel_size: 1 -> 4" in said
    assert "fetch.sources.swe: added" in said
    assert "fetch.sources.tool-calls: removed" in said
    assert check.read(project / "params.yaml").pack.pack_size == 4096
    assert profile.apply("nemotron3-nano") == []


def test_changes_in_no_commit_are_not_overwritten(project: Path) -> None:
    set_params(project, **{"optimizer.lr": 3e-4})
    edited = (project / "params.yaml").read_bytes()
    with pytest.raises(InputError, match="changes that are in no commit"):
        profile.apply("nemotron3-nano")
    assert (project / "params.yaml").read_bytes() == edited
    commit(project, "mine")
    assert "optimizer.lr: 0.0003 -> 1e-05" in profile.apply("nemotron3-nano")


def test_a_profile_that_is_not_there_names_those_that_are(project: Path) -> None:
    with pytest.raises(InputError, match="Profiles: nemotron3-nano, nemotron3-nano-paper"):
        profile.apply("nemotron")


def test_a_profile_with_a_fault_changes_nothing(project: Path) -> None:
    path = project / "profiles/nemotron3-nano.yaml"
    path.write_text(path.read_text().replace("lr: 1.0e-5", "learning_rate: 1.0e-5"))
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(InputError, match=r"nemotron3-nano.yaml:\d+: optimizer.learning_rate: unknown key"):
        profile.apply("nemotron3-nano")
    assert (project / "params.yaml").read_bytes() == before


def test_profiles_are_listed_with_what_they_say_of_themselves(project: Path, capsys: pytest.CaptureFixture) -> None:
    profile.show(None)
    said = capsys.readouterr().out
    assert "nemotron3-nano           SFT of Nemotron 3 Nano (30B-A3B) as the recipe's page describes it\n" in said
    assert "nemotron3-nano-paper" in said


def test_every_profile_is_a_full_param_set() -> None:
    paths = sorted((ROOT / "profiles").glob("*.yaml"))
    assert len(paths) >= 2
    for path in paths:
        assert isinstance(check.read(path), check.Params)
