"""Near-duplicates of the conversations of a blend: those that resemble a kept one of an earlier source.

data/filtered/<source>/kept-*.parquet -> signatures, computed by workers -> sft.filters.dedup.search
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sft.cli import InputError
from sft.conversation import Conversation
from sft.filters.dedup.search import Search
from sft.filters.dedup.signatures import signatures
from sft.filters.dedup.words import hash_words
from sft.packing.sample_table import ConversationTable
from sft.packing.splits import NearDuplicates
from sft.parquet import RowRange, plan_row_ranges, read_row_range
from sft.workers import map_shards, relax_gc, report_position

Int32s = npt.NDArray[np.int32]

SIGNED = pa.schema([("id", pa.string()), ("signature", pa.binary())])
ROWS_AT_ONCE = 256


def find_near_duplicates(
    conversations: ConversationTable, chosen: npt.NDArray[np.bool_], threshold: float, filtered: Path, spool: Path
) -> NearDuplicates:
    """Return which ids resemble a kept one. Only the `chosen` conversations, (conversations,), are compared.

    `filtered` has the folders of filtered sources, `spool` takes temporary files.

    Raises:  InputError: a chosen conversation is not among the filtered ones.
    """
    wanted = np.flatnonzero(chosen)[::-1]
    source_of = np.full(len(conversations.ids), -1, np.int32)  # the first that has it; -1 for one that is not chosen
    source_of[conversations.id_number[wanted]] = conversations.source[wanted]  # the last assignment stays
    ranges = [
        (number, row_range)
        for number, source in enumerate(conversations.sources)
        if (source_of == number).any()
        for row_range in plan_row_ranges(filtered / source, "kept-")
    ]
    search = Search(spool / "near-duplicates", threshold)
    is_missing, id_numbers = source_of >= 0, [np.empty(0, np.int32)]
    remaining = iter(ranges)

    def add(path: str) -> None:
        number, _ = next(remaining)
        for table in _read_signed(path):
            ids = conversations.ids.find(table["id"])
            take = (ids >= 0) & (source_of[ids] == number) & is_missing[ids]
            is_missing[ids[take]] = False
            id_numbers.append(ids[take])
            search.add(table["signature"].filter(pa.array(take)).to_pylist())
        Path(path).unlink()

    tasks = [{"range": row_range, "spool": str(spool)} for _, row_range in ranges]
    map_shards(sign_conversations, tasks, "sign conversations", add)
    if is_missing.any():
        example = conversations.ids.texts(is_missing.nonzero()[0][:1])[0]
        raise InputError(
            f"{filtered}: {is_missing.sum()} of {(source_of >= 0).sum()} prepared conversations are missing, for "
            f"example {example}. Run: dvc repro --force filter prep"
        )
    of_number = np.concatenate(id_numbers)
    duplicates, together = search.find(source_of[of_number])
    found = NearDuplicates.none(len(conversations.ids))
    found.kept_instead[of_number[duplicates.number]] = of_number[duplicates.kept]
    found.similarity[of_number[duplicates.number]] = duplicates.similarity
    found.together[of_number] = of_number[together]
    return found


def sign_conversations(task: dict[str, Any]) -> str:
    """Write id and signature of a range of kept rows to a new file (a task of sft.workers); return its path."""
    relax_gc()
    row_range = RowRange(*task["range"])
    report_position(f"{row_range.path}, rows {row_range.first_row} to {row_range.first_row + row_range.rows - 1}")
    with (
        tempfile.NamedTemporaryFile(dir=task["spool"], suffix=".arrow", delete=False) as file,
        pa.ipc.new_file(file, SIGNED) as writer,
    ):
        for batch in read_row_range(row_range, ROWS_AT_ONCE, ["id", "messages"]):
            conversations = [Conversation(json.loads(messages), None) for messages in batch["messages"].to_pylist()]
            parts = [list(conversation.parts()) for conversation in conversations]
            signed = signatures(conversations, parts, hash_words([text for each in parts for _, text in each]))
            writer.write_batch(pa.record_batch([batch["id"], pa.array(signed, pa.binary())], schema=SIGNED))
    return file.name


def _read_signed(path: str) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(path) as source, pa.ipc.open_file(source) as reader:
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
