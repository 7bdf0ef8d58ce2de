"""Hybrid models (Mamba2, attention, experts) of Megatron on a machine without a GPU. Beside sft.training.cpu.

What Megatron-Core 0.19.2 and Megatron-Bridge 0.6.2 expect of such a model, and what they get here:

| expected | in | instead |
|---|---|---|
| the package mamba_ssm | core/ssm/mamba_mixer.py:72 | a module while that file is imported (`mamba_kernels`) |
| mamba_split_conv1d_scan_combined | core/ssm/mamba_mixer.py:755 | scan.split_conv1d_scan |
| RMSNormGated | core/ssm/mamba_mixer.py:111 | scan.GatedNorm |
| versions of causal_conv1d and mamba_ssm | core/ssm/mamba_mixer.py:1490 | "supported" |
| layers of Transformer Engine | core/models/hybrid/hybrid_layer_specs.py | Megatron's own layers (`layer_spec`) |
| a norm of Transformer Engine | core/post_training/modelopt/layers.py:50 | cpu_parallel.norm |
| ... after the last layer | core/models/hybrid/hybrid_block.py:215 | cpu_parallel.norm |
| a CUDA event | core/transformer/moe/token_dispatcher.py:946 | cpu._NoStream.record_event |
| counts of tokens on the host, as numpy | core/transformer/moe/moe_utils.py:1169 | `_to_numpy` |
| tp_size of Transformer Engine's linear layer | bridge/peft/adapter_wrapper.py:55 | a property of Megatron's own |
| grouped GEMM, fused permutation, DeepEP | fields of the provider | EXPERT_OPTIONS |

Routing, expert bias, auxiliary loss, shared experts, squared ReLU and the collectives of gloo are Megatron's own.
Parameters have the checkpoint names of Transformer Engine's layers, so that a checkpoint fits on a GPU too.
"""

import contextlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch

from sft.mamba import scan
from sft.training.cpu_attention import PackedAttention

EXPERT_OPTIONS = {
    "moe_grouped_gemm": False,
    "moe_permute_fusion": False,
    "moe_flex_dispatcher_backend": None,
    "moe_shared_expert_overlap": False,  # needs a CUDA stream
    "use_fused_weighted_squared_relu": False,
}
"""Options of models with experts that need a CUDA kernel, Transformer Engine or DeepEP, and their values on a CPU."""
DISPATCHERS = ("alltoall", "allgather")
"""Values of moe_token_dispatcher_type that need no GPU; any other becomes the first of them."""


@contextlib.contextmanager
def mamba_kernels() -> Iterator[None]:
    """Let Megatron's Mamba mixer import mamba_ssm; import it inside. Afterwards nothing finds the package.

    Transformers would use it, and call kernels that are not there.
    """
    layernorm, combined = types.ModuleType("layernorm_gated"), types.ModuleType("ssd_combined")
    layernorm.RMSNorm = scan.GatedNorm  # type: ignore[attr-defined]
    combined.mamba_split_conv1d_scan_combined = scan.split_conv1d_scan  # type: ignore[attr-defined]
    combined.mamba_chunk_scan_combined = _only_for_inference  # type: ignore[attr-defined]
    package = "mamba_ssm.ops.triton"
    modules = {name: types.ModuleType(name) for name in ("mamba_ssm", "mamba_ssm.ops", package)}
    modules |= {f"{package}.layernorm_gated": layernorm, f"{package}.ssd_combined": combined}
    sys.modules |= modules
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


def install(norm: Any, no_stream: Any) -> None:
    """Redirect what the table above lists, once per process, after `mamba_kernels`.

    Args:
        norm: Builds a norm as Megatron asks Transformer Engine for it.
        no_stream: Class of a CUDA stream or event that does nothing.
    """
    from megatron.core.models.hybrid import hybrid_block
    from megatron.core.post_training.modelopt.hybrid import model_specs
    from megatron.core.ssm import mamba_mixer
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear
    from megatron.core.transformer.moe import token_dispatcher

    mamba_mixer._check_mamba_sequence_packing_support = lambda **_: (True, None)
    hybrid_block.TENorm = model_specs.Norm = norm
    token_dispatcher.maybe_move_tensor_to_cpu = _to_numpy
    no_stream.record_event = lambda self, *_: no_stream()
    ColumnParallelLinear.tp_size = property(lambda self: self.tp_group.size())


def configure(provider: Any) -> None:
    """Set a provider to what a CPU can compute of experts and Mamba layers; a dense model stays as it is."""
    if hasattr(provider, "hybrid_stack_spec"):
        provider.hybrid_stack_spec = layer_spec
    if getattr(provider, "num_moe_experts", None):
        for name, value in EXPERT_OPTIONS.items():
            setattr(provider, name, value)
        if provider.moe_token_dispatcher_type not in DISPATCHERS:
            provider.moe_token_dispatcher_type = DISPATCHERS[0]


def layer_spec(config: Any) -> Any:
    """Return Megatron's layers of a hybrid model without Transformer Engine, with PackedAttention."""
    from megatron.core.post_training.modelopt.hybrid.model_specs import get_hybrid_stack_modelopt_spec

    spec = get_hybrid_stack_modelopt_spec(local_core_attention=True, remap_te_layernorm=True)
    spec.submodules.attention_layer.submodules.self_attention.submodules.core_attention = PackedAttention
    return spec


def _only_for_inference(state: torch.Tensor) -> torch.Tensor:
    raise NotImplementedError("Megatron generates with mamba_ssm only; evaluation uses transformers")


def _to_numpy(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """Return counts of tokens as numpy if asked; Megatron converts only tensors that come from a GPU."""
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor
