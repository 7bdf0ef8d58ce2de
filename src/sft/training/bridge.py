"""What Megatron-Bridge does for us: import, train, export. What it is told stands in sft.training.config.

Hugging Face folder -> `import_base` -> Megatron checkpoint -> `train` (Bridge's `finetune()`) ->
checkpoints of a run -> `export` -> Hugging Face folder. One process, or N under torchrun; a GPU, or the CPU
through `sft.training.cpu`.

Guarantees:
- A Megatron checkpoint is loaded only after its files agree with their manifest (sft.training.checkpoints).
- A killed run goes on from its newest whole checkpoint and sees every pack that an unbroken run sees, in
  the same order, with the same dropout, also across an epoch edge.
- The loss is the mean over the trained tokens of a step, whatever their distribution over packs and ranks.

A run's folder: checkpoints/iter_0000012/, manifests/iter_0000012.json, validation/, validation_losses.json,
params.json, logs/bridge.log.
"""

import contextlib
import itertools
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import default_generator
from torch._C._distributed_c10d import HashStore, PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from sft.cli import InputError, end_with_parent
from sft.files import publish_folder, read_json, write_json
from sft.hashing import folder_digest, folder_digests, value_digest
from sft.params import training as p
from sft.planning import checks
from sft.training import checkpoints, config
from sft.training.config import on_cpu, quiet
from sft.training.steps import Step

PARAMS = "params.json"  # in a run's folder: the train sections that it was made with
BASE_DIGEST = "base.json"  # within an imported checkpoint: which Hugging Face folder it was made of
_GROUPS = itertools.count()  # process groups of this process, in the order every rank makes them
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")


def import_base(*, base: Path, checkpoint: Path) -> None:
    """Convert a Hugging Face folder into the Megatron checkpoint `checkpoint`, in fp32; whole or not at all.

    Done before from the same base: nothing happens.

    Raises:  InputError: the checkpoint's files are not those that were written.
    """
    manifest = checkpoints.manifest_of(checkpoint)
    origin = {"base": folder_digest(base)}
    if manifest.exists():
        checkpoints.verify(checkpoint)
        if read_json(checkpoint / BASE_DIGEST) == origin:
            return
        manifest.unlink()
    with publish_folder(checkpoint) as partial, quiet():
        _tie_writers_to_this_process(async_save=False)
        bridge, provider = config.model_of(base, weights=True)
        with _one_process(provider):
            model = provider.provide_distributed_model(wrap_with_ddp=False, use_cpu_initialization=True)
            bridge.save_megatron_model(model, partial)
        write_json(partial / BASE_DIGEST, origin)
    write_json(manifest, folder_digests(checkpoint))


