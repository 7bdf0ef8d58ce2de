"""Samples as pack plans with them: lengths and counts, a few bytes each, instead of tokens.

`measure` turns prepared rows into a row of numbers each; `join` numbers the conversations of all of them. What
does not fit a pack or has nothing to train is marked here with its reason, and so is whatever is lost later.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.feather

from sft.cli import InputError
from sft.hashing import keyed_hashes
from sft.packing.ids import Ids, number_ids
from sft.packing.write import padded
from sft.params.data import Pack
from sft.parquet import SAMPLES, read_batches, read_metadata, shard_paths

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

# What stands in Samples.reason, and what it is called where it is counted. A sample that fits may have been cut.
FITS, OVER_LENGTH, UNTRAINED, DUPLICATE, NEAR_DUPLICATE, NOT_DRAWN = range(6)
REASONS = ("cut", "over-length", "untrained", "duplicate", "near-duplicate", "not-drawn")
# What is measured of a sample.
NUMBERS = pa.schema(
    [
        ("conversation_id", pa.string()),
        ("number", pa.int32()),
        ("length", pa.int32()),
        ("kept", pa.int32()),
        ("trained", pa.int32()),
        ("trained_kept", pa.int32()),
        ("key", pa.uint64()),
    ]
)
# Tokens read by one worker at a time, and held by one worker at once.
READ_TOKENS, BATCH_TOKENS = 1 << 25, 1 << 20
NAMES_AT_ONCE = 1 << 16


class Group(NamedTuple):
    """A row group of a prepared shard: what one reads at a time."""

    source: str
    path: str
    group: int
    rows: int
    tokens: int


@dataclass
class Samples:
    """All prepared samples in the order of reading, source by source: arrays of (samples,)."""

    conversation: Int32s
    """Number of the conversation."""
    number: Int32s
    """n-th of its conversation."""
    length: Int32s
    """Tokens as prepared."""
    kept: Int32s
    """Tokens that fit a pack: all, those up to the last whole turn that fits, or 0."""
    trained: Int32s
    """Trained tokens as prepared; nothing predicts a first token, so it is never trained."""
    trained_kept: Int32s
    """Trained tokens of those kept."""
    key: npt.NDArray[np.uint64]
    """Keyed hash of source, conversation and number: the order in which samples are packed."""
    reason: npt.NDArray[np.uint8]
    """Why it is not packed: an index into REASONS; 0 for those that are."""

    def __len__(self) -> int:
        return len(self.length)


@dataclass
class Conversations:
    """All conversations, source by source: arrays of (conversations,)."""

    source: Int32s
    """Number of the source."""
    identity: Int32s
    """Number of the id: the same for one that several sources have."""
    ids: Ids
    """The ids, by identity."""
    sources: list[str]
    """The names of the sources, by number."""

    def __len__(self) -> int:
        return len(self.source)

    def names(self, numbers: Int32s | Int64s) -> pa.Array:
        """Return the ids of some conversations."""
        return self.ids.names(self.identity[numbers])

    def texts(self, numbers: Int32s | Int64s) -> Iterator[str]:
        """Yield the ids of some conversations, without having all of them as text at once."""
        for begin in range(0, len(numbers), NAMES_AT_ONCE):
            yield from self.names(numbers[begin : begin + NAMES_AT_ONCE]).to_pylist()

    def sources_of(self, numbers: Int32s | Int64s) -> pa.Array:
        """Return the names of the sources of some conversations."""
        return pa.array(self.sources, pa.string()).take(pa.array(self.source[numbers]))


def list_groups(folders: Mapping[str, Path]) -> list[Group]:
    """List the row groups of the prepared shards of each source, in order."""
    groups = []
    for source, folder in folders.items():
        for path in shard_paths(folder):
            metadata = read_metadata(path)
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                columns = (group.column(place) for place in range(group.num_columns))
                tokens = sum(column.num_values for column in columns if column.path_in_schema.startswith("mask."))
                groups.append(Group(source, str(path.absolute()), number, group.num_rows, tokens))
    return groups


def cut_groups(groups: Sequence[Group], tokens: int) -> list[list[Group]]:
    """Cut a list of row groups into lists of about so many tokens; none of nothing."""
    parts: list[list[Group]] = []
    held = tokens
    for group in groups:
        if held >= tokens:
            parts.append([])
            held = 0
        parts[-1].append(group)
        held += group.tokens
    return parts


def read_group(group: Group, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a row group in batches of about BATCH_TOKENS tokens; raises as `read_batches`."""
    rows = max(1, BATCH_TOKENS * group.rows // max(1, group.tokens))
    return read_batches(group.path, columns, SAMPLES, rows, [group.group], threads=True)


def measure_groups(shard: dict[str, Any]) -> str:
    """Measure the rows of some row groups (work for sft.workers); return the file of numbers."""
    params = Pack(**shard["pack"])
    batches = []
    for values in shard["groups"]:
        group = Group(*values)
        for rows in read_group(group, ["conversation_id", "sample", "mask", "turn_ends"]):
            batches.append(measure(rows, group.source, params))
    return write_arrow(pa.Table.from_batches(batches, NUMBERS), Path(shard["spool"]))


def write_arrow(table: pa.Table, folder: Path) -> str:
    """Write a table into a new file of a folder; return its path."""
    import tempfile

    with tempfile.NamedTemporaryFile(dir=folder, suffix=".arrow", delete=False) as file:
        pyarrow.feather.write_feather(table, file, compression="uncompressed")
    return file.name


def measure(rows: pa.RecordBatch, source: str, params: Pack) -> pa.RecordBatch:
    """Return, for prepared rows of a source, the columns that `join` reads; over-length ones as `params` say.

    Raises:  InputError: a sample that is to be cut and does not say where its turns end.
    """
    ids, numbers = rows.column("conversation_id"), rows.column("sample").to_numpy()
    offsets = rows.column("mask").offsets.to_numpy().astype(np.int64)
    sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(rows.column("mask").values.to_numpy(), dtype=np.int64)])
    begin, length = offsets[:-1], np.diff(offsets)
    kept = length.copy()
    over = np.flatnonzero(padded(length, params.pad_segments_to) > params.pack_size)
    kept[over] = 0
    if len(over) and params.over_length == "cut-at-turn":
        ends = rows.column("turn_ends").take(pa.array(over)) if "turn_ends" in rows.schema.names else None
        if ends is None or ends.null_count:
            row = int(over[0 if ends is None else ends.is_null().index(True).as_py()])
            raise InputError(
                f"{source}, conversation {ids[row]}, sample {numbers[row]}: does not say where its turns end "
                "(turn_ends). Run: dvc repro prep"
            )
        kept[over] = cut_lengths(ends, params.pack_size, params.pad_segments_to)
    names = (f"{source}:{conversation}:{number}" for conversation, number in zip(ids.to_pylist(), numbers, strict=True))
    trained, trained_kept = _trained(sums, begin, length), _trained(sums, begin, kept)
    columns = ids, numbers, length, kept, trained, trained_kept, keyed_hashes(params.seed, names)
    typed = [pa.array(values, field.type) for values, field in zip(columns, NUMBERS, strict=True)]
    return pa.RecordBatch.from_arrays(typed, schema=NUMBERS)


