"""The only module that talks to Megatron-Bridge: import, train, export.

Hugging Face folder -> `import_base` -> Megatron checkpoint -> `train` (Bridge's `finetune()`) ->
checkpoints of a run -> `export` -> Hugging Face folder. One process, or N under torchrun; a GPU, or the CPU
through `sft.model.cpu`, which is imported nowhere else and only where there is no GPU.

Guarantees:
- A Megatron checkpoint is loaded only after its files agree with their manifest (sft.model.checkpoints).
- A killed run goes on from its newest whole checkpoint and sees every pack that an unbroken run sees, in
  the same order, with the same dropout, also across an epoch edge.
- The loss is the mean over the trained tokens of a step, whatever their distribution over packs and ranks.

A run's folder: checkpoints/iter_0000012/, manifests/iter_0000012.json, validation/, logs/bridge.log.
"""

import contextlib
import itertools
import logging
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

from sft.command import end_with_parent
from sft.files import folder_digest, folder_digests, publish_folder, read_json, value_digest, write_json
from sft.model import checkpoints, refusals

BASE_DIGEST = "base.json"  # within an imported checkpoint: which Hugging Face folder it was made of
PROBES = ("megatron.bridge.utils.import_utils", "torch.utils.cpp_extension")  # loggers: "FP8… failed", "No CUDA"
_GROUPS = itertools.count()  # process groups of this process, in the order every rank makes them
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")


@dataclass(frozen=True)
class Step:
    """What one optimizer step reports."""

    iteration: int
    """1 for the first step."""
    loss: float
    """Mean over the trained tokens of the step, before its update."""
    lr: float
    """Learning rate of its update."""
    grad_norm: float
    """Of all gradients, before clipping."""
    tokens: int
    """Tokens that went through the model, over all ranks, without padding."""
    seconds: float


def import_base(*, base: Path, checkpoint: Path) -> None:
    """Convert a Hugging Face folder into the Megatron checkpoint `checkpoint`, in fp32; whole or not at all.

    Done before from the same base: nothing happens. Under torchrun the first rank works and the others wait.

    Raises:  InputError: the checkpoint's files are not those that were written.
    """
    manifest = checkpoints.manifest_of(checkpoint)
    if _rank() != 0:
        while not manifest.exists():
            time.sleep(0.5)
        return
    origin = {"base": folder_digest(base)}
    if manifest.exists():
        checkpoints.verify(checkpoint)
        if read_json(checkpoint / BASE_DIGEST) == origin:
            return
        manifest.unlink()
    with publish_folder(checkpoint) as partial, _quiet():
        bridge, provider = _model(base, weights=True)
        with _one_process(provider):
            model = provider.provide_distributed_model(wrap_with_ddp=False, use_cpu_initialization=True)
            bridge.save_megatron_model(model, partial)
        write_json(partial / BASE_DIGEST, origin)
    write_json(manifest, folder_digests(checkpoint))


