"""External sort: samples move from the order in which they were prepared to the order in which they are packed.

Two parallel steps of sft.workers, each with one part or shard in memory, however large the data is:
`write_sorted_part` writes the samples of a range of prepared rows to disk in pack order, and `write_shards` merges
those parts into the Parquet files of packs. The plan fixes where each sample goes, so the bytes do not depend on the
workers.
"""

import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

from sft.cli import InputError
from sft.packing.sample_table import ConversationTable, RowGroup, SampleTable, read_row_group, write_arrow
from sft.packing.write import Mask, build_packs, offsets_of, pack_fault, padded
from sft.parquet import PACKS, WRITE_OPTIONS
from sft.workers import map_shards, report_position

if TYPE_CHECKING:  # it loads numba, 60 MB that workers do not need
    from sft.packing.plan import PackOrder

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

# Tokens in a sorted part; 5 bytes each in memory.
PART_TOKENS = 1 << 24
# Tokens in a Parquet file, and in a row group: Bridge decodes a whole row group for any pack in it. Row groups are
# planned separately for each block of tokens.
SHARD_TOKENS, BLOCK_TOKENS, GROUP_TOKENS = 1 << 26, 1 << 24, 1 << 19
# Row groups that `write_shards` builds at once.
GROUPS_AT_ONCE = 8
# Measured on text of 131,072 tokens: 1.25 bytes a token, 25M tokens a second. Dictionaries and BYTE_STREAM_SPLIT
# leave less for zstd to find (1.59 and 1.36 at its default level).
PACK_WRITE_OPTIONS: dict[str, Any] = {
    **WRITE_OPTIONS,
    "compression_level": 5,
    "use_dictionary": ["loss_mask.list.element", "source.list.element"],
    "data_page_size": 4 * GROUP_TOKENS,
}


@dataclass(frozen=True)
class Layout:
    """How packs are written."""

    pack_size: int
    multiple: int
    """Samples are padded to a multiple of this."""
    pad_id: int
    stop_id: int


@dataclass(frozen=True)
class SortedParts:
    """Which part holds which samples: S packed samples of all splits, cut by where they were prepared."""

    bounds: Int64s
    """(parts + 1,) The first prepared sample of each part; the last is the number of samples."""
    part: npt.NDArray[np.uint16]
    """(S,) The part of each sample, in pack order."""
    places: Int32s
    """(S,) Places in pack order, part by part."""
    firsts: Int64s
    """(parts + 1,) Where each part begins in `places`."""
    tokens: Int64s
    """(S + 1,) Where each of `places` begins in the tokens of all parts."""


def plan_parts(order: Int32s, kept: Int32s) -> SortedParts:
    """Cut the samples of `order`, in pack order, into parts of about PART_TOKENS; `kept` are the tokens of each."""
    copies = np.bincount(order, minlength=len(kept))
    bounds = _split_points(offsets_of(copies * kept), PART_TOKENS)
    part = (np.searchsorted(bounds, order, "right") - 1).astype(np.uint16)
    places = np.argsort(part, kind="stable").astype(np.int32)
    firsts = np.searchsorted(part[places], np.arange(len(bounds)))
    return SortedParts(bounds, part, places, firsts, offsets_of(kept[order[places]]))


def _split_points(offsets: Int64s, size: int) -> Int64s:
    """Return where to split items into pieces of about `size` tokens; `offsets` says where each item begins."""
    piece = offsets[:-1] // size
    cuts = np.flatnonzero(np.diff(piece)) + 1
    return np.concatenate([[0], cuts, [len(piece)]]) if len(piece) else np.zeros(1, np.int64)


class SortTasks(NamedTuple):
    """The tasks of both steps: names and counts. The numbers of samples are in files of the spool."""

    parts: list[dict[str, Any]]
    """One task of `write_sorted_part` for each part."""
    shards: list[list[dict[str, Any]]]
    """The tasks of `write_shards`, each of several shards; the folders of the parts are added later."""


def plan_sort(
    orders: "Mapping[str, PackOrder]",
    samples: SampleTable,
    conversations: ConversationTable,
    groups: Sequence[RowGroup],
    layout: Layout,
    spool: Path,
) -> SortTasks:
    """Plan the files `<split>/packs-NNNNN.parquet`; a split without packs gets one empty file.

    The plan takes about 100 bytes per sample in files of `spool`.
    """
    parts = plan_parts(np.concatenate([order.samples for order in orders.values()]), samples.kept)
    tasks, place, tokens = SortTasks([], []), 0, SHARD_TOKENS
    tasks.parts.extend(_part_tasks(spool, parts, orders, samples, groups))
    for split, order in orders.items():
        for number, (first, last) in enumerate(_shard_bounds(order, samples, layout.multiple)):
            begin, end = int(order.packs[first]), int(order.packs[last])
            table = _samples_of_packs(order, first, last, samples, conversations)
            table = table.append_column("part", pa.array(parts.part[place + begin : place + end]))
            if tokens >= SHARD_TOKENS:  # small shards share a task, so that each does not cost a process
                tasks.shards.append([])
                tokens = 0
            tasks.shards[-1].append(
                {
                    "target": f"{split}/packs-{number:05d}.parquet",
                    "samples": write_arrow(table, spool),
                    "first_tokens": _first_tokens(parts, place + begin),
                    "spool": str(spool),
                    "layout": asdict(layout),
                }
            )
            tokens += int(samples.kept[order.samples[begin:end]].sum(dtype=np.int64))
        place += len(order.samples)
    return tasks


