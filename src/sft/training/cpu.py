"""Megatron on a machine without a GPU.

Megatron-Core 0.19 and Megatron-Bridge 0.6 expect CUDA and Transformer Engine, but all they compute is plain PyTorch.
`install()` adds what is missing, once per process, so that a laptop runs the same loader, loss, optimizer, checkpoints
and export as a cluster:

1. stubs of packages that are imported and not used (`import_stubs`),
2. the device: tensors for "cuda" are created on the CPU (`_redirect_cuda`),
3. two checks for a GPU that compute nothing (`_allow_no_cuda`),
4. attention within packed samples (sft.training.cpu_attention), which Megatron leaves to Transformer Engine,
5. adapters on Megatron's own linear layers (`adapters_without_te`),
6. speed: no logits for tokens that are not trained (`trained_loss`), a fused optimizer (`use_fused_adamw`),
7. Mamba layers and experts (sft.training.cpu_hybrid), sequence and context parallel (sft.training.cpu_parallel).

`unsupported` names what a model has that still needs a GPU.

`install()` is process-wide and irreversible: `sft.training.config` calls it only on machines without a GPU.
"""

import builtins
import collections
import contextlib
import ctypes
import functools
import importlib
import os
import types
from collections.abc import Iterator
from typing import Any

import torch
import torch._dynamo  # lists the functions of torch.cuda when it is imported: before they are replaced
import transformers.utils
from torch.overrides import TorchFunctionMode

from sft.cli import InputError
from sft.training import cpu_hybrid, cpu_parallel
from sft.training.cpu_attention import PackedAttention

# Package -> modules of Bridge that always import it, but only for base classes and annotations.
STUBBED = {
    "transformer_engine": ("megatron.bridge.peft",),
    "nvidia_resiliency_ext": (
        "megatron.bridge.training.pretrain",
        "megatron.bridge.training.inprocess_restart",
    ),
}
# Options of the model that need a CUDA kernel or Transformer Engine.
FUSIONS = (
    "gradient_accumulation_fusion",
    "persist_layer_norm",
    "apply_rope_fusion",
    "masked_softmax_fusion",
    "bias_activation_fusion",
    "bias_dropout_fusion",
    "cross_entropy_loss_fusion",
)
M_MMAP_THRESHOLD, MMAP_BYTES = -3, 1 << 20  # of malloc.h: larger blocks are mapped, and unmapped when they are freed
UNTRAINED = -100
"""Label of a token that is not trained, as in PyTorch's cross entropy."""


def install() -> None:
    """Make Megatron importable and runnable on a CPU; a second call changes nothing.

    Raises:  RuntimeError: this machine has a GPU.
    """
    if torch.cuda.is_available():
        raise RuntimeError("sft.training.cpu would hide this machine's GPU from Megatron")
    if _installed():
        return
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # Megatron compiles small functions on import: slow and no faster on a CPU
    return_freed_memory()
    # Assisted decoding alone needs scikit-learn, whose import with SciPy's takes seconds and 30 MB.
    transformers.utils.is_sklearn_available = lambda: False
    torch.set_flush_denormal(True)  # tiny gradients become 0: arithmetic with denormals is many times slower
    with import_stubs():
        with cpu_hybrid.mamba_kernels():
            importlib.import_module("megatron.core.ssm.mamba_mixer")
        for importers in STUBBED.values():
            for module in importers:
                importlib.import_module(module)
    _redirect_cuda()
    _allow_no_cuda()
    _skip_untrained()
    adapters_without_te()
    cpu_parallel.install()
    cpu_hybrid.install(cpu_parallel.norm, _NoStream)


def return_freed_memory() -> None:
    """Let malloc give tensors back as soon as they are freed: a quarter of a GiB less at the peak of the default run.

    glibc raises its threshold to the size of the largest block freed so far, and keeps smaller ones in its heap, where
    they fit no later tensor. To set it ends that.
    """
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)


