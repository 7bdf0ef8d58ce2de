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
from sft.filters.dedup.search import Search

if TYPE_CHECKING:
    import pyarrow as pa

ID_BYTES = 16


class SourceDuplicates:
    """The rows of a source that no other filter rejects. Add all, in order, then call `find`.

    Args:  folder: a new folder for temporary files. threshold: the least similarity of near-duplicates; None finds
    only equal conversations.
    """

    def __init__(self, folder: Path, threshold: float | None) -> None:
        self._search, self._equal_only = Search(folder, threshold or 1.0), threshold is None
        for name in ("rows", "ids"):
            (folder / name).touch()

    def add(self, rows: npt.NDArray[np.int64], ids: "pa.Array", signatures: "pa.Array") -> None:
        """Add rows: their numbers, ids (text) and signatures (binary)."""
        texts = bytes.fromhex("".join(ids.to_pylist()))
        for name, content in (("rows", rows.astype(np.int64).tobytes()), ("ids", texts)):
            with (self._search.folder / name).open("ab") as file:
                file.write(content)
        if self._equal_only:
            self._search.add([signature.tobytes() for signature in signatures_of_ids(texts)])
        else:
            self._search.add(signatures.to_pylist())

    def find(self) -> Iterator[tuple[int, Rejection]]:
        """Yield the number and the rejection of each row that equals or resembles an earlier one, in order."""
        duplicates, _ = self._search.find()
        rows = np.fromfile(self._search.folder / "rows", np.int64)
        ids = np.fromfile(self._search.folder / "ids", f"V{ID_BYTES}")
        for number, kept, similarity in zip(*(column.tolist() for column in duplicates), strict=True):
            kept_id = ids[kept].tobytes().hex()
            if ids[number] == ids[kept]:
                yield int(rows[number]), Rejection("duplicate", f"the same conversation came before: {kept_id}")
            else:
                evidence = f"{similarity:.2f} similar to {kept_id}, which came before"
                yield int(rows[number]), Rejection("near-duplicate", evidence)


def signatures_of_ids(ids: bytes) -> npt.NDArray[np.uint8]:
    """Return signatures (sft.filters.dedup.signatures) that are similar only if the ids are equal, (ids, bytes).

    Half of an id is the key, each quarter the only shingle of a side.
    """
    numbers = np.frombuffer(ids, "<u4").reshape(-1, ID_BYTES // 4)
    sizes = np.ones((len(numbers), 2), "<u4")
    return np.column_stack([numbers[:, :2], sizes, numbers[:, 2:]]).view(np.uint8)
