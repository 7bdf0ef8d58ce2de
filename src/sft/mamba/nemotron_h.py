"""Nemotron-H in transformers, computed right where its CUDA kernels are not installed.

transformers 5.6.0 to 5.13.0 (Megatron-Bridge 0.6.2 allows no newer one) computes a Mamba layer of Nemotron-H wrongly
in `torch_forward`, which it uses on a CPU, and on a GPU without mamba-ssm and causal-conv1d:

1. It sums over the wrong axis, so that no state passes from one chunk of 128 tokens to the next, and later tokens
   change earlier ones (docs/known-issues.md, wrong-scan).
2. It raises time steps to 0.001, whatever the config's time_step_limit says (docs/known-issues.md, clamped-step).

`repair` replaces that method by the scan of sft.mamba.scan. The step of one token that follows a prompt stays the
library's, with the limit of the config.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from sft.mamba.scan import scan

MODEL_TYPE = "nemotron_h"


def repair(model: Any) -> None:
    """Let the Mamba layers of a Nemotron-H model compute what its kernels compute; other models stay as they are."""
    if model.config.get_text_config().model_type != MODEL_TYPE:
        return
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMamba2Mixer

    for mixer in model.modules():
        if isinstance(mixer, NemotronHMamba2Mixer):
            mixer.time_step_min = mixer.time_step_limit[0]
            mixer.torch_forward = _RightForward(mixer)


class _RightForward:
    """A mixer's `torch_forward` with the right scan."""

    def __init__(self, mixer: Any) -> None:
        self.mixer, self.one_token = mixer, mixer.torch_forward

    def __call__(self, input_states: torch.Tensor, cache_params: Any = None, attention_mask: Any = None) -> Any:
        """Return the layer's output [b, l, hidden] of its input [b, l, hidden]; padding is where the mask is 0."""
        m = self.mixer
        if cache_params is not None and cache_params.has_previous_state(m.layer_idx):
            return self.one_token(input_states, cache_params, attention_mask)
        dtype, length = input_states.dtype, input_states.shape[1]
        present = 1 if attention_mask is None else attention_mask[:, :, None].to(dtype)
        projected = m.in_proj(input_states * present)
        gate, mixed, dt = projected.split([m.intermediate_size, m.conv_dim, m.num_heads], -1)
        mixed = mixed.transpose(1, 2)
        if cache_params is not None:
            cache_params.update_conv_state(F.pad(mixed, (m.conv_kernel_size - length, 0)), m.layer_idx)
        mixed = m.act(m.conv1d(mixed)[..., :length].transpose(1, 2)) * present
        shared = m.n_groups * m.ssm_state_size
        x, b, c = mixed.float().split([m.intermediate_size, shared, shared], -1)
        x = x.unflatten(-1, (m.num_heads, m.head_dim))
        b, c = (group.unflatten(-1, (m.n_groups, -1)) for group in (b, c))
        dt = F.softplus(dt.float() + m.dt_bias.float()).clamp(*m.time_step_limit)
        y, state = scan(x, dt, -m.A_log.float().exp(), b, c, m.chunk_size)
        if cache_params is not None:
            cache_params.update_recurrent_state(state, m.layer_idx)
        y = (y + x * m.D.float()[:, None]).flatten(-2)
        return m.out_proj(m.norm(y, gate).to(dtype))
