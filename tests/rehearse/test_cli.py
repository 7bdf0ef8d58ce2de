"""The rehearsal itself, and what it does where a stage fails."""

from pathlib import Path

import pytest

from sft.cli import InputError
from sft.rehearse import cli, project
from tests.support.project import ROOT, run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the profiles, in which nothing has been rehearsed."""
    (tmp_path / "profiles").symlink_to(ROOT / "profiles")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(project.tiny_model, "write_model", lambda folder, config: None)
    return tmp_path


def test_the_first_stage_that_fails_ends_the_rehearsal_with_its_last_lines(
    here: Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.rehearse("nemotron3-nano", None) == 1  # there is no config.json in the model's folder
    shown = capsys.readouterr().out
    assert "NOT PROVEN" in shown
    assert "data: fetch: exit status 1" in " ".join(shown.split())
    assert "config.json" in shown
    assert {path.name for path in (here / "runs/rehearsal/nemotron3-nano/logs").iterdir()} == {"fetch-model.log"}


def test_a_profile_that_is_not_there_is_an_error(here: Path):
    with pytest.raises(InputError, match=r"^PROFILE=nano: "):
        cli.rehearse("nano", None)


@pytest.mark.layouts
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("profile", ["nemotron3-nano", "nemotron3-nano-paper"])
def test_a_profile_is_proven(profile: str):
    shown = run(ROOT, "make", "rehearse", f"PROFILE={profile}")
    assert "NOT PROVEN" not in shown
    for step in ("data", "train, kill", "resume", "import", "loss", "export", "eval"):
        assert f"\n {step} " in shown
