"""Shuffle: tokens from the order in which samples were prepared to the order in which they are packed.

An external sort in two steps, each mapped over shards by sft.workers, so that memory holds one shard however
large the data is: `scatter` writes the samples of a chunk of prepared rows to disk in the order of packs, a run;
`gather` collects the samples of one shard of packs from all runs, joins them and writes the Parquet file. What goes
where is planned; so workers and their number change no byte.
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
from sft.packing.samples import Conversations, Group, Samples, read_group, write_arrow
from sft.packing.write import Mask, build_packs, cumulated, pack_fault, padded
from sft.parquet import PACKS, WRITTEN
from sft.workers import map_shards, report_position

if TYPE_CHECKING:  # workers need neither it nor what it imports, which takes 60 MB
    from sft.packing.plan import Order

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

# Tokens in a run: 5 bytes each in memory.
RUN_TOKENS = 1 << 24
# Tokens in a Parquet file, and in a row group: of that Bridge decodes all for any one pack. Row groups are counted anew
# after each block of tokens.
SHARD_TOKENS, BLOCK_TOKENS, GROUP_TOKENS = 1 << 26, 1 << 24, 1 << 19
# Row groups that `gather` joins at once.
GROUPS_AT_ONCE = 8
# Measured on text of 131,072 tokens: 1.25 bytes a token, 25M tokens a second. Dictionaries and BYTE_STREAM_SPLIT
# leave less for zstd to find (1.59 and 1.36 at its default level).
PARQUET: dict[str, Any] = {
    **WRITTEN,
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
class Runs:
    """Which run holds what: all samples of all splits in the order of packs, cut by where they were prepared."""

    bounds: Int64s
    """(runs + 1,) The first prepared sample of each run; the last is the number of samples."""
    run: npt.NDArray[np.uint16]
    """(S,) The run of each sample, in the order of packs."""
    places: Int32s
    """(S,) Places in the order of packs, run by run."""
    firsts: Int64s
    """(runs + 1,) Where each run begins in `places`."""
    tokens: Int64s
    """(S + 1,) Where each of `places` begins in the tokens of all runs."""


def plan_runs(order: Int32s, kept: Int32s) -> Runs:
    """Cut samples, given in the order of packs, into runs of about RUN_TOKENS; `kept` are the tokens of each."""
    copies = np.bincount(order, minlength=len(kept))
    bounds = _cut(cumulated(copies * kept), RUN_TOKENS)
    run = (np.searchsorted(bounds, order, "right") - 1).astype(np.uint16)
    places = np.argsort(run, kind="stable").astype(np.int32)
    firsts = np.searchsorted(run[places], np.arange(len(bounds)))
    return Runs(bounds, run, places, firsts, cumulated(kept[order[places]]))


def _cut(edges: Int64s, size: int) -> Int64s:
    """Return where to cut things of so many tokens, `edges` as of `cumulated`, into pieces of about `size` tokens."""
    piece = edges[:-1] // size
    cuts = np.flatnonzero(np.diff(piece)) + 1
    return np.concatenate([[0], cuts, [len(piece)]]) if len(piece) else np.zeros(1, np.int64)


class Shuffle(NamedTuple):
    """What is to be done, for workers: names and counts; the numbers of samples are in files of the spool."""

    scatter: list[dict[str, Any]]
    """What `scatter` needs to know of each run."""
    gather: list[list[dict[str, Any]]]
    """What `gather` needs to know of shards, but for the folders of the runs."""


def plan_shuffle(
    orders: "Mapping[str, Order]",
    samples: Samples,
    conversations: Conversations,
    groups: Sequence[Group],
    layout: Layout,
    spool: Path,
) -> Shuffle:
    """Say where each sample goes: to `<split>/packs-NNNNN.parquet`; one at least of a split, empty if need be.

    `spool` is for files of about 100 bytes per sample.
    """
    runs = plan_runs(np.concatenate([order.samples for order in orders.values()]), samples.kept)
    shuffle, place, tokens = Shuffle([], []), 0, SHARD_TOKENS
    shuffle.scatter.extend(_to_scatter(spool, runs, orders, samples, groups))
    for split, order in orders.items():
        for number, (first, last) in enumerate(_shards_of(order, samples, layout.multiple)):
            begin, end = int(order.packs[first]), int(order.packs[last])
            table = _describe(order, first, last, samples, conversations)
            table = table.append_column("run", pa.array(runs.run[place + begin : place + end]))
            if tokens >= SHARD_TOKENS:  # small shards are one piece of work, which needs no process of its own
                shuffle.gather.append([])
                tokens = 0
            shuffle.gather[-1].append(
                {
                    "target": f"{split}/packs-{number:05d}.parquet",
                    "samples": write_arrow(table, spool),
                    "first_tokens": _first_tokens(runs, place + begin),
                    "spool": str(spool),
                    "layout": asdict(layout),
                }
            )
            tokens += int(samples.kept[order.samples[begin:end]].sum(dtype=np.int64))
        place += len(order.samples)
    return shuffle


def write_packs(folder: Path, shuffle: Shuffle) -> None:
    """Write the packs of every split into a folder; in the spool lie, for that time, 5 bytes more per token.

    Raises:  InputError: a pack that breaks the contract, or prepared data whose ids and masks differ in length.
    """
    runs = map_shards(scatter, shuffle.scatter, "tokens to disk")
    items = [[{**shard, "runs": runs} for shard in item] for item in shuffle.gather]
    for item, written in zip(items, map_shards(gather, items, "packs"), strict=True):
        for shard, path in zip(item, written, strict=True):
            target = folder / shard["target"]
            target.parent.mkdir(exist_ok=True)
            Path(path).rename(target)


def _to_scatter(
    spool: Path, runs: Runs, orders: "Mapping[str, Order]", samples: Samples, groups: Sequence[Group]
) -> Iterator[dict[str, Any]]:
    """Yield what `scatter` needs to know of each run: rows counted from its first sample."""
    order = np.concatenate([each.samples for each in orders.values()])
    begins = cumulated(np.array([group.rows for group in groups]))
    for run, (begin, end) in enumerate(itertools.pairwise(runs.bounds.tolist())):
        own = order[runs.places[runs.firsts[run] : runs.firsts[run + 1]]]
        plan = pa.table({"row": own - np.int32(begin), "length": samples.kept[own]})
        first, last = np.searchsorted(begins, [begin, end - 1], "right") - 1
        yield {
            "plan": write_arrow(plan, spool),
            "groups": [[int(begins[place]) - begin, *groups[place]] for place in range(first, last + 1)],
            "spool": str(spool),
        }


def scatter(shard: dict[str, Any]) -> str:
    """Write the samples of one run in the order of packs (work for sft.workers); return the folder of the run."""
    plan = pyarrow.feather.read_table(shard["plan"])
    rows, lengths = plan.column("row").to_numpy(), plan.column("length").to_numpy()
    starts = cumulated(lengths)
    ids, mask = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.uint8)
    by_row = np.argsort(rows, kind="stable")
    for first, source, *of_group in shard["groups"]:
        group = Group(source, *of_group)
        report_position(f"{source}, {group.path}, row group {group.group}")
        for batch in read_group(group, ["ids", "mask"]):
            offsets, from_ids, from_mask = _flat(batch, source)
            copies = by_row[slice(*np.searchsorted(rows[by_row], [first, first + batch.num_rows]))]
            begins = offsets[rows[copies] - first]
            for start, begin, length in zip(starts[copies], begins, lengths[copies], strict=True):
                ids[start : start + length] = from_ids[begin : begin + length]
                mask[start : start + length] = from_mask[begin : begin + length]
            first += batch.num_rows
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=shard["spool"]))
    ids.tofile(folder / "ids")
    mask.tofile(folder / "mask")
    return str(folder)


def _flat(batch: pa.RecordBatch, source: str) -> tuple[Int64s, Int32s, Mask]:
    """Return where each sample begins in the ids and the mask of all of them, and these."""
    ids, mask = batch.column("ids").flatten(), batch.column("mask").flatten()
    lengths, masks = (batch.column(name).value_lengths() for name in ("ids", "mask"))
    if not lengths.equals(masks):
        raise InputError(f"data/prepared/{source}: ids and mask of a sample differ in length. Run: dvc repro prep")
    return cumulated(lengths.to_numpy()), ids.to_numpy(), mask.to_numpy()


def _shards_of(order: "Order", samples: Samples, multiple: int) -> Iterator[tuple[int, int]]:
    """Yield the first pack of each shard and the first behind it; one without packs if there are none."""
    tokens = cumulated(padded(samples.kept[order.samples], multiple))[order.packs]
    bounds = _cut(tokens, SHARD_TOKENS).tolist()
    yield from itertools.pairwise(bounds if len(bounds) > 1 else [0, 0])


def _describe(order: "Order", first: int, last: int, samples: Samples, conversations: Conversations) -> pa.Table:
    """Return what is known of the samples of some packs but their tokens, in the order of packs."""
    places = slice(order.packs[first], order.packs[last])
    own = order.samples[places]
    return pa.table(
        {
            "length": samples.kept[own],
            "pack": np.repeat(np.arange(last - first), np.diff(order.packs[first : last + 1])),
            "conversation_id": conversations.names(samples.conversation[own]),
            "sample": samples.number[own],
            "source": conversations.sources_of(samples.conversation[own]),
            "repeat": order.repeats[places],
        }
    )


def _first_tokens(runs: Runs, place: int) -> list[int]:
    """Return, for each run, how many of its tokens stand before a place in the order of packs."""
    first_tokens = []
    for begin, end in itertools.pairwise(runs.firsts.tolist()):
        before = begin + int(np.searchsorted(runs.places[begin:end], place))
        first_tokens.append(int(runs.tokens[before] - runs.tokens[begin]))
    return first_tokens


def gather(shards: list[dict[str, Any]]) -> list[str]:
    """Write some shards of packs from all runs (work for sft.workers); return their files."""
    return [_gather_shard(shard) for shard in shards]


def _gather_shard(shard: dict[str, Any]) -> str:
    layout = Layout(**shard["layout"])
    table = pyarrow.feather.read_table(shard["samples"])
    pack, lengths, run = (table.column(name).to_numpy() for name in ("pack", "length", "run"))
    edges = np.append(np.flatnonzero(np.diff(pack, prepend=-1)), len(pack))  # where each pack begins
    at = [Position(Path(run), token) for run, token in zip(shard["runs"], shard["first_tokens"], strict=True)]
    groups = _row_groups(cumulated(padded(lengths, layout.multiple))[edges])
    report_position(shard["target"])
    path = Path(tempfile.mkdtemp(prefix="packs-", dir=shard["spool"])) / "packs.parquet"
    with pq.ParquetWriter(path, PACKS, **PARQUET) as writer:
        for some in range(0, len(groups) - 1, GROUPS_AT_ONCE):
            cuts = groups[some : some + GROUPS_AT_ONCE + 1]
            first, last = cuts[0], cuts[-1]
            begin, end = edges[first], edges[last]
            parts = _collect(at, run[begin:end], lengths[begin:end])
            packs = build_packs(
                parts, lengths[begin:end], edges[first : last + 1] - begin, layout.multiple, layout.pad_id
            )
            if fault := pack_fault(packs, layout.pack_size, layout.stop_id):
                named = table.column("conversation_id")[edges[first + fault[0]]]
                raise InputError(f"{shard['target']}: pack with conversation {named}: {fault[1]}")
            columns = packs.columns()
            for name in ("conversation_id", "sample", "source", "repeat"):
                values = table.column(name)[begin:end].combine_chunks()
                columns[name] = pa.ListArray.from_arrays(pa.array(packs.samples, pa.int32()), values)
            joined = pa.table(columns, schema=PACKS)
            for low, high in itertools.pairwise((cuts - first).tolist()):
                writer.write_table(joined.slice(low, high - low))
    return str(path)


def _row_groups(tokens: Int64s) -> Int64s:
    """Return the first pack of each row group, and the number of packs; `tokens` says where each pack begins."""
    cuts = [np.zeros(1, np.int64)]
    for first, last in itertools.pairwise(_cut(tokens, BLOCK_TOKENS).tolist()):
        cuts.append(first + _cut(tokens[first : last + 1] - tokens[first], GROUP_TOKENS)[1:])
    return np.concatenate(cuts)


@dataclass
class Position:
    """How far a run has been read."""

    folder: Path
    token: int

    def read(self, tokens: int) -> tuple[Int32s, Mask]:
        """Read the next tokens and their mask."""
        ids = np.fromfile(self.folder / "ids", np.int32, tokens, offset=4 * self.token)
        mask = np.fromfile(self.folder / "mask", np.uint8, tokens, offset=self.token)
        self.token += tokens
        return ids, mask


def _collect(
    at: Sequence[Position], run: npt.NDArray[np.uint16], lengths: Int32s
) -> Iterator[tuple[int, Int32s, Mask]]:
    """Yield place, ids and mask of samples, given the run and the length of each, run by run."""
    by_run = np.argsort(run, kind="stable")
    runs, firsts = np.unique(run[by_run], return_index=True)
    for number, places in zip(runs.tolist(), np.split(by_run, firsts[1:]), strict=True):
        edges = cumulated(lengths[places])
        ids, mask = at[number].read(int(edges[-1]))
        for place, begin, end in zip(places.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            yield place, ids[begin:end], mask[begin:end]
