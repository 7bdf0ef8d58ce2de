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

import contextlib
import itertools
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.rendezvous import rendezvous

from sft.cli import InputError, Stopped, end_with_parent, num_threads
from sft.files import publish_folder, read_json, write_json
from sft.hashing import folder_digest, folder_digests, value_digest
from sft.params import training as p
from sft.planning import checks, estimate
from sft.planning.facts import Facts, gather_facts
from sft.training import checkpoints, config, conversion, divergence, manifests, parity
from sft.training.config import on_cpu, quiet
from sft.training.steps import Step

PARAMS = "params.json"  # in a run's folder: the training sections of params.yaml
BASE_DIGEST = "base.json"  # in an imported checkpoint: digest of the Hugging Face folder
BASE_NAME = "models/base"  # the base model of an adapter, as adapter_config.json names it
_GROUP_NUMBERS = itertools.count()  # of the process groups, which every rank creates in the same order
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
        _end_writers_with_this_process(async_save=False)
        bridge, provider = config.model_of(base, weights=True)
        with _one_process(provider):
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
    with _process_group():
        checkpoint = checkpoints.newest_intact(run, _digests, _broadcast)
        if checkpoint == checkpoints.iteration_folder(run, params.train.steps):
            return
        if checkpoint is None or params.peft.name is not None:
            digests = _digests(start)
            _broadcast(lambda: checkpoints.verify(start, params.checkpoint.pretrained_sha256, digests))
        callbacks = _Callbacks(
            run, packed, params.checkpoint, params.rng.seed, sys.stdout, on_step, on_validation, stop
        )
        if not on_cpu() and params.mixed_precision.name == "bf16_mixed":
            callbacks.peak = estimate.peak_flops(torch.cuda.get_device_name())
        with quiet(run / "logs" / "bridge.log"):
            _broadcast(lambda: write_json(run / PARAMS, params.model_dump()))
            _end_writers_with_this_process(params.checkpoint.async_save)
            eval_iters = params.validation.eval_iters
            if eval_iters:
                eval_iters = _broadcast(lambda: _copy_validation_packs(packed, run, params))
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
            earlier = _broadcast(lambda: [loss for step, loss in sorted((losses or {}).items()) if step <= done])
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

        with _one_process(provider):
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


def _end_writers_with_this_process(async_save: bool) -> None:
    """End the processes with which Megatron saves checkpoints when this process ends, also by a kill.

    Otherwise they outlive a kill and keep this process's output pipes open.
    """
    config.prepare_imports()  # before the first import of Megatron
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    if filesystem_async._results_queue is None:
        manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
        manager.start(end_with_parent)
        filesystem_async._results_queue = manager.Queue()
    if async_save:
        from megatron.core.dist_checkpointing.strategies.async_utils import PersistentAsyncCaller

        PersistentAsyncCaller.async_loop = staticmethod(_write_until_parent_ends)


def _write_until_parent_ends(*arguments: Any) -> None:
    """Run Megatron's loop that writes checkpoints, until the parent process ends."""
    end_with_parent()
    config.prepare_imports()
    from megatron.core.dist_checkpointing.strategies.async_utils import PersistentAsyncCaller

    PersistentAsyncCaller.async_loop(*arguments)


@contextlib.contextmanager
def _one_process(provider: Any) -> Iterator[None]:
    """Give Megatron a process group of this process alone, and remove it afterwards."""
    from megatron.bridge.training.initialize import destroy_global_state

    if on_cpu():  # a certificate has the same digits right after training and in a new process
        torch.set_num_threads(num_threads(len(os.sched_getaffinity(0))))
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        provider.finalize()
        provider.initialize_model_parallel(seed=1)
        yield
    finally:
        destroy_global_state()
        dist.destroy_process_group()


@contextlib.contextmanager
def _process_group() -> Iterator[None]:
    """Join torchrun's ranks, or be the only rank, without a port; divide the machine's cores among ranks."""
    store: Store = HashStore()
    rank, ranks = 0, 1
    if "RANK" in os.environ:
        store, rank, ranks = next(rendezvous("env://"))
        # torchrun's store outlives a group; keys of an old group would hang the next one.
        store = PrefixStore(f"sft-{next(_GROUP_NUMBERS)}", store)
    if on_cpu():
        cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(num_threads(max(1, cores)))
    else:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("gloo" if on_cpu() else "nccl", store=store, rank=rank, world_size=ranks)
    yield
    dist.destroy_process_group()  # not after an error: other ranks may wait in a collective


def _broadcast[T](decide: Callable[[], T]) -> T:
    """Return on every rank what the first rank decides."""
    decision = [decide() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(decision)
    return decision[0]  # type: ignore[return-value]


def _digests(checkpoint: Path) -> dict[str, str]:
    """Return on every rank the sha256 of each file of a checkpoint; each rank hashes a part of them."""
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, manifests.digests_of_rank(checkpoint, dist.get_rank(), len(parts)))
    return dict(sorted((name, digest) for part in parts for name, digest in part.items()))


