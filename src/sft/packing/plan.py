"""Plan: which samples are packed, in which split, how often and in which order; why the others are not.

Pure functions over the numbers of samples (sft.packing.samples). In this order: who keeps what several sources
have; splits, by conversation; how often each conversation of the training split is seen; bins.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sft.hashing import keyed_hashes
from sft.packing.bins import plan_bins
from sft.packing.blend import plan_epochs, plan_repeats
from sft.packing.samples import DUPLICATE, FITS, NEAR_DUPLICATE, NOT_DRAWN, Conversations, Samples
from sft.packing.splits import SPLITS, settle_duplicates, split_groups
from sft.packing.write import cumulated, padded
from sft.params.data import Pack, Source

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Order:
    """The packs of a split, as a list of samples."""

    samples: Int32s
    """(S,) Numbers of samples, pack by pack."""
    repeats: Int32s
    """(S,) Which copy of its conversation each belongs to."""
    packs: Int64s
    """(P + 1,) Where each pack begins in `samples`; the last is S."""


@dataclass(frozen=True)
class Plan:
    """Which samples are packed where; why the others are not stands in `Samples.reason`."""

    splits: dict[str, Order]
    instead: Int32s
    """(conversations,) Which is kept instead of this one; -1 for one that is no duplicate."""
    available: dict[str, int]
    """Trained tokens of the training split by source, every conversation once."""
    epochs: dict[str, float]
    """How often the training split of each source is seen."""


def fitting(samples: Samples, conversations: Conversations) -> npt.NDArray[np.bool_]:
    """Return which conversations have a sample that fits."""
    fits = np.zeros(len(conversations), np.bool_)
    fits[samples.conversation[samples.reason == FITS]] = True
    return fits


def plan_blend(
    samples: Samples, conversations: Conversations, cluster: Int32s, sources: Mapping[str, Source], params: Pack
) -> Plan:
    """Choose what is packed, in which split, how often; mark in `samples` why the rest is not.

    `cluster`, (identities,), has the same number for ids whose conversations are alike.
    """
    instead, group = drop_duplicates(samples, conversations, cluster)
    here = samples.reason == FITS
    trained = np.bincount(samples.conversation[here], samples.trained_kept[here], len(conversations)).astype(np.int64)
    kept = fitting(samples, conversations)
    split = split_conversations(conversations, kept, group, params)
    training = {
        source: np.flatnonzero(kept & (split == 0) & (conversations.source == number))
        for number, source in enumerate(conversations.sources)
    }
    available = {source: int(trained[own].sum()) for source, own in training.items()}
    epochs = plan_epochs(
        available,
        {source: described.share for source, described in sources.items()},
        {source: described.epochs for source, described in sources.items()},
    )
    times = np.ones(len(conversations), np.int32)
    for source, own in training.items():
        hashes = keyed_hashes(params.seed, (f"blend:{name}" for name in conversations.texts(own)))
        times[own] = plan_repeats(trained[own], hashes, epochs[source])
    samples.reason[here & (times[samples.conversation] == 0)] = NOT_DRAWN
    here = samples.reason == FITS
    orders = {
        name: plan_split(samples, np.flatnonzero(here & (split[samples.conversation] == number)), times, params)
        for number, name in enumerate(SPLITS)
    }
    return Plan(orders, instead, available, epochs)


def drop_duplicates(samples: Samples, conversations: Conversations, cluster: Int32s) -> tuple[Int32s, Int32s]:
    """Settle who keeps what several sources have: what is kept instead of each, and the first of those alike."""
    fits = fitting(samples, conversations)
    own = np.flatnonzero(fits).astype(np.int32)
    settled = settle_duplicates(conversations.source[own], conversations.identity[own], cluster)
    instead, group = np.full(len(fits), -1, np.int32), np.arange(len(fits), dtype=np.int32)
    instead[own] = np.where(settled.instead >= 0, own[settled.instead], np.int32(-1))
    group[own] = own[settled.group]
    lost = np.flatnonzero((samples.reason == FITS) & (instead[samples.conversation] >= 0))
    whose = samples.conversation[lost]
    same = conversations.identity[whose] == conversations.identity[instead[whose]]
    samples.reason[lost] = np.where(same, DUPLICATE, NEAR_DUPLICATE)
    return instead, group


def split_conversations(
    conversations: Conversations, kept: npt.NDArray[np.bool_], group: Int32s, params: Pack
) -> npt.NDArray[np.uint8]:
    """Return the split of each conversation that is kept, as its place in SPLITS."""
    split = np.zeros(len(conversations), np.uint8)
    for number in range(len(conversations.sources)):
        own = np.flatnonzero(kept & (conversations.source == number))
        sizes = np.bincount(group[own])
        firsts = np.flatnonzero(sizes)
        hashes = keyed_hashes(params.seed, conversations.texts(firsts))
        split[firsts] = split_groups(sizes[firsts].astype(np.int32), hashes, params.validation, params.test)
        split[own] = split[group[own]]
    return split


def plan_split(samples: Samples, own: Int64s, times: Int32s, params: Pack) -> Order:
    """Choose bin and order of every sample of a split; `times` says how often each conversation is in."""
    once = own[np.argsort(samples.key[own], kind="stable")].astype(np.int32)
    seen = times[samples.conversation[once]]
    copies = np.repeat(once, seen)
    repeats = np.arange(len(copies), dtype=np.int32) - np.repeat(cumulated(seen)[:-1].astype(np.int32), seen)
    repeated = None
    if (seen > 1).any():
        whose = samples.conversation[copies]
        repeated = np.where(times[whose] > 1, whose, np.int32(-1))
    del once, seen
    bins = plan_bins(padded(samples.kept[copies], params.pad_segments_to), params.pack_size, repeated, repeats)
    packs = keyed_hashes(params.seed, (f"pack:{first}" for first in bins.firsts().tolist()))
    bins = bins.take(np.argsort(packs, kind="stable"))
    return Order(copies[bins.members], repeats[bins.members], bins.starts)
