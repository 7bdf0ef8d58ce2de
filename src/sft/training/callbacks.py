"""What happens around each step of a training: its tokens are counted, it is reported, checked and saved.

Megatron-Bridge calls these on every rank. They use its internals: a new release of Bridge can change them.
"""

import contextlib
import itertools
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist

from sft.cli import InputError
from sft.hashing import value_digest
from sft.params import training as p
from sft.training import checkpoints, divergence, manifests, processes
from sft.training.config import on_cpu
from sft.training.steps import Step


@dataclass
class Callbacks:
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
        if self.stop is not None and done < steps.train_iters and processes.broadcast(self.stop.exists):
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
        is_due = processes.broadcast(lambda: time.monotonic() - self.saved_at >= minutes * 60)
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
        return processes.broadcast(
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
        step = processes.broadcast(lambda: checkpoints.last_saved_step(self.run))
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
