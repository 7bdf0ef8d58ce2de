"""The rehearsal itself, and what it does where a stage fails."""

import signal
import sys
from pathlib import Path

import psutil
import pytest

from sft.cli import InputError
from sft.files import file_lock
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
    assert "data NOT PROVEN: fetch: exit status 1" in " ".join(shown.split())
    assert "config.json" in shown
    assert {path.name for path in (here / "runs/rehearsal/nemotron3-nano/logs").iterdir()} == {"fetch-model.log"}


def test_a_profile_that_is_not_there_is_an_error(here: Path):
    with pytest.raises(InputError, match=r"^PROFILE=nano: "):
        cli.rehearse("nano", None)


def test_a_second_rehearsal_of_a_profile_leaves_the_folder_of_the_first_alone(here: Path):
    folder = here / "runs/rehearsal/nemotron3-nano"
    folder.mkdir(parents=True)
    with file_lock(folder.with_name("nemotron3-nano.lock"), 0), pytest.raises(InputError, match="another process"):
        cli.rehearse("nemotron3-nano", None)
    assert folder.is_dir()


def test_training_that_ends_before_it_is_killed_is_an_error_with_its_last_lines(tmp_path: Path):
    stages = cli.Stages(tmp_path, 1, None)
    stages.command = lambda stage: [sys.executable, "-c", "exit('no packs')"]  # type: ignore[method-assign]
    training = stages.start("train", log=cli.KILLED_LOG)
    with pytest.raises(InputError, match=r"(?s)^train: exit status 1\n.*no packs"):
        stages.wait_until(lambda: False, training)


def test_a_kill_ends_training_and_what_it_started(tmp_path: Path):
    stages = cli.Stages(tmp_path, 1, None)
    stages.command = lambda stage: ["bash", "-c", "sleep 600 & echo $! >child; wait"]  # type: ignore[method-assign]
    training = stages.start("train", log=cli.KILLED_LOG)
    stages.wait_until(lambda: (tmp_path / "child").exists() and bool((tmp_path / "child").read_text()), training)
    stages.kill(training)
    assert training.returncode == -signal.SIGKILL
    assert not psutil.pid_exists(child := int((tmp_path / "child").read_text())) or (
        psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    )


@pytest.mark.layouts
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("profile", ["nemotron3-nano", "nemotron3-nano-paper"])
def test_a_profile_is_proven(profile: str):
    shown = run(ROOT, "make", "rehearse", f"PROFILE={profile}")
    assert "NOT PROVEN" not in shown
    for step in cli.STEPS:
        assert f"\n {step} " in shown
