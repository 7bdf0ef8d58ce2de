"""Packs: one shift of the mask, boundaries, padding, and the faults that must not be written."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.data.packs import align_mask, build_pack, pack_fault, write_npy

STOP = 2


def sample(ids: list[int], mask: list[int], number: int = 0) -> dict:
    return {"ids": ids, "mask": mask, "conversation_id": f"c{number}", "sample": number, "source": "s"}


def test_two_samples_in_a_pack_literally():
    pack = build_pack([sample([5, 6, 7, STOP], [0, 0, 1, 1], 1), sample([8, 9, STOP], [0, 1, 1], 2)], 1, pad_id=0)
    assert pack["input_ids"] == [5, 6, 7, STOP, 8, 9, STOP]
    assert pack["loss_mask"] == [0, 1, 1, 0, 1, 1, 0]
    assert pack["seq_start_id"] == [0, 4]
    assert pack["conversation_id"] == ["c1", "c2"]
    assert pack_fault(pack, pack_size=7, stop_id=STOP) == ""


def test_samples_are_padded_to_the_multiple_that_the_layout_needs():
    pack = build_pack([sample([5, 6, STOP], [0, 1, 1]), sample([7, 8, 9, 9, STOP], [0, 1, 1, 1, 1])], 4, pad_id=0)
    assert pack["input_ids"] == [5, 6, STOP, 0, 7, 8, 9, 9, STOP, 0, 0, 0]
    assert pack["seq_start_id"] == [0, 4]
    assert sum(pack["loss_mask"]) == 6


@given(st.lists(st.integers(0, 1), min_size=1, max_size=40))
def test_the_shift_keeps_every_trained_token_but_an_untrainable_first(mask):
    assert sum(align_mask(mask)) == sum(mask[1:])
    assert align_mask(mask)[-1] == 0


def test_an_empty_sample_is_refused():
    with pytest.raises(ValueError, match="empty sample"):
        align_mask([])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"loss_mask": [0, 0, 0]}, "no trained token"),
        ({"loss_mask": [1, 1]}, "3 ids but 2 mask values"),
        ({"seq_start_id": [1]}, "starts"),
        ({"seq_start_id": [0, 3]}, "starts"),
        ({"seq_start_id": []}, "starts"),
        ({"loss_mask": [1, 1, 1]}, "predicts the next sample"),
        ({"seq_start_id": [0, 2]}, "predicts the next sample"),
        ({"input_ids": [5, STOP, 6]}, "follows a stop token"),
        ({"input_ids": [5, 6, 7, 8], "loss_mask": [0, 1, 0, 0]}, "4 tokens, pack size 3"),
    ],
)
def test_a_pack_outside_the_contract_is_named(change, fault):
    good = {"input_ids": [5, 6, STOP], "loss_mask": [1, 1, 0], "seq_start_id": [0]}
    assert pack_fault(good, pack_size=3, stop_id=STOP) == ""
    assert fault in pack_fault({**good, **change}, pack_size=3, stop_id=STOP)


def test_npy_holds_dicts_of_lists_of_int_and_the_same_bytes_each_time(tmp_path):
    packs = [build_pack([sample([5, 6, STOP], [0, 1, 1])], 1, pad_id=0)] * 2
    for name in ("a.npy", "b.npy"):
        write_npy(tmp_path / name, packs)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    loaded = np.load(tmp_path / "a.npy", allow_pickle=True)
    assert [dict(row) for row in loaded] == [
        {"input_ids": [5, 6, STOP], "loss_mask": [1, 1, 0], "seq_start_id": [0]}
    ] * 2
