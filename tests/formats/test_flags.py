"""Flags of turns; every spelling and value is in test_messages.py."""

import pytest

from sft.conversation import Rejection
from sft.formats.flags import UnfitRowError, is_trained, read_flag
from sft.formats.spellings import FLAG_LISTS, TRAIN_FLAGS, WEIGHTS


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({}, None),
        ({"loss": None, "weight": ""}, None),
        ({"train": "false"}, False),
        ({"masked": 0}, True),
        ({"masked": True, "loss": 0}, False),
    ],
)
def test_flags_that_agree_or_are_empty(message, expected):
    assert is_trained(message) is expected


def test_a_rejection_names_the_flags_that_contradict_each_other():
    with pytest.raises(UnfitRowError) as error:
        is_trained({"weight": 1, "trainable": False})
    assert error.value.rejection == Rejection("unclear-train-flag", "trainable is False but weight is 1")


@pytest.mark.parametrize("value", [0.5, 2, -1, "yes", "0.5", [1], {}, {"a": 1}])
def test_no_other_value_is_a_flag(value):
    with pytest.raises(UnfitRowError, match=r"weight: expected true or false, 1 or 0"):
        read_flag("weight", value)


def test_the_tables_agree():
    assert TRAIN_FLAGS.keys() < FLAG_LISTS.keys()
    assert WEIGHTS < TRAIN_FLAGS.keys()


@pytest.mark.parametrize("names", [("weight", "loss"), ("loss", "weight")])
def test_of_two_unclear_flags_the_first_is_named(names):
    """Not the one that a set yields first: its order differs between processes."""
    with pytest.raises(UnfitRowError) as error:
        is_trained(dict.fromkeys(names, 0.5))
    assert error.value.rejection.evidence.startswith(f"{names[0]}:")
