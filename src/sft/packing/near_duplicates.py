"""Near-duplicates across the sources of a blend, by the MinHash signatures that the filter stage writes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sft.cli import InputError
from sft.filters.dedup.across_sources import find_duplicate_groups
from sft.filters.dedup.signatures import SIGNATURE_BYTES
from sft.packing.sample_table import ConversationTable
from sft.parquet import SIGNATURES, read_tables

Int32s = npt.NDArray[np.int32]


def group_near_duplicates(
    conversations: ConversationTable, chosen: npt.NDArray[np.bool_], threshold: float, filtered: Path, spool: Path
) -> Int32s:
    """Return a group number for every id: the same number for near-duplicates, the id's own number if it has none.

    Only the `chosen` conversations are compared. `filtered` holds the signatures, `spool` takes temporary files.

    Raises:  InputError: a chosen conversation has no signature.
    """
    wanted = np.zeros(len(conversations.ids), np.bool_)
    wanted[conversations.id_number[chosen]] = True
    ids_read: list[Int32s] = []
    first = find_duplicate_groups(_read_signatures(conversations, wanted, filtered, ids_read), threshold, spool)
    id_numbers = np.concatenate([*ids_read, np.empty(0, np.int32)])
    if missing := int(wanted.sum()) - len(id_numbers):
        has_none = wanted.copy()
        has_none[id_numbers] = False
        example = conversations.ids.texts(has_none.nonzero()[0][:1])[0]
        raise InputError(
            f"{filtered}: signatures: {missing} of {wanted.sum()} conversations have none, for example {example}. "
            "Run: dvc repro --force filter"
        )
    groups = np.arange(len(wanted), dtype=np.int32)
    groups[id_numbers] = id_numbers[first]
    return groups


def _read_signatures(
    conversations: ConversationTable, wanted: npt.NDArray[np.bool_], filtered: Path, ids_read: list[Int32s]
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the signatures of the wanted ids, each once; append the ids' numbers to `ids_read`."""
    missing = wanted.copy()
    for number, source in enumerate(conversations.sources):
        of_source = np.zeros(len(wanted), np.bool_)
        of_source[conversations.id_number[conversations.source == number]] = True
        for table in read_tables(filtered / source, "signatures-", schema=SIGNATURES) if of_source.any() else ():
            id_numbers = conversations.ids.find(table["id"].combine_chunks())
            take = (id_numbers >= 0) & of_source[id_numbers] & missing[id_numbers]
            missing[id_numbers[take]] = False
            ids_read.append(id_numbers[take])
            signatures = b"".join(table["signature"].filter(pa.array(take)).to_pylist())
            yield np.frombuffer(signatures, np.uint8).reshape(-1, SIGNATURE_BYTES)
