"""checks: what would crash, hang or train something else fails a check before anything is built."""

import dataclasses
from typing import Any

import pytest

from sft.cli import InputError
from sft.params import training as p
from sft.planning import checks
from sft.planning.estimate import Geometry
from sft.planning.facts import Facts
from sft.planning.untrained_tokens import UntrainedTokens
from tests.training.test_bridge import STEPS, train_params

LLAMA = Geometry(
    vocabulary=400, hidden=64, pattern="*-*-", heads=4, query_groups=2, head_dim=16, ffn=128, gated=True, tied=True,
    layers=2,
)  # fmt: skip
NANO = Geometry(
    vocabulary=131072, hidden=2688, pattern="MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME", heads=32,
    query_groups=2, head_dim=128, ffn=1856, gated=False, tied=False, layers=52, experts=128, expert_ffn=1856,
    experts_per_token=6, shared_ffn=3712, mamba_heads=64, mamba_head_dim=64, mamba_state=128, mamba_groups=8,
)  # fmt: skip
SMALL = Facts(
    ranks=1, on_gpu=False, pack_size=128, pad_segments_to=1, training_packs=7, validation_packs=4,
    data_tokenizer="a" * 64, model_tokenizer="a" * 64, untrained_tokens=UntrainedTokens((), ()), geometry=LLAMA,
    start_geometry=LLAMA, free_disk=1e9, missing_packages={},
)  # fmt: skip
CLUSTER = dataclasses.replace(
    SMALL, ranks=16, on_gpu=True, pack_size=4096, pad_segments_to=4, training_packs=900, validation_packs=90,
    geometry=NANO, start_geometry=NANO, gpu_memory=80e9, free_disk=4e12,
)  # fmt: skip
NANO_LAYOUT = {"tensor_model_parallel_size": 4, "sequence_parallel": True, "expert_model_parallel_size": 8}
BF16 = {"mixed_precision": {"name": "bf16_mixed"}}


def failed(params: p.TrainParams, facts: Facts) -> dict[str, str]:
    """Messages of the failed checks, by name."""
    return {result.check: result.message for result in checks.run_checks(params, facts) if result.failed}


def nano(**changes: dict[str, Any]) -> p.TrainParams:
    """Params of the production layout, with some changed."""
    model = NANO_LAYOUT | changes.pop("model", {})
    return train_params(**{**BF16, "train": {"global_batch_size": 64}, "model": model, **changes})


def facts(base: Facts, **changes: Any) -> Facts:
    return dataclasses.replace(base, **changes)


