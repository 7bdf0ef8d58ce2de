"""weight_files: names, shapes and formats of the tensors of a model folder."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sft.cli import InputError
from sft.weight_files import Stored, stored_tensors


def test_every_tensor_of_every_file_has_its_shape_and_format(tmp_path: Path) -> None:
    save_file({"b": torch.zeros(2, 3, dtype=torch.bfloat16)}, tmp_path / "2.safetensors")
    save_file({"a": torch.zeros(4), "n": torch.zeros(1, dtype=torch.int64)}, tmp_path / "1.safetensors")
    expected = {"a": Stored((4,), "F32"), "n": Stored((1,), "I64"), "b": Stored((2, 3), "BF16")}
    assert stored_tensors(tmp_path) == expected


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match=r"^/.*x\.safetensors: damaged"):
        stored_tensors(tmp_path)
