"""cpu_attention: a sample in a pack is the sample alone. tests/training/test_layouts.py trains with it."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F  # noqa: N812

from sft.training import cpu_attention

HEADS, GROUPS, WIDTH = 4, 2, 8


def attention(dropout: float = 0.0) -> cpu_attention.PackedAttention:
    return cpu_attention.PackedAttention(
        SimpleNamespace(kv_channels=WIDTH, attention_dropout=dropout, context_parallel_size=1)
    ).eval()


def tokens(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, heads, WIDTH, generator=draw) for heads in (HEADS, GROUPS, GROUPS))  # type: ignore[return-value]


def pack(*ends: int) -> SimpleNamespace:
    return SimpleNamespace(cu_seqlens_q=torch.tensor(ends, dtype=torch.int32), cu_seqlens_q_padded=None)


def test_a_sample_in_a_pack_attends_as_if_it_were_alone() -> None:
    first, second = tokens(5, seed=1), tokens(7, seed=2)
    together = [torch.cat(pair) for pair in zip(first, second, strict=True)]
    packed = attention()(*together, packed_seq_params=pack(0, 5, 12))
    alone = attention()(*second, packed_seq_params=pack(0, 7))
    assert packed.shape == (12, HEADS * WIDTH)
    torch.testing.assert_close(packed[5:], alone, rtol=0, atol=1e-6)


def test_another_first_sample_changes_nothing_in_the_second() -> None:
    second = tokens(7, seed=2)
    contexts = []
    for seed in (1, 3):
        together = [torch.cat(pair) for pair in zip(tokens(5, seed), second, strict=True)]
        contexts.append(attention()(*together, packed_seq_params=pack(0, 5, 12)))
    assert not torch.equal(contexts[0][:5], contexts[1][:5])
    assert torch.equal(contexts[0][5:], contexts[1][5:])


def test_the_empty_segments_that_bridge_pads_with_change_nothing() -> None:
    query_key_value = tokens(12, seed=4)
    plain = attention()(*query_key_value, packed_seq_params=pack(0, 5, 12))
    filled = attention()(*query_key_value, packed_seq_params=pack(0, 5, 12, 12, 12))
    assert torch.equal(plain, filled)


def test_a_later_token_never_changes_an_earlier_one() -> None:
    query, key, value = tokens(6, seed=5)
    before = attention()(query, key, value, packed_seq_params=pack(0, 6))
    key[4:], value[4:] = 9.0, -9.0
    after = attention()(query, key, value, packed_seq_params=pack(0, 6))
    assert torch.equal(before[:4], after[:4])
    assert not torch.equal(before[4:], after[4:])


def test_grouped_heads_attend_as_if_keys_and_values_were_repeated() -> None:
    query, key, value = tokens(6, seed=6)
    repeated = [x.repeat_interleave(HEADS // GROUPS, dim=1).transpose(0, 1)[None] for x in (key, value)]
    expected = F.scaled_dot_product_attention(query.transpose(0, 1)[None], *repeated, is_causal=True)
    found = attention()(query, key, value, packed_seq_params=pack(0, 6))
    torch.testing.assert_close(found, expected[0].transpose(0, 1).flatten(-2), rtol=0, atol=1e-6)


def test_sequences_without_packing_attend_each_on_its_own() -> None:
    rows = [tokens(6, seed) for seed in (7, 8)]
    batch = [torch.stack(column, dim=1) for column in zip(*rows, strict=True)]  # [s, b, h, d]
    found = attention()(*batch)
    assert found.shape == (6, 2, HEADS * WIDTH)
    for index, row in enumerate(rows):
        alone = attention()(*row, packed_seq_params=pack(0, 6))
        torch.testing.assert_close(found[:, index], alone, rtol=0, atol=1e-6)
