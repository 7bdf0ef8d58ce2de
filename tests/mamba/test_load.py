"""load: a folder of a model, and a folder with an adapter on another."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from sft.cli import InputError
from sft.mamba.load import load_folder
from tests.support.tiny_model import make_tiny_base


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on the folder `base` beside it, which it names; its weights are no zeros."""
    root = tmp_path_factory.mktemp("adapter")
    make_tiny_base(root / "base")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(root / "base"), LoraConfig(target_modules=["q_proj"]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.01)
    model.save_pretrained(root / "adapter")
    return root / "adapter"


def test_an_adapter_is_its_base_model_with_the_adapter_merged(adapter: Path) -> None:
    base = load_folder(adapter.parent / "base", torch.float32).state_dict()
    merged = load_folder(adapter, torch.float32).state_dict()
    assert merged.keys() == base.keys()
    changed = {name.split(".")[-2] for name in base if not base[name].equal(merged[name])}
    assert changed == {"q_proj"}


def test_an_adapter_without_its_base_model_is_an_error(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^{adapter}: an adapter on {tmp_path}"):
        load_folder(adapter, torch.float32, tmp_path)
