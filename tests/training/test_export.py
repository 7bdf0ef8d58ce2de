"""export: which run, which step, and what is refused. That the weights are right: tests/training/test_bridge.py."""

import json
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.files import read_json, write_json
from sft.hashing import folder_digest
from sft.training import bridge, checkpoints, export
from tests.training.test_bridge import train_params
from tests.training.test_checkpoints import rules, save


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs; the first has checkpoints of steps 2 and 4, a base, a start made of it, and data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    places = {name: tmp_path / name for name in ("base", "start", "packed")}
    for name, place in places.items():
        write_json(place / "config.json", {"name": name})
    (places["packed"] / "chat_template.jinja").write_text("{{ messages }}")
    write_json(places["start"] / bridge.BASE_DIGEST, {"base": folder_digest(places["base"])})
    for key in ("aa11", "ab22"):
        write_json(tmp_path / "runs" / key / "run.json", {name: str(place) for name, place in places.items()})
    run = tmp_path / "runs" / "aa11"
    params = train_params().model_dump()
    write_json(run / "params.json", params)
    for iteration in (2, 4):
        save(run, iteration, rules(), loss=1.0 / iteration)

    def written(*, checkpoint: Path, base: Path, target: Path, start: Path, peft: object) -> None:
        (target / "model.safetensors").write_text(checkpoint.name)

    monkeypatch.setattr(bridge, "export", written)
    return tmp_path


def test_a_step_is_exported_with_the_template_of_its_data_and_its_lineage(project: Path) -> None:
    export.show("aa", 2, None)
    model = project / "models/aa11-2"
    assert (model / "model.safetensors").read_text() == "iter_0000002"
    assert (model / "chat_template.jinja").read_text() == "{{ messages }}"
    lineage = read_json(model / "lineage.json")
    assert (lineage["lineage_key"], lineage["step"], lineage["validation_loss"]) == ("aa11", 2, 0.5)
    assert set(lineage["files"]) == {"model.safetensors", "chat_template.jinja"}


def test_without_a_step_the_newest_is_taken_and_a_place_can_be_named(project: Path) -> None:
    export.show("aa11", None, project / "there")
    assert (project / "there/model.safetensors").read_text() == "iter_0000004"
    export.show("aa11", 2, project / "there")
    assert (project / "there/model.safetensors").read_text() == "iter_0000002"


@pytest.mark.parametrize(
    ("run", "step", "message"),
    [
        ("a", None, "RUN=a: 2 runs of .* start so; there are: aa11, ab22"),
        ("zz", None, "RUN=zz: 0 runs of .*; there are: aa11, ab22"),
        ("aa11", 3, "no whole checkpoint of step 3. Steps there: 2, 4"),
        ("ab22", None, "no whole checkpoint. Steps there: none"),
    ],
)
def test_what_is_not_there_names_what_is(project: Path, run: str, step: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        export.show(run, step, None)
    assert not (project / "models").exists()


def test_where_nothing_was_trained_yet_it_is_told_what_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    with pytest.raises(InputError, match="runs: no training has begun here yet: make train"):
        export.show("", None, None)


def test_a_base_model_that_was_replaced_since_is_refused(project: Path) -> None:
    write_json(project / "base/config.json", {"name": "another"})
    with pytest.raises(InputError, match=r"is not the model that .*start was made of"):
        export.show("aa11", 2, None)


def test_a_changed_checkpoint_is_not_exported(project: Path) -> None:
    (checkpoints.iteration_folder(project / "runs/aa11", 4) / "weights").write_bytes(b"evil")
    with pytest.raises(InputError, match=r"Steps there: 2\. Not whole: iter_0000004 \(weights is changed\)"):
        export.show("aa11", 4, None)


def test_a_folder_that_is_no_exported_model_is_not_overwritten(project: Path) -> None:
    (project / "mine").mkdir()
    (project / "mine/notes").write_text(json.dumps("dear"))
    with pytest.raises(InputError, match="is there and is no exported model"):
        export.show("aa11", 2, project / "mine")
    assert (project / "mine/notes").exists()
