"""The plan of a blend: which samples are packed, in which split, how often and in which order; why the others are not.

Pure functions over sample lengths and counts (sft.packing.sample_table). The steps, in order: drop duplicates across
sources, split by conversation, set the epochs of each source, assign samples to bins.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sft.hashing import keyed_hashes
from sft.packing.bins import plan_bins
from sft.packing.blend import plan_copies, plan_epochs
from sft.packing.sample_table import (
    DUPLICATE,
    EXCLUDED,
    FITS,
    NEAR_DUPLICATE,
    NOT_DRAWN,
    OVER_CAP,
    ConversationTable,
    SampleTable,
)
from sft.packing.splits import SPLITS, NearDuplicates, held_out_counts, join_groups, resolve_duplicates, split_groups
from sft.packing.write import offsets_of, padded
from sft.params.data import Pack, Source

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PackOrder:
    """The packs of a split, as a list of samples."""

    samples: Int32s
    """(S,) Numbers of samples, pack by pack."""
    copies: Int32s
    """(S,) Which copy of its conversation each belongs to, from 0."""
    packs: Int64s
    """(P + 1,) Where each pack begins in `samples`; the last is S."""


@dataclass(frozen=True)
class BlendPlan:
    """Which samples are packed where. `SampleTable.reason` says why a sample is not packed."""

    splits: dict[str, PackOrder]
    kept_instead: Int32s
    """(conversations,) The conversation that is kept instead of this duplicate; -1 for one that is no duplicate."""
    similarity: npt.NDArray[np.float64]
    """(ids,) Of near-duplicates to the conversation that is kept."""
    available: dict[str, int]
    """Trained tokens or samples (`pack.unit`) of the training split by source, every conversation once."""
    epochs: dict[str, float]
    """How often the training split of each source is seen."""
    groups: dict[str, dict[str, int]]
    """Of each source: `groups` that stay in one split; conversations in the `largest`; `too_large` to be held out;
    conversations held out for `validation` and `test`, and those asked for."""


def has_fitting_sample(samples: SampleTable, conversations: ConversationTable) -> npt.NDArray[np.bool_]:
    """Return for each conversation whether one of its samples fits a pack."""
    fits = np.zeros(len(conversations), np.bool_)
    fits[samples.conversation[samples.reason == FITS]] = True
    return fits


def plan_blend(
    samples: SampleTable,
    conversations: ConversationTable,
    near_duplicates: NearDuplicates,
    sources: Mapping[str, Source],
    params: Pack,
) -> BlendPlan:
    """Choose what is packed, in which split and how often; set `samples.reason` of the rest."""
    kept_instead, kept_with = drop_duplicates(samples, conversations, near_duplicates)
    cap_windows(samples, params.max_windows)
    fits = samples.reason == FITS
    weights = samples.trained_kept[fits] if params.unit == "tokens" else None
    sizes = np.bincount(samples.conversation[fits], weights, len(conversations)).astype(np.int64)
    kept = has_fitting_sample(samples, conversations)
    split, groups = split_conversations(conversations, kept, kept_with, params)
    training = {
        source: np.flatnonzero(kept & (split == 0) & (conversations.source == number))
        for number, source in enumerate(conversations.sources)
    }
    available = {source: int(sizes[members].sum()) for source, members in training.items()}
    epochs = plan_epochs(
        available,
        {name: source.share for name, source in sources.items()},
        {name: source.epochs for name, source in sources.items()},
        params.max_epochs,
        {source for number, source in enumerate(conversations.sources) if is_excluded(samples, conversations, number)},
    )
    times = np.ones(len(conversations), np.int32)
    for source, members in training.items():
        hashes = keyed_hashes(params.seed, (f"blend:{text}" for text in conversations.iter_ids(members)))
        times[members] = plan_copies(sizes[members], hashes, epochs[source])
    samples.reason[fits & (times[samples.conversation] == 0)] = NOT_DRAWN
    fits = samples.reason == FITS
    orders = {
        name: order_packs(samples, np.flatnonzero(fits & (split[samples.conversation] == number)), times, params)
        for number, name in enumerate(SPLITS)
    }
    return BlendPlan(orders, kept_instead, near_duplicates.similarity, available, epochs, groups)


def is_excluded(samples: SampleTable, conversations: ConversationTable, source: int) -> bool:
    """Whether `pack.exclude_licenses` leaves nothing of a source."""
    reasons = samples.reason[(conversations.source[samples.conversation] == source) & ~samples.has_windows]
    return len(reasons) > 0 and bool((reasons == EXCLUDED).all())


def cap_windows(samples: SampleTable, most: int | None) -> None:
    """Mark windows of a conversation beyond the first `most` by hash, so that a long one is not all of a source."""
    windows = np.flatnonzero((samples.window > 0) & (samples.reason == FITS))
    if most is None or not len(windows):
        return
    windows = windows[np.lexsort((samples.key[windows], samples.conversation[windows]))]
    owner = samples.conversation[windows]
    rank = np.arange(len(windows)) - np.searchsorted(owner, owner)
    samples.reason[windows[rank >= most]] = OVER_CAP


def drop_duplicates(
    samples: SampleTable, conversations: ConversationTable, near_duplicates: NearDuplicates
) -> tuple[Int32s, Int32s]:
    """Mark samples of conversations that an earlier source has too.

    Returns, for each conversation, `kept_instead` and `kept_with` of sft.packing.splits.DuplicateChoice.
    """
    fits = has_fitting_sample(samples, conversations)
    members = np.flatnonzero(fits).astype(np.int32)
    choice = resolve_duplicates(conversations.id_number[members], near_duplicates)
    kept_instead, kept_with = np.full(len(fits), -1, np.int32), np.arange(len(fits), dtype=np.int32)
    kept_instead[members] = np.where(choice.kept_instead >= 0, members[choice.kept_instead], np.int32(-1))
    kept_with[members] = members[choice.kept_with]
    lost = np.flatnonzero((samples.reason == FITS) & (kept_instead[samples.conversation] >= 0))
    owner = samples.conversation[lost]
    is_equal = conversations.id_number[owner] == conversations.id_number[kept_instead[owner]]
    samples.reason[lost] = np.where(is_equal, DUPLICATE, NEAR_DUPLICATE)
    return kept_instead, kept_with


def split_conversations(
    conversations: ConversationTable, kept: npt.NDArray[np.bool_], kept_with: Int32s, params: Pack
) -> tuple[npt.NDArray[np.uint8], dict[str, dict[str, int]]]:
    """Return the split of each kept conversation, as an index into SPLITS, and BlendPlan.groups."""
    split, groups = np.zeros(len(conversations), np.uint8), {}
    for number, source in enumerate(conversations.sources):
        members = np.flatnonzero(kept & (conversations.source == number))
        of_group = np.unique(conversations.group[members], return_inverse=True)[1].astype(np.int32)
        joined = join_groups(of_group, np.unique(kept_with[members], return_inverse=True)[1].astype(np.int32))
        sizes = np.bincount(joined, minlength=len(members))
        firsts = np.flatnonzero(sizes)
        lowest = np.full(len(members), np.iinfo(np.uint64).max, np.uint64)  # whatever the order of the rows
        np.minimum.at(lowest, joined, conversations.group[members])
        hashes = keyed_hashes(params.seed, map(str, lowest[firsts].tolist()))
        of_first = np.zeros(len(members), np.uint8)
        of_first[firsts] = split_groups(sizes[firsts].astype(np.int32), hashes, params.validation, params.test)
        split[members] = of_first[joined]
        asked = held_out_counts(len(members), params.validation, params.test)
        most, held = max(asked.values()), np.bincount(split[members], minlength=len(SPLITS))
        groups[source] = {
            "groups": len(firsts),
            "largest": int(sizes.max(initial=0)),
            "too_large": int((sizes > max(most, 1)).sum()),
            "conversations": len(members),
            **{name: int(held[SPLITS.index(name)]) for name in asked},
            **{f"{name}_asked": count for name, count in asked.items()},
        }
    return split, groups


def order_packs(samples: SampleTable, members: Int64s, times: Int32s, params: Pack) -> PackOrder:
    """Assign the samples of a split to packs and order these; `times` says how often each conversation is seen."""
    once = members[np.argsort(samples.key[members], kind="stable")].astype(np.int32)
    seen = times[samples.conversation[once]]
    repeated = np.repeat(once, seen)
    copies = np.arange(len(repeated), dtype=np.int32) - np.repeat(offsets_of(seen)[:-1].astype(np.int32), seen)
    keep_apart, parts, window = None, copies, samples.window[repeated]
    if (seen > 1).any() or window.any():
        owner = samples.conversation[repeated]
        keep_apart = np.where((times[owner] > 1) | (window > 0), owner, np.int32(-1))
        parts = copies * np.int32(window.max(initial=0) + 1) + window
    del once, seen
    bins = plan_bins(padded(samples.kept[repeated], params.pad_segments_to), params.pack_size, keep_apart, parts)
    hashes = keyed_hashes(params.seed, (f"pack:{first}" for first in bins.firsts().tolist()))
    bins = bins.take(np.argsort(hashes, kind="stable"))
    return PackOrder(repeated[bins.members], copies[bins.members], bins.starts)
