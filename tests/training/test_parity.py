"""parity: prompts and comparison. tests/training/test_layouts.py certifies whole models."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sft.cli import InputError
from sft.training import parity

IDS = parity.prompts(40, chunk=16)


def logits(seed: int = 1) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(each.shape[1], 40, generator=draw) for each in IDS]


def test_prompts_are_fixed_and_the_second_is_longer_than_a_chunk() -> None:
    assert [each.shape for each in IDS] == [(1, 50), (1, 88)]
    assert all(torch.equal(one, other) for one, other in zip(IDS, parity.prompts(40, chunk=16), strict=True))
    for vocabulary in (40, 400, 131072):
        for each in parity.prompts(vocabulary):
            assert 0 <= int(each.min()) <= int(each.max()) < vocabulary
            assert len(each.unique()) >= min(40, vocabulary)


def test_a_certificate_has_the_difference_both_losses_and_the_tolerance() -> None:
    exact = logits()
    moved = [rows.clone() for rows in exact]
    moved[1][80, 3] += 2e-5 * float(exact[1].abs().max())
    certificate = parity.compare(IDS, moved, exact, 1e-4, Path("models/base"))
    assert certificate["logits"] == pytest.approx(2e-5, rel=0.1)
    assert certificate["losses"]["megatron"] == pytest.approx(certificate["losses"]["transformers"], abs=1e-4)
    assert (certificate["tolerance"], certificate["tokens"]) == (1e-4, [50, 88])


@pytest.mark.parametrize("value", [1e-2, float("nan"), float("inf")])
def test_one_other_logit_of_the_last_token_is_an_error(value: float) -> None:
    moved = logits()
    moved[1][-1, -1] += value
    with pytest.raises(InputError, match=r"^models/base: .*logits by"):
        parity.compare(IDS, moved, logits(), 1e-4, Path("models/base"))


@pytest.mark.parametrize(
    ("entry", "folder", "limit", "used", "unlimited"),
    [
        ("0::/job/step", "", "memory.max", "memory.current", "max"),
        ("9:cpu,memory:/job/step", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", str(2**63 - 4096)),
    ],
)
def test_the_memory_of_a_control_group_is_a_limit_without_what_its_files_hold(
    tmp_path: Path, entry: str, folder: str, limit: str, used: str, unlimited: str
) -> None:
    membership, job = tmp_path / "membership", tmp_path / folder / "job"
    membership.write_text(f"4:pids:/\n{entry}\n")
    assert parity.free_memory(tmp_path, membership) > 5_000
    job.mkdir(parents=True)
    (job / limit).write_text("1000\n")
    (job / used).write_text("600\n")
    (job / "memory.stat").write_text("anon 500\ninactive_file 100\ntotal_inactive_file 100\n")
    assert parity.free_memory(tmp_path, membership) == 500
    (job / limit).write_text(f"{unlimited}\n")
    assert parity.free_memory(tmp_path, membership) > 5_000


def test_without_memory_for_a_second_copy_the_certificate_says_how_much_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parity, "free_memory", lambda: 1000)
    model = torch.nn.Linear(10, 100, bias=False)
    certificate = parity.certify(model, SimpleNamespace(), Path("models/base"), exact=True)
    assert certificate["needed_bytes"] == 5000
    assert "less was free" in certificate["skipped"]


@pytest.mark.parametrize(("on_gpu", "tolerance"), [(False, 1e-4), (True, 5e-3)])
def test_a_gpu_multiplies_with_fewer_bits_and_is_empty_afterwards(
    monkeypatch: pytest.MonkeyPatch, on_gpu: bool, tolerance: float
) -> None:
    model, emptied = torch.nn.Linear(1, 1), []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**12, 10**12))
    monkeypatch.setattr(model, "to", lambda device: model)
    monkeypatch.setattr(parity, "megatron_logits", lambda *_: logits())
    monkeypatch.setattr(parity, "transformers_logits", lambda *_: logits())
    monkeypatch.setattr(parity, "prompts", lambda *_: IDS)
    provider = SimpleNamespace(vocab_size=40)
    assert parity.certify(model, provider, Path("models/base"), exact=True)["tolerance"] == tolerance
    assert bool(emptied) == on_gpu
