"""Packs: the shift of the mask, boundaries, padding, and the faults that must not be written."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.packing.write import Packs, align_mask, build_packs, pack_fault, write_npy
from tests.support.tiny_model import pack_samples

STOP = 2


def sample(ids: list[int], mask: list[int], number: int = 0) -> dict:
    return {"ids": ids, "mask": mask, "conversation_id": f"c{number}", "sample": number, "source": "s", "repeat": 0}


def test_two_samples_in_a_pack_literally():
    pack = pack_samples([sample([5, 6, 7, STOP], [0, 0, 1, 1], 1), sample([8, 9, STOP], [0, 1, 1], 2)], 1, pad_id=0)
    assert pack["input_ids"] == [5, 6, 7, STOP, 8, 9, STOP]
    assert pack["loss_mask"] == [0, 1, 1, 0, 1, 1, 0]
    assert pack["seq_start_id"] == [0, 4]
    assert pack["conversation_id"] == ["c1", "c2"]


def test_all_tokens_of_a_padded_sample_but_the_last_are_a_multiple():
    pack = pack_samples([sample([5, 6, STOP], [0, 1, 1]), sample([7, 8, 9, 9, STOP], [0, 1, 1, 1, 1])], 4, pad_id=0)
    assert pack["input_ids"] == [5, 6, STOP, 0, 0, 7, 8, 9, 9, STOP]
    assert pack["loss_mask"] == [1, 1, 0, 0, 0, 1, 1, 1, 1, 0]
    assert pack["seq_start_id"] == [0, 5]


def test_starts_of_samples_count_from_the_start_of_their_pack():
    parts = [(place, np.full(2, 5 + place, np.int32), np.array([0, 1], np.uint8)) for place in (2, 0, 1)]
    packs = build_packs(parts, np.array([2, 2, 2]), np.array([0, 1, 3]), multiple=1, pad_id=0)
    columns = {name: column.to_pylist() for name, column in packs.columns().items()}
    assert columns == {
        "input_ids": [[5, 5], [6, 6, 7, 7]],
        "loss_mask": [[1, 0], [1, 0, 1, 0]],
        "seq_start_id": [[0], [0, 2]],
    }
    assert len(packs) == 2


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=9), min_size=1, max_size=5))
def test_the_shift_keeps_every_trained_token_but_an_untrainable_first(masks):
    lasts = np.cumsum([len(mask) for mask in masks]) - 1
    shifted = align_mask(np.concatenate(masks).astype(np.uint8), lasts)
    assert shifted.sum() == sum(sum(mask[1:]) for mask in masks)
    assert not shifted[lasts].any()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"mask": [0, 0, 0]}, "no trained token"),
        ({"mask": [1, 1]}, "3 ids but 2 mask values"),
        ({"starts": [0, 0]}, "a sample has no tokens"),
        ({"starts": [0, 3]}, "a sample has no tokens"),
        ({"mask": [1, 1, 1]}, "of the next sample"),
        ({"starts": [0, 2]}, "of the next sample"),
        ({"ids": [5, STOP, 6]}, "follows a stop token"),
        ({"ids": [5, 6, 7, 8], "mask": [0, 1, 0, 0]}, "4 tokens, pack size 3"),
    ],
)
def test_a_pack_outside_the_contract_is_named(change, fault):
    good = {"ids": [5, 6, STOP], "mask": [1, 1, 0], "starts": [0]}

    def packs(first: dict, second: dict) -> Packs:
        ids, mask = first["ids"] + second["ids"], first["mask"] + second["mask"]
        starts = first["starts"] + [len(first["ids"]) + start for start in second["starts"]]
        samples = [0, len(first["starts"]), len(starts)]
        return Packs(np.array(ids, np.int32), np.array(mask, np.uint8), np.array(starts), np.array(samples))

    assert pack_fault(packs(good, good), pack_size=3, stop_id=STOP) is None
    number, message = pack_fault(packs(good, {**good, **change}), pack_size=3, stop_id=STOP)
    assert fault.replace("3 ids but 2", "6 ids but 5") in message
    assert number == ("ids but" not in message), "the second, where the fault is in one pack"


def test_npy_holds_dicts_of_lists_of_int_and_the_same_bytes_each_time(tmp_path):
    packs = [pack_samples([sample([word, 6, STOP], [0, 1, 1])], 1, pad_id=0) for word in (5, 300)]
    for name in ("a.npy", "b.npy"):
        write_npy(tmp_path / name, packs, 2)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    loaded = np.load(tmp_path / "a.npy", allow_pickle=True)
    assert [dict(row) for row in loaded] == [
        {"input_ids": [word, 6, STOP], "loss_mask": [1, 1, 0], "seq_start_id": [0]} for word in (5, 300)
    ]


class Tokens(list):
    """A list that is counted while it is in memory."""

    alive = most = 0

    def __init__(self, values):
        super().__init__(values)
        Tokens.alive += 1
        Tokens.most = max(Tokens.most, Tokens.alive)

    def __del__(self):
        Tokens.alive -= 1


def test_npy_is_written_with_two_packs_in_memory_however_many_there_are(tmp_path):
    made = ({"input_ids": Tokens([5, STOP]), "loss_mask": [1, 0], "seq_start_id": [0]} for _ in range(100))
    write_npy(tmp_path / "many.npy", made, 100)
    assert 1 <= Tokens.most <= 2
    assert (tmp_path / "many.npy").stat().st_size > 100 * 50