def train(
    *,
    base: Path,
    start: Path,
    packed: Path,
    run: Path,
    params: refusals.TrainParams,
    pack_size: int,
    on_step: Callable[[Step], None],
    on_validation: Callable[[int, float], None],
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

    Raises:  InputError: params, packs, layout or checkpoint do not fit, said before anything is built.
    """
    refusals.check(packed=packed, params=params)
    with _process_group():
        checkpoint = _everywhere(lambda: checkpoints.newest_whole(run))
        if checkpoint == checkpoints.iteration_folder(run, params.train.train_iters):
            return
        if checkpoint is None:
            _everywhere(lambda: checkpoints.verify(start))
        keep, seed = params.checkpoint.most_recent_k, params.rng.seed
        watch = _Watch(run, keep, seed, sys.stdout, on_step, on_validation)
        with _quiet(run / "logs" / "bridge.log"):
            _tie_writer_to_this_process()
            eval_iters = params.validation.eval_iters
            if eval_iters:
                eval_iters = _everywhere(lambda: _take_validation(packed, run, params))
            config = _config(base, start, packed, run, params, pack_size, checkpoint, eval_iters)

            from megatron.bridge.training.finetune import finetune

            finetune(config, watch.forward_step, callbacks=watch.callbacks())


def export(*, checkpoint: Path, base: Path, target: Path) -> None:
    """Write a trained checkpoint as a Hugging Face folder; under torchrun only the first rank does.

    Weights come from the checkpoint, every other file from `base`, byte for byte.

    Raises:  InputError: the checkpoint's files are not those that were written.
    """
    if _rank() != 0:
        return
    checkpoints.verify(checkpoint)
    with publish_folder(target) as partial, _quiet():
        bridge, provider = _model(base, weights=False)

        from megatron.bridge.training.model_load_save import build_and_load_model

        with _one_process(provider):
            model = build_and_load_model(str(_weights_folder(checkpoint)), provider, use_cpu_init=True)
            bridge.save_hf_weights(model, partial, show_progress=False)
        weights = {path for pattern in WEIGHT_FILES for path in base.glob(pattern)}
        for path in sorted(set(base.iterdir()) - weights):
            if path.is_file():
                shutil.copyfile(path, partial / path.name)


def _take_validation(packed: Path, run: Path, params: refusals.TrainParams) -> int:
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


def _on_cpu() -> bool:
    return not torch.cuda.is_available()


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _ready() -> None:
    """Make megatron.bridge importable on this machine, without the harmless probes it logs."""
    from transformers.utils import logging as transformers_logging

    for name in PROBES:
        logging.getLogger(name).disabled = True
    transformers_logging.set_verbosity_error()  # deprecations in how Bridge calls it
    if _on_cpu():
        from sft.model import cpu

        cpu.install()
    _skip_helper_build()


def _tie_writer_to_this_process() -> None:
    """Let the process that Megatron starts to collect what was saved end with this one, however this one ends.

    Started by Megatron it would outlive a kill, and hold open the pipes that others read this one's output from.
    """
    _ready()  # before the first import of Megatron
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    if filesystem_async._results_queue is None:
        manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
        manager.start(end_with_parent)
        filesystem_async._results_queue = manager.Queue()


def _skip_helper_build() -> None:
    """Keep Bridge from calling `make` for a helper that the wheel brings compiled, without its Makefile."""
    from megatron.bridge.training import initialize
    from megatron.core import datasets

    if not (Path(datasets.__path__[0]) / "Makefile").exists():
        initialize.compile_helpers = lambda: None


def _model(base: Path, *, weights: bool) -> tuple[Any, Any]:
    """Return Bridge's view of the Hugging Face folder, and the provider of the same model in Megatron."""
    _ready()
    from megatron.bridge import AutoBridge

    bridge = AutoBridge.from_hf_pretrained(str(base), dtype=torch.float32)
    provider = bridge.to_megatron_provider(load_weights=weights)
    provider.bf16 = provider.fp16 = False
    provider.params_dtype = provider.pipeline_dtype = provider.autocast_dtype = torch.float32
    if _on_cpu():
        from sft.model import cpu

        cpu.configure(provider)
    return bridge, provider


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
    if _on_cpu():
        cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", max(1, cores))))
    else:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("gloo" if _on_cpu() else "nccl", store=store, rank=rank, world_size=ranks)
    yield
    dist.destroy_process_group()  # not after an error: other ranks may be waiting in a collective


def _everywhere[T](decide: Callable[[], T]) -> T:
    """Let the first rank decide, and tell the others."""
    decision = [decide() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(decision)
    return decision[0]  # type: ignore[return-value]


@contextlib.contextmanager
def _quiet(log: Path = Path(os.devnull)) -> Iterator[None]:
    """Send what Bridge prints and warns of to a file, or nowhere; errors reach the terminal too."""
    log.parent.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger()
    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        to_file, to_terminal = logging.StreamHandler(file), logging.StreamHandler(sys.stderr)
        to_terminal.setLevel(logging.ERROR)
        before = root.handlers
        root.handlers = [to_file, to_terminal]
        root.setLevel(logging.WARNING)
        logging.captureWarnings(True)
        try:
            yield
        finally:
            logging.captureWarnings(False)
            root.handlers = before


def _config(
    base: Path,
    start: Path,
    packed: Path,
    run: Path,
    params: refusals.TrainParams,
    pack_size: int,
    checkpoint: Path | None,
    eval_iters: int,
) -> Any:
    """Build Bridge's ConfigContainer: params.yaml section by section, and what this program decides."""
    _, provider = _model(base, weights=False)
    from megatron.bridge.data.packing.config import PackedSequenceSpecs
    from megatron.bridge.training import config as c
    from megatron.bridge.training.tokenizers.config import TokenizerConfig

    for name, value in params.model:
        setattr(provider, name, value)
    provider.seq_length = pack_size
    provider.calculate_per_token_loss = True
    context_parallel = params.model.context_parallel_size
    # With stages of a pipeline or parts of a sample on several ranks, all must expect one length.
    fixed_length = context_parallel > 1 or params.model.pipeline_model_parallel_size > 1
    optimizer, steps = params.optimizer, params.train
    shard_optimizer = not _on_cpu()
    return c.ConfigContainer(
        model=provider,
        mixed_precision=None if params.mixed_precision.name == "fp32" else params.mixed_precision.name,
        train=c.TrainingConfig(
            train_iters=steps.train_iters,
            global_batch_size=steps.global_batch_size,
            micro_batch_size=steps.micro_batch_size,
        ),
        validation=c.ValidationConfig(eval_interval=params.validation.eval_interval, eval_iters=eval_iters),
        optimizer=c.OptimizerConfig(
            optimizer="adam",
            **optimizer.model_dump(),
            use_distributed_optimizer=shard_optimizer,
            params_dtype=torch.float32,
        ),
        ddp=c.DistributedDataParallelConfig(
            use_distributed_optimizer=shard_optimizer, grad_reduce_in_fp32=True, average_in_collective=False
        ),
        scheduler=c.SchedulerConfig(
            lr_decay_style=params.scheduler.lr_decay_style,
            lr_warmup_iters=params.scheduler.lr_warmup_iters,
            lr_decay_iters=params.scheduler.lr_decay_iters or steps.train_iters,
            start_weight_decay=optimizer.weight_decay,
            end_weight_decay=optimizer.weight_decay,
            weight_decay_incr_style="constant",
            override_opt_param_scheduler=True,
        ),
        dataset=c.GPTSFTDatasetConfig(
            dataset_root=str(run),  # Bridge makes folders below it even where every path is given
            seq_length=pack_size,
            seed=params.rng.seed,
            dataloader_type="batch",
            num_workers=0 if _on_cpu() else 2,
            memmap_workers=1,
            pin_memory=not _on_cpu(),
            enable_offline_packing=True,
            offline_packing_specs=PackedSequenceSpecs(
                packed_sequence_size=pack_size,
                packed_train_data_path=str(packed / "training"),
                packed_val_data_path=str(run / "validation") if eval_iters else None,
                packed_metadata_path=str(packed / "metadata.json"),
                pad_seq_to_mult=2 * context_parallel if context_parallel > 1 else 1,
            ),
            dataset_kwargs={"pad_to_max_length": True} if fixed_length else None,
            do_validation=eval_iters > 0,
            do_test=False,
        ),
        logger=c.LoggerConfig(
            skip_train_metrics_log=True,
            log_throughput=False,
            logging_level=logging.WARNING,
            tensorboard_dir=None,
        ),
        tokenizer=TokenizerConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(base)),
        checkpoint=c.CheckpointConfig(
            pretrained_checkpoint=str(_weights_folder(start)),
            load=None if checkpoint is None else str(checkpoint),
            save=str(run / "checkpoints"),
            save_interval=params.checkpoint.save_interval,
            most_recent_k=-1,  # old ones are removed by _Watch, with their manifests
            ckpt_format="torch_dist",
            async_save=False,
            fully_parallel_save=shard_optimizer,
        ),
        dist=c.DistributedInitConfig(distributed_backend=dist.get_backend(), disable_jit_fuser=_on_cpu()),
        rng=c.RNGConfig(seed=params.rng.seed),
    )


@dataclass
class _Watch:
    """What is seen of a run from outside: Bridge calls its hooks on every rank, the first tells the caller."""

    run: Path
    keep: int
    seed: int
    terminal: TextIO
    on_step: Callable[[Step], None]
    on_validation: Callable[[int, float], None]
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
        if _on_cpu() and data_iterator is not None and not model.config.sequence_parallel:
            from sft.model import cpu

            data_iterator = map(cpu.mark_untrained, data_iterator)
        if model.training and _on_cpu():
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
        if _on_cpu():
            from sft.model import cpu

            cpu.fuse(context.optimizer)

    def step_starts(self, context: Any) -> None:
        """Note the time, and the learning rate before the scheduler moves it on."""
        self.tokens, self.packs, self.started = 0, 0, time.perf_counter()
        self.lr = context.optimizer.param_groups[0]["lr"]

    def step_ends(self, context: Any) -> None:
        """Report the step."""
        seconds = time.perf_counter() - self.started
        from megatron.bridge.training.utils.pg_utils import get_pg_collection

        groups = get_pg_collection(context.model)
        device = "cpu" if _on_cpu() else torch.device("cuda", torch.cuda.current_device())
        tokens = torch.tensor(self.tokens, device=device)
        dist.all_reduce(tokens, group=groups.dp)
        loss = torch.tensor(float(context.loss_dict.get("lm loss", 0.0)), device=device)
        dist.all_reduce(loss, group=groups.pp)  # only the last stage knows it
        if dist.get_rank() == 0:
            iteration = context.state.train_state.step + 1
            with contextlib.redirect_stdout(self.terminal):
                self.on_step(Step(iteration, loss.item(), self.lr, float(context.grad_norm), int(tokens), seconds))

    def validation_ends(self, context: Any) -> None:
        """Report the loss over the validation batches."""
        self.validated = context.state.train_state.step
        if dist.get_rank() == 0:
            with contextlib.redirect_stdout(self.terminal):
                self.on_validation(self.validated, float(context.total_loss_dict["lm loss"]))

    def training_ends(self, context: Any) -> None:
        """Keep Bridge from validating the last step a second time."""
        if self.validated == context.state.train_state.step:
            context.state.train_state.do_valid = False

    def saved(self, context: Any) -> None:
        """Tell what the checkpoint that was just saved consists of, and remove the oldest."""
        if dist.get_rank() == 0:
            checkpoints.keep(self.run, context.state.train_state.step, self.keep)
