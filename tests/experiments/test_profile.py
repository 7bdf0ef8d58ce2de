"""profile: params.yaml becomes a profile that is checked, and no uncommitted change is lost."""

import shutil
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.experiments import profile
from sft.params import check
from tests.support.project import ROOT, commit, environment, run, set_params


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    run(tmp_path, "git", "init", "-q")
    run(tmp_path, "dvc", "init", "-q")
    commit(tmp_path, "start")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def changes(capfd: pytest.CaptureFixture) -> dict[str, list[str]]:
    """Values before and after, by param."""
    lines = [line.split() for line in capfd.readouterr().out.splitlines() if line.startswith("params.yaml  ")]
    return {param: values for _, param, *values in lines}


def test_a_profile_is_copied_byte_for_byte_and_the_changes_are_shown(project: Path, capfd) -> None:
    profile.main("nemotron3-nano")
    assert (project / "params.yaml").read_bytes() == (project / "profiles/nemotron3-nano.yaml").read_bytes()
    shown = changes(capfd)
    assert shown["optimizer.lr"] == ["0.0002", "1e-05"]
    assert shown["model.expert_model_parallel_size"] == ["1", "8"]
    assert shown["fetch.sources.swe.license"][0] == "-"
    assert shown["fetch.sources.tool-calls.license"][-1] == "-"


def test_uncommitted_changes_are_not_overwritten(project: Path, capfd) -> None:
    set_params(project, **{"optimizer.lr": 3e-4})
    edited = (project / "params.yaml").read_bytes()
    with pytest.raises(InputError, match=r"^params\.yaml: .*git checkout params\.yaml"):
        profile.main("nemotron3-nano")
    assert (project / "params.yaml").read_bytes() == edited
    commit(project, "mine")
    profile.main("nemotron3-nano")
    assert changes(capfd)["optimizer.lr"] == ["0.0003", "1e-05"]
    profile.main("nemotron3-nano")


def test_an_unknown_profile_names_the_known_ones(project: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"profiles/nemotron\.yaml not found.*: nemotron3-nano, nemotron3-nano-open, nemotron3-nano-paper",
    ):
        profile.main("nemotron")


def test_params_that_git_does_not_have_are_not_overwritten(project: Path) -> None:
    run(project, "git", "rm", "-q", "--cached", "params.yaml")
    commit_staged = ("git", "commit", "-q", "-m", "without")
    run(project, *commit_staged)
    with pytest.raises(InputError, match=r"^params\.yaml: git does not have it"):
        profile.main("nemotron3-nano")
    (project / "params.yaml").unlink()
    profile.main("nemotron3-nano")


def test_a_folder_without_profiles_is_an_error(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no profiles"):
        profile.main(None)


def test_a_profile_with_a_fault_changes_nothing(project: Path) -> None:
    path = project / "profiles/nemotron3-nano.yaml"
    path.write_text(path.read_text().replace("lr: 1.0e-5", "learning_rate: 1.0e-5"))
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(InputError, match=r"nemotron3-nano.yaml:\d+: optimizer.learning_rate"):
        profile.main("nemotron3-nano")
    assert (project / "params.yaml").read_bytes() == before


def test_profiles_are_listed_with_their_first_sentence(project: Path, capsys: pytest.CaptureFixture) -> None:
    profile.main(None)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["nemotron3-nano", *profile.first_sentence("nemotron3-nano").split()]
    assert [line.split()[0] for line in lines[1:]] == [
        "nemotron3-nano-open",
        "nemotron3-nano-paper",
        "nemotron3-nano-smoke",
    ]


def test_every_profile_is_a_full_param_set() -> None:
    paths = sorted((ROOT / "profiles").glob("*.yaml"))
    assert len(paths) >= 2
    for path in paths:
        assert isinstance(check.read(path), check.Params)
