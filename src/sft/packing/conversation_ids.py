"""Conversation ids in few bytes: each id once, sorted, found by binary search.

An id is 32 hexadecimal digits (sft.conversation) and takes 16 bytes here. Prepared data from elsewhere promises only
text: if one id of the blend has another form, all ids are kept as text.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Keys = npt.NDArray[np.bytes_]

DIGITS = 32
HEXADECIMAL = f"^[0-9a-f]{{{DIGITS}}}$"
# Ends an id that is kept as text: numpy drops trailing zero bytes. It sorts before all characters of an id.
END = b"\x01"


@dataclass(frozen=True)
class ConversationIds:
    """Distinct ids, numbered in sorted order."""

    keys: Keys
    """(ids,) Sorted; 16 bytes each, or the text and END."""
    hexadecimal: bool
    """Whether all ids are 32 hexadecimal digits, stored as 16 bytes."""

    def __len__(self) -> int:
        return len(self.keys)

    def texts(self, numbers: Int32s | Int64s) -> pa.Array:
        """Return the ids with these numbers, as text."""
        keys = self.keys[numbers]
        if not self.hexadecimal:
            return pa.array([key[: -len(END)].decode() for key in keys.tolist()], pa.string())
        ends = np.arange(0, DIGITS * len(keys) + 1, DIGITS, dtype=np.int32)
        return pa.StringArray.from_buffers(len(keys), pa.py_buffer(ends), pa.py_buffer(keys.tobytes().hex().encode()))

    def find(self, texts: pa.Array) -> Int32s:
        """Return the number of each id, -1 for an unknown one."""
        if not len(self):
            return np.full(len(texts), -1, np.int32)
        comparable = pc.match_substring_regex(texts, HEXADECIMAL) if self.hexadecimal else pa.repeat(True, len(texts))
        keys = _keys(pc.if_else(comparable, texts, "0" * DIGITS), self.hexadecimal)
        position = np.minimum(np.searchsorted(self.keys, keys), len(self) - 1)
        known = (self.keys[position] == keys) & comparable.to_numpy(zero_copy_only=False)
        return np.where(known, position, -1).astype(np.int32)


def number_ids(read: Callable[[], Iterable[pa.Array]]) -> tuple[ConversationIds, Int32s]:
    """Return the distinct ids of some arrays of text, and the number of each text's id.

    `read` yields the arrays; it is called twice.

    >>> ids, numbers = number_ids(lambda: [pa.array(["b", "a"]), pa.array(["b"])])
    >>> numbers.tolist(), ids.texts(numbers).to_pylist()
    ([1, 0, 1], ['b', 'a', 'b'])
    """
    hexadecimal = all(pc.all(pc.match_substring_regex(texts, HEXADECIMAL)).as_py() for texts in read())
    keys = np.concatenate([np.empty(0, "S1"), *(_keys(texts, hexadecimal) for texts in read())])
    order = np.argsort(keys)
    keys = keys[order]
    is_first = np.ones(len(keys), np.bool_)
    is_first[1:] = keys[1:] != keys[:-1]
    numbers = np.empty(len(keys), np.int32)
    numbers[order] = np.cumsum(is_first, dtype=np.int32) - 1
    return ConversationIds(keys[is_first], hexadecimal), numbers


def _keys(texts: pa.Array, hexadecimal: bool) -> Keys:
    """Return the key of each id, as in ConversationIds.keys."""
    if not hexadecimal:
        return np.array([text + END for text in texts.cast(pa.binary()).to_pylist()], np.bytes_)
    if not len(texts):
        return np.empty(0, f"S{DIGITS // 2}")
    _, ends, data = texts.buffers()
    begin = int(np.frombuffer(ends, np.int32)[texts.offset])
    return np.frombuffer(
        bytes.fromhex(data[begin : begin + DIGITS * len(texts)].to_pybytes().decode()), f"S{DIGITS // 2}"
    )
