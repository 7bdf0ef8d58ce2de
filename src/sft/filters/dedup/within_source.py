"""Duplicates and near-duplicates within a source.

    SourceDuplicates.add(rows, ids, signatures) ... -> SourceDuplicates.find() -> row and rejection of each duplicate

Of several similar conversations the first is kept. Similar conversations share a band key
(sft.filters.dedup.signatures). `SourceDuplicates` writes the keys to disk, one file per band; a row that shares no
key with another row is no duplicate, and most rows share none. Only the others are compared, in order, with a
`SignatureIndex` in memory: the result is the same as that of an index of all rows, at two bytes of memory for each of
the other rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.conversation import Rejection
from sft.filters.dedup.signatures import CHANCE, NUMBERS_BYTES, SIGNATURE_BYTES, SLOTS, band_keys, banding

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from sft.filters.dedup.words import Hashes

ID_BYTES, ID_CHARS = 16, 32
# Keys that are sorted at once, and rows that are read at once: 32 MB and 5 MB.
KEYS_AT_ONCE, ROWS_AT_ONCE = 1 << 21, 1 << 14
# Conversations that an index keeps in a dictionary before it sorts them into an array.
RECENT = 4096
# An entry of a sorted part: the key in the high bits, the row in the low ones.
ROW_BITS, LAST_ROW = 32, 0xFFFFFFFF


class SourceDuplicates:
    """The rows of a source that no other filter rejects. Add all rows, then call `find`.

    Args:  folder: a new folder for temporary files, 288 bytes per row and 8 per band. threshold: the least similarity
    of near-duplicates; None finds only equal conversations.
    """

    def __init__(self, folder: Path, threshold: float | None) -> None:
        folder.mkdir()
        self.folder, self._threshold, self._rows = folder, threshold, 0
        self._slots, self._bands = (0, 1) if threshold is None else banding(threshold)

    def add(self, rows: "npt.NDArray[np.int64]", ids: bytes, signatures: bytes) -> None:
        """Add rows, in order: their numbers, and ID_BYTES and SIGNATURE_BYTES of each."""
        import numpy as np

        if self._threshold is None:
            keys = np.frombuffer(ids, "<u8").reshape(-1, ID_BYTES // 8)[:, :1]
        else:
            keys = band_keys(np.frombuffer(signatures, np.uint8).reshape(-1, SIGNATURE_BYTES), self._slots, self._bands)
        files = {"rows": rows.astype(np.int64).tobytes(), "ids": ids, "signatures": signatures}
        for name, content in (files | {f"keys-{band}": keys[:, band].tobytes() for band in range(self._bands)}).items():
            with (self.folder / name).open("ab") as file:
                file.write(content)
        self._rows += len(rows)

    def find(self) -> Iterator[tuple[int, Rejection]]:
        """Yield the number and the rejection of each row that equals or resembles an earlier one, in order."""
        import numpy as np

        shares_key = np.zeros(self._rows, np.bool_)
        for band in range(self._bands if self._rows else 0):
            mark_shared(self.folder / f"keys-{band}", shares_key)
            (self.folder / f"keys-{band}").unlink()
        index = IdIndex() if self._threshold is None else SignatureIndex(self._threshold)
        for begin in range(0, self._rows, ROWS_AT_ONCE):
            places = np.flatnonzero(shares_key[begin : begin + ROWS_AT_ONCE])
            if not len(places):
                continue
            rows = np.fromfile(self.folder / "rows", np.int64, ROWS_AT_ONCE, offset=begin * 8)
            ids, signatures = (
                np.fromfile(self.folder / name, f"V{size}", ROWS_AT_ONCE, offset=begin * size)
                for name, size in (("ids", ID_BYTES), ("signatures", SIGNATURE_BYTES))
            )
            for place in places.tolist():
                rejection = index.check(ids[place].tobytes().hex(), signatures[place].tobytes())
                if rejection is not None:
                    yield int(rows[place]), rejection


def mark_shared(path: Path, shares_key: "npt.NDArray[np.bool_]") -> None:
    """Set `shares_key` (rows,) for each row whose key in a file of uint64 another row has too.

    Many keys are split by their remainder of a division, so that equal keys stay together.
    """
    import numpy as np

    parts = -(-len(shares_key) // KEYS_AT_ONCE)
    for part in range(parts):
        keys_of_part = [keys[keys % parts == part] if parts > 1 else keys for _, keys in _blocks(path)]
        ordered = np.concatenate(keys_of_part)
        del keys_of_part
        ordered.sort()
        shared = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        if not len(shared):
            continue
        for begin, keys in _blocks(path):
            nearest = shared[np.minimum(np.searchsorted(shared, keys), len(shared) - 1)]
            shares_key[begin : begin + len(keys)] |= nearest == keys


def _blocks(path: Path) -> "Iterator[tuple[int, npt.NDArray[np.uint64]]]":
    """Yield the keys of a file in blocks, each with the number of its first."""
    import numpy as np

    begin = 0
    while len(keys := np.fromfile(path, np.uint64, KEYS_AT_ONCE // 8, offset=begin * 8)):
        yield begin, keys
        begin += len(keys)


class IdIndex:
    """The ids seen so far: finds equal conversations."""

    def __init__(self) -> None:
        self._ids: set[str] = set()

    def check(self, conversation_id: str, signature: bytes) -> Rejection | None:
        """Reject a conversation that came before; otherwise add it."""
        if conversation_id in self._ids:
            return _duplicate(conversation_id)
        self._ids.add(conversation_id)
        return None


@dataclass(frozen=True)
class Similar:
    """An earlier conversation that is similar."""

    id: str
    similarity: float
    """From the threshold to 1."""


class SignatureIndex:
    """The signatures seen so far: finds similar conversations by locality-sensitive hashing.

    Each signature has a key per band of slots. Similar ones share a key with a probability of RECALL or more; all that
    share a key are compared, slot by slot. Memory per conversation: 264 bytes of signature, 32 of id, 8 per band.
    """

    def __init__(self, threshold: float) -> None:
        import numpy as np

        self._threshold = threshold
        self._slots, self._bands = banding(threshold)
        self._size = 0
        self._ids = np.empty(RECENT, f"S{ID_CHARS}")
        self._signatures = np.empty((RECENT, SIGNATURE_BYTES), np.uint8)
        self._recent: dict[int, list[int]] = {}
        self._recent_keys: list[npt.NDArray[np.uint32]] = []
        # Keys in order, each with its row in the low bits; every part is more than twice as long as the next.
        self._sorted_parts: list[Hashes] = []

    def check(self, conversation_id: str, signature: bytes) -> Rejection | None:
        """Reject a conversation that equals or resembles an earlier one; otherwise add it."""
        keys = self.keys(signature)
        similar = self.find(signature, keys)
        if similar is None:
            self.add(conversation_id, signature, keys)
            return None
        if similar.id == conversation_id:  # equal conversations have equal signatures
            return _duplicate(conversation_id)
        return Rejection("near-duplicate", f"{similar.similarity:.2f} similar to {similar.id}, which came before")

    def add(self, conversation_id: str, signature: bytes, keys: "npt.NDArray[np.uint32] | None" = None) -> None:
        """Add a conversation; pass the `keys` of its signature if you have them."""
        import numpy as np

        encoded = conversation_id.encode("ascii")
        if not 0 < len(encoded) <= ID_CHARS:
            raise ValueError(f"id {conversation_id!r}: expected 1 to {ID_CHARS} characters")
        if self._size == len(self._ids):
            self._ids, self._signatures = _doubled(self._ids), _doubled(self._signatures)
        self._ids[self._size], self._signatures[self._size] = encoded, np.frombuffer(signature, np.uint8)
        keys = self.keys(signature) if keys is None else keys
        for key in keys.tolist():
            self._recent.setdefault(key, []).append(self._size)
        self._recent_keys.append(keys)
        self._size += 1
        if len(self._recent_keys) == RECENT:
            self._sort_recent()

    def find(self, signature: bytes, keys: "npt.NDArray[np.uint32] | None" = None) -> Similar | None:
        """Return the earliest conversation that is similar."""
        rows, similarities = self.similar(signature, keys)
        if not len(rows):
            return None
        return Similar(bytes(self._ids[rows[0]]).decode("ascii"), float(similarities[0]))

    def similar(
        self, signature: bytes, keys: "npt.NDArray[np.uint32] | None" = None
    ) -> "tuple[npt.NDArray[np.uint32], npt.NDArray[np.float64]]":
        """Return all similar conversations: their numbers in the order of adding, and their similarities."""
        import numpy as np

        keys = self.keys(signature) if keys is None else keys
        candidates = [np.array(self._recent[key], np.uint32) for key in keys.tolist() if key in self._recent]
        lowest = keys.astype(np.uint64) << ROW_BITS
        for part in self._sorted_parts:
            first, last = np.searchsorted(part, lowest), np.searchsorted(part, lowest | LAST_ROW, "right")
            candidates += [part[first[band] : last[band]].astype(np.uint32) for band in np.flatnonzero(first < last)]
        if not candidates:
            return np.empty(0, np.uint32), np.empty(0)
        rows = np.unique(np.concatenate(candidates))
        same = self._signatures[rows] == np.frombuffer(signature, np.uint8)
        slots = same[:, NUMBERS_BYTES:].view(np.uint8).reshape(-1, 2, SLOTS).sum(axis=2, dtype=np.uint8).min(axis=1)
        similarity = (slots / SLOTS - CHANCE) / (1 - CHANCE) * same[:, :NUMBERS_BYTES].all(axis=1)
        enough = similarity >= self._threshold
        return rows[enough], similarity[enough]

    def keys(self, signature: bytes) -> "npt.NDArray[np.uint32]":
        """Return a key for each band of a signature."""
        import numpy as np

        row = np.frombuffer(signature, np.uint8).reshape(1, -1)
        high: npt.NDArray[np.uint32] = (band_keys(row, self._slots, self._bands)[0] >> np.uint64(32)).astype(np.uint32)
        return high

    def _sort_recent(self) -> None:
        """Turn the dictionary into a sorted part and merge parts of similar length, so that few remain."""
        import numpy as np

        first = self._size - len(self._recent_keys)
        rows = np.repeat(np.arange(first, self._size, dtype=np.uint64), self._bands)
        part = np.concatenate(self._recent_keys).astype(np.uint64) << np.uint64(ROW_BITS) | rows
        part.sort()
        self._sorted_parts.append(part)
        self._recent, self._recent_keys = {}, []
        while len(self._sorted_parts) > 1 and len(self._sorted_parts[-2]) <= 2 * len(self._sorted_parts[-1]):
            self._sorted_parts[-2:] = [np.concatenate(self._sorted_parts[-2:])]
            self._sorted_parts[-1].sort()


def _doubled(array: "npt.NDArray[Any]") -> "npt.NDArray[Any]":
    import numpy as np

    longer = np.empty((2 * len(array), *array.shape[1:]), array.dtype)
    longer[: len(array)] = array  # the rest takes no memory until it is written
    return longer


def _duplicate(conversation_id: str) -> Rejection:
    return Rejection("duplicate", f"the same conversation came before: {conversation_id}")
