"""Tables of samples and conversations: a few bytes for each sample, instead of its tokens.

`measure_rows` reads the length, the trained tokens and the id of prepared samples; `build_tables` numbers the
conversations of all sources. A sample that does not fit a pack or has nothing to train gets its reason here; later
steps set the reason of what they drop. The windows of a source (sft.packing.over_length) are rows behind its samples.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather

from sft.cli import InputError
from sft.hashing import keyed_hashes
from sft.packing.conversation_ids import ConversationIds, number_ids
from sft.packing.write import padded
from sft.params.data import Pack
from sft.parquet import WINDOWS, read_batches, read_metadata, shard_paths

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

# Values of SampleTable.reason, and their names in reports. A sample that fits may have been cut at a turn; one that is
# in windows is not packed itself, and loses what no window has.
FITS, IN_WINDOWS, OVER_LENGTH, NO_SPACE, UNTRAINED, EXCLUDED, DUPLICATE, NEAR_DUPLICATE, OVER_CAP, NOT_DRAWN = range(10)
REASONS = (
    *("cut", "cut", "over-length", "no-room-for-called-tool", "untrained", "excluded-license"),
    *("duplicate", "near-duplicate", "over-max-windows", "not-drawn"),
)
MEASURES = pa.schema(
    [
        ("conversation_id", pa.string()),
        ("number", pa.int32()),
        ("length", pa.int32()),
        ("kept", pa.int32()),
        ("trained", pa.int32()),
        ("trained_kept", pa.int32()),
        ("key", pa.uint64()),
        ("window", pa.int32()),
        ("covered", pa.int32()),
        ("whole", pa.int32()),
        ("group", pa.uint64()),
        ("license", pa.string()),
    ]
)
# Tokens that one task reads, and tokens in memory at once.
READ_TOKENS, BATCH_TOKENS = 1 << 25, 1 << 20
IDS_AT_ONCE = 1 << 16


class RowGroup(NamedTuple):
    """A row group of a prepared shard."""

    source: str
    path: str
    group: int
    rows: int
    tokens: int


@dataclass
class SampleTable:
    """All prepared samples, source by source in the order of their rows: arrays of (samples,)."""

    conversation: Int32s
    """Row of the conversation in the ConversationTable."""
    number: Int32s
    """Which sample of its conversation, from 0."""
    length: Int32s
    """Tokens as prepared."""
    kept: Int32s
    """Tokens that fit a pack: all, those up to the last whole turn that fits, those that its windows have, or 0."""
    trained: Int32s
    """Trained tokens as prepared. The first token is never trained: nothing predicts it."""
    trained_kept: Int32s
    """Trained tokens among `kept`."""
    key: npt.NDArray[np.uint64]
    """Keyed hash of source, conversation and number: the order in which samples are packed."""
    window: Int32s
    """Which window of its sample, from 1; 0 for a sample."""
    reason: npt.NDArray[np.uint8]
    """Why it is not packed: an index into REASONS; 0 (FITS) if it is."""

    def __len__(self) -> int:
        return len(self.length)

    @property
    def has_windows(self) -> npt.NDArray[np.bool_]:
        """(samples,) Whether it is in windows, at least in part: whatever happens to those is counted by window."""
        return np.isin(self.reason, (IN_WINDOWS, NO_SPACE)) & (self.kept > 0)


@dataclass
class ConversationTable:
    """All conversations, source by source: arrays of (conversations,)."""

    source: Int32s
    """Index into `sources`."""
    id_number: Int32s
    """Number of the id in `ids`; a conversation that several sources have has the same number in each."""
    group: npt.NDArray[np.uint64]
    """Conversations of a source with the same number are in one split."""
    ids: ConversationIds
    """The distinct ids."""
    sources: list[str]
    """Names of the sources."""
    license: Int32s
    """Index into `licenses`."""
    licenses: list[str]
    """Licenses that rows state; "" is that of the source."""

    def __len__(self) -> int:
        return len(self.source)

    def ids_of(self, rows: Int32s | Int64s) -> pa.Array:
        """Return the ids of some conversations, as text."""
        return self.ids.texts(self.id_number[rows])

    def iter_ids(self, rows: Int32s | Int64s) -> Iterator[str]:
        """Yield the ids of some conversations, with only IDS_AT_ONCE of them in memory as text."""
        for begin in range(0, len(rows), IDS_AT_ONCE):
            yield from self.ids_of(rows[begin : begin + IDS_AT_ONCE]).to_pylist()

    def sources_of(self, rows: Int32s | Int64s) -> pa.Array:
        """Return the source names of some conversations."""
        return pa.array(self.sources, pa.string()).take(pa.array(self.source[rows]))


def list_row_groups(folders: Mapping[str, Path]) -> list[RowGroup]:
    """List the row groups of the prepared shards of each source, in order."""
    groups = []
    for source, folder in folders.items():
        for path in shard_paths(folder):
            metadata = read_metadata(path)
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                columns = (group.column(place) for place in range(group.num_columns))
                tokens = sum(column.num_values for column in columns if column.path_in_schema.startswith("mask."))
                groups.append(RowGroup(source, str(path.absolute()), number, group.num_rows, tokens))
    return groups


def count_rows(groups: Iterable[RowGroup], sources: Iterable[str]) -> dict[str, int]:
    """Return the number of rows of each source, in the order of `sources`."""
    rows = dict.fromkeys(sources, 0)
    for group in groups:
        rows[group.source] += group.rows
    return rows


def batch_row_groups(groups: Sequence[RowGroup], tokens: int) -> list[list[RowGroup]]:
    """Split a list of row groups into lists of about `tokens` tokens each."""
    batches: list[list[RowGroup]] = []
    held = tokens
    for group in groups:
        if held >= tokens:
            batches.append([])
            held = 0
        batches[-1].append(group)
        held += group.tokens
    return batches


def read_row_group(group: RowGroup, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a row group in batches of about BATCH_TOKENS tokens; raises as `read_batches`."""
    rows = max(1, BATCH_TOKENS * group.rows // max(1, group.tokens))
    return read_batches(group.path, columns, WINDOWS, rows, [group.group], threads=True)


def measure_tasks(groups: Sequence[RowGroup], params: Pack, spool: Path) -> list[dict[str, Any]]:
    """Return the tasks for `measure_row_groups`, of about READ_TOKENS tokens each."""
    fixed = {"pack": params.model_dump(), "spool": str(spool)}
    return [{"groups": batch, **fixed} for batch in batch_row_groups(groups, READ_TOKENS)]


def measure_row_groups(task: dict[str, Any]) -> str:
    """Measure the samples of some row groups (a task of sft.workers); return the file of measures."""
    params = Pack(**task["pack"])
    batches = []
    for values in task["groups"]:
        group = RowGroup(*values)
        for rows in read_row_group(group, [name for name in WINDOWS.names if name != "ids"]):
            batches.append(measure_rows(rows, group.source, params))
    return write_arrow(pa.Table.from_batches(batches, MEASURES), Path(task["spool"]))


def write_arrow(table: pa.Table, folder: Path) -> str:
    """Write a table to a new file in a folder; return its path."""
    import tempfile

    with tempfile.NamedTemporaryFile(dir=folder, suffix=".arrow", delete=False) as file:
        pyarrow.feather.write_feather(table, file, compression="uncompressed")
    return file.name


def measure_rows(rows: pa.RecordBatch, source: str, params: Pack) -> pa.RecordBatch:
    """Return MEASURES of prepared rows of a source; `params.over_length` decides about samples longer than a pack.

    Raises:  InputError: a sample has to be cut, but its turn ends are unknown.
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
                f"data/prepared/{source}: conversation {ids[row]}, sample {numbers[row]}: turn_ends is missing, and "
                f"pack.over_length is cut-at-turn. Run: dvc repro --force prep@{source}"
            )
        kept[over] = lengths_cut_at_turn(ends, params.pack_size, params.pad_segments_to)
    window, covered, whole = (_numbers(rows, name) for name in ("window", "covered", "whole"))
    names = (f"{source}:{name}:{number}" for name, number in zip(ids.to_pylist(), numbers, strict=True))
    keys = (f"{name}:{part}" if part else name for name, part in zip(names, window.tolist(), strict=True))
    trained, trained_kept = _trained(sums, begin, length), _trained(sums, begin, kept)
    groups = rows.column("group") if "group" in rows.schema.names else pa.nulls(len(rows), pa.uint64())
    if groups.null_count:  # prepared elsewhere: each conversation is a group
        groups = pc.coalesce(groups, pa.array(keyed_hashes(0, ids.to_pylist())))
    licenses = rows.column("license") if "license" in rows.schema.names else pa.nulls(len(rows), pa.string())
    licenses = licenses.fill_null("")  # prepared elsewhere: that of the source
    hashes = keyed_hashes(params.seed, keys)
    columns = ids, numbers, length, kept, trained, trained_kept, hashes, window, covered, whole, groups, licenses
    typed = [pa.array(values, field.type) for values, field in zip(columns, MEASURES, strict=True)]
    return pa.RecordBatch.from_arrays(typed, schema=MEASURES)


def _numbers(rows: pa.RecordBatch, name: str) -> Int32s:
    """Return a column of numbers; 0 for rows without it."""
    if name not in rows.schema.names:
        return np.zeros(len(rows), np.int32)
    return np.asarray(rows.column(name).fill_null(0).to_numpy(), np.int32)


def _trained(sums: Int64s, begin: Int64s, length: Int64s) -> Int64s:
    """Count the trained tokens of each sample, its first token left out; `sums` counts them before each position."""
    result: Int64s = sums[begin + length] - sums[begin + np.minimum(length, 1)]
    return result


def lengths_cut_at_turn(turn_ends: pa.Array, pack_size: int, multiple: int) -> Int64s:
    """Return the length of each sample up to the end of its last trained turn that fits; 0 if none fits.

    `turn_ends` has the index behind the stop token of each trained turn.

    >>> lengths_cut_at_turn(pa.array([[10, 25, 40], [40], []]), pack_size=32, multiple=8).tolist()
    [25, 0, 0]
    """
    offsets = turn_ends.offsets.to_numpy()
    ends = turn_ends.values.to_numpy().astype(np.int64)
    fitting = np.append(np.where(padded(ends, multiple) <= pack_size, ends, 0), 0)
    longest: Int64s = np.where(np.diff(offsets) > 0, np.maximum.reduceat(fitting, offsets[:-1]), 0)
    return longest


def column_reader(paths: Sequence[str]) -> Callable[[str], Iterator[pa.Array]]:
    """Return a function that reads one column of the files of `measure_row_groups`, file by file."""

    def column(name: str) -> Iterator[pa.Array]:
        for path in paths:
            yield from pyarrow.feather.read_table(path, [name], memory_map=True).column(name).chunks

    return column


def build_tables(
    column: Callable[[str], Iterable[pa.Array]], rows: Mapping[str, int], *, in_windows: bool = False
) -> tuple[SampleTable, ConversationTable]:
    """Number the conversations of measured samples; `rows` is the number of samples of each source, in order.

    `in_windows`: samples that are too long have windows, unless they call tools for which there is no space.
    """
    ids, id_number = number_ids(lambda: column("conversation_id"))
    conversation = np.empty(len(id_number), np.int32)
    first = np.empty(len(ids), np.int32)  # id -> the first sample of the current source that has it
    sources, id_numbers, groups, licenses = [], [], [], []
    license, license_names = _number_texts(column("license"), len(id_number))
    group = _concatenate(column("group"), "uint64", len(id_number))
    begin = known = 0
    for source, number in enumerate(rows.values()):
        of_source, places = id_number[begin : begin + number], np.arange(number, dtype=np.int32)
        first[of_source[::-1]] = places[::-1]  # of several assignments the last one stays
        is_first = first[of_source] == places
        numbers = np.cumsum(is_first, dtype=np.int32) + np.int32(known - 1)  # in order of appearance
        conversation[begin : begin + number] = numbers[first[of_source]]
        id_numbers.append(of_source[is_first])
        groups.append(group[begin : begin + number][is_first])
        licenses.append(license[begin : begin + number][is_first])
        sources.append(np.full(len(id_numbers[-1]), source, np.int32))
        begin += number
        known += len(id_numbers[-1])
    columns = {field.name: _concatenate(column(field.name), str(field.type), begin) for field in list(MEASURES)[1:-2]}
    covered, whole = columns.pop("covered"), columns.pop("whole")
    reason = np.full(begin, FITS, np.uint8)
    reason[columns["trained_kept"] == 0] = UNTRAINED
    reason[columns["kept"] == 0] = OVER_LENGTH
    samples = SampleTable(conversation=conversation, **columns, reason=reason)
    if in_windows:
        set_samples_of_windows(samples, covered, whole)
    of_source, numbers_of_ids, of_group, of_license = map(np.concatenate, (sources, id_numbers, groups, licenses))
    return samples, ConversationTable(
        of_source, numbers_of_ids, of_group, ids, list(rows), of_license, list(license_names)
    )


def set_samples_of_windows(samples: SampleTable, covered: Int32s, whole: Int32s) -> None:
    """Set what the windows of a sample have of it, and the reason of samples that are too long.

    Shapes: covered (tokens that a window adds), whole (tokens of its sample): (samples,), of windows.

    Raises:  InputError: a window is of another sample than was prepared.
    """
    long = np.flatnonzero((samples.reason == OVER_LENGTH) & (samples.window == 0))
    windows = np.flatnonzero(samples.window)
    numbers = int(samples.number.max(initial=0)) + 1
    keys = samples.conversation.astype(np.int64) * numbers + samples.number
    long = long[np.argsort(keys[long], kind="stable")]
    place = np.searchsorted(keys[long], keys[windows])
    known = place < len(long)
    known[known] = keys[long[place[known]]] == keys[windows[known]]
    if not known.all() or (samples.length[long[place]] != whole[windows]).any():
        raise InputError(
            "data/prepared: samples are not those of data/filtered: they were made with other code or params. "
            "Run: dvc repro --force prep"
        )
    np.add.at(samples.kept, long[place], covered[windows])
    np.add.at(samples.trained_kept, long[place], samples.trained[windows])
    reason = np.where(samples.trained_kept[long] < samples.trained[long], NO_SPACE, IN_WINDOWS)
    samples.reason[long] = np.where(samples.trained[long] == 0, UNTRAINED, reason)


def _number_texts(chunks: Iterable[pa.Array], number: int) -> tuple[Int32s, dict[str, int]]:
    """Return the numbers of `number` texts, and the number of each text, in order of appearance."""
    names: dict[str, int] = {}
    numbers = np.empty(number, np.int32)
    begin = 0
    for chunk in chunks:
        encoded = chunk.dictionary_encode()
        known = [names.setdefault(text, len(names)) for text in encoded.dictionary.to_pylist()]
        numbers[begin : begin + len(chunk)] = np.array(known, np.int32)[encoded.indices.to_numpy()]
        begin += len(chunk)
    return numbers, names


def _concatenate(chunks: Iterable[pa.Array], kind: str, number: int) -> npt.NDArray[Any]:
    """Copy `number` values from some arrays into one; the arrays may be views of a mapped file."""
    values = np.empty(number, kind)
    begin = 0
    for chunk in chunks:
        values[begin : begin + len(chunk)] = chunk.to_numpy()
        begin += len(chunk)
    return values


def check_lengths(samples: SampleTable, conversations: ConversationTable, params: Pack) -> None:
    """Raise InputError if a sample is longer than a pack; the message names the first."""
    is_over = padded(samples.length, params.pad_segments_to) > params.pack_size
    over = np.flatnonzero(is_over & (samples.reason != EXCLUDED))
    if len(over):
        owner = samples.conversation[over[:1]]
        raise InputError(
            f"data/prepared/{conversations.sources_of(owner)[0]}: conversation {conversations.ids_of(owner)[0]}, "
            f"sample {samples.number[over[0]]}: found {samples.length[over[0]]} tokens, expected at most "
            f"pack.pack_size {params.pack_size}. Raise pack.pack_size, or set pack.over_length to drop or cut-at-turn."
        )
