"""Sequence and context parallel of Megatron on a machine without a GPU. Beside sft.training.cpu.

Ranks that share a sequence need from Megatron-Core 0.19.2 what only Transformer Engine gives it:

| expected | in | instead |
|---|---|---|
| a norm whose gradient is summed over those ranks | core/transformer/torch_norm.py:46 | `norm` |
| transformer_engine_torch: the tokens of a rank of a batch | core/utils.py:2441 | `partition` |
| ... and of a Mamba layer | core/ssm/mamba_context_parallel.py:392, 430 | `partition` |
| attention over the tokens of all ranks | core/extensions/transformer_engine.py, as a ring | `attend_over_ranks` |

Attention gathers the whole pack on every rank: slow, and the same numbers as the ring.
"""

import itertools
import types
from collections.abc import Callable
from typing import Any

import torch

NORMS = {"RMSNorm": torch.nn.RMSNorm, "LayerNorm": torch.nn.LayerNorm}


def norm(config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> torch.nn.Module:
    """Return PyTorch's norm for a Megatron config; its gradient is summed over ranks that share a sequence."""
    module: torch.nn.Module = NORMS[config.normalization](hidden_size, eps=eps, dtype=config.params_dtype)
    for parameter in module.parameters():
        parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
    return module


def partition(ends: torch.Tensor, tokens: int, ranks: int, rank: int) -> torch.Tensor:
    """Return the places in a pack that a context-parallel rank computes, int32 [tokens / ranks].

    Each sample is cut into 2 x ranks parts; a rank takes one from the front and one from the back, because the later
    a token, the more it attends to. Transformer Engine's thd_get_partitioned_indices.

    >>> partition(torch.tensor([0, 4, 12]), 12, 2, 0).tolist()
    [0, 3, 4, 5, 10, 11]

    Args:
        ends: First token of each sample, and the end of the last [samples + 1].
        tokens: Length of the pack.
        ranks: Context-parallel size.
        rank: The rank in its group.
    """
    places = []
    for begin, end in itertools.pairwise(ends.tolist()):
        size, rest = divmod(end - begin, 2 * ranks)
        if rest:
            raise AssertionError(f"a sample of {end - begin} tokens is not divided by {2 * ranks}")
        for part in (rank, 2 * ranks - 1 - rank):
            places.append(torch.arange(begin + part * size, begin + (part + 1) * size, dtype=torch.int32))
    if sum(map(len, places)) * ranks != tokens:
        raise AssertionError(f"samples end at {ends[-1]}, the pack has {tokens} tokens")
    return torch.cat(places)


def install() -> None:
    """Redirect what the table above lists, once per process."""
    from megatron.core import utils
    from megatron.core.models import backends
    from megatron.core.models.gpt import gpt_layer_specs
    from megatron.core.ssm import mamba_context_parallel
    from megatron.core.transformer import transformer_block

    backends.WrappedTorchNorm = backends.LNImpl = norm
    gpt_layer_specs.LNImpl = transformer_block.LayerNormImpl = norm
    utils.tex = mamba_context_parallel.tex = types.SimpleNamespace(thd_get_partitioned_indices=partition)
    mamba_context_parallel.is_te_min_version = lambda *_, **__: True


def attend_over_ranks(
    attend: Callable[..., torch.Tensor], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor
) -> torch.Tensor:
    """Return attention [t, h*d] of this rank's tokens of a pack to the tokens of all context-parallel ranks.

    Args:
        attend: Attention within the samples of a whole pack: (query, key, value, ends) -> [t * ranks, h*d].
        query: Of this rank [t, h, d].
        key: Of this rank [t, g, d].
        value: Of this rank [t, g, d].
        ends: As in `partition`.
    """
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

    group = parallel_state.get_context_parallel_group()
    ranks = group.size()
    parts = [partition(ends, len(query) * ranks, ranks, rank).long() for rank in range(ranks)]
    order = torch.cat(parts).argsort()
    whole = [
        gather_from_sequence_parallel_region(x.contiguous(), tensor_parallel_output_grad=True, group=group)[order]
        for x in (query, key, value)
    ]
    return attend(*whole, ends)[parts[group.rank()]]
