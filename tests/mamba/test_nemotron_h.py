"""nemotron_h: a model in transformers against the recurrence, and decoding behind a long prompt."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, NemotronHConfig

from sft.evaluation import generate
from sft.mamba import nemotron_h
from tests.support.tiny_architectures import make_tiny_nano

TOKENS, PROMPT = 640, 600
CHUNK = 128


@pytest.fixture(scope="module")
def model() -> Any:
    """A model whose states last: without that, the borders of chunks would not show."""
    config = NemotronHConfig(
        vocab_size=64, hidden_size=64, hybrid_override_pattern="ME*M", mamba_num_heads=8, mamba_head_dim=16,
        ssm_state_size=16, n_groups=4, chunk_size=CHUNK, use_mamba_kernels=False, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
        moe_shared_expert_intermediate_size=32, time_step_limit=[0.0, 1e9],
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        built = AutoModelForCausalLM.from_config(config).eval()
        for mixer in mixers(built):
            mixer.dt_bias.fill_(-3.0)
            mixer.A_log.uniform_(-3, 0)
            mixer.in_proj.weight.normal_(0, 0.2)
    return built


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(3, 64, (1, TOKENS), generator=torch.Generator().manual_seed(4))


def mixers(model: Any) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "time_step_min")]


def recurrence(mixer: Any, inputs: torch.Tensor) -> torch.Tensor:
    """A Mamba layer by its definition, one token after the other, in double precision."""
    d = torch.Tensor.double
    gate, mixed, dt = F.linear(d(inputs), d(mixer.in_proj.weight)).split([128, 256, 8], -1)
    mixed = F.pad(mixed.transpose(1, 2), (3, 0))
    mixed = F.silu(F.conv1d(mixed, d(mixer.conv1d.weight), d(mixer.conv1d.bias), groups=256)).transpose(1, 2)
    x, b, c = mixed.split([128, 64, 64], -1)
    x, b, c = x.unflatten(-1, (8, 16)), *(part.unflatten(-1, (4, 16)).repeat_interleave(2, 2) for part in (b, c))
    dt, a = F.softplus(dt + d(mixer.dt_bias)), -d(mixer.A_log).exp()
    state, outputs = torch.zeros(1, 8, 16, 16, dtype=torch.float64), []
    for t in range(inputs.shape[1]):
        state = (
            state * (dt[:, t] * a).exp()[..., None, None] + (dt[:, t, :, None] * x[:, t])[..., None] * b[:, t, :, None]
        )
        outputs.append((state * c[:, t, :, None]).sum(-1) + d(mixer.D)[:, None] * x[:, t])
    y = (torch.stack(outputs, 1).flatten(-2) * F.silu(gate)).unflatten(-1, (4, 32))
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + mixer.norm.variance_epsilon)
    return F.linear(y.flatten(-2) * d(mixer.norm.weight), d(mixer.out_proj.weight))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@torch.no_grad()
def test_a_layer_is_the_recurrence_beyond_a_chunk_and_the_library_s_own_is_not(model: Any) -> None:
    """When the second half fails, transformers is right: remove sft.mamba.nemotron_h."""
    inputs = torch.randn(1, TOKENS, 64, generator=torch.Generator().manual_seed(5))
    mixer = mixers(model)[0]
    expected = recurrence(mixer, inputs)
    own = type(mixer).torch_forward(mixer, inputs)
    nemotron_h.repair(model)
    found = mixer(inputs)
    assert relative_error(found[:, CHUNK:], expected[:, CHUNK:]) < 1e-5
    assert relative_error(own[:, CHUNK:], expected[:, CHUNK:]) > 1e-3


@torch.no_grad()
def test_tokens_behind_a_long_prompt_have_the_logits_of_the_whole_text(model: Any, ids: torch.Tensor) -> None:
    nemotron_h.repair(model)
    whole = model(ids, use_cache=False).logits
    out = model(ids[:, :PROMPT], use_cache=True)
    for place in range(PROMPT, PROMPT + 4):
        out = model(ids[:, place : place + 1], past_key_values=out.past_key_values, use_cache=True)
    torch.testing.assert_close(out.logits[0, -1], whole[0, PROMPT + 3], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_later_token_changes_no_earlier_one_and_padding_changes_nothing(model: Any, ids: torch.Tensor) -> None:
    nemotron_h.repair(model)
    before = model(ids, use_cache=False).logits
    changed = ids.clone()
    changed[0, 500] = 3
    torch.testing.assert_close(model(changed, use_cache=False).logits[:, :500], before[:, :500], rtol=0, atol=1e-5)
    padded, mask = F.pad(ids, (7, 0), value=1), F.pad(torch.ones_like(ids), (7, 0))
    behind = model(padded, attention_mask=mask, use_cache=False).logits[:, 7:]
    torch.testing.assert_close(behind, before, rtol=0, atol=1e-4)


@torch.no_grad()
def test_evaluation_loads_a_nemotron_h_that_is_right(tmp_path: Path) -> None:
    make_tiny_nano(tmp_path, chunk_size=CHUNK)
    loaded = generate.load_model(tmp_path)
    ids = torch.randint(3, 400, (1, PROMPT), generator=torch.Generator().manual_seed(6))
    found = loaded(ids, use_cache=False).logits
    for mixer in mixers(loaded):
        mixer.torch_forward = lambda states, *_, mixer=mixer: recurrence(mixer, states).float()
    assert relative_error(found, loaded(ids, use_cache=False).logits) < 1e-5


def test_other_models_stay_as_they_are() -> None:
    config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    llama = LlamaForCausalLM(config)
    nemotron_h.repair(llama)
    assert all("torch_forward" not in vars(module) for module in llama.modules())
