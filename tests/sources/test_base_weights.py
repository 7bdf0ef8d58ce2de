"""base_weights: weights that are not the model of config.json, planted into tiny models one at a time."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sft.cli import InputError
from sft.files import read_json, write_json
from sft.sources.base_weights import check_weights
from tests.support.tiny_architectures import make_tiny_nano
from tests.support.tiny_model import make_tiny_base

Weights = dict[str, torch.Tensor]
DENSE, NANO = "model.layers.1.self_attn.q_proj.weight", "backbone.layers.1.mixer.experts.3.up_proj.weight"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in ("dense", "nano")}
    make_tiny_base(folders["dense"])
    make_tiny_nano(folders["nano"])
    return folders


def changed(base: Path, folder: Path, change: Callable[[Weights], Any]) -> Path:
    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def drop(name: str) -> Callable[[Weights], Any]:
    return lambda weights: weights.pop(name)


def replace(name: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Weights], Any]:
    return lambda weights: weights.update({name: value(weights[name])})


def with_number(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def put(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[5] = value
        return tensor

    return put


@pytest.mark.parametrize("name", ["dense", "nano"])
def test_a_whole_model_passes_also_in_16_bits(bases: dict[str, Path], tmp_path: Path, name: str) -> None:
    check_weights(bases[name])
    half = changed(
        bases[name],
        tmp_path / "half",
        lambda weights: weights.update({key: weight.bfloat16() for key, weight in weights.items()}),
    )
    check_weights(half)


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.update({"lm_head.weight": weights["model.embed_tokens.weight"].clone()}),
        lambda weights: weights.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}),
        lambda weights: weights.update({DENSE: weights[DENSE].to(torch.float8_e4m3fn)}),
    ],
    ids=["tied-output-layer-stored", "buffer-of-old-folders", "fp8"],
)
def test_what_published_folders_have_beside_their_parameters_passes(
    bases: dict[str, Path], tmp_path: Path, change: Callable[[Weights], Any]
) -> None:
    check_weights(changed(bases["dense"], tmp_path / "base", change))


@pytest.mark.parametrize(
    ("base", "change", "message"),
    [
        ("dense", drop(DENSE), rf"missing: {DENSE}"),
        ("dense", drop("model.norm.weight"), r"missing: model\.norm\.weight"),
        ("dense", replace(DENSE, lambda tensor: tensor[:8].clone()), rf"of another shape: {DENSE} \[8, 64\] "),
        ("dense", lambda weights: weights.update(more=torch.ones(1)), "not in the architecture: more"),
        ("dense", replace(DENSE, with_number(float("nan"))), rf"{DENSE}: 1 of 4096 are not finite"),
        ("dense", replace(DENSE, with_number(float("inf"))), rf"{DENSE}: 1 of 4096 are not finite"),
        ("nano", drop(NANO), r"of another shape: .*experts\.up_proj \[7, "),
        ("nano", replace(NANO, lambda tensor: tensor[:8].clone()), "do not fit config.json"),
        ("nano", drop("backbone.layers.0.mixer.A_log"), r"missing: .*layers\.0\.mixer\.A_log"),
        ("nano", drop("backbone.layers.1.mixer.gate.e_score_correction_bias"), r"missing: .*e_score_correction_bias"),
    ],
)  # fmt: skip
def test_weights_that_are_not_the_config_s_are_an_error(
    bases: dict[str, Path], tmp_path: Path, base: str, change: Callable[[Weights], Any], message: str
) -> None:
    with pytest.raises(InputError, match=rf"^fetch\.model: .*{message}"):
        check_weights(changed(bases[base], tmp_path / "base", change))


@pytest.mark.parametrize("layers", [1, 3])
def test_a_config_with_fewer_or_more_layers_than_the_weights_is_an_error(
    bases: dict[str, Path], tmp_path: Path, layers: int
) -> None:
    folder = shutil.copytree(bases["dense"], tmp_path / "base")
    write_json(folder / "config.json", {**read_json(folder / "config.json"), "num_hidden_layers": layers})
    fault = "missing: model.layers.2" if layers == 3 else "not in the architecture: model.layers.1"
    with pytest.raises(InputError, match=rf"^fetch\.model: .*{fault}.* and \d more"):
        check_weights(folder)


def test_one_of_two_shards_is_an_error(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(bases["dense"], tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    kept = {name: weights[name] for name in names[: len(names) // 2]}
    save_file(kept, folder / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    index = {name: f"model-0000{1 + (name not in kept)}-of-00002.safetensors" for name in names}
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": index})
    with pytest.raises(InputError, match=r"^fetch\.model: .*do not fit config\.json"):
        check_weights(folder)
