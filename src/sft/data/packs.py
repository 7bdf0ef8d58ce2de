"""Packs: which samples fit one, and rows of several samples as Megatron-Bridge reads them.

What does not fit is a `Loss` with its reason: over-length, or untrained where nothing is left to learn from.

`loss_mask` is stored shifted once to the label: `loss_mask[i]` says whether predicting `input_ids[i + 1]`
counts. That is done in `align_mask`, called by `build_pack`, and nowhere else. `seq_start_id` has the start
of each sample, the first 0; what lies between a sample's last token and the next start is its padding.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sft.command import InputError

CUT = "cut"
"""The reason under which tokens stand that a kept sample lost; all others take whole samples."""

Sample = dict[str, Any]
"""A row of data/prepared, its source, and `trained`: how many of its tokens are trained."""


@dataclass(frozen=True)
class Loss:
    """A sample that is not packed, or the part of one that was cut off."""

    source: str
    conversation: str
    sample: int
    reason: str
    tokens: int
    trained_tokens: int
    evidence: str = ""


def lose(sample: Sample, reason: str, evidence: str = "") -> Loss:
    """Return the loss of a whole sample."""
    return Loss(*_identity(sample), reason, len(sample["ids"]), sample["trained"], evidence)


def _identity(sample: Sample) -> tuple[str, str, int]:
    return sample["source"], sample["conversation_id"], sample["sample"]


def count(samples: Iterable[Sample]) -> dict[str, int]:
    """Count conversations once; their samples, tokens and trained tokens as often as they are there."""
    counts = {"conversations": 0, "samples": 0, "tokens": 0, "trained_tokens": 0}
    seen: set[tuple[str, str]] = set()
    for sample in samples:
        seen.add(_identity(sample)[:2])
        counts["samples"] += 1
        counts["tokens"] += len(sample["ids"])
        counts["trained_tokens"] += sample["trained"]
    return {**counts, "conversations": len(seen)}


def count_losses(losses: Iterable[Loss]) -> dict[str, dict[str, int]]:
    """Count samples, tokens and trained tokens by reason."""
    reasons: dict[str, dict[str, int]] = {}
    for loss in losses:
        counts = reasons.setdefault(loss.reason, {"samples": 0, "tokens": 0, "trained_tokens": 0})
        counts["samples"] += 1
        counts["tokens"] += loss.tokens
        counts["trained_tokens"] += loss.trained_tokens
    return dict(sorted(reasons.items()))


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


def fit_samples(
    samples: Iterable[Sample], over_length: str, pack_size: int, multiple: int
) -> tuple[list[Sample], list[Loss]]:
    """Keep the samples that fit a pack and have something to train; longer ones follow `over_length`.

    Policies:  drop, cut-at-turn (keep the trained turns that fit, whole), error.
    Raises:    InputError: a sample that is too long under `error`, or does not say where its turns end.
    """
    kept: list[Sample] = []
    losses: list[Loss] = []
    for sample in samples:
        length = end = len(sample["ids"])
        name = f"{sample['source']}, conversation {sample['conversation_id']}, sample {sample['sample']}"
        if padded_length(length, multiple) > pack_size:
            if over_length == "error":
                raise InputError(
                    f"{name}: {length} tokens, pack.pack_size allows {pack_size}. Raise pack.pack_size, or set "
                    "pack.over_length to drop or cut-at-turn: what is lost is counted by source."
                )
            end = 0
            if over_length == "cut-at-turn":
                if sample.get("turn_ends") is None:
                    raise InputError(f"{name}: does not say where its turns end (turn_ends). Run: dvc repro prep")
                end = cut_length(sample["turn_ends"], pack_size, multiple)
        trained = sum(sample["mask"][1:end])
        if not end:
            losses.append(lose(sample, "over-length", f"sample {sample['sample']}: {length} tokens of {pack_size}"))
        elif not trained:
            losses.append(lose(sample, "untrained", f"sample {sample['sample']}: none of {length} tokens is trained"))
        elif end < length:
            kept.append({**sample, "ids": sample["ids"][:end], "mask": sample["mask"][:end], "trained": trained})
            losses.append(Loss(*_identity(sample), CUT, length - end, sample["trained"] - trained))
        else:
            kept.append(sample)
    return kept, losses


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


def build_pack(samples: Sequence[Sample], multiple: int, pad_id: int) -> dict[str, Any]:
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
