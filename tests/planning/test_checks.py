"""Refusals: what would crash, hang or train something else is said before anything is built."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from sft.cli import InputError
from sft.files import write_json
from sft.hashing import file_digest
from sft.params import training as p
from sft.planning import checks
from sft.planning.estimate import Geometry
from tests.support import tiny_model as tiny
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
SMALL = checks.Facts(
    ranks=1, on_gpu=False, pack_size=128, pad_segments_to=1, training_packs=7, validation_packs=4,
    data_tokenizer="a" * 64, model_tokenizer="a" * 64, geometry=LLAMA, start_geometry=LLAMA, free_disk=1e9,
)  # fmt: skip
CLUSTER = dataclasses.replace(
    SMALL, ranks=16, on_gpu=True, pack_size=4096, pad_segments_to=4, training_packs=900, validation_packs=90,
    geometry=NANO, start_geometry=NANO, gpu_memory=80e9, free_disk=4e12,
)  # fmt: skip
NANO_LAYOUT = {"tensor_model_parallel_size": 4, "sequence_parallel": True, "expert_model_parallel_size": 8}
BF16 = {"mixed_precision": {"name": "bf16_mixed"}}


def refused(params: p.TrainParams, facts: checks.Facts) -> dict[str, str]:
    return {verdict.rule: verdict.reason for verdict in checks.verdicts(params, facts) if verdict.refused}


def nano(**changes: dict[str, Any]) -> p.TrainParams:
    """Params of the production layout, with some changed."""
    model = NANO_LAYOUT | changes.pop("model", {})
    return train_params(**{**BF16, "train": {"global_batch_size": 64}, "model": model, **changes})


CASES = {
    "precision-of-a-cpu": (train_params(**BF16), SMALL, "mixed_precision.name is bf16_mixed.*Use fp32"),
    "layout-of-a-cpu": (
        train_params(model={"context_parallel_size": 2}),
        dataclasses.replace(SMALL, ranks=2, pad_segments_to=4),
        "context_parallel_size is 2.*Use 1",
    ),
    "model-of-a-cpu": (
        train_params(),
        dataclasses.replace(SMALL, geometry=NANO, start_geometry=NANO, free_disk=1e13),
        "Mamba layers and experts, which exist as GPU kernels only",
    ),
    "world-size": (
        train_params(model={"tensor_model_parallel_size": 2}),
        dataclasses.replace(SMALL, ranks=3),
        "3 ranks were started, and one copy of the model takes 2",
    ),
    "expert-parallel": (
        nano(train={"global_batch_size": 63}),
        dataclasses.replace(CLUSTER, ranks=12),
        "it takes a multiple of 8 ranks, not 12",
    ),
    "batch": (train_params(), dataclasses.replace(SMALL, ranks=4), "global_batch_size is 2, not a multiple of the 4"),
    "sequence-parallel": (
        nano(model={"sequence_parallel": False}),
        CLUSTER,
        "tensor_model_parallel_size is 4 on a model with experts: Megatron-Core refuses",
    ),
    "tensor-parallel": (
        nano(model={"tensor_model_parallel_size": 16}),
        dataclasses.replace(CLUSTER, pad_segments_to=16),
        "16, which does not divide the model's Mamba groups 8",
    ),
    "context-parallel-of-mamba": (
        nano(model={"context_parallel_size": 3}),
        dataclasses.replace(CLUSTER, ranks=24, pack_size=4092, pad_segments_to=12),
        "context_parallel_size is 3: a Mamba layer divides its heads by it, and has 16 in 2 groups",
    ),
    "pipeline": (
        train_params(model={"pipeline_model_parallel_size": 4}),
        dataclasses.replace(SMALL, ranks=4),
        "pipeline_model_parallel_size is 4, and the model has 2 layers: not divisible",
    ),
    "pack-size": (
        nano(model={"context_parallel_size": 2}),
        dataclasses.replace(CLUSTER, pack_size=4094, pad_segments_to=8),
        "packs of 4094 tokens, and model.context_parallel_size 2 divides a pack by 4",
    ),
    "padding": (
        nano(),
        dataclasses.replace(CLUSTER, pad_segments_to=1),
        "padded to a multiple of 1, and this layout needs 4.*Set pack.pad_segments_to to 4",
    ),
    "mamba-positions": (
        train_params(**BF16, train={"global_batch_size": 16}, model={"expert_model_parallel_size": 8}),
        dataclasses.replace(CLUSTER, pack_size=262144, gpu_memory=200e9),
        "wrong numbers beyond 208412 tokens.*mamba #1015",
    ),
    "schedule": (train_params(scheduler={"lr_warmup_iters": STEPS}), SMALL, "lr_warmup_iters is 8, not below the 8"),
    "seed": (train_params(rng={"seed": 0}), SMALL, "rng.seed is 0"),
    "training-packs": (
        train_params(train={"global_batch_size": 10}, validation={"eval_iters": 0}),
        SMALL,
        "training: 7 packs, fewer than the 10",
    ),
    "validation-packs": (
        train_params(),
        dataclasses.replace(SMALL, validation_packs=1),
        "validation: 1 packs, fewer than the 2.*wait forever",
    ),
    "tokenizer": (
        train_params(),
        dataclasses.replace(SMALL, data_tokenizer="b" * 64),
        "its tokenizer is not the one that data/packed was made with",
    ),
    "start": (
        train_params(checkpoint={"pretrained_checkpoint": "there"}),
        dataclasses.replace(SMALL, start_geometry=dataclasses.replace(LLAMA, hidden=32)),
        "pretrained_checkpoint there is another model than models/base: hidden 32 instead of 64",
    ),
    "best": (
        train_params(checkpoint={"export": "best", "save_interval": 3}, validation={"eval_interval": 4}),
        SMALL,
        "no step before 12 is both saved and validated",
    ),
    "adapters": (
        train_params(peft={"name": "lora", "target_modules": ["linear_qkv", "in_proj"]}),
        SMALL,
        "peft.target_modules: in_proj: the model has linear_fc1",
    ),
    "gpu-memory": (
        nano(),
        dataclasses.replace(CLUSTER, ranks=8, gpu_memory=40e9),
        "weights, gradients and optimizer states take 73 GB on a GPU with 40 GB",
    ),
    "disk": (
        nano(),
        dataclasses.replace(CLUSTER, free_disk=5e11),
        r"500 GB free, and one checkpoint \(442 GB\), the imported model \(126 GB\).*take 695 GB more",
    ),
    "checkpoints-kept": (
        nano(train={"global_batch_size": 64, "train_iters": 1700}, checkpoint={"most_recent_k": 85}),
        CLUSTER,
        "save_interval 2, most_recent_k 85 .* come to 86 checkpoints of 442 GB.*4000 GB are free, room for 8",
    ),
}


@pytest.mark.parametrize("rule", CASES)
def test_every_rule_refuses_what_it_is_for_and_nothing_else_does(rule: str) -> None:
    params, facts, message = CASES[rule]
    found = refused(params, facts)
    assert list(found) == [rule]
    assert re.search(message, found[rule]), found[rule]


def test_every_rule_has_a_case() -> None:
    assert list(CASES) == [rule.fault.__name__.replace("_", "-") for rule in checks.RULES]


def test_what_is_fine_is_refused_by_no_rule_and_every_rule_looked() -> None:
    for params, facts in ((train_params(), dataclasses.replace(SMALL, gpu_memory=1e9)), (nano(), CLUSTER)):
        assert [verdict for verdict in checks.verdicts(params, facts) if verdict.reason] == []


@pytest.mark.parametrize(
    ("changes", "facts", "message"),
    [
        ({"model": {"expert_model_parallel_size": 2}}, {"ranks": 2}, "the model has no experts"),
        ({"model": {"sequence_parallel": True}}, {}, "sequence_parallel needs"),
        ({}, {"training_packs": 0}, r"training: no packs \(\*.parquet\). Run the pack stage"),
        ({"checkpoint": {"export": "best"}, "validation": {"eval_iters": 0}}, {}, "nothing tells which is best"),
        ({"model": {"tensor_model_parallel_size": 2, "sequence_parallel": True}},
         {"ranks": 2, "pack_size": 127, "pad_segments_to": 2}, "packs of 127 tokens, and sequence parallel"),
    ],
)  # fmt: skip
def test_a_rule_refuses_its_other_cases(changes: dict[str, Any], facts: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        checks.check(train_params(**changes), dataclasses.replace(SMALL, **facts))


def test_all_that_is_refused_is_said_at_once() -> None:
    with pytest.raises(InputError, match=r"(?s)lr_warmup_iters is 8.*rng.seed is 0"):
        checks.check(train_params(scheduler={"lr_warmup_iters": STEPS}, rng={"seed": 0}), SMALL)


def test_what_is_not_known_is_said_and_not_refused() -> None:
    found = checks.verdicts(train_params(), checks.Facts(ranks=1, on_gpu=False))
    unknown = {verdict.rule: verdict.reason for verdict in found if verdict.reason}
    assert unknown["validation-packs"] == "not known here: validation packs"
    assert unknown["disk"] == "not known here: geometry, free disk"
    assert not [verdict for verdict in found if verdict.refused]
    assert all(verdict.about and not verdict.about.endswith(".") for verdict in found)


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


def test_without_validation_no_validation_packs_are_wanted() -> None:
    checks.check(train_params(validation={"eval_iters": 0}), dataclasses.replace(SMALL, validation_packs=0))


def test_facts_are_read_where_they_lie_and_unknown_where_they_do_not(tmp_path: Path) -> None:
    places = {"packed": tmp_path / "packed", "base": tmp_path / "base", "runs": tmp_path / "runs/key"}
    empty = checks.gather(**places, ranks=2, on_gpu=False)
    assert empty.ranks == 2
    assert empty.free_disk is not None
    assert (empty.pack_size, empty.training_packs, empty.model_tokenizer) == (None, None, None)

    tiny.write_packs(tmp_path / "packed" / "training", tiny.make_packs(7, 32, seed=1), shards=2)
    write_json(
        tmp_path / "packed" / "metadata.json", {"pack_size": 32, "pad_segments_to": 4, "tokenizer_sha256": "a" * 64}
    )
    write_json(tmp_path / "base" / "tokenizer.json", {})
    facts = checks.gather(**places, ranks=1, on_gpu=False)
    assert (facts.pack_size, facts.pad_segments_to, facts.data_tokenizer) == (32, 4, "a" * 64)
    assert (facts.training_packs, facts.validation_packs) == (7, 0)
    assert facts.model_tokenizer == file_digest(tmp_path / "base" / "tokenizer.json")
