"""A config.json with the sizes of a tiny model, and its tokenizer."""

from pathlib import Path

import pytest

from sft.files import read_json
from sft.rehearse import tiny_model
from tests.support.tiny_architectures import NANO_CONFIG

ROOT = Path(__file__).parents[2]


def test_a_tiny_nano_has_the_class_the_switches_and_every_kind_of_layer():
    real = read_json(NANO_CONFIG)
    tiny = tiny_model.shrink(real)
    sized = {*tiny_model.SIZES, "hybrid_override_pattern", "dtype"}
    assert {name: value for name, value in tiny.items() if name not in {*sized, "chunk_size"}} == {
        name: value for name, value in real.items() if name not in sized
    }
    assert set(tiny["hybrid_override_pattern"]) == set(real["hybrid_override_pattern"])
    assert len(tiny["hybrid_override_pattern"]) == tiny["num_hidden_layers"] == 8


@pytest.mark.parametrize(
    ("config", "layers", "value"),
    [
        ({"hybrid_override_pattern": "MM-*MM-*", "num_hidden_layers": 8}, 6, "M-*M-*"),
        ({"layer_types": ["a", "a", "b", "a", "a", "b"], "num_hidden_layers": 6}, 4, ["a", "b", "a", "b"]),
    ],
)
def test_every_kind_of_layer_of_another_model_stays(config: dict, layers: int, value: object):
    tiny = tiny_model.shrink(config)
    assert tiny["num_hidden_layers"] == layers
    assert tiny.get("hybrid_override_pattern") == value or tiny["layer_types"] == value


def test_each_control_token_of_the_template_is_one_id(tmp_path: Path):
    template = (ROOT / "templates/nano3.jinja").read_text(encoding="utf-8")
    control = tiny_model.control_tokens(template)
    assert {"<|im_start|>", "<|im_end|>", "<think>", "</think>"} <= set(control)
    ids = tiny_model.write_tokenizer(tmp_path, [template], 400, control)
    added = {token["content"]: token["id"] for token in read_json(tmp_path / "tokenizer.json")["added_tokens"]}
    assert set(control) <= set(added)
    assert (ids["eos_token_id"], ids["pad_token_id"]) == (added["<|im_end|>"], added["<|endoftext|>"])
