"""grouped_attention: what transformers computes, without its copies."""

import pytest
import torch
from transformers.integrations import sdpa_attention

from sft.evaluation.generate import generate, load_model
from sft.evaluation.grouped_attention import NAME, attend
from tests.evaluation.test_generate import PROMPTS, folder  # noqa: F401


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_one_new_token_attends_as_in_transformers(groups):
    torch.manual_seed(0)
    module = torch.nn.Module()
    module.num_key_value_groups = 6 // groups
    query, key, value = torch.randn(3, 6, 1, 8), torch.randn(3, groups, 11, 8), torch.randn(3, groups, 11, 5)
    mask = torch.ones(3, 1, 1, 11, dtype=torch.bool)
    mask[1, ..., :7] = False
    for options in ({}, {"scaling": 0.3}):
        expected, _ = sdpa_attention.sdpa_attention_forward(module, query, key, value, mask, **options)
        torch.testing.assert_close(attend(module, query, key, value, mask, **options)[0], expected)
    longer = torch.randn(3, 6, 2, 8)
    both = mask.expand(3, 1, 2, 11)
    expected, _ = sdpa_attention.sdpa_attention_forward(module, longer, key, value, both)
    assert torch.equal(attend(module, longer, key, value, both)[0], expected)


def test_answers_copy_no_keys(folder, monkeypatch):  # noqa: F811
    model = load_model(folder)
    assert model.config._attn_implementation == NAME
    copied = []
    repeat_kv = sdpa_attention.repeat_kv

    def record(states, times):
        copied.append(states.shape[2])
        return repeat_kv(states, times)

    monkeypatch.setattr(sdpa_attention, "repeat_kv", record)
    generate(model, PROMPTS, stop_ids=[0], max_new_tokens=4, batch_size=5)
    assert set(copied) == {max(map(len, PROMPTS))}, "only while the prompts are read"
