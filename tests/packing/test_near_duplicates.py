"""Near-duplicates across sources: one group number for near-duplicates, and every conversation has a signature."""

import numpy as np
import pyarrow as pa
import pytest

from sft.cli import InputError
from sft.conversation import Conversation
from sft.filters.dedup.signatures import signature
from sft.packing.conversation_ids import number_ids
from sft.packing.near_duplicates import group_near_duplicates
from sft.packing.sample_table import ConversationTable
from sft.parquet import SIGNATURES, ShardWriter

WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()


def write_signatures(folder, texts):
    with ShardWriter(folder, "signatures", SIGNATURES) as shards:
        for name, text in texts.items():
            messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
            shards.write({"id": name, "signature": signature(Conversation(messages, None))})


@pytest.fixture
def conversations(tmp_path):
    """Conversations a and c of source x, b and c of source y; a and b differ in one mark only."""
    text, other = " ".join(WORDS), " ".join(f"{word}ty" for word in WORDS)
    write_signatures(tmp_path / "filtered/x", {"a": text, "c": other})
    write_signatures(tmp_path / "filtered/y", {"b": text + "!", "c": other})
    (tmp_path / "spool").mkdir()
    ids, id_number = number_ids(lambda: [pa.array(["a", "c", "b", "c"])])
    return ConversationTable(np.array([0, 0, 1, 1], np.int32), id_number, ids, ["x", "y"])


def group(conversations, chosen, folder):
    return group_near_duplicates(conversations, np.array(chosen), 0.8, folder / "filtered", folder / "spool").tolist()


def test_near_duplicates_have_the_number_of_the_first_and_only_chosen_conversations_are_compared(
    conversations, tmp_path
):
    assert conversations.ids.texts(np.arange(3)).to_pylist() == ["a", "b", "c"]
    assert group(conversations, [True] * 4, tmp_path) == [0, 0, 2]
    assert group(conversations, [True, True, False, True], tmp_path) == [0, 1, 2]
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_conversation_without_a_signature_is_named(conversations, tmp_path):
    write_signatures(tmp_path / "filtered/y", {"c": " ".join(WORDS)})
    with pytest.raises(InputError, match=r"filtered: signatures: 1 of 3 .* b\. .*dvc repro --force filter"):
        group(conversations, [True] * 4, tmp_path)
