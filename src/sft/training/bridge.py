"""Import, training and export by Megatron-Bridge. sft.training.config builds its configuration.

Hugging Face folder -> `import_base` -> Megatron checkpoint -> `train` (Bridge's `finetune()`) -> checkpoints of a
run -> `export` -> Hugging Face folder. One process, or N under torchrun; on GPUs, or on a CPU by `sft.training.cpu`.

Guarantees:
- A Megatron checkpoint is loaded only if its files match their manifest, or the digest in params.yaml
  (sft.training.checkpoints).
- A killed run resumes from its newest intact checkpoint, and sees the packs of an unbroken run in the same order with
  the same dropout, also across the end of an epoch.
- The loss is the mean over the trained tokens of a step, however they are distributed over packs and ranks.

A run's folder: checkpoints/iter_0000012/, manifests/iter_0000012.json, validation/, validation_losses.json,
params.json, logs/bridge.log.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.distributed.checkpoint.api import CheckpointException

from sft.cli import InputError, Stopped
from sft.files import publish_folder, read_json, write_json
from sft.hashing import folder_digest, folder_digests
from sft.params import training as p
from sft.planning import checks, estimate
from sft.planning.facts import Facts, gather_facts
from sft.training import checkpoints, config, conversion, divergence, parity, processes
from sft.training.callbacks import Callbacks
from sft.training.config import on_cpu, quiet
from sft.training.steps import Step

PARAMS = "params.json"  # in a run's folder: the training sections of params.yaml
BASE_DIGEST = "base.json"  # in an imported checkpoint: digest of the Hugging Face folder
BASE_NAME = "models/base"  # the base model of an adapter, as adapter_config.json names it
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")


def import_base(*, base: Path, checkpoint: Path) -> None:
    """Convert a Hugging Face folder into a Megatron checkpoint in fp32, unless `checkpoint` already is that.

    Raises:  InputError: the files of an existing checkpoint do not match its manifest, a parameter has no tensor, or
        the logits differ from those of transformers.
    """
    manifest = checkpoints.manifest_of(checkpoint)
    origin = {"base": folder_digest(base)}
    if manifest.exists():
        checkpoints.verify(checkpoint)
        if read_json(checkpoint / BASE_DIGEST) == origin:
            return
        manifest.unlink()
    with publish_folder(checkpoint) as partial, quiet():
        processes.end_writers_with_this_process(async_save=False)
        bridge, provider = config.model_of(base, weights=True)
        with processes.one_process(provider):
            model = provider.provide_distributed_model(wrap_with_ddp=False, use_cpu_initialization=True)
            conversion.check_complete(bridge, model)
            certificate = parity.certify(model[0], provider, base, exact=True)
            bridge.save_megatron_model(model, partial)
            for parameter in (each for part in model for each in part.parameters()):
                parameter.data = torch.empty(0)  # Megatron keeps the model: training needs the memory
        write_json(partial / BASE_DIGEST, origin)
        write_json(partial / parity.FILE, certificate)
    write_json(manifest, folder_digests(checkpoint))


def check_origin(base: Path, start: Path) -> None:
    """Raise InputError unless an imported checkpoint was made from this base model."""
    if read_json(start / BASE_DIGEST)["base"] != folder_digest(base):
        raise InputError(
            f"{base}: not the base model of this run, which starts from {start}. Fetch the run's model again (git "
            "checkout of its params.yaml, then make fetch)."
        )


def train(
    *,
    base: Path,
    start: Path,
    packed: Path,
    run: Path,
    params: p.TrainParams,
    pack_size: int,
    on_step: Callable[[Step], None],
    on_validation: Callable[[int, float], None],
    stop: Path | None = None,
    losses: Mapping[int, float] | None = None,
) -> None:
    """Train from `start`, or from the newest intact checkpoint of `run`, to the last step.

    Args:
        base: Hugging Face folder with the model's config and tokenizer.
        start: Checkpoint of `import_base`, or an iter_* folder of another run or of another program.
        packed: Folder with training/*.parquet and validation/*.parquet.
        run: Folder of the run; nothing happens if the run is complete.
        params: The training sections of params.yaml, with a number of steps.
        pack_size: Longest pack, in tokens.
        on_step: Called after each step, on the first rank.
        on_validation: Called with the step and the loss over validation tokens, on the first rank.
        stop: Once this file exists, all ranks save a checkpoint and exit with status 0 (SystemExit). They also do so
            when one of them gets SIGTERM, which then makes this file; without `stop` it raises Stopped.
        losses: Of the steps that the run has, on the first rank.

    Raises:  InputError: a check fails (sft.planning.checks); raised before the model is built.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    check(base=base, start=start, packed=packed, run=run, params=params, ranks=ranks)
    if params.model.recipe and not on_cpu():  # Bridge sets them when NCCL is open already, which reads its own then
        with quiet():
            for name, value in config.load_recipe(params.model.recipe, base).env_vars.items():
                os.environ.setdefault(name, str(value))
    with processes.process_group():
        checkpoint = checkpoints.newest_intact(run, processes.digests_on_every_rank, processes.broadcast)
        if checkpoint == checkpoints.iteration_folder(run, params.train.steps):
            return
        if checkpoint is None or params.peft.name is not None:
            digests = processes.digests_on_every_rank(start)
            processes.broadcast(lambda: checkpoints.verify(start, params.checkpoint.pretrained_sha256, digests))
        callbacks = Callbacks(run, packed, params.checkpoint, params.rng.seed, sys.stdout, on_step, on_validation, stop)
        if not on_cpu() and params.mixed_precision.name == "bf16_mixed":
            callbacks.peak = estimate.peak_flops(torch.cuda.get_device_name())
        with quiet(run / "logs" / "bridge.log"):
            processes.broadcast(lambda: write_json(run / PARAMS, params.model_dump()))
            processes.end_writers_with_this_process(params.checkpoint.async_save)
            eval_iters = params.validation.eval_iters
            if eval_iters:
                eval_iters = processes.broadcast(lambda: _copy_validation_packs(packed, run, params))
            container = config.build(
                params,
                base=base,
                start=_weights_folder(start),
                packed=packed,
                run=run,
                pack_size=pack_size,
                load=checkpoint,
                eval_iters=eval_iters,
                on_gpu=not on_cpu(),
            )

            done = checkpoints.step_of(checkpoint) if checkpoint else 0
            before = [loss for step, loss in sorted((losses or {}).items()) if step <= done]
            earlier = processes.broadcast(lambda: before)
            callbacks.watch = divergence.Watch(container.rerun_state_machine, earlier)
            container.ddp.check_for_nan_in_grad = False  # the watch sees the norm of the gradient

            from megatron.bridge.training.finetune import finetune

            try:
                finetune(container, callbacks.forward_step, callbacks=callbacks.register())
            except SystemExit:  # Bridge has saved and ends early
                if stop is not None and callbacks.has_sigterm:
                    stop.touch()
                callbacks.hashing.wait()
                if stop is None and callbacks.has_sigterm:
                    raise Stopped(signal.SIGTERM) from None
                raise
            except CheckpointException as error:  # Megatron keeps the reason for its log
                raise InputError(
                    f"{run / 'checkpoints'}: a checkpoint failed ({error.args[0]}). The reason is in "
                    f"{run / 'logs/bridge.log'}. If the disk is full, free some space. Rerun to resume."
                ) from error
            finally:
                callbacks.release_signals()
            callbacks.hashing.wait()


def check(
    *,
    base: Path,
    start: Path | None,
    packed: Path,
    run: Path,
    params: p.TrainParams,
    ranks: int,
    on_gpu: bool | None = None,
) -> list[str]:
    """Raise InputError with the messages of all failed checks, before anything is built; return warnings.

    `start`: its shapes are checked if params name it. `on_gpu`: whether GPUs train, if that is another machine.
    """
    from sft.training import gpu

    is_elsewhere = on_gpu is not None and on_gpu == on_cpu()
    on_gpu = not on_cpu() if on_gpu is None else on_gpu
    with quiet():
        _, provider = config.model_of(base, weights=False, on_gpu=on_gpu)
        geometry = start_geometry = config.geometry_of(provider)
    if params.checkpoint.pretrained_checkpoint and start is not None:
        if os.environ.get("RANK", "0") == "0":  # it reads every byte: once for all ranks
            check_start(start, params.checkpoint.pretrained_sha256)
        start_params = start.parent.parent / PARAMS
        if start_params.exists() and read_json(start_params)["peft"]["name"] is not None:
            raise InputError(
                f"params.yaml: checkpoint.pretrained_checkpoint: {start}: has adapters only. Export that step, which "
                "merges them (make export RUN= STEP=), and name the folder in fetch.model."
            )
        start_geometry = config.geometry_of_checkpoint(_weights_folder(start))
    known = Facts(
        ranks=ranks,
        on_gpu=on_gpu,
        geometry=geometry,
        start_geometry=start_geometry,
        gpu_memory=None if is_elsewhere or not on_gpu else float(torch.cuda.get_device_properties(0).total_memory),
        missing_packages=None if is_elsewhere or not on_gpu else gpu.missing(provider, params),
    )
    facts = gather_facts(known, packed=packed, base=base, run=run, start=start)
    checks.check_training(params, facts)
    with quiet():
        config.check_bridge_is_used(params, base, facts.pack_size or 1, ranks, on_gpu=on_gpu)
    return checks.warnings(params, facts)


def check_start(start: Path, sha256: str | None) -> None:
    """Raise InputError unless a run may start from a Megatron checkpoint: one of this project, or an adopted one."""
    fault = checkpoints.fault_of(start, sha256)
    if fault is None:
        return
    advice = "Expected a step of a run: runs/<lineage key>/checkpoints/iter_<step>."
    if start.name.startswith("iter_") and start.is_dir() and (sha256 or fault.startswith("no manifest")):
        advice = (
            "Another program made it, and loading a Megatron checkpoint can run code. If you trust these files, set "
            f"checkpoint.pretrained_sha256: {folder_digest(start)}"
        )
    raise InputError(f"params.yaml: checkpoint.pretrained_checkpoint: {start}: {fault}. {advice}")


def export(
    *, checkpoint: Path, base: Path, target: Path, start: Path, peft: p.Peft, start_sha256: str | None = None
) -> dict[str, Any]:
    """Write a trained checkpoint as a Hugging Face folder; return the certificates of parity at import and export.

    Weights come from the checkpoint, each tensor in the number format that it has in `base`, router biases in fp32;
    every other file comes from `base`, byte for byte. Adapters (`peft`) are merged into the weights of `start`, on
    which they were trained, or written as the package peft reads them, or both (`peft.export`). `start_sha256`: digest
    of a `start` that another program made.

    Raises:  InputError: the checkpoint's files do not match its manifest, or the logits differ from transformers'.
    """
    checkpoints.verify(checkpoint)
    if peft.name is not None:
        checkpoints.verify(start, start_sha256)
    with publish_folder(target) as partial, quiet():
        bridge, provider = config.model_of(base, weights=False)

        from megatron.bridge.training.model_load_save import build_and_load_model

        with processes.one_process(provider):
            weights = checkpoint if peft.name is None else start
            model = build_and_load_model(str(_weights_folder(weights)), provider, use_cpu_init=True)
            if peft.name is not None:
                model = _with_adapters(model, checkpoint, peft)
            if peft.name is None or peft.export != "adapter":
                conversion.save_weights(bridge, model, partial, base)
            if peft.name is not None and peft.export != "merged":
                folder = partial / "adapter" if peft.export == "both" else partial
                bridge.save_hf_adapter(model, folder, config.adapters(peft), BASE_NAME, show_progress=False)
            weight_files = {path for pattern in WEIGHT_FILES for path in base.glob(pattern)}
            for path in sorted(set(base.iterdir()) - weight_files):
                if path.is_file():
                    shutil.copyfile(path, partial / path.name)
            certificate = parity.certify(model[0], provider, partial, exact=False, base=base)
    imported = start / parity.FILE
    return {"import": read_json(imported) if imported.exists() else None, "export": certificate}


def _with_adapters(model: Any, checkpoint: Path, peft: p.Peft) -> Any:
    """Return a model with the adapters of a checkpoint that has nothing else."""
    from megatron.bridge.training.checkpointing import (
        _generate_model_state_dict,
        apply_peft_adapter_filter_to_state_dict,
    )
    from megatron.core import dist_checkpointing

    adapters = config.adapters(peft)
    model = adapters(model, training=False)
    adapters.set_params_to_save(model)
    expected = apply_peft_adapter_filter_to_state_dict(_generate_model_state_dict(model, {}), adapters)
    loaded = dist_checkpointing.load(expected, str(checkpoint))
    missing, unexpected = model[0].load_state_dict(loaded["model"], strict=False)
    if unexpected or any(".adapter." in name for name in missing):
        raise AssertionError(f"{checkpoint}: adapters do not fit: {unexpected} {missing}")
    return model


def _copy_validation_packs(packed: Path, run: Path, params: p.TrainParams) -> int:
    """Copy the first packs of the validation split to the run; return the number of batches of one validation.

    Bridge starts each validation where the last one stopped, so with more packs than one validation takes, their losses
    could not be compared.
    """
    batch = params.train.global_batch_size
    shards = sorted((packed / "validation").glob("*.parquet"))
    iterations: int = min(
        params.validation.eval_iters, sum(pq.read_metadata(shard).num_rows for shard in shards) // batch
    )
    copied: list[pa.RecordBatch] = []
    for rows in (rows for shard in shards for rows in pq.ParquetFile(shard).iter_batches(batch_size=batch)):
        missing = iterations * batch - sum(part.num_rows for part in copied)
        if missing <= 0:
            break
        copied.append(rows.slice(0, missing))
    with publish_folder(run / "validation") as folder:
        pq.write_table(pa.Table.from_batches(copied), folder / "packs.parquet")
    return iterations


def _weights_folder(start: Path) -> Path:
    """Return the folder of a step, which Bridge loads without its tracker file."""
    return start if start.name.startswith("iter_") else start / "iter_0000000"
