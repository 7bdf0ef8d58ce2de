"""conversion: number formats. tests/training/test_layouts.py converts whole models."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sft.cli import InputError
from sft.training import conversion

BIAS = "backbone.layers.1.mixer.gate.e_score_correction_bias"


def test_a_tensor_has_the_format_of_the_base_and_a_router_bias_is_fp32(tmp_path: Path) -> None:
    first = {"a.weight": torch.ones(2, dtype=torch.bfloat16), BIAS: torch.ones(2, dtype=torch.bfloat16)}
    save_file(first, tmp_path / "model-1.safetensors")
    save_file({"b.weight": torch.ones(2), "ids": torch.ones(2, dtype=torch.int64)}, tmp_path / "model-2.safetensors")
    formats = conversion.tensor_formats(tmp_path)
    assert formats == {"a.weight": torch.bfloat16, "b.weight": torch.float32, BIAS: torch.float32}
    exact = torch.tensor([1.0, 1.001])
    tensors = [("a.weight", exact), (BIAS, exact), ("ids", torch.ones(2, dtype=torch.int64))]
    written = dict(conversion.in_formats(tensors, formats))
    assert {name: tensor.dtype for name, tensor in written.items()} == {
        "a.weight": torch.bfloat16,
        BIAS: torch.float32,
        "ids": torch.int64,
    }
    assert torch.equal(written[BIAS], exact)


def test_an_output_layer_that_a_tied_model_would_lose_is_refused() -> None:
    tensors = {"embed": torch.ones(2, 2), "lm_head": torch.ones(2, 2)}
    conversion.check_tied(tensors, "embed", "lm_head")
    with pytest.raises(InputError, match="lm_head differs from embed"):
        conversion.check_tied({**tensors, "lm_head": torch.zeros(2, 2)}, "embed", "lm_head")