def check_origin(base: Path, start: Path) -> None:
    """Refuse a base model other than the one that an imported checkpoint was made of. Raises InputError."""
    if read_json(start / BASE_DIGEST)["base"] != folder_digest(base):
        raise InputError(
            f"{base}: is not the model that {start} was made of: a run of another model. Fetch that model again "
            "(git checkout of its params.yaml, then make fetch), or export from a copy of it."
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
) -> None:
    """Train from `start`, or from the newest whole checkpoint of `run`, to the last step.

    Args:
        base: Hugging Face folder: the geometry of the model and the tokenizer.
        start: Checkpoint of `import_base`, or another run's iter_* folder.
        packed: Folder with training/*.parquet and validation/*.parquet.
        run: Folder of the run; a complete run is left as it is.
        params: The train sections of params.yaml.
        pack_size: Longest pack, in tokens.
        on_step: Called after each step, on the first rank.
        on_validation: Called with the step and the loss over validation tokens, on the first rank.
        stop: As soon as this file is there, a checkpoint is saved and all ranks end, with status 0 (SystemExit).

    Raises:  InputError: params, packs, layout or checkpoint do not fit, said before anything is built.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    check(base=base, start=start, packed=packed, run=run, params=params, ranks=ranks)
    with _process_group():
        checkpoint = _everywhere(lambda: checkpoints.newest_whole(run))
        if checkpoint == checkpoints.iteration_folder(run, params.train.train_iters):
            return
        if checkpoint is None or params.peft.name is not None:
            _everywhere(lambda: checkpoints.verify(start))
        watch = _Watch(run, params.checkpoint, params.rng.seed, sys.stdout, on_step, on_validation, stop)
        with quiet(run / "logs" / "bridge.log"):
            _everywhere(lambda: write_json(run / PARAMS, params.model_dump()))
            _tie_writers_to_this_process(params.checkpoint.async_save)
            eval_iters = params.validation.eval_iters
            if eval_iters:
                eval_iters = _everywhere(lambda: _take_validation(packed, run, params))
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

            from megatron.bridge.training.finetune import finetune

            finetune(container, watch.forward_step, callbacks=watch.callbacks())


def check(
    *,
    base: Path,
    start: Path | None,
    packed: Path,
    run: Path,
    params: p.TrainParams,
    ranks: int,
    on_gpu: bool | None = None,
) -> None:
    """Refuse what would fail or train something else, before anything is built. Raises InputError with the reasons.

    `start`: a checkpoint that is there already; None, or one made of the base, needs no look into it.
    `on_gpu`: whether GPUs train, where it is not this machine that does.
    """
    elsewhere = on_gpu is not None and on_gpu == on_cpu()
    on_gpu = not on_cpu() if on_gpu is None else on_gpu
    with quiet():
        _, provider = config.model_of(base, weights=False, on_gpu=on_gpu)
        geometry = start_geometry = config.geometry_of(provider)
    if params.checkpoint.pretrained_checkpoint and start is not None:
        if fault := checkpoints.fault_of(start):
            raise InputError(
                f"params.yaml: checkpoint.pretrained_checkpoint: {start}: {fault}. Taken is a checkpoint of a run of "
                "this project, runs/<lineage key>/checkpoints/iter_<step>, which has a manifest. One from elsewhere "
                "could run code when it is loaded: export it where it was made to a Hugging Face folder, and name that "
                "in fetch.model."
            )
        made_with = start.parent.parent / PARAMS
        if made_with.exists() and read_json(made_with)["peft"]["name"] is not None:
            raise InputError(
                f"params.yaml: checkpoint.pretrained_checkpoint: {start}: holds adapters alone, without the weights "
                "they are of. Export that step (make export RUN= STEP=), which merges them, and name the folder in "
                "fetch.model."
            )
        start_geometry = config.geometry_of_checkpoint(_weights_folder(start))
    checks.check_training(
        params,
        checks.gather_facts(
            packed=packed,
            base=base,
            run=run,
            start=start,
            ranks=ranks,
            on_gpu=on_gpu,
            geometry=geometry,
            start_geometry=start_geometry,
            gpu_memory=None if elsewhere or not on_gpu else float(torch.cuda.get_device_properties(0).total_memory),
        ),
    )


def export(*, checkpoint: Path, base: Path, target: Path, start: Path, peft: p.Peft) -> None:
    """Write a trained checkpoint as a Hugging Face folder.

    Weights come from the checkpoint, in the one number format of `base` (in fp32 where that has several), every
    other file from `base`, byte for byte. Adapters (`peft`) are added to the weights of `start`, which they were
    trained on.

    Raises:  InputError: the checkpoint's files are not those that were written.
    """
    checkpoints.verify(checkpoint)
    if peft.name is not None:
        checkpoints.verify(start)
    with publish_folder(target) as partial, quiet():
        bridge, provider = config.model_of(base, weights=False)

        from megatron.bridge.training.model_load_save import build_and_load_model

        with _one_process(provider):
            weights = checkpoint if peft.name is None else start
            model = build_and_load_model(str(_weights_folder(weights)), provider, use_cpu_init=True)
            if peft.name is not None:
                model = _with_adapters(model, checkpoint, peft)
            bridge.save_hf_weights(model, partial, show_progress=False, weight_dtype=config.weight_type(base))
        weight_files = {path for pattern in WEIGHT_FILES for path in base.glob(pattern)}
        for path in sorted(set(base.iterdir()) - weight_files):
            if path.is_file():
                shutil.copyfile(path, partial / path.name)


def _with_adapters(model: Any, checkpoint: Path, peft: p.Peft) -> Any:
    """Give a model of base weights its adapters, with the weights of a checkpoint that holds them alone."""
    from megatron.bridge.training.checkpointing import (
        _generate_model_state_dict,
        apply_peft_adapter_filter_to_state_dict,
    )
    from megatron.core import dist_checkpointing

    adapters = config.adapters(peft)
    model = adapters(model, training=False)
    adapters.set_params_to_save(model)
    wanted = apply_peft_adapter_filter_to_state_dict(_generate_model_state_dict(model, {}), adapters)
    loaded = dist_checkpointing.load(wanted, str(checkpoint))
    missing, unexpected = model[0].load_state_dict(loaded["model"], strict=False)
    if unexpected or any(".adapter." in name for name in missing):
        raise AssertionError(f"{checkpoint}: adapters do not fit: {unexpected} {missing}")
    return model


def _take_validation(packed: Path, run: Path, params: p.TrainParams) -> int:
    """Copy the packs of one validation to the run, the first of the split; return how many batches they are.

    Bridge goes on where the last validation stopped. With more packs than one takes, each would be over other
    packs, and their losses could not be compared.
    """
    batch = params.train.global_batch_size
    shards = sorted((packed / "validation").glob("*.parquet"))
    iterations: int = min(
        params.validation.eval_iters, sum(pq.read_metadata(shard).num_rows for shard in shards) // batch
    )
    taken: list[pa.RecordBatch] = []
    for rows in (rows for shard in shards for rows in pq.ParquetFile(shard).iter_batches(batch_size=batch)):
        missing = iterations * batch - sum(part.num_rows for part in taken)
        if missing <= 0:
            break
        taken.append(rows.slice(0, missing))
    with publish_folder(run / "validation") as folder:
        pq.write_table(pa.Table.from_batches(taken), folder / "packs.parquet")
    return iterations


def _weights_folder(start: Path) -> Path:
    """Name the folder that Bridge loads: it takes the one of a step without looking for its tracker file."""
    return start if start.name.startswith("iter_") else start / "iter_0000000"


def _tie_writers_to_this_process(async_save: bool) -> None:
    """Let the processes that Megatron starts to save a checkpoint end with this one, however this one ends.

    Started by Megatron they would outlive a kill, and hold open the pipes that others read this one's output from.
    """
    config.ready()  # before the first import of Megatron
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    if filesystem_async._results_queue is None:
        manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
        manager.start(end_with_parent)
        filesystem_async._results_queue = manager.Queue()
    if async_save:
        from megatron.core.dist_checkpointing.strategies.async_utils import PersistentAsyncCaller

        PersistentAsyncCaller.async_loop = staticmethod(_write_until_parent_ends)


def _write_until_parent_ends(*arguments: Any) -> None:
    """Run Megatron's loop that writes checkpoints in a process of its own; ends with the one that started it."""
    end_with_parent()
    config.ready()
    from megatron.core.dist_checkpointing.strategies.async_utils import PersistentAsyncCaller

    PersistentAsyncCaller.async_loop(*arguments)