def configure(provider: Any) -> None:
    """Set a Bridge model provider to compute in fp32 with plain PyTorch.

    Raises:  InputError: the model has parts that `unsupported` names.
    """
    if parts := unsupported(provider):
        raise InputError(
            f"models/base: the model has {', '.join(parts)}, which Megatron computes on a GPU only, and this machine "
            "has none. Use GPUs, or name another model in fetch.model."
        )
    cpu_hybrid.configure(provider)
    provider.transformer_layer_spec = layer_spec
    provider.use_cpu_initialization = True
    for fusion in FUSIONS:
        setattr(provider, fusion, False)
    provider.bf16 = provider.fp16 = False
    provider.params_dtype = provider.pipeline_dtype = provider.autocast_dtype = torch.float32


def unsupported(provider: Any) -> list[str]:
    """Return what a model has that a CPU does not compute, or not as a GPU does; an empty list if nothing."""
    from megatron.bridge.models.gpt_provider import default_layer_spec

    pattern = getattr(provider, "hybrid_layer_pattern", None)
    frequency = getattr(provider, "moe_layer_freq", 1)
    parts = {
        "latent attention (MLA)": getattr(provider, "multi_latent_attention", False),
        f"attention of kind {provider.experimental_attention_variant}": provider.experimental_attention_variant,
        f"attention with softmax_type {provider.softmax_type}": provider.softmax_type != "vanilla",
        "norms with zero-centered weights": provider.layernorm_zero_centered_gamma,
        f"norms of kind {provider.normalization}": provider.normalization not in cpu_parallel.NORMS,
        "layers that predict more than one token (MTP)": provider.mtp_num_layers,
        f"layers of other kinds than M, *, E and - ({pattern})": set(pattern or "") - set("M*E-|"),
        "layers of its own kind": getattr(provider, "transformer_layer_spec", layer_spec)
        not in (default_layer_spec, layer_spec),
        "experts in some layers only": pattern is None
        and provider.num_moe_experts
        and set(frequency if isinstance(frequency, list) else [frequency]) != {1},
    }
    return [name for name, found in parts.items() if found]


def check_window(provider: Any) -> None:
    """Raise InputError unless every pack is within the window of the model's attention, which a CPU does not apply."""
    if provider.window_size is not None and provider.seq_length > provider.window_size[0] + 1:
        raise InputError(
            f"models/base: its attention has a window of {provider.window_size[0] + 1} tokens, which needs a GPU for "
            f"packs of {provider.seq_length}. Set pack.pack_size to the window or less and run: dvc repro pack"
        )