def _trained(sums: Int64s, begin: Int64s, length: Int64s) -> Int64s:
    """Count the marked tokens of samples but the first of each; `sums` has those before each position."""
    result: Int64s = sums[begin + length] - sums[begin + np.minimum(length, 1)]
    return result


def cut_lengths(turn_ends: pa.Array, pack_size: int, multiple: int) -> Int64s:
    """Return the length of each sample cut behind its last trained turn that fits; 0 if not even the first does.

    `turn_ends` has the indices behind the stop tokens of a sample's trained turns: every turn kept is whole.

    >>> cut_lengths(pa.array([[10, 25, 40], [40], []]), pack_size=32, multiple=8).tolist()
    [25, 0, 0]
    """
    offsets = turn_ends.offsets.to_numpy()
    ends = turn_ends.values.to_numpy().astype(np.int64)
    fitting = np.append(np.where(padded(ends, multiple) <= pack_size, ends, 0), 0)
    longest: Int64s = np.where(np.diff(offsets) > 0, np.maximum.reduceat(fitting, offsets[:-1]), 0)
    return longest


def read_numbers(paths: Sequence[str]) -> Callable[[str], Iterator[pa.Array]]:
    """Return what reads a column of the files that `measure_groups` wrote, one at a time to hold little."""

    def column(name: str) -> Iterator[pa.Array]:
        for path in paths:
            yield from pyarrow.feather.read_table(path, [name], memory_map=True).column(name).chunks

    return column


