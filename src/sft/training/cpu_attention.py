"""Attention within the samples of a pack, on a machine without a GPU. Beside sft.training.cpu."""

import contextlib
import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from sft.training import cpu_parallel


class PackedAttention(torch.nn.Module):
    """Causal attention within each sample of a pack; Megatron's own asks for TEDotProductAttention.

    Shapes: t tokens of the pack, s and b sequence and batch, h query heads, g key-value heads, d per head.
    """

    def __init__(
        self,
        config: Any,
        *_: Any,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        **__: Any,
    ) -> None:
        super().__init__()
        self.scale = softmax_scale or 1 / math.sqrt(config.kv_channels)
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.context_parallel = config.context_parallel_size > 1

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Any = None,
        packed_seq_params: Any = None,
        **_: Any,
    ) -> torch.Tensor:
        """Return the context: [t, h*d] of a pack [t, h, d], [s, b, h*d] of plain sequences [s, b, h, d]."""
        if packed_seq_params is None:
            attended = self._attend(*(x.permute(1, 2, 0, 3) for x in (query, key, value)))
            return attended.permute(2, 0, 1, 3).flatten(-2)
        ends = packed_seq_params.cu_seqlens_q_padded
        ends = packed_seq_params.cu_seqlens_q if ends is None else ends
        if self.context_parallel:
            return cpu_parallel.attend_over_ranks(self._attend_packed, query, key, value, ends)
        return self._attend_packed(query, key, value, ends)

    def _attend_packed(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor
    ) -> torch.Tensor:
        """[t, h, d], key and value [t, g, d], first tokens of the samples and the end -> [t, h*d]."""
        lengths = [length for length in ends.diff().tolist() if length]  # Bridge pads with empty segments
        samples = zip(*(x.transpose(0, 1).split(lengths, dim=1) for x in (query, key, value)), strict=True)
        context = [self._attend(q[None], k[None], v[None])[0].transpose(0, 1) for q, k, v in samples]
        return torch.cat(context).flatten(-2)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """[b, h, s, d], key and value [b, g, s, d] -> [b, h, s, d]."""
        dropout = self.dropout if self.training else 0.0
        grouped = key.shape[1] != query.shape[1]
        with self._generator(dropout):
            return F.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=self.scale, dropout_p=dropout, enable_gqa=grouped
            )

    def _generator(self, dropout: float) -> contextlib.AbstractContextManager[None]:
        """Return a context with the random generator of this tensor-parallel rank, for the dropout of its heads."""
        if not dropout:
            return contextlib.nullcontext()
        from megatron.core.tensor_parallel import get_cuda_rng_tracker

        return get_cuda_rng_tracker().fork()  # type: ignore[no-any-return]
