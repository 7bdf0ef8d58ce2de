"""estimate: parameters exactly, memory and disk by arithmetic in literal numbers.

tests/training/test_bridge.py compares with the checkpoints of a CPU run, bench/estimate.py with its memory.
"""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sft.params.check import read
from sft.planning import estimate
from sft.planning.estimate import Count
from tests.planning.test_checks import LLAMA, NANO, nano
from tests.training.test_bridge import train_params

PROFILES = Path(__file__).parents[2] / "profiles"


def test_nemotron_3_nano_has_the_parameters_that_transformers_counts() -> None:
    """31,577,937,344 is the sum over NemotronHForCausalLM built from profiles/models/...; NVIDIA says 31.6B, 3.6B."""
    assert estimate.count(NANO).total == 31_577_937_344
    assert estimate.count(NANO) == Count(split=2_195_073_344, copied=8_055_936, expert=29_374_808_064)
    assert round(estimate.active(NANO) / 1e9, 1) == 3.6


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("*", Count(split=2 * 64 * 64 + 2 * 64 * 32, copied=64)),
        ("-", Count(split=3 * 64 * 128, copied=64)),
    ],
)
def test_a_layer_is_counted_matrix_by_matrix(kind: str, expected: Count) -> None:
    assert estimate.layer_count(LLAMA, kind) == expected


def test_tied_weights_count_once_and_twice_on_two_stages() -> None:
    table = 400 * 64
    assert estimate.count(LLAMA).total == table + 2 * (12_288 + 64 + 24_576 + 64) + 64
    first, last = (estimate.count(LLAMA, "*-", first=at == 0, last=at == 1) for at in (0, 1))
    assert first.total + last.total == estimate.count(LLAMA).total + table


