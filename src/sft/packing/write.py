"""Packs: rows of several samples, as Megatron-Bridge reads them. The loss mask is shifted here and nowhere else.

Data in data/prepared marks the tokens that are trained. In a pack, `loss_mask[i]` says whether predicting
`input_ids[i + 1]` counts, so the mask moves one position to the left, once, in `align_mask`; the last position of
each sample is 0. Two samples, of which the answers `8 2` and `9 2` are trained (2 is the stop token):

    input_ids       5  6  8  2 | 7  9  2
    prepared mask   0  0  1  1 | 0  1  1
    loss_mask       0  1  1  0 | 1  1  0
    seq_start_id    0, 4

`seq_start_id` has the start of each sample; tokens between the end of a sample and the next start are padding.
"""

import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.uint8]

COLUMNS = ("input_ids", "loss_mask", "seq_start_id")


def padded(length: Any, multiple: int) -> Any:
    """Return the padded length of a sample, or of each in an array: a multiple of `multiple`, plus 1.

    Every token predicts the next, so a model reads all tokens of a sample but the last; the number it reads must be a
    multiple. Source: Megatron-Bridge 0.6.2 data/packing/offline.py ("Runtime segments, not stored input_ids").

    >>> padded(5, 4), padded(8, 4), padded(9, 4), padded(5, 1)
    (5, 9, 9, 5)
    """
    return -(-(length - 1) // multiple) * multiple + 1


def offsets_of(lengths: npt.NDArray[Any]) -> Int64s:
    """Return where each of several consecutive items begins, and where the last one ends.

    >>> offsets_of(np.array([3, 2])).tolist()
    [0, 3, 5]
    """
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


@dataclass(frozen=True)
class Packs:
    """Consecutive packs: P packs of S samples with T tokens in all."""

    ids: Int32s
    """(T,) Token ids, padding included."""
    mask: Mask
    """(T,) Loss mask, shifted once."""
    starts: Int64s
    """(S,) Where each sample begins in `ids`."""
    samples: Int64s
    """(P + 1,) Where each pack begins in `starts`; the last is S."""

    def __len__(self) -> int:
        return len(self.samples) - 1

    @property
    def tokens(self) -> Int64s:
        """(P + 1,) Where each pack begins in `ids`; the last is T."""
        return np.append(self.starts[self.samples[:-1]], len(self.ids))

    def columns(self) -> "dict[str, pa.Array]":
        """Return the columns that Bridge reads, a list for each pack."""
        import pyarrow as pa

        edges = self.tokens
        in_pack = self.starts - np.repeat(edges[:-1], np.diff(self.samples))
        offsets = pa.array(edges, pa.int32())
        return {
            "input_ids": pa.ListArray.from_arrays(offsets, pa.array(self.ids)),
            "loss_mask": pa.ListArray.from_arrays(offsets, pa.array(self.mask)),
            "seq_start_id": pa.ListArray.from_arrays(pa.array(self.samples, pa.int32()), pa.array(in_pack, pa.int32())),
        }


def align_mask(mask: Mask, lasts: Int64s) -> Mask:
    """Return the loss mask of consecutive samples: the token mask, shifted to the positions that predict the tokens.

    Shapes:  mask, result: (tokens,), values 0 or 1; lasts: (samples,), the index of each sample's last token.
    Result[i] says whether predicting token i + 1 counts; it is 0 at the end of each sample.
    Source:  next-token loss; Megatron-Bridge 0.6.2 data/packing/gpt_sft.py reads the mask as stored.

    >>> align_mask(np.array([0, 0, 1, 1, 1, 1], np.uint8), lasts=np.array([3, 5])).tolist()
    [0, 1, 1, 0, 1, 0]
    """
    shifted = np.append(mask[1:], np.uint8(0))
    shifted[lasts] = 0
    return shifted


def build_packs(
    parts: Iterable[tuple[int, Int32s, Mask]], lengths: Int64s, samples: Int64s, multiple: int, pad_id: int
) -> Packs:
    """Return packs of the given samples.

    `parts` has (place, ids, mask as prepared) of each sample, in any order; `lengths` are the tokens of the samples by
    place, and `samples` says where each pack begins in them. A sample is padded at its end, up to its `padded` length,
    with `pad_id`, which is never trained.

    >>> part = 0, np.array([7, 8, 9], np.int32), np.array([0, 1, 1], np.uint8)
    >>> packs = build_packs([part], np.array([3]), np.array([0, 1]), multiple=4, pad_id=0)
    >>> packs.ids.tolist(), packs.mask.tolist(), packs.starts.tolist()
    ([7, 8, 9, 0, 0], [1, 1, 0, 0, 0], [0])
    """
    edges = offsets_of(padded(lengths, multiple))
    starts = edges[:-1]
    ids = np.full(edges[-1], pad_id, np.int32)
    mask = np.zeros(edges[-1], np.uint8)
    for place, sample_ids, sample_mask in parts:
        start = starts[place]
        ids[start : start + len(sample_ids)] = sample_ids
        mask[start : start + len(sample_mask)] = sample_mask
    return Packs(ids, align_mask(mask, starts + lengths - 1), starts, samples)


def pack_fault(packs: Packs, pack_size: int, stop_id: int) -> tuple[int, str] | None:
    """Return (pack number, fault) of the first pack that breaks the contract; None if none does."""
    ids, mask, starts, edges = packs.ids, packs.mask, packs.starts, packs.tokens
    tokens = np.diff(edges)
    if len(mask) != len(ids):
        return 0, f"{len(ids)} ids but {len(mask)} mask values"
    wrong = (tokens <= 0) | (tokens > pack_size)
    if wrong.any():
        return int(wrong.argmax()), f"{tokens[wrong.argmax()]} tokens, pack size {pack_size}"
    ends = np.append(starts[1:], len(ids))
    if len(empty := np.flatnonzero(starts >= ends)):
        return int(np.searchsorted(packs.samples, empty[0], "right")) - 1, "a sample has no tokens"
    for fault, places in (
        ("the last token of a sample predicts a token of the next sample", ends[mask[ends - 1] > 0] - 1),
        (
            "a trained token follows a stop token: Megatron-Bridge would drop it silently",
            np.flatnonzero((ids == stop_id) & (mask > 0)),
        ),
        ("no trained token", edges[:-1][np.maximum.reduceat(mask, edges[:-1]) == 0]),
    ):
        if len(places):
            return int(np.searchsorted(edges, places[0], "right")) - 1, fault
    return None


def read_lists(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the packs of a folder as dicts of lists of int."""
    from sft.parquet import read_tables

    for table in read_tables(folder, columns=COLUMNS):
        for batch in table.to_batches():
            for row in range(len(batch)):
                yield {name: batch[name][row].values.to_numpy().tolist() for name in COLUMNS}


class _NextPack:
    """An object of an array that is pickled as the next of some packs."""

    def __init__(self, packs: Iterable[dict[str, Any]]) -> None:
        self._packs = iter(packs)

    def __reduce__(self) -> tuple[Any, ...]:
        pack = next(self._packs)
        return dict, (), None, None, ((name, pack[name]) for name in COLUMNS)


def write_npy(path: Path, packs: Iterable[dict[str, Any]], number: int) -> None:
    """Write `number` packs as the recipe's .npy file: an object array of dicts of lists of int.

    One pack is in memory at a time, where np.save needs all: 16 to 44 bytes for a token and its mask.
    """
    array = np.full(number, _NextPack(packs), object)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        pickler = pickle.Pickler(file, protocol=4)
        pickler.fast = True  # it would keep every list, to find one that is written twice
        pickler.dump(array)
