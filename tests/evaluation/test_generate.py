"""generate: answers and held-out loss do not depend on batches, and bad folders are named."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sft.cli import InputError
from sft.evaluation.generate import check_ids, generate, held_out_loss, load_model

VOCABULARY = 64
PROMPTS = [[1, 2, 3], [9] * 17, [4], [5, 6, 7, 8, 9, 10, 11], [30, 31, 32, 33, 34]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.6,  # far from uniform, so that greedy choices do not hang on rounding
    )
    model = LlamaForCausalLM(config)
    model.generation_config.repetition_penalty = 5.0  # a default of the folder that must not be used
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder)


def greedy(model, prompt, steps):
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(steps):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_answers_do_not_depend_on_the_batch_and_keep_the_order_of_the_prompts(model):
    alone = [greedy(model, prompt, 12) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in alone}) == len(PROMPTS)
    unused = next(i for i in range(VOCABULARY) if all(i not in answer for answer in alone))
    for batch_size in (1, 2, 5):
        assert generate(model, PROMPTS, stop_ids=[unused], max_new_tokens=12, batch_size=batch_size) == alone


def test_an_answer_ends_with_the_stop_token_or_is_cut_without_it(model):
    alone = [greedy(model, prompt, 12) for prompt in PROMPTS]
    stop = alone[0][5]
    answers = generate(model, PROMPTS, stop_ids=[stop], max_new_tokens=12, batch_size=3)
    for answer, whole in zip(answers, alone, strict=True):
        assert answer == whole[: whole.index(stop) + 1] if stop in whole else answer == whole
    assert len(answers[0]) <= 6
    assert answers[0][-1] == stop


def test_a_batch_of_finished_answers_is_not_decoded_further(model):
    stop = greedy(model, PROMPTS[0], 1)[0]
    before, model.forward_calls = model.forward, 0

    def counted(*args, **kwargs):
        model.forward_calls += 1
        return before(*args, **kwargs)

    model.forward = counted
    assert generate(model, PROMPTS[:1], stop_ids=[stop], max_new_tokens=50, batch_size=4) == [[stop]]
    model.forward = before
    assert model.forward_calls == 1


def test_no_prompts_give_no_answers(model):
    assert generate(model, [], stop_ids=[0], max_new_tokens=3, batch_size=2) == []


def test_held_out_loss_sums_over_marked_labels_only(model):
    ids, marks = [3, 1, 4, 1, 5, 9, 2], [0, 0, 1, 0, 1, 1, 0]
    with torch.inference_mode():
        chances = model(torch.tensor([ids])).logits[0].softmax(-1)
    expected = -sum(math.log(chances[i, ids[i + 1]]) for i in (2, 4, 5))
    [(total, count), nothing] = held_out_loss(model, [(ids, marks), ([1, 2], [0, 0])])
    assert count == 3
    assert total == pytest.approx(expected, rel=1e-5)
    assert nothing == (0.0, 0)


def test_a_mark_on_the_last_token_predicts_nothing(model):
    assert held_out_loss(model, [([1, 2], [1, 1])]) == held_out_loss(model, [([1, 2], [1, 0])])


def test_a_folder_without_weights_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"absent: .*config\.json"):
        load_model(tmp_path / "absent")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle is not loaded")
    with pytest.raises(InputError, match="safetensors"):
        load_model(tmp_path)


def test_a_token_id_beyond_the_vocabulary_is_an_error(model):
    check_ids(model, [0, VOCABULARY - 1], "model")
    with pytest.raises(InputError, match=f"models/base: .*{VOCABULARY}"):
        check_ids(model, [1, VOCABULARY], "models/base")
