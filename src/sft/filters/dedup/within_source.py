"""Duplicates and near-duplicates within a source.

    SourceDuplicates.add(rows, ids, signatures) ... -> SourceDuplicates.find() -> row and rejection of each duplicate

A conversation is a duplicate if it equals or resembles an earlier one that is kept (sft.filters.dedup.search).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sft.conversation import Rejection
from sft.filters.dedup.search import Duplicates, Search

if TYPE_CHECKING:
    import pyarrow as pa

ID = np.dtype("V16")


class SourceDuplicates:
    """The rows of a source that no other filter rejects. Add all, in order, then call `find`.

    Args:  folder: a new folder for temporary files. threshold: the least similarity of near-duplicates; None finds
    only equal conversations, and needs no signatures.
    """

    def __init__(self, folder: Path, threshold: float | None) -> None:
        folder.mkdir()
        self._search = None if threshold is None else Search(folder / "search", threshold)
        self._files = folder / "rows", folder / "ids"
        for path in self._files:
            path.touch()

    def add(self, rows: npt.NDArray[np.int64], ids: "pa.Array", signatures: "pa.Array") -> None:
        """Add rows: their numbers, ids (text) and signatures (binary)."""
        contents = rows.astype(np.int64).tobytes(), bytes.fromhex("".join(ids.to_pylist()))
        for path, content in zip(self._files, contents, strict=True):
            with path.open("ab") as file:
                file.write(content)
        if self._search is not None:
            self._search.add(signatures.to_pylist())

    def find(self) -> Iterator[tuple[int, Rejection]]:
        """Yield the number and the rejection of each row that equals or resembles an earlier one, in order."""
        rows, ids = np.fromfile(self._files[0], np.int64), np.fromfile(self._files[1], ID)
        duplicates = equal_ids(ids) if self._search is None else self._search.find()[0]
        for number, kept, similarity in zip(*(column.tolist() for column in duplicates), strict=True):
            kept_id = ids[kept].tobytes().hex()
            if ids[number] == ids[kept]:
                yield int(rows[number]), Rejection("duplicate", f"the same conversation came before: {kept_id}")
            else:
                evidence = f"{similarity:.2f} similar to {kept_id}, which came before"
                yield int(rows[number]), Rejection("near-duplicate", evidence)


def equal_ids(ids: npt.NDArray[np.void]) -> Duplicates:
    """Return which ids equal an earlier one, and the first of those."""
    halves = ids.view("<u8").reshape(-1, 2)
    order = np.lexsort(halves.T)  # equal ones stay in their order
    ordered = halves[order]
    is_later = np.zeros(len(ids), np.bool_)
    is_later[1:] = (ordered[1:] == ordered[:-1]).all(axis=1)
    first, later = np.flatnonzero(~is_later), np.flatnonzero(is_later)
    number, kept = order[later], order[first[np.searchsorted(first, later) - 1]]
    by_number = np.argsort(number)
    return Duplicates(number[by_number], kept[by_number], np.ones(len(number)))