# Check -> params and facts that fail it alone, the key or folder that its message begins with, and values in it.
CASES: dict[str, tuple[p.TrainParams, Facts, str, tuple[str, ...]]] = {
    "cpu-precision": (train_params(**BF16), SMALL, "params.yaml: mixed_precision.name: bf16_mixed", ("fp32",)),
    "cpu-experts": (
        train_params(model={"moe_permute_fusion": True}),
        facts(SMALL, geometry=NANO, start_geometry=NANO, free_disk=1e13),
        "params.yaml: model.moe_permute_fusion: true",
        ("false",),
    ),
    "gpu-packages": (
        nano(),
        facts(CLUSTER, missing_packages={"Mamba's kernels": "Mamba layers"}),
        "models/base: training needs Mamba's kernels (for Mamba layers)",
        ("make setup GPU=full", "docs/gpu-machine.md"),
    ),
    "world-size": (
        train_params(model={"tensor_model_parallel_size": 2}),
        facts(SMALL, ranks=3),
        "params.yaml: model:",
        ("takes 2 ranks", "found 3"),
    ),
    "expert-parallel": (
        nano(train={"global_batch_size": 63}),
        facts(CLUSTER, ranks=12),
        "params.yaml: model.expert_model_parallel_size: 8",
        ("multiple of 8 ranks", "found 12"),
    ),
    "global-batch-size": (
        train_params(),
        facts(SMALL, ranks=4),
        "params.yaml: train.global_batch_size: 2",
        ("the 4 packs", "4 data-parallel ranks"),
    ),
    "sequence-parallel": (
        nano(model={"sequence_parallel": False}),
        CLUSTER,
        "params.yaml: model.sequence_parallel: false",
        ("model.tensor_model_parallel_size 4",),
    ),
    "tensor-parallel": (
        nano(model={"tensor_model_parallel_size": 16}),
        facts(CLUSTER, pad_segments_to=16),
        "params.yaml: model.tensor_model_parallel_size: 16",
        ("Mamba groups 8",),
    ),
    "mamba-context-parallel": (
        nano(model={"context_parallel_size": 3}),
        facts(CLUSTER, ranks=24, pack_size=4092, pad_segments_to=12),
        "params.yaml: model.context_parallel_size: 3",
        ("16 heads in 2 groups",),
    ),
    "pipeline-parallel": (
        train_params(model={"pipeline_model_parallel_size": 4}),
        facts(SMALL, ranks=4),
        "params.yaml: model.pipeline_model_parallel_size: 4",
        ("2 layers",),
    ),
    "pack-size": (
        nano(model={"context_parallel_size": 2}),
        facts(CLUSTER, pack_size=4094, pad_segments_to=8),
        "data/packed: packs of 4094 tokens",
        ("context_parallel_size 2 divides a pack by 4", "pack.pack_size"),
    ),
    "padding": (
        nano(),
        facts(CLUSTER, pad_segments_to=1),
        "data/packed:",
        ("a multiple of 1,", "needs 4:", "pack.pad_segments_to to 4", "split-sample"),
    ),
    "mamba-positions": (
        train_params(**BF16, train={"global_batch_size": 16}, model={"expert_model_parallel_size": 8}),
        facts(CLUSTER, pack_size=262144, gpu_memory=200e9),
        "data/packed: packs of 262144 tokens",
        ("208412 tokens", "positions"),
    ),
    "training-packs": (
        train_params(train={"global_batch_size": 10}, validation={"eval_iters": 0}),
        SMALL,
        "data/packed/training: 7 packs",
        ("at least 10", "train.global_batch_size"),
    ),
    "validation-packs": (
        train_params(),
        facts(SMALL, validation_packs=1),
        "data/packed/validation: 1 packs",
        ("at least 2", "validation.eval_iters"),
    ),
    "tokenizer": (train_params(), facts(SMALL, data_tokenizer="b" * 64), "models/base:", ("data/packed",)),
    "mamba-boundaries": (
        nano(),
        facts(
            CLUSTER,
            geometry=dataclasses.replace(NANO, sample_boundaries=False),
            start_geometry=dataclasses.replace(NANO, sample_boundaries=False),
        ),
        "models/base:",
        ("is_hybrid_model",),
    ),
    "untrained-embeddings": (
        train_params(peft={"name": "lora"}),
        facts(SMALL, untrained_tokens=UntrainedTokens(("<|im_end|>",), ("<|im_start|>",))),
        "models/base:",
        ("<|im_end|>", "<|im_start|>", "peft.name"),
    ),
    "warmup": (
        train_params(scheduler={"lr_warmup_iters": STEPS}),
        SMALL,
        "params.yaml: scheduler.lr_warmup_iters: 8",
        ("less than the 8 steps",),
    ),
    "seed": (train_params(rng={"seed": 0}), SMALL, "params.yaml: rng.seed: 0", ()),
    "start-checkpoint": (
        train_params(checkpoint={"pretrained_checkpoint": "there"}),
        facts(SMALL, start_geometry=dataclasses.replace(LLAMA, hidden=32)),
        "params.yaml: checkpoint.pretrained_checkpoint: there",
        ("hidden 32 instead of 64",),
    ),
    "best-checkpoint": (
        train_params(checkpoint={"export": "best", "save_interval": 3}, validation={"eval_interval": 4}),
        SMALL,
        "params.yaml: checkpoint.export: best",
        ("validated is 12", "last step is 8"),
    ),
    "adapter-modules": (
        train_params(peft={"name": "lora", "target_modules": ["linear_qkv", "in_proj"]}),
        SMALL,
        "params.yaml: peft.target_modules: in_proj:",
        ("linear_fc1, linear_fc2, linear_proj, linear_qkv",),
    ),
    "gpu-memory": (nano(), facts(CLUSTER, ranks=8, gpu_memory=40e9), "params.yaml: model:", ("73 GB", "40 GB")),
    "disk": (
        nano(),
        facts(CLUSTER, free_disk=5e11),
        "runs/: 500 GB free, expected 695 GB",
        ("one checkpoint (442 GB)", "imported model (126 GB)"),
    ),
    "kept-checkpoints": (
        nano(train={"global_batch_size": 64, "train_iters": 1700}, checkpoint={"most_recent_k": 85}),
        CLUSTER,
        "params.yaml: checkpoint: save_interval 2, most_recent_k 85",
        ("86 checkpoints of 442 GB", "4000 GB free", "for 8."),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_check_fails_on_what_it_is_for_and_no_other_check_does(name: str) -> None:
    params, known, place, values = CASES[name]
    messages = failed(params, known)
    assert list(messages) == [name]
    assert messages[name].startswith(place), messages[name]
    for value in values:
        assert value in messages[name]


def test_every_check_has_a_case() -> None:
    assert list(CASES) == [check.name for check in checks.CHECKS]


def test_sound_params_pass_every_check_and_none_lacks_a_fact() -> None:
    for params, known in ((train_params(), facts(SMALL, gpu_memory=1e9)), (nano(), CLUSTER)):
        results = checks.run_checks(params, known)
        assert len(results) == len(checks.CHECKS)
        assert [result for result in results if result.message] == []


@pytest.mark.parametrize(
    ("changes", "known", "name", "place"),
    [
        ({"model": {"expert_model_parallel_size": 2}}, {"ranks": 2}, "expert-parallel",
         "model.expert_model_parallel_size: 2, but the model has no experts"),
        ({"model": {"sequence_parallel": True}}, {}, "sequence-parallel", "model.sequence_parallel: true"),
        ({}, {"training_packs": 0}, "training-packs", "data/packed/training: 0 packs"),
        ({"checkpoint": {"export": "best"}, "validation": {"eval_iters": 0}}, {}, "best-checkpoint",
         "validation.eval_iters is 0"),
        ({"model": {"tensor_model_parallel_size": 2, "sequence_parallel": True}},
         {"ranks": 2, "pack_size": 127, "pad_segments_to": 2}, "pack-size", "packs of 127 tokens"),
    ],
)  # fmt: skip
def test_a_check_fails_on_its_other_cases(
    changes: dict[str, Any], known: dict[str, Any], name: str, place: str
) -> None:
    messages = failed(train_params(**changes), facts(SMALL, **known))
    assert place in messages[name]


def test_a_training_is_stopped_with_all_failed_checks_at_once() -> None:
    with pytest.raises(InputError) as stopped:
        checks.check_training(train_params(scheduler={"lr_warmup_iters": STEPS}, rng={"seed": 0}), SMALL)
    assert [line.split(":")[1] for line in str(stopped.value).splitlines()] == [
        " scheduler.lr_warmup_iters",
        " rng.seed",
    ]


def test_a_check_without_its_facts_is_not_known_and_does_not_fail() -> None:
    results = checks.run_checks(train_params(), Facts(ranks=1, on_gpu=False))
    unknown = {result.check: result.message for result in results if result.message}
    assert unknown["validation-packs"] == "not known here: validation packs"
    assert unknown["disk"] == "not known here: geometry, free disk"
    assert not [result for result in results if result.failed]
    assert all(result.about and not result.about.endswith(".") for result in results)


def test_files_that_a_resumed_run_already_has_need_no_space_again() -> None:
    """695 GB are needed from the start; with 300 GB written, 395 GB more."""
    assert "disk" in failed(nano(), facts(CLUSTER, free_disk=4e11))
    assert "disk" not in failed(nano(), facts(CLUSTER, free_disk=4e11, done_disk=3e11))
    many = nano(train={"global_batch_size": 64, "train_iters": 1700}, checkpoint={"most_recent_k": 8})
    assert "kept-checkpoints" in failed(many, facts(CLUSTER, free_disk=4e12))
    assert failed(many, facts(CLUSTER, free_disk=4e12, done_disk=5e11)) == {}


@pytest.mark.parametrize(
    ("layout", "multiple"),
    [
        ({}, 1),
        ({"context_parallel_size": 2}, 4),
        ({"tensor_model_parallel_size": 4, "sequence_parallel": True}, 4),
        ({"tensor_model_parallel_size": 4, "context_parallel_size": 2, "sequence_parallel": True}, 8),
        ({"tensor_model_parallel_size": 4, "context_parallel_size": 8, "sequence_parallel": True}, 32),
        ({"tensor_model_parallel_size": 3, "context_parallel_size": 2, "sequence_parallel": True}, 12),
    ],
)
def test_samples_are_padded_as_the_layout_needs(layout: dict[str, Any], multiple: int) -> None:
    assert checks.segment_multiple(train_params(model=layout).model) == multiple


def test_a_zero_embedding_and_routed_padding_are_warnings_of_a_full_training() -> None:
    assert checks.warnings(train_params(), facts(SMALL, untrained_tokens=UntrainedTokens((), ("<|im_end|>",)))) == []
    (zero,) = checks.warnings(train_params(), facts(SMALL, untrained_tokens=UntrainedTokens(("<|im_end|>",), ())))
    assert "<|im_end|>" in zero
    (fixed,) = checks.warnings(nano(), facts(CLUSTER, packing_efficiency=0.97))
    assert "3.00%" in fixed
    natural = {"model": {"expert_model_parallel_size": 1}}
    (least,) = checks.warnings(nano(**natural), facts(CLUSTER, packing_efficiency=0.97))
    assert "0.00%" in least


def test_without_validation_no_validation_packs_are_needed() -> None:
    checks.check_training(train_params(validation={"eval_iters": 0}), facts(SMALL, validation_packs=0))
