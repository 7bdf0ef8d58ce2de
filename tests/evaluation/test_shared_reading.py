"""shared_reading: the same losses and answers as in separate passes, and each text is read once."""

import pytest
import torch
from transformers import DynamicCache, MistralConfig, MistralForCausalLM, RwkvConfig, RwkvForCausalLM

from sft.evaluation.generate import generate, held_out_loss
from sft.evaluation.shared_reading import join, keeps_all_of_a_text, loss_and_answers, padded_layers
from tests.evaluation.test_generate import PROMPTS, folder, model  # noqa: F401

LIMITS = {"stop_ids": [0], "max_new_tokens": 12, "batch_size": 2}
SAMPLES = [
    ([7, 7, 7], [0, 1, 0]),  # of no prompt
    ([*PROMPTS[1], 3, 1, 4], [0] * 16 + [1, 1, 1, 0]),
    ([*PROMPTS[0], 8, 9], [0, 0, 1, 1, 0]),
    ([*PROMPTS[0], 2], [0, 0, 1, 0]),  # of a prompt that has a sample
    ([4, 12, 13, 14], [0, 0, 0, 0]),
]


def both_ways(model, samples, prompts):  # noqa: F811
    (losses, answers), alone = loss_and_answers(model, samples, prompts, **LIMITS), held_out_loss(model, samples)
    assert [count for _, count in losses] == [count for _, count in alone]
    assert [total for total, _ in losses] == pytest.approx([total for total, _ in alone], rel=1e-5)
    assert answers == generate(model, prompts, **LIMITS)


def test_losses_and_answers_are_those_of_separate_passes(model):  # noqa: F811
    assert keeps_all_of_a_text(model)
    both_ways(model, SAMPLES, PROMPTS)
    assert loss_and_answers(model, SAMPLES, [], **{**LIMITS, "stop_ids": []}) == (held_out_loss(model, SAMPLES), [])
    both_ways(model, [], PROMPTS)


def test_what_a_sample_and_a_prompt_share_is_read_once(model, monkeypatch):  # noqa: F811
    read = []
    forward = model.forward

    def record(input_ids, *args, **kwargs):
        read.append(input_ids.shape[1])
        return forward(input_ids, *args, **kwargs)

    monkeypatch.setattr(model, "forward", record)
    loss_and_answers(model, [SAMPLES[1]], [PROMPTS[1]], **{**LIMITS, "max_new_tokens": 3})
    assert read == [20, 1, 1, 1]


def test_a_model_that_forgets_reads_its_prompts_by_itself():
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    forgetful = MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=4, initializer_range=0.6)).eval()
    assert not keeps_all_of_a_text(forgetful)
    both_ways(forgetful, SAMPLES, PROMPTS)


def test_a_model_without_a_cache_reads_its_prompts_by_itself():
    torch.manual_seed(0)
    recurrent = RwkvForCausalLM(RwkvConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2)).eval()
    assert not keeps_all_of_a_text(recurrent)
    both_ways(recurrent, SAMPLES, PROMPTS)


def test_a_batch_holds_its_prompts_only():
    states = torch.arange(1.0, 101).view(1, 1, 50, 2)
    texts = []
    for kept in (3, 2):
        cache = DynamicCache()
        cache.update(states, -states, 0)
        cache.crop(kept)
        texts.append(padded_layers(cache, 3))
    assert {each.untyped_storage().nbytes() for text in texts for layer in text for each in layer} == {3 * 2 * 4}
    layer = join(texts, MistralConfig(num_hidden_layers=1, sliding_window=None)).layers[0]
    assert layer.keys.tolist() == [[[[1, 2], [3, 4], [5, 6]]], [[[0, 0], [1, 2], [3, 4]]]]
    assert torch.equal(layer.values, -layer.keys)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_depend_on_the_length_are_not_shared(model, kind, monkeypatch):  # noqa: F811
    monkeypatch.setattr(model.config, "rope_parameters", {"full_attention": {"rope_type": kind}})
    assert not keeps_all_of_a_text(model)