@dataclass
class _Callbacks:
    """Bridge calls these on every rank; the first rank reports to the caller of `train`."""

    run: Path
    packed: Path
    params: p.Checkpoint
    seed: int
    terminal: TextIO
    on_step: Callable[[Step], None]
    on_validation: Callable[[int, float], None]
    stop: Path | None = None
    watch: divergence.Watch | None = None
    peak: float | None = None
    """Dense BF16 FLOP/s of a GPU, if known and the training is in BF16."""
    hashing: manifests.Background = field(
        default_factory=lambda: manifests.Background(dist.get_rank(), dist.get_world_size())
    )
    signals: Any = None
    saved_at: float = 0.0
    tokens: int = 0
    trained_tokens: int = 0
    samples: int = 0
    squares: int = 0
    packs: int = 0
    lr: float = 0.0
    started: float = 0.0
    last_validated: int = -1

    def register(self) -> Any:
        """Return Bridge's callback manager with these callbacks."""
        from megatron.bridge.training.callbacks import CallbackManager

        manager = CallbackManager()
        manager.register("on_train_start", self.on_train_start)
        manager.register("on_train_step_start", self.on_step_start)
        manager.register("on_train_step_end", self.on_step_end)
        manager.register("on_eval_end", self.on_validation_end)
        manager.register("on_train_end", self.on_train_end)
        manager.register("on_checkpoint_save", self.on_checkpoint_save)
        return manager

    def forward_step(self, state: Any, data_iterator: Any, model: Any, return_schedule_plan: bool = False) -> Any:
        """Run Bridge's forward step on one pack and count its tokens."""
        from megatron.bridge.training.gpt_step import forward_step

        if model.training and data_iterator is not None:
            data_iterator = self._count_tokens(data_iterator)
        if on_cpu() and data_iterator is not None and not model.config.sequence_parallel:
            from sft.training import cpu

            data_iterator = map(cpu.mark_untrained, data_iterator)
        if model.training:
            self._seed_draws(state.train_state.step, model)
        self.packs += 1
        return forward_step(state, data_iterator, model, return_schedule_plan)

    def _seed_draws(self, step: int, model: Any) -> None:
        """Let what a pack draws (dropout) follow from the seed, the step, the rank, and which of its packs it is.

        A checkpoint keeps the random state of one data-parallel rank for all; on a CPU the data loader, too, draws from
        it, at the start of an epoch and after a resume.
        """
        from megatron.bridge.training.utils.pg_utils import get_pg_collection
        from megatron.core import tensor_parallel
        from megatron.core.tensor_parallel.random import is_graph_safe_cuda_rng_tracker

        if is_graph_safe_cuda_rng_tracker(tensor_parallel.get_cuda_rng_tracker()):
            return  # CUDA graphs hold its generators: docs/known-issues.md, rank-dropout, graph-dropout
        groups = get_pg_collection(model)
        seeded_by = f"{self.seed}:{step}:{self.packs}:{groups.dp_cp.rank()}:{groups.pp.rank()}"
        tensor_parallel.model_parallel_cuda_manual_seed(int(value_digest(seeded_by)[:12], 16))

    def _count_tokens(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield batches unchanged and add up their tokens without padding, and the trained ones."""
        for batch in batches:
            self.tokens += sum(batch["token_count"])
            self.trained_tokens += int(batch["loss_mask"].sum())
            lengths = [  # where a layout needs packs of one length, Bridge's last sample is padding
                ends.clamp(max=count).diff()
                for ends, count in zip(batch["cu_seqlens_q"], batch["token_count"], strict=True)
            ]
            self.samples += sum(int((some > 0).sum()) for some in lengths)
            self.squares += sum(int((some**2).sum()) for some in lengths)
            if self.watch is not None:
                self.watch.see(batch)
            yield batch

    def on_train_start(self, context: Any) -> None:
        """Keep Bridge's handler of SIGTERM, and speed up the optimizer on a CPU."""
        self.signals, self.saved_at = context.state.signal_handler, time.monotonic()
        if on_cpu():
            from sft.training import cpu

            cpu.use_fused_adamw(context.optimizer)

    def on_step_start(self, context: Any) -> None:
        """Record the time, and the learning rate before the scheduler changes it."""
        self.tokens = self.trained_tokens = self.samples = self.squares = self.packs = 0
        self.started = time.perf_counter()
        if self.watch is not None:
            self.watch.begin_step()
        self.lr = context.optimizer.param_groups[0]["lr"]

    def on_step_end(self, context: Any) -> None:
        """Report the step."""
        from megatron.bridge.training.utils.pg_utils import get_pg_collection

        seconds = time.perf_counter() - self.started
        counts = torch.tensor([self.tokens, self.trained_tokens, self.samples, self.squares], device=_device())
        dist.all_reduce(counts, group=get_pg_collection(context.model).dp)
        memory = torch.tensor(_peak_memory(), device=_device())
        dist.all_reduce(memory, op=dist.ReduceOp.MAX)
        loss, grad_norm = _loss_of_last_stage(context, context.loss_dict), float(context.grad_norm)
        done, steps = context.state.train_state.step + 1, context.state.cfg.train
        if self.stop is not None and done < steps.train_iters and _broadcast(self.stop.exists):
            steps.exit_interval = done  # Bridge saves and exits after a step that this divides
        if (minutes := self.params.save_minutes) is not None:
            context.state.cfg.checkpoint.save_interval = self.save_interval(done, minutes)
        if dist.get_rank() == 0:
            with contextlib.redirect_stdout(self.terminal):
                tokens, trained, samples, squares = map(int, counts)
                flops = operations(context.state.cfg, tokens, samples, squares)
                mfu = flops / seconds / (dist.get_world_size() * self.peak) if self.peak else None
                self.on_step(
                    Step(done, loss, self.lr, grad_norm, tokens, trained, seconds, flops, mfu, int(memory.item()))
                )
        if self.watch is not None and (fault := self.watch.fault(loss, grad_norm)):
            raise InputError(self._divergence(done, fault))

    def save_interval(self, done: int, minutes: float) -> int:
        """Return the interval by which Bridge saves behind a step, if it is due by steps or by minutes."""
        is_due = _broadcast(lambda: time.monotonic() - self.saved_at >= minutes * 60)
        interval = done if is_due else self.params.save_interval
        if done % interval == 0:
            self.saved_at = time.monotonic()  # not at the end of the save: with async_save, steps come before it
        return interval

    @property
    def has_sigterm(self) -> bool:
        """Whether this rank got SIGTERM while it trained."""
        return self.signals is not None and self.signals._signal_received

    def release_signals(self) -> None:
        """Let SIGTERM end this process again."""
        if self.signals is not None:
            self.signals.release()

    def _divergence(self, step: int, fault: str) -> str:
        """Return the message of a step that diverged, the same on every rank."""
        assert self.watch is not None
        seen: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(seen, self.watch.seen())
        return _broadcast(
            lambda: divergence.message(
                step,
                fault,
                divergence.find_packs(self.packed, list(itertools.chain.from_iterable(seen))),
                checkpoints.last_finished_step(self.run),
            )
        )

    def on_validation_end(self, context: Any) -> None:
        """Record and report the loss of a validation."""
        self.last_validated = context.state.train_state.step
        loss = _loss_of_last_stage(context, context.total_loss_dict)
        if dist.get_rank() == 0:
            checkpoints.record_loss(self.run, self.last_validated, loss)
            with contextlib.redirect_stdout(self.terminal):
                self.on_validation(self.last_validated, loss)

    def on_train_end(self, context: Any) -> None:
        """Keep Bridge from validating the last step twice."""
        if self.last_validated == context.state.train_state.step:
            context.state.train_state.do_valid = False

    def on_checkpoint_save(self, context: Any) -> None:
        """Hash the new checkpoint in the background; then the first rank removes those that are not kept."""
        step = _broadcast(lambda: checkpoints.last_saved_step(self.run))
        checkpoint = checkpoints.iteration_folder(self.run, step)
        manifest = checkpoints.manifest_of(checkpoint)
        self.hashing.begin(
            checkpoint, manifest, lambda digests: checkpoints.finish_save(checkpoint, digests, self.params)
        )


def operations(container: Any, tokens: int, samples: int, squares: int) -> float:
    """Return the model FLOPs of a step as Bridge counts them: without padding, attention within each sample.

    `squares`: sum of the squared lengths of the samples. Frozen weights, under adapters, have no gradient of their own:
    two thirds of what a weight takes.
    """
    from megatron.bridge.training.utils.flop_utils import num_floating_point_operations

    def count(squares: int) -> float:  # by samples, so that a sliding window is compared with their mean length
        return float(num_floating_point_operations(container, samples, seqlen_sum=tokens, seqlen_squared_sum=squares))

    return count(squares) - (count(tokens) / 3 if container.peft is not None else 0.0)


def _loss_of_last_stage(context: Any, losses: dict[str, Any]) -> float:
    """Return the loss on every pipeline stage; Bridge gives it to the last one only."""
    from megatron.bridge.training.utils.pg_utils import get_pg_collection

    loss = torch.tensor(float(losses.get("lm loss", 0.0)), device=_device())
    dist.all_reduce(loss, group=get_pg_collection(context.model).pp)
    return loss.item()


def _peak_memory() -> float:
    """Return the most memory that this process has had: of its GPU, or resident on a CPU. In bytes."""
    if on_cpu():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    return float(torch.cuda.max_memory_allocated())


def _device() -> str:
    return "cpu" if on_cpu() else f"cuda:{torch.cuda.current_device()}"