def write_packs(folder: Path, tasks: SortTasks) -> None:
    """Write the packs of every split to a folder; the spool takes 5 bytes per token for that time.

    Raises:  InputError: a pack breaks the contract, or ids and mask of a prepared sample differ in length.
    """
    parts = map_shards(write_sorted_part, tasks.parts, "sort tokens")
    with_parts = [[{**shard, "parts": parts} for shard in shards] for shards in tasks.shards]
    for shards, paths in zip(with_parts, map_shards(write_shards, with_parts, "write packs"), strict=True):
        for shard, path in zip(shards, paths, strict=True):
            target = folder / shard["target"]
            target.parent.mkdir(exist_ok=True)
            Path(path).rename(target)


def _part_tasks(
    spool: Path, parts: SortedParts, orders: "Mapping[str, PackOrder]", samples: SampleTable, groups: Sequence[RowGroup]
) -> Iterator[dict[str, Any]]:
    """Yield the task of each part; rows are counted from the part's first sample."""
    order = np.concatenate([each.samples for each in orders.values()])
    begins = offsets_of(np.array([group.rows for group in groups]))
    for part, (begin, end) in enumerate(itertools.pairwise(parts.bounds.tolist())):
        members = order[parts.places[parts.firsts[part] : parts.firsts[part + 1]]]
        plan = pa.table({"row": members - np.int32(begin), "length": samples.kept[members]})
        first, last = np.searchsorted(begins, [begin, end - 1], "right") - 1
        yield {
            "plan": write_arrow(plan, spool),
            "groups": [[int(begins[place]) - begin, *groups[place]] for place in range(first, last + 1)],
            "spool": str(spool),
        }


def write_sorted_part(task: dict[str, Any]) -> str:
    """Write the samples of one part in pack order (a task of sft.workers); return the part's folder."""
    plan = pyarrow.feather.read_table(task["plan"])
    rows, lengths = plan.column("row").to_numpy(), plan.column("length").to_numpy()
    starts = offsets_of(lengths)
    ids, mask = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.uint8)
    by_row = np.argsort(rows, kind="stable")
    for first, *values in task["groups"]:
        group = RowGroup(*values)
        report_position(f"{group.source}, {group.path}, row group {group.group}")
        for batch in read_row_group(group, ["ids", "mask"]):
            offsets, from_ids, from_mask = _flatten(batch, group.source)
            copies = by_row[slice(*np.searchsorted(rows[by_row], [first, first + batch.num_rows]))]
            begins = offsets[rows[copies] - first]
            for start, begin, length in zip(starts[copies], begins, lengths[copies], strict=True):
                ids[start : start + length] = from_ids[begin : begin + length]
                mask[start : start + length] = from_mask[begin : begin + length]
            first += batch.num_rows
    folder = Path(tempfile.mkdtemp(prefix="part-", dir=task["spool"]))
    ids.tofile(folder / "ids")
    mask.tofile(folder / "mask")
    return str(folder)


def _flatten(batch: pa.RecordBatch, source: str) -> tuple[Int64s, Int32s, Mask]:
    """Return where each sample of a batch begins, and the ids and the mask of all of them."""
    ids, mask = batch.column("ids").flatten(), batch.column("mask").flatten()
    lengths, mask_lengths = (batch.column(name).value_lengths() for name in ("ids", "mask"))
    if not lengths.equals(mask_lengths):
        raise InputError(
            f"data/prepared/{source}: ids and mask of a sample differ in length. Run: dvc repro --force prep@{source}"
        )
    return offsets_of(lengths.to_numpy()), ids.to_numpy(), mask.to_numpy()


def _shard_bounds(order: "PackOrder", samples: SampleTable, multiple: int) -> Iterator[tuple[int, int]]:
    """Yield (first pack, pack behind the last) of each shard; one empty shard if there are no packs."""
    tokens = offsets_of(padded(samples.kept[order.samples], multiple))[order.packs]
    bounds = _split_points(tokens, SHARD_TOKENS).tolist()
    yield from itertools.pairwise(bounds if len(bounds) > 1 else [0, 0])


