"""cpu_parallel: norms and the tokens of a rank. tests/training/test_layouts.py trains with both."""

from types import SimpleNamespace

import pytest
import torch

from sft.training import cpu_parallel


def test_ranks_share_every_sample_from_the_front_and_from_the_back() -> None:
    ends = torch.tensor([0, 4, 12, 12], dtype=torch.int32)  # Bridge pads with empty segments
    shares = [cpu_parallel.partition(ends, 12, 2, rank).tolist() for rank in (0, 1)]
    assert shares == [[0, 3, 4, 5, 10, 11], [1, 2, 6, 7, 8, 9]]


@pytest.mark.parametrize(("ends", "tokens"), [([0, 6], 6), ([0, 4], 8)])
def test_samples_that_cannot_be_divided_are_an_error(ends: list[int], tokens: int) -> None:
    with pytest.raises(AssertionError):
        cpu_parallel.partition(torch.tensor(ends), tokens, 2, 0)


@pytest.mark.parametrize(("kind", "parameters"), [("RMSNorm", 1), ("LayerNorm", 2)])
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_a_norm_is_that_of_pytorch_and_says_whether_ranks_share_a_sequence(
    kind: str, parameters: int, sequence_parallel: bool
) -> None:
    config = SimpleNamespace(normalization=kind, params_dtype=torch.float32, sequence_parallel=sequence_parallel)
    norm = cpu_parallel.norm(config, 8, eps=1e-3, persist_layer_norm=False)
    assert isinstance(norm, cpu_parallel.NORMS[kind])
    assert norm.eps == 1e-3
    assert [weight.sequence_parallel for weight in norm.parameters()] == [sequence_parallel] * parameters
