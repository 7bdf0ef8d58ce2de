"""curve: metrics at every kept checkpoint; a second call measures nothing that is known."""

import shutil
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.files import write_json
from sft.inspect import curve
from tests.support.held_out_project import CHATS, use_small_params, write_project


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("SFT_WORKERS", "1")
    write_project(tmp_path, {"sums": ("mathematics", CHATS)})
    use_small_params(tmp_path)
    run = tmp_path / "runs" / "0123456789abcdef"
    write_json(run / "run.json", {})
    for step in (50, 100):
        (run / f"checkpoints/iter_{step:07d}").mkdir(parents=True)
    return run


def test_each_kept_checkpoint_is_exported_and_measured_once(run, monkeypatch, capsys):
    exported = []

    def export(folder, step, target):
        exported.append(step)
        shutil.copytree(curve.FINAL, target)

    monkeypatch.setattr(curve, "export", export)
    monkeypatch.setattr(curve.checkpoints, "fault_of", lambda path: "torn" if path.name.endswith("100") else None)
    found = curve.measure_run(None)
    assert (found.run, list(found.steps)) == (run.name, [0, 50])
    assert found.steps[0] == found.steps[50], "the same weights as the base model"
    assert found.steps[50]["loss_by_domain"]["mathematics"] > 4

    monkeypatch.setattr(curve.checkpoints, "fault_of", lambda path: None)
    assert list(curve.measure_run("0123").steps) == [0, 50, 100]
    assert exported == [50, 100]
    with monkeypatch.context() as patch:
        patch.setattr(curve, "code_digest", lambda _: "other code")
        curve.measure_run(None)
    assert exported == [50, 100, 50, 100], "rules of other code are not compared"
    assert [path.name for path in run.iterdir() if path.name.startswith(".curve")] == []
    curve.show(found)
    assert "loss, mathematics" in capsys.readouterr().out


def test_a_run_of_other_packs_is_an_error_because_it_may_have_trained_what_is_held_out(run, monkeypatch):
    monkeypatch.setattr(curve.checkpoints, "fault_of", lambda path: None)
    begun = run / "begun/data/packed/metadata.json"
    write_json(begun, {"seed": "another"})
    with pytest.raises(InputError, match=r"^data/packed/metadata\.json: differs .* run 0123456789abcdef began with"):
        curve.measure_run(None)
    shutil.copyfile("data/packed/metadata.json", begun)
    curve.check_packs(run)


def test_without_an_intact_checkpoint_the_run_is_named(run):
    with pytest.raises(InputError, match=r"0123456789abcdef: no intact checkpoint"):
        curve.measure_run(None)
    Path("models/final/lineage.json").unlink()
    with pytest.raises(InputError, match=r"lineage\.json: not found\. Run: make train"):
        curve.measure_run(None)
