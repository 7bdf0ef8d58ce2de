"""Packs: one shift of the mask, boundaries, padding, and the faults that must not be written."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.command import InputError
from sft.data.packs import CUT, align_mask, build_pack, count, count_losses, fit_samples, pack_fault, write_npy

STOP = 2


def sample(ids: list[int], mask: list[int], number: int = 0) -> dict:
    return {"ids": ids, "mask": mask, "conversation_id": f"c{number}", "sample": number, "source": "s", "repeat": 0}


def prepared(*turns: tuple[int, int], number: int = 0) -> dict:
    """A sample of turns, each so many tokens of prompt and so many trained."""
    ids, mask, ends = [], [], []
    for prompt, answer in turns:
        ids += [5] * prompt + [7] * (answer - 1) + [STOP] * bool(answer)
        mask += [0] * prompt + [1] * answer
        ends += [len(ids)] if answer else []
    return {**sample(ids, mask, number), "turn_ends": ends, "trained": sum(mask)}


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


def test_a_long_sample_is_cut_behind_the_last_trained_turn_that_fits():
    long = prepared((3, 2), (2, 3), (4, 4))
    ((kept,), (loss,)) = fit_samples([long], "cut-at-turn", pack_size=12, multiple=1)
    assert kept["ids"] == long["ids"][:10] == [5, 5, 5, 7, STOP, 5, 5, 7, 7, STOP]
    assert (kept["mask"], kept["trained"]) == ([0, 0, 0, 1, 1, 0, 0, 1, 1, 1], 5)
    assert (loss.reason, loss.tokens, loss.trained_tokens) == (CUT, 8, 4)


def test_the_padding_that_a_cut_sample_needs_counts_as_well():
    ((kept,), _) = fit_samples([prepared((3, 2), (2, 3), (4, 4))], "cut-at-turn", pack_size=11, multiple=4)
    assert len(kept["ids"]) == 5, "10 tokens are padded to 12"


def test_what_is_too_long_for_its_first_trained_turn_is_over_length_under_every_policy_that_goes_on():
    long, short = prepared((9, 4), (1, 1)), prepared((2, 2), number=1)
    for policy in ("drop", "cut-at-turn"):
        kept, losses = fit_samples([long, short], policy, pack_size=12, multiple=1)
        assert kept == [short]
        assert [(loss.conversation, loss.reason, loss.tokens) for loss in losses] == [("c0", "over-length", 15)]
        assert losses[0].evidence == "sample 0: 15 tokens of 12"


def test_error_names_the_first_sample_that_is_too_long_its_length_and_what_to_do():
    samples = [prepared((2, 2)), prepared((9, 4), number=1), prepared((90, 4), number=2)]
    with pytest.raises(InputError, match=r"^s, conversation c1, sample 1: 13 tokens, .* 12\. Raise pack.pack_size, or"):
        fit_samples(samples, "error", pack_size=12, multiple=1)


def test_a_sample_without_a_trained_token_that_anything_predicts_is_lost_as_untrained():
    kept, losses = fit_samples([prepared((5, 0)), sample([7, 5], [1, 0], 1) | {"trained": 0}], "drop", 12, 1)
    assert kept == []
    assert [loss.reason for loss in losses] == ["untrained", "untrained"]


def test_data_that_does_not_say_where_turns_end_cannot_be_cut():
    old = {name: value for name, value in prepared((9, 4)).items() if name != "turn_ends"}
    with pytest.raises(InputError, match="dvc repro prep"):
        fit_samples([old], "cut-at-turn", pack_size=12, multiple=1)


@given(
    st.lists(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 6)), min_size=1, max_size=5), max_size=12),
    st.sampled_from(["drop", "cut-at-turn"]),
    st.sampled_from([1, 4]),
)
def test_tokens_in_are_tokens_kept_and_tokens_lost(conversations, policy, multiple):
    samples = [prepared(*turns, number=number) for number, turns in enumerate(conversations)]
    kept, losses = fit_samples(samples, policy, pack_size=16, multiple=multiple)
    came, stayed, lost = count(samples), count(kept), count_losses(losses)
    for unit in ("tokens", "trained_tokens"):
        assert came[unit] == stayed[unit] + sum(counts[unit] for counts in lost.values())
    assert came["samples"] == stayed["samples"] + sum(loss.reason != CUT for loss in losses)
    for one in kept:
        assert len(build_pack([one], multiple, pad_id=0)["input_ids"]) <= 16
        assert len(one["ids"]) in {*one["turn_ends"], len(samples[one["sample"]]["ids"])}
