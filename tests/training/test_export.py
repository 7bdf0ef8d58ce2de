"""export: which run, which step, and which errors. tests/training/test_bridge.py compares the weights."""

import json
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.files import read_json, write_json
from sft.hashing import folder_digest
from sft.training import bridge, checkpoints, export
from sft.training.launch import Run
from tests.training.test_bridge import train_params
from tests.training.test_checkpoints import checkpoint_params, save


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs; the first has checkpoints of steps 2 and 4, a base, a start made of it, and data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    places = {name: tmp_path / name for name in ("base", "start", "packed")}
    for name, place in places.items():
        write_json(place / "config.json", {"name": name})
    (places["packed"] / "chat_template.jinja").write_text("{{ messages }}")
    write_json(places["packed"] / "metadata.json", {"stop_ids": [2, 7]})
    write_json(places["start"] / bridge.BASE_DIGEST, {"base": folder_digest(places["base"])})
    for key in ("aa11", "ab22"):
        Run(tmp_path / "runs" / key, **places).write()
    run = tmp_path / "runs" / "aa11"
    params = train_params().model_dump()
    write_json(run / "params.json", params)
    for iteration in (2, 4):
        save(run, iteration, checkpoint_params(), loss=1.0 / iteration)

    def written(
        *, checkpoint: Path, base: Path, target: Path, start: Path, peft: object, start_sha256: str | None
    ) -> dict[str, object]:
        (target / "model.safetensors").write_text(checkpoint.name)
        return {"import": None, "export": {"logits": 1e-6}}

    monkeypatch.setattr(bridge, "export", written)
    return tmp_path


def test_a_step_is_exported_with_the_template_of_its_data_and_its_lineage(project: Path) -> None:
    export.main("aa", 2, None)
    model = project / "models/aa11-2"
    assert (model / "model.safetensors").read_text() == "iter_0000002"
    assert (model / "chat_template.jinja").read_text() == "{{ messages }}"
    lineage = read_json(model / "lineage.json")
    assert (lineage["lineage_key"], lineage["step"], lineage["validation_loss"]) == ("aa11", 2, 0.5)
    assert lineage["parity"]["export"] == {"logits": 1e-6}
    assert read_json(model / "generation_config.json")["eos_token_id"] == [2, 7], "what ends the trained answers"
    assert set(lineage["files"]) == {"model.safetensors", "chat_template.jinja", "generation_config.json"}


def test_without_a_step_the_newest_is_taken_and_a_place_can_be_named(project: Path) -> None:
    export.main("aa11", None, project / "there")
    assert (project / "there/model.safetensors").read_text() == "iter_0000004"
    export.main("aa11", 2, project / "there")
    assert (project / "there/model.safetensors").read_text() == "iter_0000002"


@pytest.mark.parametrize(
    ("run", "step", "message"),
    [
        ("a", None, "RUN=a: 2 runs .*aa11, ab22"),
        ("zz", None, "RUN=zz: 0 runs .*aa11, ab22"),
        ("aa11", 3, r"runs/aa11: .* step 3\..* 2, 4\."),
        ("ab22", None, "runs/ab22: .* none"),
    ],
)
def test_an_unknown_run_or_step_is_an_error_with_the_known_ones(
    project: Path, run: str, step: int | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        export.main(run, step, None)
    assert not (project / "models").exists()


def test_before_any_training_the_message_has_the_command_that_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    with pytest.raises(InputError, match=r"runs: .*make train"):
        export.main("", None, None)


def test_another_base_model_than_the_run_s_is_an_error(project: Path) -> None:
    write_json(project / "base/config.json", {"name": "another"})
    with pytest.raises(InputError, match=r"/base: .*/start"):
        export.main("aa11", 2, None)


def test_a_changed_checkpoint_is_not_exported(project: Path) -> None:
    (checkpoints.iteration_folder(project / "runs/aa11", 4) / "weights").write_bytes(b"evil")
    with pytest.raises(InputError, match=r"Steps: 2\. .*iter_0000004 \(weights is changed\)"):
        export.main("aa11", 4, None)


def test_a_folder_that_is_no_exported_model_is_not_overwritten(project: Path) -> None:
    (project / "mine").mkdir()
    (project / "mine/notes").write_text(json.dumps("dear"))
    with pytest.raises(InputError, match=r"^TO=.*/mine: "):
        export.main("aa11", 2, project / "mine")
    assert (project / "mine/notes").exists()


@pytest.mark.parametrize("name", ["models/final", "models/base", "models/../models/final", "models/final/mine"])
def test_what_the_pipeline_writes_is_not_overwritten(project: Path, name: str) -> None:
    for model in ("final", "base"):
        write_json(project / "models" / model / "lineage.json", {"lineage_key": "theirs"})
    before = folder_digest(project / "models")
    with pytest.raises(InputError, match=rf"^TO={name}: the pipeline writes"):
        export.main("aa11", 2, Path(name))
    assert folder_digest(project / "models") == before
