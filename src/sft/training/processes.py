"""The processes of a training: their group, what they agree on, and the writers of checkpoints that end with them."""

import contextlib
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from sft.cli import end_with_parent, num_threads
from sft.training import config, manifests
from sft.training.config import on_cpu

_GROUP_NUMBERS = itertools.count()  # of the process groups, which every rank creates in the same order


def end_writers_with_this_process(async_save: bool) -> None:
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
def one_process(provider: Any) -> Iterator[None]:
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
def process_group() -> Iterator[None]:
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


def broadcast[T](decide: Callable[[], T]) -> T:
    """Return on every rank what the first rank decides."""
    decision = [decide() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(decision)
    return decision[0]  # type: ignore[return-value]


def digests_on_every_rank(checkpoint: Path) -> dict[str, str]:
    """Return on every rank the sha256 of each file of a checkpoint; each rank hashes a part of them."""
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, manifests.digests_of_rank(checkpoint, dist.get_rank(), len(parts)))
    return dict(sorted((name, digest) for part in parts for name, digest in part.items()))
