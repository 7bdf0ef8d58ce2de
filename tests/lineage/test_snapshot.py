"""snapshot: the texts of a training's beginning are kept, and an edit while it trains is named."""

import shutil
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.files import read_json
from sft.hashing import folder_digest
from sft.lineage import key, snapshot
from tests.support.finished_project import make_recorded

PARAMS = {"optimizer": {"lr": 1e-3}, "rng": {"seed": 1}}


@pytest.fixture
def project(tmp_path, monkeypatch):
    project = make_recorded(tmp_path / "project")
    shutil.copytree(key.PACKAGE, project / "src/sft", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(snapshot, "PACKAGE", project / "src/sft")
    monkeypatch.setattr(snapshot, "import_closure", lambda module: key.import_closure(module, project / "src/sft"))
    text = project / "requirements/train.txt"
    text.parent.mkdir()
    text.write_text("torch==1\n")
    return project


def take(project: Path) -> Path:
    digests = {path: folder_digest(project / path) for path in snapshot.INPUTS}
    return snapshot.take(project / "runs/key", project, PARAMS, digests)


def check(project: Path, params: dict = PARAMS) -> None:
    snapshot.check_unchanged(project / "runs/key", project, params)


def test_texts_are_kept_as_they_were(project):
    before = (project / "reports/filter/calls.json").read_bytes()
    begun = take(project)
    (project / "reports/filter/calls.json").write_text('{"rows_out": 5}')
    (project / "reports/pack.json").unlink()
    assert (begun / "reports/filter/calls.json").read_bytes() == before
    assert {"params.yaml", "dvc.lock", "data/packed/metadata.json", "reports/pack.json"} <= {
        path.relative_to(begun).as_posix() for path in begun.rglob("*")
    }
    assert snapshot.begun_at(project / "runs/key") == (None, None), "no git repository"
    assert read_json(begun / "begun.json")["params"] == {"optimizer.lr": 1e-3, "rng.seed": 1}


def test_nothing_changed_is_no_error_and_neither_is_what_the_stage_does_not_declare(project):
    take(project)
    (project / "params.yaml").write_text("other: 1\n")
    (project / "src/sft/tracking/sync.py").write_text("")
    (project / "src/sft/filters/structure.py").write_text("")
    (project / "reports/filter/calls.json").unlink()
    weights = project / "models/base/model.safetensors"
    weights.write_bytes(weights.read_bytes())  # another time, the same bytes
    check(project)


def edit_code(project):
    with (project / "src/sft/training/bridge.py").open("a") as file:
        file.write("# edited\n")


def edit_pins(project):
    (project / "requirements/train.txt").write_text("torch==2\n")


def pack_again(project):
    (project / "data/packed/training/0.parquet").write_text("other")


def fetch_another_model(project):
    (project / "models/base/more.safetensors").write_text("other")


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (edit_code, "sft/training/bridge.py"), (edit_pins, "requirements/train.txt"), (pack_again, "data/packed"),
        (fetch_another_model, "models/base"),
    ],
)  # fmt: skip
def test_an_edit_of_what_the_stage_declares_is_named(project, edit, named):
    take(project)
    edit(project)
    with pytest.raises(InputError, match=f"changed while runs/key trained: {named}"):
        check(project)


def test_edited_params_are_named_with_both_values_and_both_ways_on(project):
    take(project)
    with pytest.raises(InputError) as error:
        check(project, {"optimizer": {"lr": 2e-3}, "rng": {"seed": 1}, "new": 1})
    message = str(error.value)
    assert "optimizer.lr: 0.001 became 0.002" in message
    assert "new: 1 is new" in message
    assert "undo the change and rerun" in message
    assert "train with the change: rerun" in message
