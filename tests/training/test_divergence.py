"""divergence: what counts as one, which packs are named, and Bridge's settings that turn it off."""

from types import SimpleNamespace

import numpy as np
import pytest

from sft.training.divergence import HISTORY, SHOWN_PACKS, Watch, find_packs, message
from tests.support.tiny_model import make_packs, write_packs


def settings(nan=True, spiky=True):
    return SimpleNamespace(check_for_nan_in_loss=nan, check_for_spiky_loss=spiky, spiky_loss_factor=10.0)


def faults(watch, *losses):
    return [watch.fault(loss, 1.0) is not None for loss in losses]


def test_bridge_s_own_checks_are_off():
    taken = settings()
    Watch(taken)
    assert (taken.check_for_nan_in_loss, taken.check_for_spiky_loss) == (False, False)


@pytest.mark.parametrize(("loss", "norm"), [(float("nan"), 1.0), (float("inf"), 1.0), (1.0, float("nan"))])
def test_no_number_is_a_fault_unless_it_is_not_asked_for(loss, norm):
    assert Watch(settings()).fault(loss, norm) is not None
    assert Watch(settings(nan=False)).fault(loss, norm) is None


def test_a_spike_is_ten_times_the_mean_and_above_all_before():
    usual = [2.0] + [0.5] * HISTORY
    assert not any(faults(Watch(settings()), *usual, 4.9))
    assert faults(Watch(settings()), *usual, 5.1)[-1]
    assert not any(faults(Watch(settings()), 9.0, *usual, 5.1)), "it was that high before"
    assert not any(faults(Watch(settings(spiky=False)), *usual, 50.0))


def test_there_is_no_spike_before_there_is_a_mean():
    assert not any(faults(Watch(settings()), 0.1, 50.0))


def test_a_resumed_training_has_the_losses_before_it():
    assert faults(Watch(settings(), [0.5] * HISTORY), 5.1) == [True]
    assert faults(Watch(settings(), [9.0] + [0.5] * HISTORY), 5.1) == [False], "it was that high before"


def test_packs_are_found_by_their_first_sample(tmp_path):
    packs = make_packs(5, 64, seed=3)
    named = [{**pack, "source": ["chats"], "conversation_id": [f"id-{place}"]} for place, pack in enumerate(packs)]
    write_packs(tmp_path / "training", named, shards=2)
    first = packs[3]["input_ids"][: packs[3]["seq_start_id"][1] - 1]
    assert find_packs(tmp_path, [np.array(first, np.int32)]) == ["pack 3: chats id-3"]
    assert find_packs(tmp_path, [np.array([1, 2, 3], np.int32)]) == []


def test_many_packs_are_counted():
    lines = message(7, "a fault", [f"pack {number}" for number in range(SHOWN_PACKS + 3)], 5).splitlines()
    assert lines[0].startswith("step 7: a fault. ")
    assert lines[SHOWN_PACKS + 1] == "  and 3 more"
