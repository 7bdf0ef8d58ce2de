"""callbacks: what they count and when they save. tests/training/test_bridge.py trains with them."""

import sys
from pathlib import Path

import pytest
import torch

from sft.params.training import Checkpoint
from sft.training import callbacks, manifests, processes
from tests.training.test_bridge import train_params


def idle_callbacks(folder: Path, params: Checkpoint) -> callbacks.Callbacks:
    """Return the callbacks of a training that has not begun."""
    hashing = manifests.Background(0, 1)
    return callbacks.Callbacks(folder, folder, params, 0, sys.stdout, print, print, hashing=hashing)


def test_the_padding_at_the_end_of_a_pack_of_fixed_length_is_no_sample(tmp_path: Path) -> None:
    """As Bridge collates it where a layout needs packs of one length: the padding is one more sample."""
    idle = idle_callbacks(tmp_path, train_params().checkpoint)
    batch = {"token_count": [5], "loss_mask": torch.ones(1, 16), "cu_seqlens_q": torch.tensor([[0, 2, 5, 16]])}
    assert len(list(idle._count_tokens(iter([batch])))) == 1
    assert (idle.tokens, idle.samples, idle.squares) == (5, 2, 2 * 2 + 3 * 3)


def test_a_save_by_minutes_that_goes_on_in_the_background_does_not_begin_again_at_every_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = [0.0]
    monkeypatch.setattr(processes, "broadcast", lambda function: function())
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    params = train_params(checkpoint={"save_interval": 10, "save_minutes": 2}).checkpoint
    idle = idle_callbacks(tmp_path, params)
    saved = []
    for step in range(1, 13):
        now[0] += 50
        saved += [step] if step % idle.save_interval(step, 2) == 0 else []
    assert saved == [3, 6, 9, 10]
