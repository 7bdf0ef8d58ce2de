"""Ids of conversations in few bytes: each once and in order, so that one is found by halving.

An id is 32 hexadecimal digits (sft.conversation), which are 16 bytes here. Prepared files may come from elsewhere,
and promise only text: where any id of a blend is something else, all of them are kept as their text.
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
END = b"\x01"  # behind an id as text, for numpy takes zero bytes at an end for nothing; before all that are in ids


@dataclass(frozen=True)
class Ids:
    """Different ids, numbered in the order of their text."""

    keys: Keys
    """(ids,) Sorted; 16 bytes each, or the text and END."""
    hexadecimal: bool
    """Whether they are all 32 hexadecimal digits, and so 16 bytes."""

    def __len__(self) -> int:
        return len(self.keys)

    def names(self, numbers: Int32s | Int64s) -> pa.Array:
        """Return ids as text."""
        keys = self.keys[numbers]
        if not self.hexadecimal:
            return pa.array([key[: -len(END)].decode() for key in keys.tolist()], pa.string())
        ends = np.arange(0, DIGITS * len(keys) + 1, DIGITS, dtype=np.int32)
        return pa.StringArray.from_buffers(len(keys), pa.py_buffer(ends), pa.py_buffer(keys.tobytes().hex().encode()))

    def find(self, names: pa.Array) -> Int32s:
        """Return the number of each id, -1 for one that is not here."""
        if not len(self):
            return np.full(len(names), -1, np.int32)
        known = pc.match_substring_regex(names, HEXADECIMAL) if self.hexadecimal else pa.repeat(True, len(names))
        keys = _keys(pc.if_else(known, names, "0" * DIGITS), self.hexadecimal)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self) - 1)
        here = (self.keys[at] == keys) & known.to_numpy(zero_copy_only=False)
        return np.where(here, at, -1).astype(np.int32)


def number_ids(read: Callable[[], Iterable[pa.Array]]) -> tuple[Ids, Int32s]:
    """Return the different ids among names, and the number of each name's; `read` yields the names in some arrays.

    >>> ids, numbers = number_ids(lambda: [pa.array(["b", "a"]), pa.array(["b"])])
    >>> numbers.tolist(), ids.names(numbers).to_pylist()
    ([1, 0, 1], ['b', 'a', 'b'])
    """
    hexadecimal = all(pc.all(pc.match_substring_regex(names, HEXADECIMAL)).as_py() for names in read())
    keys = np.concatenate([np.empty(0, "S1"), *(_keys(names, hexadecimal) for names in read())])
    order = np.argsort(keys)
    keys = keys[order]
    differs = np.ones(len(keys), np.bool_)
    differs[1:] = keys[1:] != keys[:-1]
    numbers = np.empty(len(keys), np.int32)
    numbers[order] = np.cumsum(differs, dtype=np.int32) - 1
    return Ids(keys[differs], hexadecimal), numbers


def _keys(names: pa.Array, hexadecimal: bool) -> Keys:
    """Return what stands for each id in Ids.keys."""
    if not hexadecimal:
        return np.array([name + END for name in names.cast(pa.binary()).to_pylist()], np.bytes_)
    if not len(names):
        return np.empty(0, f"S{DIGITS // 2}")
    _, ends, text = names.buffers()
    begin = int(np.frombuffer(ends, np.int32)[names.offset])
    return np.frombuffer(
        bytes.fromhex(text[begin : begin + DIGITS * len(names)].to_pybytes().decode()), f"S{DIGITS // 2}"
    )
