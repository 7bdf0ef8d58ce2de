"""convert: what the exported model's record guards. tests/test_submission.py imports and exports in a real job."""

import pytest

from sft.cli import InputError
from sft.files import write_json
from sft.params.read import load_training
from sft.training import bridge, checkpoints, convert
from sft.training.launch import Run
from tests.support.project import link_project


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A complete run; its export writes two files."""
    link_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs/key"
    checkpoint = checkpoints.iteration_folder(folder, load_training().train.steps)
    checkpoint.mkdir(parents=True)
    write_json(checkpoints.manifest_of(checkpoint), {})

    def written(*, target, **_):
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"weights")
        (target / "README.md").write_text("base")
        return {"export": {"logits": 0.0}}

    monkeypatch.setattr(bridge, "export", written)
    return Run(folder, tmp_path / "base", tmp_path / "runs/imports/base", tmp_path / "packed")


def test_an_export_counts_for_its_checkpoint_and_while_its_files_are_intact(run):
    params = load_training()
    checkpoint = checkpoints.iteration_folder(run.folder, params.train.steps)
    assert convert.read_exported(run.folder, checkpoint) is None
    convert.export(run, params)
    exported = convert.read_exported(run.folder, checkpoint)
    assert exported is not None
    assert exported["parity"] == {"export": {"logits": 0.0}}
    assert convert.read_exported(run.folder, checkpoint.with_name("iter_0000001")) is None
    assert convert.is_exported(run, params)
    (run.folder / "exported/model.safetensors").write_bytes(b"changed")
    assert not convert.is_exported(run, params)
    with pytest.raises(InputError, match="rerun"):
        convert.copy_exported(run.folder, checkpoint, run.folder / "final")
    convert.export(run, params)
    assert convert.read_exported(run.folder, checkpoint) == exported, "a changed export is made again"
    convert.remove_exported(run.folder)
    assert convert.read_exported(run.folder, checkpoint) is None
    assert not (run.folder / "exported").exists()


def test_parity_that_was_not_measured_is_said(run, monkeypatch, capsys):
    def unmeasured(*, target, **_):
        target.mkdir()
        return {"import": None, "export": {"skipped": "a second copy needs 126 GB", "needed_bytes": 126}}

    monkeypatch.setattr(bridge, "export", unmeasured)
    convert.export(run, load_training())
    assert "at export: not measured: a second copy needs 126 GB" in capsys.readouterr().out


def test_what_is_written_into_a_copy_does_not_reach_the_export(run, tmp_path):
    convert.export(run, load_training())
    checkpoint = checkpoints.iteration_folder(run.folder, load_training().train.steps)
    convert.copy_exported(run.folder, checkpoint, tmp_path / "final")
    (tmp_path / "final/README.md").write_text("card")
    assert (run.folder / "exported/README.md").read_text() == "base"
    assert (tmp_path / "final/model.safetensors").samefile(run.folder / "exported/model.safetensors")


def test_the_base_is_imported_unless_a_checkpoint_is_named(run, monkeypatch):
    imported = []
    monkeypatch.setattr(bridge, "import_base", lambda *, base, checkpoint: imported.append((base, checkpoint)))
    params = load_training()
    convert.import_start(run, params)
    assert imported == [(run.base, run.start)]
    named = params.checkpoint.model_copy(update={"pretrained_checkpoint": "runs/other/checkpoints/iter_0000001"})
    convert.import_start(run, params.model_copy(update={"checkpoint": named}))
    assert len(imported) == 1
