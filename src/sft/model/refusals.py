"""What Megatron-Bridge would crash or hang on, refused with the reason before anything is built."""

import os
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch

from sft import params as p
from sft.command import InputError


@dataclass(frozen=True)
class TrainParams:
    """The sections of params.yaml that the train stage reads."""

    model: p.Model
    mixed_precision: p.MixedPrecision
    optimizer: p.Optimizer
    scheduler: p.Scheduler
    train: p.Train
    validation: p.Validation
    checkpoint: p.Checkpoint
    rng: p.Rng


def check(*, packed: Path, params: TrainParams) -> None:
    """Refuse what Bridge would crash or hang on, before anything is built. Raises InputError."""
    model, steps, validation = params.model, params.train, params.validation
    if not torch.cuda.is_available():
        if params.mixed_precision.name != "fp32":
            raise InputError(
                f"params.yaml: mixed_precision.name is {params.mixed_precision.name}, and this machine has no "
                "GPU: a step of bf16 does not finish in minutes on a CPU. Use fp32."
            )
        if model.context_parallel_size > 1:
            raise InputError(
                f"params.yaml: model.context_parallel_size is {model.context_parallel_size}, and this machine "
                "has no GPU: only Transformer Engine splits a sample over ranks. Use 1."
            )
    if model.pipeline_model_parallel_size > 2:
        raise InputError(
            f"params.yaml: model.pipeline_model_parallel_size is {model.pipeline_model_parallel_size}: the "
            "middle stages of Bridge 0.6 do not get the boundaries of packed samples (Megatron-Bridge #2952), "
            "so samples would attend to each other. Use 1 or 2."
        )
    if model.sequence_parallel and model.tensor_model_parallel_size == 1:
        raise InputError("params.yaml: model.sequence_parallel needs model.tensor_model_parallel_size > 1")
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    copy = model.tensor_model_parallel_size * model.pipeline_model_parallel_size * model.context_parallel_size
    if ranks % copy:
        raise InputError(
            f"{ranks} ranks were started, and one copy of the model takes {copy} (params.yaml: model, tensor x "
            f"pipeline x context parallel size). Start a multiple of {copy}."
        )
    at_once = ranks // copy * steps.micro_batch_size
    if steps.global_batch_size % at_once:
        raise InputError(
            f"params.yaml: train.global_batch_size is {steps.global_batch_size}, not a multiple of the "
            f"{at_once} packs that {ranks // copy} data-parallel ranks take at a time"
        )
    decay = params.scheduler.lr_decay_iters or steps.train_iters
    if params.scheduler.lr_warmup_iters >= decay:
        raise InputError(
            f"params.yaml: scheduler.lr_warmup_iters is {params.scheduler.lr_warmup_iters}, not below the "
            f"{decay} steps of the schedule (scheduler.lr_decay_iters, or train.train_iters)"
        )
    if params.rng.seed < 1:
        raise InputError(f"params.yaml: rng.seed is {params.rng.seed}: Megatron wants 1 or more")
    _check_packs(packed / "training", steps.global_batch_size, "train.global_batch_size")
    if validation.eval_iters:
        _check_packs(
            packed / "validation",
            steps.global_batch_size,
            "train.global_batch_size; Bridge would wait forever. Or set validation.eval_iters to 0",
        )


def _check_packs(folder: Path, least: int, reason: str) -> None:
    shards = sorted(folder.glob("*.parquet"))
    if not shards:
        raise InputError(f"{folder}: no *.parquet. Run the pack stage.")
    packs = sum(pq.read_metadata(shard).num_rows for shard in shards)
    if packs < least:
        raise InputError(f"{folder}: {packs} packs, fewer than the {least} of one step (params.yaml: {reason})")
