"""A Mamba2 layer's scan in plain PyTorch, without a GPU kernel: for training on a CPU and for evaluation.

`scan` computes the recurrence of a state-space layer (Dao and Gu 2024, arXiv 2405.21060):

    state[t] = exp(dt[t] A) state[t-1] + dt[t] B[t] x[t],    y[t] = C[t] state[t]

a chunk of tokens at a time: inside a chunk as one masked matrix product, from chunk to chunk by the state. Its memory
grows with the length, not with the square of it. `split_conv1d_scan` and `GatedNorm` are what Megatron's mixer takes
from the package mamba_ssm, with the names and arguments that it uses.

mamba_ssm itself cannot be used: it needs a compiled CUDA extension, and its reference functions know no boundaries of
packed samples.

Shapes: b rows, l tokens, h heads of p channels, g groups of heads that share B and C, n state, w width of the
convolution, d = h p + 2 g n channels of the convolution.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812


def scan(
    x: torch.Tensor, dt: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, chunk_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (y [b, l, h, p], the state after the last token [b, h, p, n]).

    Args:
        x: Inputs [b, l, h, p].
        dt: Time steps [b, l, h], positive.
        a: Decay of each head [h], negative.
        b: What enters the state [b, l, g, n].
        c: What leaves it [b, l, g, n].
        chunk_size: Tokens of a chunk; the result does not depend on it, except in rounding.
    """
    rows, length, heads, width = x.shape
    state = x.new_zeros(rows, heads, width, b.shape[-1])
    b, c = (group.repeat_interleave(heads // group.shape[2], 2) for group in (b, c))
    outputs = []
    for start in range(0, length, chunk_size):
        part = slice(start, start + chunk_size)
        x_in, b_in, c_out = x[:, part] * dt[:, part, :, None], b[:, part], c[:, part]
        decay = (dt[:, part] * a).transpose(1, 2).cumsum(-1)  # [b, h, chunk], logarithm
        later = torch.ones(x_in.shape[1], x_in.shape[1], dtype=torch.bool, device=x.device).triu(1)
        between = (decay[..., :, None] - decay[..., None, :]).masked_fill(later, -torch.inf).exp()
        scores = torch.einsum("blhn,bshn->bhls", c_out, b_in) * between
        from_state = torch.einsum("blhn,bhpn,bhl->blhp", c_out, state, decay.exp())
        outputs.append(torch.einsum("bhls,bshp->blhp", scores, x_in) + from_state)
        to_end = (decay[..., -1:] - decay).exp()
        entered = torch.einsum("bshn,bhs,bshp->bhpn", b_in, to_end, x_in)
        state = state * decay[..., -1].exp()[..., None, None] + entered
    return torch.cat(outputs, 1), state


def split_conv1d_scan(
    projected: torch.Tensor,
    conv1d_weight: torch.Tensor,
    conv1d_bias: torch.Tensor,
    dt_bias: torch.Tensor,
    a: torch.Tensor,
    D: torch.Tensor,  # noqa: N803
    chunk_size: int,
    *,
    headdim: int,
    ngroups: int,
    norm_before_gate: bool,
    activation: str,
    seq_idx: torch.Tensor | None,
) -> torch.Tensor:
    """Return what mamba_ssm's mamba_split_conv1d_scan_combined does: convolution, scan and gate [b, l, h*p].

    Args:
        projected: Gate, channels of the convolution, time steps [b, l, h*p + d + h].
        conv1d_weight: [d, w].
        conv1d_bias: [d].
        dt_bias: Added to the time steps before softplus [h].
        a: Decay of each head [h], negative.
        D: What of x is added to the output [h].
        chunk_size: Tokens of a chunk of the scan.
        headdim: p.
        ngroups: g.
        norm_before_gate: Only False: Megatron's mixer normalizes afterwards.
        activation: Only "silu".
        seq_idx: Number of the sample of each token [1, l], ascending; neither convolution nor state cross from one
            sample to the next. None: each row is one sample.
    """
    if activation != "silu" or norm_before_gate or D.ndim != 1:
        raise NotImplementedError("a Mamba layer with another activation, gate or D than Nemotron's")
    lengths = [projected.shape[1]]
    if seq_idx is not None:
        if seq_idx.shape != projected.shape[:2] or len(projected) != 1:
            raise AssertionError(f"seq_idx {list(seq_idx.shape)} of a pack {list(projected.shape[:2])}")
        lengths = seq_idx[0].unique_consecutive(return_counts=True)[1].tolist()
    heads, (channels, width) = len(D), conv1d_weight.shape
    inner = heads * headdim
    shared = (channels - inner) // 2
    exact = torch.promote_types(projected.dtype, torch.float32)

    def scan_sample(sample: torch.Tensor) -> Any:
        gate, mixed, dt = sample.split([inner, channels, heads], -1)
        mixed = F.pad(mixed.transpose(1, 2), (width - 1, 0))
        mixed = F.silu(F.conv1d(mixed, conv1d_weight[:, None], conv1d_bias, groups=channels)).transpose(1, 2).to(exact)
        x, b, c = mixed.split([inner, shared, shared], -1)
        x = x.unflatten(-1, (heads, headdim))
        b, c = (group.unflatten(-1, (ngroups, -1)) for group in (b, c))
        y, _ = scan(x, F.softplus(dt.to(exact) + dt_bias), a, b, c, chunk_size)
        y = y + x * D.to(exact)[:, None]
        return (y.flatten(-2) * F.silu(gate.to(exact))).to(sample.dtype)

    return torch.cat([scan_sample(sample) for sample in projected.split(lengths, 1)], 1)


class GatedNorm(torch.nn.Module):
    """mamba_ssm's RMSNorm over groups of channels [..., hidden_size]; the gate was applied before it."""

    def __init__(
        self,
        hidden_size: int,
        *,
        eps: float,
        group_size: int,
        norm_before_gate: bool,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=dtype))
        self.eps, self.group_size = eps, group_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x normalized, in groups of `group_size` channels."""
        grouped = x.unflatten(-1, (-1, self.group_size)).float()
        return F.rms_norm(grouped, (self.group_size,), eps=self.eps).flatten(-2).to(x.dtype) * self.weight
