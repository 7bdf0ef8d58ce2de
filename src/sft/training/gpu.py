"""Megatron on GPUs with or without Transformer Engine, which `make setup` does not install.

A dense model trains without it: on Megatron's own layers, with PyTorch's attention within each sample of a pack
(sft.training.cpu_attention), as on a CPU. Slower than Transformer Engine, and nothing is compiled. `missing` names what
a model needs beyond that. Nobody has run this on a GPU: the tests reach the first kernel.
"""

import importlib
import importlib.util
from typing import Any

from sft.params.training import TrainParams
from sft.training import cpu

TRANSFORMER_ENGINE, MAMBA, DEEP_EP = "Transformer Engine", "Mamba's kernels", "DeepEP"
# What a model can need -> the packages that have it.
PACKAGES = {
    TRANSFORMER_ENGINE: ("transformer_engine",),
    MAMBA: ("mamba_ssm", "causal_conv1d"),
    DEEP_EP: ("deep_ep",),
}


def installed() -> frozenset[str]:
    """Return which of PACKAGES this machine has."""
    return frozenset(name for name, modules in PACKAGES.items() if all(map(importlib.util.find_spec, modules)))


def install() -> None:
    """Make Bridge importable without Transformer Engine: it is imported for base classes only."""
    if TRANSFORMER_ENGINE in installed():
        return
    with cpu.import_stubs():
        for importers in cpu.STUBBED.values():
            for module in importers:
                importlib.import_module(module)
    cpu.adapters_without_te()


def configure(provider: Any) -> None:
    """Set a provider of a dense model to Megatron's own layers, if this machine has no Transformer Engine.

    Number formats and initialization stay those of a GPU. A model that needs more stays as it is: the check
    `gpu-packages` refuses it.
    """
    if TRANSFORMER_ENGINE in installed() or needs_of_layers(provider):
        return
    provider.transformer_layer_spec = cpu.layer_spec
    for fusion in cpu.FUSIONS:
        setattr(provider, fusion, False)


def needs_of_layers(provider: Any) -> dict[str, str]:
    """Return what the layers of a model need of PACKAGES, and for what."""
    needs = {}
    if parts := cpu.unsupported(provider):
        needs[TRANSFORMER_ENGINE] = parts[0]
    if provider.window_size is not None:
        needs[TRANSFORMER_ENGINE] = "attention with a window"
    if getattr(provider, "num_moe_experts", None):
        needs[TRANSFORMER_ENGINE] = "experts"
    if "M" in (getattr(provider, "hybrid_layer_pattern", None) or ""):
        needs |= {TRANSFORMER_ENGINE: "Mamba layers", MAMBA: "Mamba layers"}
    return needs


def missing(provider: Any, params: TrainParams) -> dict[str, str]:
    """Return what a training needs of PACKAGES and this machine lacks, and for what."""
    needs, model = {}, params.model
    if model.sequence_parallel or model.context_parallel_size > 1:
        needs[TRANSFORMER_ENGINE] = "sequence or context parallel"
    if "fp8" in params.mixed_precision.name or "fp4" in params.mixed_precision.name:
        needs[TRANSFORMER_ENGINE] = params.mixed_precision.name
    if model.moe_token_dispatcher_type == "flex":
        needs[DEEP_EP] = "moe_token_dispatcher_type: flex"
    needs |= needs_of_layers(provider)
    return {package: reason for package, reason in needs.items() if package not in installed()}
