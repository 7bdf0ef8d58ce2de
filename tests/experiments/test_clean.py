"""clean: what dvc.yaml names and runs/ go, and nothing that is the user's."""

import io

import pytest

from sft.cli import InputError
from sft.experiments import clean
from tests.support.project import clone_checkout

OUTPUTS = ("data/raw/agents/a.jsonl", "data/packed/metadata.json", "models/final/config.json", "reports/report.html")
OWN = (
    *(
        "data/mine.jsonl",
        "data/raw/mine/a.jsonl",
        "models/my-base/config.json",
        "reports/notes.md",
        "reports/pack.json",
    ),
    *(".dvc/cache/files/x", "inputs/rows.jsonl", ".env"),
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = clone_checkout(tmp_path / "clone")
    for name in (*OUTPUTS, *OWN, "runs/0123/checkpoints/x"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (folder / ".git/info/exclude").write_text("/data/mine.jsonl\n/models/my-base\n/.venv\n")
    monkeypatch.chdir(folder)
    return folder


def test_outputs_and_runs_go_and_own_files_stay_also_those_that_git_ignores(project, capsys):
    clean.main(yes=True)
    assert [name for name in (*OUTPUTS, "runs") if (project / name).exists()] == []
    assert [name for name in OWN if not (project / name).exists()] == []
    assert "data/packed" in capsys.readouterr().out
    clean.main(yes=True)
    assert capsys.readouterr().out == "nothing to remove\n"


def test_a_link_goes_and_what_it_leads_to_stays(project, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (project / "data/packed").rename(elsewhere)
    (project / "data/packed").symlink_to(elsewhere)
    clean.main(yes=True)
    assert not (project / "data/packed").is_symlink()
    assert (elsewhere / "metadata.json").exists()


@pytest.mark.parametrize(("answer", "is_removed"), [("y\n", True), ("YES\n", True), ("\n", False), ("no\n", False)])
def test_on_a_terminal_it_asks(project, monkeypatch, answer, is_removed):
    terminal = io.StringIO(answer)
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", terminal)
    clean.main(yes=False)
    assert (project / "runs").exists() != is_removed
    assert (project / "data/packed").exists() != is_removed


def test_without_a_terminal_it_removes_nothing_and_names_the_way(project, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(InputError, match="YES=1"):
        clean.main(yes=False)
    assert (project / "runs").exists()