def test_every_tiny_model_of_transformers_has_the_parameters_counted(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    shape = {
        "vocab_size": 400,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    untied = {"tie_word_embeddings": False}
    models: list[tuple[Any, Any, dict[str, Any]]] = [
        (LlamaForCausalLM, LlamaConfig(**shape, tie_word_embeddings=True), {}),
        (LlamaForCausalLM, LlamaConfig(**shape, **untied), {"tied": False}),
        (Qwen2ForCausalLM, Qwen2Config(**shape, **untied), {"tied": False, "qkv_bias": True}),
        (Qwen3ForCausalLM, Qwen3Config(**shape, **untied), {"tied": False, "qk_norm": True}),
    ]
    for model, config, changes in models:
        counted = estimate.count(dataclasses.replace(LLAMA, **changes)).total
        assert counted == sum(weights.numel() for weights in model(config).parameters()), type(config)


def test_layers_are_cut_into_stages_that_lose_none() -> None:
    assert estimate.stages("*-*-*-*-", 2) == ["*-*-", "*-*-"]
    for pipeline in (1, 2, 4, 13, 26, 52):
        cut = estimate.stages(NANO.pattern, pipeline)
        assert "".join(cut) == NANO.pattern
        assert len(cut) == pipeline


def test_memory_of_the_production_layout_in_numbers() -> None:
    """Of one GPU in 16: dense weights over 4, experts over 8, optimizer states over 4 and 2 copies."""
    dense, experts = 2_195_073_344 / 4 + 8_055_936, 29_374_808_064 / 8
    layout = estimate.layout_of(nano().model, 16)
    assert (layout.data, layout.dense_copies, layout.expert_copies) == (4, 4, 2)
    memory = estimate.memory(NANO, nano(), layout, 4096, sharded=True)
    assert memory.weights == pytest.approx(2 * (dense + experts))
    assert memory.gradients == pytest.approx(4 * (dense + experts))
    assert memory.optimizer == pytest.approx(12 * (dense / 4 + experts / 2))
    assert memory.logits == pytest.approx(4096 * 131072 / 4 * 10)
    assert memory.total == pytest.approx(54.9e9, rel=0.01)


@pytest.mark.parametrize(
    ("ranks", "global_batch_size", "packs"),
    [(4, 8, 4), (4, 3, 3), (4, 1, 1), (8, 8, 4), (8, 4, 2)],
)
def test_the_first_stage_of_a_pipeline_keeps_activations_of_several_packs(
    ranks: int, global_batch_size: int, packs: int
) -> None:
    """In fp32 a token of attention keeps 320 numbers, one of an MLP 512: 128 x 4 x (320 + 512) bytes a pack."""
    params = train_params(model={"pipeline_model_parallel_size": 4}, train={"global_batch_size": global_batch_size})
    model = dataclasses.replace(LLAMA, pattern="*-*-*-*-", layers=4, vocabulary=16)
    layout = estimate.layout_of(params.model, ranks)
    memory = estimate.memory(model, params, layout, 128, sharded=False)
    assert memory.activations == 425_984 * packs


def test_the_last_stage_of_a_pipeline_keeps_activations_of_one_pack() -> None:
    layout = estimate.layout_of(train_params(model={"pipeline_model_parallel_size": 4}).model, 4)
    assert [estimate.packs_in_flight(layout, stage, 8) for stage in range(4)] == [4, 3, 2, 1]


def test_each_param_changes_its_part_of_the_memory() -> None:
    def memory(ranks: int = 16, **changes: dict[str, Any]) -> estimate.Memory:
        params = nano(**changes)
        return estimate.memory(NANO, params, estimate.layout_of(params.model, ranks), 4096, sharded=True)

    plain = memory()
    assert memory(32).optimizer == plain.optimizer / 2
    assert memory(32).weights == plain.weights
    halved = {"mixed_precision": {"name": "bf16_mixed", "grad_reduce_in_fp32": False}}
    assert memory(**halved).gradients == plain.gradients / 2
    full = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    assert memory(model=full).activations < plain.activations / 5
    selective = {"recompute_granularity": "selective", "recompute_modules": ["moe"]}
    assert memory(model=full).activations < memory(model=selective).activations < plain.activations
    lora = memory(peft={"name": "lora"})
    assert lora.weights == plain.weights
    assert lora.optimizer + lora.gradients < plain.optimizer / 50
    assert memory(model={"expert_model_parallel_size": 16}).weights < plain.weights * 0.6
    assert memory(model={"context_parallel_size": 2}).activations == plain.activations / 2


def test_a_cpu_run_has_16_bytes_for_each_parameter_and_does_not_share_them() -> None:
    parameters = estimate.count(LLAMA).total
    for ranks in (1, 2):
        memory = estimate.memory(
            LLAMA, train_params(), estimate.layout_of(train_params().model, ranks), 128, sharded=False
        )
        assert memory.weights + memory.gradients + memory.optimizer == 16 * parameters


def test_adapters_are_counted_by_rank_times_inputs_and_outputs() -> None:
    lora = {"name": "lora", "dim": 4, "target_modules": ["linear_qkv", "linear_fc1"]}
    assert estimate.adapter_count(LLAMA, train_params().peft) == 0
    assert estimate.adapter_count(LLAMA, train_params(peft=lora).peft) == 2 * 4 * ((64 + 128) + (64 + 256))


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({"most_recent_k": 1}, 2),
        ({"most_recent_k": 1, "export": "best"}, 3),
        ({"most_recent_k": 1, "save_retain_interval": 4}, 4),
        ({"most_recent_k": 99}, 4),
    ],
)
def test_checkpoints_are_counted_at_the_fullest_moment(changes: dict[str, Any], most: int) -> None:
    assert estimate.most_checkpoints(train_params(checkpoint=changes).checkpoint, iterations=8) == most


def test_a_step_costs_six_operations_a_weight_and_token_and_eight_when_computed_again() -> None:
    plain = estimate.estimate(LLAMA, train_params(), 1, 128, on_gpu=False)
    weights = estimate.count(LLAMA).total
    assert plain.tokens_per_step == 256
    assert plain.flops_per_step == 6 * 256 * (weights + 2 * 64 * 128)
    full = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    again = estimate.estimate(LLAMA, train_params(model=full), 1, 128, on_gpu=False)
    assert again.flops_per_step == plain.flops_per_step * 8 / 6
    least, at_most = plain.seconds_per_step(1e9, 1)
    assert (least, at_most) == (plain.flops_per_step / 0.40e9, plain.flops_per_step / 0.15e9)


def test_the_production_profile_fits_the_gpus_that_it_names() -> None:
    """16 GPUs of 80 GB, or 8 larger ones."""
    params = read(PROFILES / "nemotron3-nano.yaml")
    needs = {
        ranks: estimate.estimate(NANO, params.training, ranks, params.pack.pack_size, on_gpu=True).memory.total
        for ranks in (8, 16)
    }
    usable = {name: memory * (1 - estimate.RESERVE) for name, (memory, _) in estimate.GPUS.items()}
    assert needs[16] < usable["H100"] < needs[8] < usable["H200"]


def test_an_unknown_kind_of_layer_is_a_fault() -> None:
    with pytest.raises(ValueError, match="unknown kind of layer 'X'"):
        estimate.layer_count(LLAMA, "X")