def _samples_of_packs(
    order: "PackOrder", first: int, last: int, samples: SampleTable, conversations: ConversationTable
) -> pa.Table:
    """Return the samples of packs first to last - 1 in pack order, with every column but their tokens."""
    places = slice(order.packs[first], order.packs[last])
    members = order.samples[places]
    return pa.table(
        {
            "length": samples.kept[members],
            "pack": np.repeat(np.arange(last - first), np.diff(order.packs[first : last + 1])),
            "conversation_id": conversations.ids_of(samples.conversation[members]),
            "sample": samples.number[members],
            "source": conversations.sources_of(samples.conversation[members]),
            "repeat": order.copies[places],
            "window": samples.window[members],
        }
    )


def _first_tokens(parts: SortedParts, place: int) -> list[int]:
    """Return for each part how many of its tokens come before a place in pack order."""
    first_tokens = []
    for begin, end in itertools.pairwise(parts.firsts.tolist()):
        before = begin + int(np.searchsorted(parts.places[begin:end], place))
        first_tokens.append(int(parts.tokens[before] - parts.tokens[begin]))
    return first_tokens


def write_shards(tasks: list[dict[str, Any]]) -> list[str]:
    """Merge the sorted parts into some shards of packs (a task of sft.workers); return the paths of the shards."""
    return [_write_shard(task) for task in tasks]


def _write_shard(task: dict[str, Any]) -> str:
    layout = Layout(**task["layout"])
    table = pyarrow.feather.read_table(task["samples"])
    pack, lengths, part = (table.column(name).to_numpy() for name in ("pack", "length", "part"))
    edges = np.append(np.flatnonzero(np.diff(pack, prepend=-1)), len(pack))  # where each pack begins
    readers = [PartReader(Path(path), token) for path, token in zip(task["parts"], task["first_tokens"], strict=True)]
    groups = _group_bounds(offsets_of(padded(lengths, layout.multiple))[edges])
    report_position(task["target"])
    path = Path(tempfile.mkdtemp(prefix="packs-", dir=task["spool"])) / "packs.parquet"
    with pq.ParquetWriter(path, PACKS, **PACK_WRITE_OPTIONS) as writer:
        for some in range(0, len(groups) - 1, GROUPS_AT_ONCE):
            cuts = groups[some : some + GROUPS_AT_ONCE + 1]
            first, last = cuts[0], cuts[-1]
            begin, end = edges[first], edges[last]
            parts = _read_samples(readers, part[begin:end], lengths[begin:end])
            packs = build_packs(
                parts, lengths[begin:end], edges[first : last + 1] - begin, layout.multiple, layout.pad_id
            )
            if fault := pack_fault(packs, layout.pack_size, layout.stop_id):
                conversation = table.column("conversation_id")[edges[first + fault[0]]]
                raise InputError(f"data/packed/{task['target']}: pack with conversation {conversation}: {fault[1]}")
            columns = packs.columns()
            for name in ("conversation_id", "sample", "source", "repeat", "window"):
                values = table.column(name)[begin:end].combine_chunks()
                columns[name] = pa.ListArray.from_arrays(pa.array(packs.samples, pa.int32()), values)
            joined = pa.table(columns, schema=PACKS)
            for low, high in itertools.pairwise((cuts - first).tolist()):
                writer.write_table(joined.slice(low, high - low))
    return str(path)


def _group_bounds(tokens: Int64s) -> Int64s:
    """Return the first pack of each row group, then the number of packs; `tokens` says where each pack begins."""
    cuts = [np.zeros(1, np.int64)]
    for first, last in itertools.pairwise(_split_points(tokens, BLOCK_TOKENS).tolist()):
        cuts.append(first + _split_points(tokens[first : last + 1] - tokens[first], GROUP_TOKENS)[1:])
    return np.concatenate(cuts)


@dataclass
class PartReader:
    """Reads a sorted part from front to back."""

    folder: Path
    token: int
    """The next token to read."""

    def read(self, tokens: int) -> tuple[Int32s, Mask]:
        """Return the ids and the mask of the next tokens."""
        ids = np.fromfile(self.folder / "ids", np.int32, tokens, offset=4 * self.token)
        mask = np.fromfile(self.folder / "mask", np.uint8, tokens, offset=self.token)
        self.token += tokens
        return ids, mask


def _read_samples(
    readers: Sequence[PartReader], part: npt.NDArray[np.uint16], lengths: Int32s
) -> Iterator[tuple[int, Int32s, Mask]]:
    """Yield place, ids and mask of each sample, part by part; `part` and `lengths` are in pack order."""
    by_part = np.argsort(part, kind="stable")
    numbers, firsts = np.unique(part[by_part], return_index=True)
    for number, places in zip(numbers.tolist(), np.split(by_part, firsts[1:]), strict=True):
        edges = offsets_of(lengths[places])
        ids, mask = readers[number].read(int(edges[-1]))
        for place, begin, end in zip(places.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            yield place, ids[begin:end], mask[begin:end]
