"""New rows are the mean of the trained ones; every other tensor, the metadata and the old file keep their bytes."""

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sft.files import read_json, write_json
from sft.sources.embedding_rows import add_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "after"), [(6, 6), (4, 128)])  # rows that no token has are used first
def test_rows_from_the_first_new_id_on_are_the_mean(tmp_path: Path, dtype: torch.dtype, rows: int, after: int) -> None:
    embedding = torch.full((rows, 2), 9.0, dtype=dtype)
    embedding[:4] = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 5.0], [5.0, 8.0]], dtype=dtype)  # one never trained
    others = {"bias": torch.arange(3.0), "model.layers.0.output.weight": torch.ones(2, 2, dtype=dtype)}
    others["position_embeddings.weight"] = torch.ones(rows, 2, dtype=dtype)  # as many positions as tokens
    first, second = tmp_path / "model-1.safetensors", tmp_path / "model-2.safetensors"
    save_file({"wte.weight": embedding, **others}, first, metadata={"format": "pt"})
    save_file({"lm_head.bias": embedding[:, 0].clone(), "norm.weight": torch.ones(2)}, second)
    cached = tmp_path / "cached"
    os.link(first, cached)
    before = cached.read_bytes()
    write_json(tmp_path / "config.json", {"vocab_size": 7, "text_config": {"vocab_size": rows, "hidden_size": rows}})
    write_json(tmp_path / "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": {}})
    assert add_rows(tmp_path, 4, 5) == after
    found, bias = load_file(first), load_file(second)
    assert torch.equal(found["wte.weight"][:4], embedding[:4])
    assert torch.equal(found["wte.weight"][4:], torch.tensor([[3.0, 5.0]], dtype=dtype).expand(after - 4, 2))
    assert torch.equal(bias["lm_head.bias"][4:], torch.tensor(3.0, dtype=dtype).expand(after - 4))
    assert all(torch.equal(found[name], value) for name, value in others.items())
    assert torch.equal(bias["norm.weight"], torch.ones(2))
    with safe_open(first, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert cached.read_bytes() == before
    assert read_json(tmp_path / "config.json") == {
        "vocab_size": 7,
        "text_config": {"vocab_size": after, "hidden_size": rows},
    }
    size = sum(value.numel() * value.element_size() for value in [*found.values(), *bias.values()])
    assert read_json(tmp_path / "model.safetensors.index.json")["metadata"] == {"total_size": size}
    assert not [*tmp_path.glob("*.new")]