@contextlib.contextmanager
def import_stubs() -> Iterator[None]:
    """Let the modules in STUBBED import a stub of a missing package.

    All other modules still get ImportError, so Megatron's own HAVE_TE flags stay False.
    """
    real_import = builtins.__import__

    def import_or_stub(
        name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> types.ModuleType:
        package = name.partition(".")[0]
        importer = (globals or {}).get("__name__", "")
        if level == 0 and package in STUBBED and importer.startswith(STUBBED[package]):
            return _Stub(package)
        return real_import(name, globals, locals, fromlist, level)

    builtins.__import__ = import_or_stub
    try:
        yield
    finally:
        builtins.__import__ = real_import


class _Stub(types.ModuleType):
    """A package of empty classes for base classes and annotations."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self if name.islower() else type(name, (), {})


def layer_spec(config: Any) -> Any:
    """Return Megatron's layers without Transformer Engine, with PackedAttention."""
    from megatron.bridge.models.gpt_provider import local_layer_spec

    spec = local_layer_spec(config)
    spec.submodules.self_attention.submodules.core_attention = PackedAttention
    return spec


def mark_untrained(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a batch whose labels are UNTRAINED wherever its loss mask is 0."""
    return batch | {"labels": batch["labels"].masked_fill(batch["loss_mask"] == 0, UNTRAINED)}


def trained_loss(
    *,
    hidden_states: torch.Tensor,
    output_layer: Any,
    output_weight: torch.Tensor | None,
    labels: torch.Tensor,
    compute_language_model_loss: Any,
    scale_logits: Any,
    **_: Any,
) -> torch.Tensor:
    """Return Megatron's loss [b, s] of every label; 0, without computing logits, where the label is UNTRAINED.

    One token in six of the default blend is trained, and with a vocabulary of 49,152 words logits are a fifth of all
    arithmetic. GPTModel's `output_processor`; hidden_states [s, b, hidden].
    """
    trained = labels.t() != UNTRAINED
    logits, _bias = output_layer(hidden_states[trained][:, None], weight=output_weight)
    losses: torch.Tensor = compute_language_model_loss(labels.t()[trained][None], scale_logits(logits))
    return losses.new_zeros(trained.shape).masked_scatter(trained, losses).t()


def use_fused_adamw(optimizer: Any) -> None:
    """Let PyTorch's AdamW update each weight in one pass over memory, with the same result."""
    for group in optimizer.param_groups:
        group["fused"] = True


def _installed() -> bool:
    return torch.Tensor.cuda is _return_self


def _redirect_cuda() -> None:
    """Keep everything on the CPU that Megatron sends to a GPU.

    megatron.core writes `device="cuda"`, `device=torch.cuda.current_device()` and `.cuda()` in schedules, rotary
    embeddings, gradient buffers, clip_grads, timers and checkpoints: one torch function mode replaces a patch for each.
    tensor_parallel/random.py keeps a random state per GPU, here that of the CPU.
    """
    _CudaToCpu().__enter__()
    torch.autograd._engine_run_backward = _run_backward  # type: ignore[attr-defined]
    torch.Tensor.cuda = torch.nn.Module.cuda = _return_self  # type: ignore[assignment, method-assign]
    replaced: dict[str, Any] = {
        "current_device": lambda: 0,
        # Bridge's initialize.py seeds the tensor-parallel generators only if there is a device.
        "device_count": lambda: 1,
        "get_rng_state": lambda *_, **__: torch.get_rng_state(),
        "set_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
        "manual_seed": torch.default_generator.manual_seed,
        "memory_stats": lambda *_, **__: collections.defaultdict(int),
    }
    replaced |= dict.fromkeys(("set_device", "synchronize", "empty_cache"), lambda *_, **__: None)
    replaced |= dict.fromkeys(("Stream", "Event", "stream", "current_stream", "default_stream"), _NoStream)
    readings = ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved")
    replaced |= dict.fromkeys(readings, lambda *_, **__: 0)
    for name, replacement in replaced.items():
        setattr(torch.cuda, name, replacement)

    from megatron.core.tensor_parallel import random

    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)


def _allow_no_cuda() -> None:
    """Let Bridge start without a GPU: setup.py does not pass the `allow_no_cuda` of initialize.py."""
    from megatron.bridge.training import initialize, setup

    setup.initialize_megatron = functools.partial(initialize.initialize_megatron, allow_no_cuda=True)


def _skip_untrained() -> None:
    """Compute the loss with `trained_loss`, unless ranks share a pack (sequence parallel)."""
    from megatron.core.models.gpt import GPTModel

    forward = GPTModel.forward

    @functools.wraps(forward)
    def forward_trained(self: Any, *args: Any, labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if labels is not None and not self.config.sequence_parallel:
            kwargs.setdefault("output_processor", trained_loss)
        return forward(self, *args, labels=labels, **kwargs)

    GPTModel.forward = forward_trained


def adapters_without_te() -> None:
    """Let Bridge add adapters to Megatron's own linear layers.

    Without Transformer Engine its classes are None in megatron.core; Bridge's peft/utils.py then assumes it installed.
    """
    from megatron.bridge.peft import utils

    utils.HAVE_TE = False


def _run_backward(*args: Any, **kwargs: Any) -> Any:
    """Run a backward pass with the mode that torch.autograd.backward ends: recomputed layers make tensors in it."""
    with _CudaToCpu():
        return torch.autograd.graph._engine_run_backward(*args, **kwargs)


class _CudaToCpu(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kwargs and "device" in kwargs:
            kwargs = kwargs | {"device": _device(kwargs["device"])}
        if func is torch.Tensor.to:
            args = (args[0], *(_device(x) if isinstance(x, str | torch.device) else x for x in args[1:]))
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # clip_grads.py expects the type "torch.cuda.FloatTensor".
            return func(*args).replace("torch.", "torch.cuda.", 1)
        return func(*args, **(kwargs or {}))


class _NoStream:
    """A CUDA stream or event on which every call does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> "_NoStream":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def _device(device: Any) -> Any:
    """Return "cpu" for a CUDA device or its index, any other device unchanged."""
    on_gpu = isinstance(device, int) or str(device).startswith("cuda")
    return "cpu" if on_gpu else device


def _return_self(self: Any, *_: Any, **__: Any) -> Any:
    """Replace `.cuda()`."""
    return self
