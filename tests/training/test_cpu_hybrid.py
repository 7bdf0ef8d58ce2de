"""cpu_hybrid: what is redirected, and what a CPU cannot compute. tests/training/test_layouts.py trains with it."""

import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import pytest

from sft.mamba import scan
from sft.training import cpu_hybrid


def test_mamba_ssm_is_there_only_while_the_mixer_is_imported() -> None:
    with cpu_hybrid.mamba_kernels():
        kernels = importlib.import_module("mamba_ssm.ops.triton.ssd_combined")
        assert kernels.mamba_split_conv1d_scan_combined is scan.split_conv1d_scan
        assert importlib.import_module("mamba_ssm.ops.triton.layernorm_gated").RMSNorm is scan.GatedNorm
    assert importlib.util.find_spec("mamba_ssm") is None
    assert not [name for name in sys.modules if name.startswith("mamba_ssm")]


def test_experts_use_no_gpu_kernel_and_keep_a_dispatcher_that_needs_none() -> None:
    for dispatcher, expected in (("flex", "alltoall"), ("alltoall", "alltoall"), ("allgather", "allgather")):
        provider = SimpleNamespace(num_moe_experts=8, moe_token_dispatcher_type=dispatcher, moe_grouped_gemm=True)
        cpu_hybrid.configure(provider)
        assert provider.moe_token_dispatcher_type == expected
        assert {name: getattr(provider, name) for name in cpu_hybrid.EXPERT_OPTIONS} == cpu_hybrid.EXPERT_OPTIONS
    dense = SimpleNamespace(num_moe_experts=None)
    cpu_hybrid.configure(dense)
    assert vars(dense) == {"num_moe_experts": None}


@pytest.mark.pipeline
def test_what_a_cpu_cannot_compute_is_named_before_a_model_is_built() -> None:
    """In a process of its own: Megatron is redirected for good."""
    program = """
import pytest
from sft.cli import InputError
from sft.training import config, cpu
config.prepare_imports()
from megatron.bridge.models.gpt_provider import GPTModelProvider
from megatron.bridge.models.hybrid.hybrid_provider import HybridModelProvider

dense = dict(num_layers=2, hidden_size=64, num_attention_heads=4, normalization="RMSNorm")
hybrid = dense | dict(num_layers=4)
assert cpu.unsupported(GPTModelProvider(**dense)) == []
assert cpu.unsupported(GPTModelProvider(**dense, num_moe_experts=4)) == []
assert cpu.unsupported(HybridModelProvider(**hybrid, hybrid_layer_pattern="ME*-", num_moe_experts=4)) == []
for provider, part in {
    "zero-centered": GPTModelProvider(**dense, layernorm_zero_centered_gamma=True),
    "MTP": GPTModelProvider(**dense, mtp_num_layers=1),
    "softmax_type learnable": GPTModelProvider(**dense, softmax_type="learnable"),
    "some layers only": GPTModelProvider(**dense, num_moe_experts=4, moe_layer_freq=[0, 1]),
    "of its own kind": GPTModelProvider(**dense, transformer_layer_spec=lambda config: None),
    "(MG*-)": HybridModelProvider(**hybrid, hybrid_layer_pattern="MG*-"),
}.items():
    with pytest.raises(InputError) as stopped:
        cpu.configure(part)
    assert str(stopped.value).startswith("models/base: ") and provider in str(stopped.value), str(stopped.value)

windowed = GPTModelProvider(**dense, window_size=(31, 0), seq_length=32)
cpu.check_window(windowed)
windowed.seq_length = 33
with pytest.raises(InputError, match="^models/base: .* 32 tokens"):
    cpu.check_window(windowed)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)
