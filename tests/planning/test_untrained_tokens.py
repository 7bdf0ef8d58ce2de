"""untrained_tokens: added tokens that a template writes, looked up in the weights."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from sft.files import write_json
from sft.planning.untrained_tokens import untrained_control_tokens


def make_base(folder: Path, *, zero: int, dtype: torch.dtype) -> Path:
    added = [{"id": 1, "content": "<|start|>"}, {"id": 2, "content": "<|end|>"}, {"id": 3, "content": "<|image|>"}]
    write_json(folder / "tokenizer.json", {"added_tokens": [*added, {"id": 9, "content": "<|pad|>"}]})
    rows = torch.ones(5, 4, dtype=dtype)
    rows[zero] = 0
    save_file({"model.norm.weight": torch.ones(4)}, folder / "model-1.safetensors")
    save_file({"backbone.embeddings.weight": rows}, folder / "model-2.safetensors")
    template = folder / "chat_template.jinja"
    template.write_text("<|start|>{{ messages }}<|end|><|pad|>")
    return template


def test_only_tokens_of_the_template_with_rows_of_zeros_are_found(tmp_path: Path) -> None:
    template = make_base(tmp_path, zero=2, dtype=torch.bfloat16)
    assert untrained_control_tokens(tmp_path, template) == (("<|end|>",), ())
    template = make_base(tmp_path, zero=3, dtype=torch.float32)
    assert untrained_control_tokens(tmp_path, template) == ((), ())


def test_without_files_nothing_is_known(tmp_path: Path) -> None:
    assert untrained_control_tokens(tmp_path, tmp_path / "chat_template.jinja") is None
    template = make_base(tmp_path, zero=2, dtype=torch.float32)
    (tmp_path / "model-2.safetensors").unlink()
    assert untrained_control_tokens(tmp_path, template) is None


def test_a_token_with_the_row_of_an_id_without_a_token_is_new(tmp_path: Path) -> None:
    template = make_base(tmp_path, zero=2, dtype=torch.bfloat16)
    write_json(tmp_path / "tokenizer.json", {"added_tokens": [{"id": 1, "content": "<|start|>"}]})
    assert untrained_control_tokens(tmp_path, template) == ((), ("<|start|>",))
    write_json(tmp_path / "tokenizer.json", {"added_tokens": [{"id": 4, "content": "<|start|>"}]})
    assert untrained_control_tokens(tmp_path, template) == ((), ())  # every id has a token
