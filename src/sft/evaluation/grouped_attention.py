"""Attention of a new token on a CPU, without copies.

Several heads share their keys and values. With a mask, as batches of unequal prompts need, transformers copies them for
each head at each token: half the time of an answer. Here the heads that share keys are rows of one product instead.
"""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_grouped"


def use_grouped_attention(model: Any) -> None:
    """Let a model on a CPU attend as above; one that does not use PyTorch's attention stays as it is."""
    if model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Return what transformers' sdpa_attention_forward returns.

    Shapes: query [b, h, s, d], key and value [b, g, t, d], mask [b, 1, s, t] -> [b, s, h, d].
    """
    batch, heads, tokens, size = query.shape
    if tokens > 1 or attention_mask is None or attention_mask.shape[1] > 1:
        options = {**others, "dropout": dropout, "scaling": scaling}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)  # type: ignore[no-any-return]
    rows = query.view(batch, key.shape[1], heads // key.shape[1], size)
    context = torch.nn.functional.scaled_dot_product_attention(
        rows, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )
    return context.reshape(batch, 1, heads, value.shape[3]), None
