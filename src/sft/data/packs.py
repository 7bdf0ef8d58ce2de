"""Packs: rows of several samples, as Megatron-Bridge reads them.

`loss_mask` is stored shifted once to the label: `loss_mask[i]` says whether predicting `input_ids[i + 1]`
counts. That is done in `align_mask`, called by `build_pack`, and nowhere else. `seq_start_id` has the start
of each sample, the first 0; what lies between a sample's last token and the next start is its padding.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def align_mask(mask: Sequence[int]) -> list[int]:
    """Move a token mask onto the positions that predict those tokens.

    Shapes:  mask, result: (T,), T = tokens in one sample; values 0 or 1.
    Result[i] says whether predicting token i+1 counts; the last is always 0.
    Raises:  ValueError: an empty sample.
    Source:  next-token loss; Megatron-Bridge 0.6.2 data/packing/gpt_sft.py reads the mask as stored.

    >>> align_mask([0, 0, 1, 1])
    [0, 1, 1, 0]
    """
    if not len(mask):
        raise ValueError("an empty sample has no mask")
    return [int(value) for value in mask[1:]] + [0]


def padded_length(length: int, multiple: int) -> int:
    """Return the length of a sample once padded to a multiple.

    >>> padded_length(5, 4), padded_length(8, 4), padded_length(5, 1)
    (8, 8, 5)
    """
    return -(-length // multiple) * multiple


def cut_length(turn_ends: Sequence[int], pack_size: int, multiple: int) -> int:
    """Return the length of a sample cut behind the last trained turn that fits a pack; 0 if not even the first fits.

    `turn_ends` has the index behind the stop token of each trained turn, so that every turn that is kept is whole.

    >>> cut_length([10, 25, 40], pack_size=32, multiple=8), cut_length([40], pack_size=32, multiple=8)
    (25, 0)
    """
    return max((end for end in turn_ends if padded_length(end, multiple) <= pack_size), default=0)


def build_pack(samples: Sequence[dict[str, Any]], multiple: int, pad_id: int) -> dict[str, Any]:
    """Join samples into a pack.

    `samples` have ids, mask, conversation_id, sample, source, repeat. Each is padded at its end to a multiple
    of `multiple` with `pad_id`, which is never trained.

    >>> pack = build_pack([{"ids": [7, 8, 9], "mask": [0, 1, 1], "conversation_id": "c", "sample": 0,
    ...                     "source": "s", "repeat": 0}], multiple=4, pad_id=0)
    >>> pack["input_ids"], pack["loss_mask"], pack["seq_start_id"]
    ([7, 8, 9, 0], [1, 1, 0, 0], [0])
    """
    pack: dict[str, Any] = {name: [] for name in ("input_ids", "loss_mask", "seq_start_id")}
    for sample in samples:
        padding = padded_length(len(sample["ids"]), multiple) - len(sample["ids"])
        pack["seq_start_id"].append(len(pack["input_ids"]))
        pack["input_ids"] += list(sample["ids"]) + [pad_id] * padding
        pack["loss_mask"] += align_mask(sample["mask"]) + [0] * padding
    for name in ("conversation_id", "sample", "source", "repeat"):
        pack[name] = [sample[name] for sample in samples]
    return pack


def pack_fault(pack: dict[str, Any], pack_size: int, stop_id: int) -> str:
    """Say what is wrong with a pack under the contract; empty if nothing."""
    ids, mask, starts = pack["input_ids"], pack["loss_mask"], pack["seq_start_id"]
    if not 0 < len(ids) <= pack_size:
        return f"{len(ids)} tokens, pack size {pack_size}"
    if len(mask) != len(ids):
        return f"{len(ids)} ids but {len(mask)} mask values"
    if not starts or starts[0] != 0 or any(a >= b for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)):
        return f"starts {starts} of {len(ids)} tokens"
    if not any(mask):
        return "no trained token"
    if any(mask[end - 1] for end in [*starts[1:], len(ids)]):
        return "the last token of a sample predicts the next sample"
    if any(kept and token == stop_id for kept, token in zip(mask, ids, strict=True)):
        return "a trained token follows a stop token: Megatron-Bridge would drop it unseen"
    return ""


def write_npy(path: Path, packs: Sequence[dict[str, Any]]) -> None:
    """Write packs in the form that the recipe names: an object array of dicts of lists of int."""
    array = np.empty(len(packs), dtype=object)
    for index, pack in enumerate(packs):
        array[index] = {name: pack[name] for name in ("input_ids", "loss_mask", "seq_start_id")}
    np.save(path, array, allow_pickle=True)
