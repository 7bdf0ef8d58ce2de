"""Repeats: which rows of a source equal or resemble an earlier one, found on disk.

    Repeats.add(rows, ids, sketches) ... -> Repeats.find() -> number and rejection of each row that repeats another

Similar conversations share a key (sft.filters.dedup.near). The keys go to files, a band each; a row that shares none of
its keys with another row, and most do not, repeats nothing. Only the others are asked, in order, by an index
in memory: the result is that of an index of all. Otherwise a row takes two bytes of memory.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sft.conversation import Rejection
from sft.filters.dedup.near import SIGNATURE_BYTES, NearDuplicates, band_keys, banding, check_near_duplicate

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ID_BYTES = 16
# Keys that are sorted together, and rows that are read together: 32 MB and 5 MB.
KEYS_AT_ONCE, ROWS_AT_ONCE = 1 << 21, 1 << 14


class Repeats:
    """The rows of a source that nothing else speaks against. Rows that repeat another are found when all were added.

    `near` is the least similarity of near-duplicates; None = only equal ones repeat each other. `folder`, which is
    made, is for files of 288 bytes a row and 8 for each band.
    """

    def __init__(self, folder: Path, near: float | None) -> None:
        folder.mkdir()
        self.folder, self._near, self._rows = folder, near, 0
        self._slots, self._bands = (0, 1) if near is None else banding(near)

    def add(self, rows: "npt.NDArray[np.int64]", ids: bytes, sketches: bytes) -> None:
        """Add rows, in order: their numbers, ID_BYTES and SIGNATURE_BYTES of each."""
        import numpy as np

        if self._near is None:
            keys = np.frombuffer(ids, "<u8").reshape(-1, ID_BYTES // 8)[:, :1]
        else:
            keys = band_keys(np.frombuffer(sketches, np.uint8).reshape(-1, SIGNATURE_BYTES), self._slots, self._bands)
        files = {"rows": rows.astype(np.int64).tobytes(), "ids": ids, "sketches": sketches}
        for name, content in (files | {f"keys-{band}": keys[:, band].tobytes() for band in range(self._bands)}).items():
            with (self.folder / name).open("ab") as file:
                file.write(content)
        self._rows += len(rows)

    def find(self) -> Iterator[tuple[int, Rejection]]:
        """Yield the number of each row that repeats an earlier one, and why it is refused, in order."""
        import numpy as np

        shares = np.zeros(self._rows, np.bool_)
        for band in range(self._bands if self._rows else 0):
            mark_shared(self.folder / f"keys-{band}", shares)
            (self.folder / f"keys-{band}").unlink()
        known = _Equal() if self._near is None else NearDuplicates(self._near)
        for begin in range(0, self._rows, ROWS_AT_ONCE):
            places = np.flatnonzero(shares[begin : begin + ROWS_AT_ONCE])
            if not len(places):
                continue
            rows = np.fromfile(self.folder / "rows", np.int64, ROWS_AT_ONCE, offset=begin * 8)
            ids, sketches = (
                np.fromfile(self.folder / name, f"V{size}", ROWS_AT_ONCE, offset=begin * size)
                for name, size in (("ids", ID_BYTES), ("sketches", SIGNATURE_BYTES))
            )
            for place in places.tolist():
                conversation_id, sketch = ids[place].tobytes().hex(), sketches[place].tobytes()
                if isinstance(known, NearDuplicates):
                    rejection = check_near_duplicate(known, conversation_id, sketch)
                else:
                    rejection = known.check(conversation_id)
                if rejection is not None:
                    yield int(rows[place]), rejection


class _Equal:
    """Ids that came before."""

    def __init__(self) -> None:
        self._ids: set[str] = set()

    def check(self, conversation_id: str) -> Rejection | None:
        if conversation_id in self._ids:
            return Rejection("duplicate", f"the same conversation came before: {conversation_id}")
        self._ids.add(conversation_id)
        return None


def mark_shared(path: Path, shares: "npt.NDArray[np.bool_]") -> None:
    """Set `shares` (rows,) for each row whose key in a file of uint64 another row has too.

    Where there are many, keys are taken apart by what remains of a division, so that equal ones stay together.
    """
    import numpy as np

    parts = -(-len(shares) // KEYS_AT_ONCE)
    for part in range(parts):
        mine = [keys[keys % parts == part] if parts > 1 else keys for _, keys in _blocks(path)]
        ordered = np.concatenate(mine)
        del mine
        ordered.sort()
        twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        if not len(twice):
            continue
        for begin, keys in _blocks(path):
            nearest = twice[np.minimum(np.searchsorted(twice, keys), len(twice) - 1)]
            shares[begin : begin + len(keys)] |= nearest == keys


def _blocks(path: Path) -> "Iterator[tuple[int, npt.NDArray[np.uint64]]]":
    """Yield the keys of a file, with the number of the first, some at a time."""
    import numpy as np

    begin = 0
    while len(keys := np.fromfile(path, np.uint64, KEYS_AT_ONCE // 8, offset=begin * 8)):
        yield begin, keys
        begin += len(keys)