@contextlib.contextmanager
def _one_process(provider: Any) -> Iterator[None]:
    """Give Megatron the process group it insists on, of this process alone; leave nothing behind."""
    from megatron.bridge.training.initialize import destroy_global_state

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
    """Join torchrun's ranks, or be the only one, without a port; share the machine's cores among them."""
    store: Store = HashStore()
    rank, ranks = 0, 1
    if "RANK" in os.environ:
        store, rank, ranks = next(rendezvous("env://"))
        # torchrun's store outlives a group, and keys left by one group would hang the next.
        store = PrefixStore(f"sft-{next(_GROUPS)}", store)
    if on_cpu():
        cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", max(1, cores))))
    else:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("gloo" if on_cpu() else "nccl", store=store, rank=rank, world_size=ranks)
    yield
    dist.destroy_process_group()  # not after an error: other ranks may be waiting in a collective


def _everywhere[T](decide: Callable[[], T]) -> T:
    """Let the first rank decide, and tell the others."""
    decision = [decide() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(decision)
    return decision[0]  # type: ignore[return-value]


@dataclass
class _Watch:
    """What is seen of a run from outside: Bridge calls its hooks on every rank, the first tells the caller."""

    run: Path
    rules: p.Checkpoint
    seed: int
    terminal: TextIO
    on_step: Callable[[Step], None]
    on_validation: Callable[[int, float], None]
    stop: Path | None = None
    tokens: int = 0
    packs: int = 0
    lr: float = 0.0
    started: float = 0.0
    validated: int = -1

    def callbacks(self) -> Any:
        """Register the hooks under Bridge's names."""
        from megatron.bridge.training.callbacks import CallbackManager

        manager = CallbackManager()
        manager.register("on_train_start", self.training_starts)
        manager.register("on_train_step_start", self.step_starts)
        manager.register("on_train_step_end", self.step_ends)
        manager.register("on_eval_end", self.validation_ends)
        manager.register("on_train_end", self.training_ends)
        manager.register("on_checkpoint_save", self.saved)
        return manager

    def forward_step(self, state: Any, data_iterator: Any, model: Any, return_schedule_plan: bool = False) -> Any:
        """Bridge's own step on one pack, whose real tokens are counted."""
        from megatron.bridge.training.gpt_step import forward_step

        if model.training and data_iterator is not None:
            data_iterator = self.counted(data_iterator)
        if on_cpu() and data_iterator is not None and not model.config.sequence_parallel:
            from sft.training import cpu

            data_iterator = map(cpu.mark_untrained, data_iterator)
        if model.training and on_cpu():
            # On a GPU dropout has a generator of its own. Here it shares one with the data loader, which
            # draws from it whenever it starts over: at an epoch edge, and after a resume.
            place = f"{self.seed}:{state.train_state.step}:{self.packs}"
            default_generator.manual_seed(int(value_digest(place)[:12], 16))
        self.packs += 1
        return forward_step(state, data_iterator, model, return_schedule_plan)

    def counted(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Pass batches on, adding up their tokens without padding."""
        for batch in batches:
            self.tokens += sum(batch["token_count"])
            yield batch

    def training_starts(self, context: Any) -> None:
        """Make the most of a CPU."""
        if on_cpu():
            from sft.training import cpu

            cpu.fuse(context.optimizer)

    def step_starts(self, context: Any) -> None:
        """Note the time, and the learning rate before the scheduler moves it on."""
        self.tokens, self.packs, self.started = 0, 0, time.perf_counter()
        self.lr = context.optimizer.param_groups[0]["lr"]

    def step_ends(self, context: Any) -> None:
        """Report the step."""
        from megatron.bridge.training.utils.pg_utils import get_pg_collection

        seconds = time.perf_counter() - self.started
        tokens = torch.tensor(self.tokens, device=_device())
        dist.all_reduce(tokens, group=get_pg_collection(context.model).dp)
        loss = _of_last_stage(context, context.loss_dict)
        done, steps = context.state.train_state.step + 1, context.state.cfg.train
        if self.stop is not None and done < steps.train_iters and _everywhere(self.stop.exists):
            steps.exit_interval = done  # Bridge saves and ends behind a step that this divides
        if dist.get_rank() == 0:
            with contextlib.redirect_stdout(self.terminal):
                self.on_step(Step(done, loss, self.lr, float(context.grad_norm), int(tokens), seconds))

    def validation_ends(self, context: Any) -> None:
        """Report the loss over the validation batches."""
        self.validated = context.state.train_state.step
        loss = _of_last_stage(context, context.total_loss_dict)
        if dist.get_rank() == 0:
            checkpoints.note_loss(self.run, self.validated, loss)
            with contextlib.redirect_stdout(self.terminal):
                self.on_validation(self.validated, loss)

    def training_ends(self, context: Any) -> None:
        """Keep Bridge from validating the last step a second time."""
        if self.validated == context.state.train_state.step:
            context.state.train_state.do_valid = False

    def saved(self, context: Any) -> None:
        """Tell what the checkpoint that was just saved consists of, and remove those that are not kept."""
        if dist.get_rank() == 0:
            checkpoints.keep(self.run, checkpoints.written(self.run), self.rules)


def _of_last_stage(context: Any, losses: dict[str, Any]) -> float:
    """Return the loss, which only the last stage of a pipeline knows, on every stage."""
    from megatron.bridge.training.utils.pg_utils import get_pg_collection

    loss = torch.tensor(float(losses.get("lm loss", 0.0)), device=_device())
    dist.all_reduce(loss, group=get_pg_collection(context.model).pp)
    return loss.item()


def _device() -> str:
    return "cpu" if on_cpu() else f"cuda:{torch.cuda.current_device()}"
