"""Near-duplicates of a blend: who is dropped and for whom, by ids; every chosen conversation must be found."""

import numpy as np
import pyarrow as pa
import pytest

from sft.cli import InputError
from sft.packing.conversation_ids import number_ids
from sft.packing.near_duplicates import find_near_duplicates
from sft.packing.sample_table import ConversationTable
from tests.support.project import write_kept

WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
TEXT, OTHER = " ".join(WORDS), " ".join(f"{word}ty" for word in WORDS)


@pytest.fixture
def conversations(tmp_path):
    """Conversations a, c and d of source x, b and c of source y; a, b and d differ in marks only."""
    write_kept(tmp_path / "filtered/x", {"a": TEXT, "c": OTHER, "d": TEXT + "?"})
    write_kept(tmp_path / "filtered/y", {"b": TEXT + "!", "c": OTHER})
    (tmp_path / "spool").mkdir()
    ids, id_number = number_ids(lambda: [pa.array(["a", "c", "d", "b", "c"])])
    groups = np.arange(5, dtype=np.uint64)
    return ConversationTable(
        np.array([0, 0, 0, 1, 1], np.int32), id_number, groups, ids, ["x", "y"], np.zeros(5, np.int32), [""]
    )


def find(conversations, chosen, folder):
    return find_near_duplicates(conversations, np.array(chosen), 0.8, folder / "filtered", folder / "spool")


def test_a_later_source_drops_what_an_earlier_one_keeps_and_only_chosen_conversations_are_compared(
    conversations, tmp_path
):
    assert conversations.ids.texts(np.arange(4)).to_pylist() == ["a", "b", "c", "d"]
    found = find(conversations, [True] * 5, tmp_path)
    assert found.kept_instead.tolist() == [-1, 0, -1, -1]
    assert found.similarity.tolist() == [0, 1, 0, 0]
    assert found.together.tolist() == [0, 1, 2, 0]


def test_what_is_not_chosen_drops_nothing(conversations, tmp_path):
    found = find(conversations, [False, True, False, True, True], tmp_path)
    assert found.kept_instead.tolist() == [-1] * 4
    assert found.together.tolist() == [0, 1, 2, 3]


def test_a_conversation_that_is_not_among_the_filtered_ones_is_named(conversations, tmp_path):
    write_kept(tmp_path / "filtered/y", {"c": OTHER})
    with pytest.raises(InputError, match=r"filtered: 1 of 4 .* b\. .*dvc repro --force filter"):
        find(conversations, [True] * 5, tmp_path)