def join(column: Callable[[str], Iterable[pa.Array]], rows: Mapping[str, int]) -> tuple[Samples, Conversations]:
    """Number the conversations of measured samples; `rows` has how many samples each source has, in order."""
    ids, identity = number_ids(lambda: column("conversation_id"))
    conversation = np.empty(len(identity), np.int32)
    first = np.empty(len(ids), np.int32)  # of the samples of a source that have an id: the place of the first
    sources, identities = [], []
    begin = known = 0
    for source, number in enumerate(rows.values()):
        own, places = identity[begin : begin + number], np.arange(number, dtype=np.int32)
        first[own[::-1]] = places[::-1]  # what is written last stays
        is_first = first[own] == places
        numbers = np.cumsum(is_first, dtype=np.int32) + np.int32(known - 1)  # in order of appearance
        conversation[begin : begin + number] = numbers[first[own]]
        identities.append(own[is_first])
        sources.append(np.full(len(identities[-1]), source, np.int32))
        begin += number
        known += len(identities[-1])
    numbers_of = {field.name: _whole(column(field.name), str(field.type), begin) for field in list(NUMBERS)[1:]}
    reason = np.full(begin, FITS, np.uint8)
    reason[numbers_of["trained_kept"] == 0] = UNTRAINED
    reason[numbers_of["kept"] == 0] = OVER_LENGTH
    samples = Samples(conversation=conversation, **numbers_of, reason=reason)
    return samples, Conversations(np.concatenate(sources), np.concatenate(identities), ids, list(rows))


def _whole(chunks: Iterable[pa.Array], kind: str, number: int) -> npt.NDArray[Any]:
    """Copy so many numbers, which come in some arrays, into one: what they come from may be a mapped file."""
    whole = np.empty(number, kind)
    begin = 0
    for chunk in chunks:
        whole[begin : begin + len(chunk)] = chunk.to_numpy()
        begin += len(chunk)
    return whole


def refuse_over_length(samples: Samples, conversations: Conversations, params: Pack) -> None:
    """Raise InputError if a sample is longer than a pack: the first is named."""
    over = np.flatnonzero(padded(samples.length, params.pad_segments_to) > params.pack_size)
    if len(over):
        whose = samples.conversation[over[:1]]
        raise InputError(
            f"{conversations.sources_of(whose)[0]}, conversation {conversations.names(whose)[0]}, sample "
            f"{samples.number[over[0]]}: {samples.length[over[0]]} tokens, pack.pack_size allows {params.pack_size}. "
            "Raise pack.pack_size, or set pack.over_length to drop or cut-at-turn: what is lost is counted by source."
        )


# --- Counting ---------------------------------------------------------------------------------------------


def count_by_source(samples: Samples, conversations: Conversations, own: Int32s) -> dict[str, dict[str, int]]:
    """Count, by source, conversations once; samples, tokens and trained tokens as often as they are in `own`."""
    whose = samples.conversation[own]
    source, number = conversations.source[whose], len(conversations.sources)
    seen = np.zeros(len(conversations), np.bool_)
    seen[whose] = True
    counts = {
        "conversations": np.bincount(conversations.source[seen], minlength=number),
        "samples": np.bincount(source, minlength=number),
        "tokens": np.bincount(source, samples.kept[own], number),  # in float64: exact up to 2**53
        "trained_tokens": np.bincount(source, samples.trained_kept[own], number),
    }
    return {
        name: {unit: int(of_each[place]) for unit, of_each in counts.items()}
        for place, name in enumerate(conversations.sources)
    }


def count_losses(samples: Samples, own: slice) -> dict[str, dict[str, int]]:
    """Count samples, tokens and trained tokens by reason; under `cut` the parts that kept samples lost."""
    reason = samples.reason[own]
    whole = (reason == OVER_LENGTH) | (reason == UNTRAINED)
    units = {"tokens": (samples.length[own], samples.kept[own])}
    units["trained_tokens"] = samples.trained[own], samples.trained_kept[own]
    losses = {}
    for number, name in enumerate(REASONS):
        which = ~whole & (samples.kept[own] < samples.length[own]) if number == FITS else reason == number
        lost = {
            unit: (came - kept if number == FITS else np.where(whole, came, kept))[which].sum(dtype=np.int64)
            for unit, (came, kept) in units.items()
        }
        if which.any():
            losses[name] = {"samples": int(which.sum()), **{unit: int(number) for unit, number in lost.items()}}
    return dict(sorted(losses.items()))


def add_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add up counts of the same things."""
    total: dict[str, int] = {}
    for each in counts:
        for unit, number in each.items():
            total[unit] = total.get(unit, 0) + number
    return total


def add_losses(losses: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """Add up what `count_losses` returns."""
    every = list(losses)
    return {
        reason: add_counts(each[reason] for each in every if reason in each)
        for reason in sorted({reason for each in every for reason in each})
    }
