"""scan: against the recurrence, token by token in double precision; samples of a pack against samples alone."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from sft.mamba import scan

HEADS, WIDTH, GROUPS, STATE, KERNEL = 4, 3, 2, 5, 4
CHANNELS = HEADS * WIDTH + 2 * GROUPS * STATE
LAYER = {"headdim": WIDTH, "ngroups": GROUPS, "norm_before_gate": False, "activation": "silu"}


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(11)


def recurrence(
    x: torch.Tensor, dt: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition of the scan, one token after the other."""
    b, c = (group.repeat_interleave(HEADS // GROUPS, 2) for group in (b, c))
    state, outputs = x.new_zeros(len(x), HEADS, WIDTH, STATE), []
    for t in range(x.shape[1]):
        entered = (dt[:, t, :, None] * x[:, t])[..., None] * b[:, t, :, None]
        state = state * (dt[:, t] * a).exp()[..., None, None] + entered
        outputs.append((state * c[:, t, :, None]).sum(-1))
    return torch.stack(outputs, 1), state


@pytest.mark.parametrize("chunk", [1, 4, 8, 37, 64])
def test_the_scan_is_the_recurrence_whatever_the_chunk(chunk: int) -> None:
    x, dt, a = drawn(2, 37, HEADS, WIDTH), F.softplus(drawn(2, 37, HEADS)), -drawn(HEADS).exp()
    b, c = drawn(2, 37, GROUPS, STATE), drawn(2, 37, GROUPS, STATE)
    for found, expected in zip(scan.scan(x, dt, a, b, c, chunk), recurrence(x, dt, a, b, c), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_the_gradient_of_the_scan_is_that_of_the_recurrence() -> None:
    inputs = [drawn(1, 11, HEADS, WIDTH), F.softplus(drawn(1, 11, HEADS)), -drawn(HEADS).exp()]
    inputs += [drawn(1, 11, GROUPS, STATE), drawn(1, 11, GROUPS, STATE)]
    weights, gradients = drawn(1, 11, HEADS, WIDTH), []
    for function in (lambda *values: scan.scan(*values, 4)[0], lambda *values: recurrence(*values)[0]):
        leaves = [value.clone().requires_grad_() for value in inputs]
        (function(*leaves) * weights).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_strong_decay_over_a_long_chunk_stays_finite() -> None:
    x, b, c = drawn(1, 600, HEADS, WIDTH), drawn(1, 600, GROUPS, STATE), drawn(1, 600, GROUPS, STATE)
    dt, a = torch.full((1, 600, HEADS), 5.0, dtype=torch.float64), torch.full((HEADS,), -20.0, dtype=torch.float64)
    found, _ = scan.scan(x, dt, a, b, c, 128)
    torch.testing.assert_close(found, recurrence(x, dt, a, b, c)[0], rtol=0, atol=1e-12)


def layer() -> tuple[torch.Tensor, ...]:
    """Weights of a layer: convolution, its bias, bias of the time steps, decay, D."""
    return drawn(CHANNELS, KERNEL), drawn(CHANNELS), drawn(HEADS), -drawn(HEADS).exp(), drawn(HEADS)


def pack(length: int = 37) -> torch.Tensor:
    return drawn(1, length, HEADS * WIDTH + CHANNELS + HEADS).requires_grad_()


NUMBERS = torch.tensor([[0] * 10 + [1] * 20 + [2] * 7], dtype=torch.int32)


def test_a_sample_in_a_pack_is_the_sample_alone_bit_for_bit_and_no_gradient_leaves_it() -> None:
    weights, packed = layer(), pack()
    together = scan.split_conv1d_scan(packed, *weights, 8, seq_idx=NUMBERS, **LAYER)
    alone = scan.split_conv1d_scan(packed[:, 10:30], *weights, 8, seq_idx=None, **LAYER)
    assert torch.equal(together[:, 10:30], alone)
    together[:, 10:30].sum().backward()
    assert packed.grad is not None
    assert packed.grad[:, 10:30].abs().min() > 0
    assert packed.grad[:, :10].abs().sum() == packed.grad[:, 30:].abs().sum() == 0


def test_without_the_numbers_of_the_samples_one_leaks_into_the_next() -> None:
    weights, packed = layer(), pack()
    apart = scan.split_conv1d_scan(packed, *weights, 8, seq_idx=NUMBERS, **LAYER)
    leaking = scan.split_conv1d_scan(packed, *weights, 8, seq_idx=None, **LAYER)
    torch.testing.assert_close(apart[:, :10], leaking[:, :10])
    assert (apart - leaking)[:, 10:].abs().max() > 1e-3


def test_a_layer_is_convolution_recurrence_and_gate() -> None:
    weights, packed = layer(), pack(9)
    kernel, bias, dt_bias, a, d = weights
    found = scan.split_conv1d_scan(packed, *weights, 4, seq_idx=None, **LAYER)
    gate, mixed, dt = packed.split([HEADS * WIDTH, CHANNELS, HEADS], -1)
    before = torch.cat([mixed.new_zeros(1, KERNEL - 1, CHANNELS), mixed], 1)
    windows = torch.stack([before[:, t : t + KERNEL] for t in range(9)], 1)  # [1, l, w, d]
    mixed = F.silu((windows * kernel.t()).sum(2) + bias)
    x, b, c = mixed.split([HEADS * WIDTH, GROUPS * STATE, GROUPS * STATE], -1)
    x, b, c = x.unflatten(-1, (HEADS, WIDTH)), b.unflatten(-1, (GROUPS, -1)), c.unflatten(-1, (GROUPS, -1))
    y, _ = recurrence(x, F.softplus(dt + dt_bias), a, b, c)
    expected = (y + d[:, None] * x).flatten(-2) * F.silu(gate)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_another_activation_or_gate_is_an_error() -> None:
    for changed in ({"activation": "gelu"}, {"norm_before_gate": True}):
        with pytest.raises(NotImplementedError):
            scan.split_conv1d_scan(pack(), *layer(), 8, seq_idx=None, **{**LAYER, **changed})


def test_the_norm_is_over_groups_of_channels() -> None:
    norm = scan.GatedNorm(6, eps=1e-5, group_size=3, norm_before_gate=False)
    norm.weight.data = torch.arange(1.0, 7.0)
    x = torch.tensor([[3.0, 0.0, 0.0, 0.0, 0.0, 6.0]])
    expected = torch.tensor([[3**0.5, 0, 0, 0, 0, 6 * 3**0.5]])
    torch.testing.assert_close(norm(x), expected, rtol=1e-5, atol=1e-6)
