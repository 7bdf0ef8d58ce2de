"""Measure: what the filter, prep and pack stages would make of sampled rows, without duplicates and judge."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sft.files import resolve_repo_file
from sft.filters.examine import examine_rows, load_pipeline, read_folder
from sft.filters.pipeline import ROWS_AT_ONCE, RowCounts
from sft.formats.chat_forms import FieldCounts
from sft.formats.detect import decide_read, read_line
from sft.formats.raw_files import Row
from sft.packing.over_length import longest, window_rows
from sft.packing.sample_table import measure_rows
from sft.packing.write import padded
from sft.params.base import is_under
from sft.params.data import Pack, Prep, Read
from sft.params.schema import Params
from sft.parquet import WINDOWS
from sft.raw_folders import ALL
from sft.tokens.prepare import prepare_examined
from sft.tokens.reasoning import Shares
from sft.tokens.render import ChatTemplate, Settings

FIGURES = (
    *("rows", "kept", "tokens", "trained_tokens", "windows"),
    *("packed_tokens", "packed_trained_tokens", "packed_samples"),
)
"""Rows; those that filter and prep keep; their tokens, and the trained ones; pack-size windows that hold all of them;
tokens that pack keeps under `pack.over_length`, with padding; the trained ones of these; their samples."""
BASE_FILES = "{*.json,*.jinja,*.txt,*.model}"


@dataclass
class Measured:
    """The sampled rows of a source."""

    figures: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    """FIGURES of each row by its location, `file:n`."""
    lengths: list[int] = field(default_factory=list)
    """Of samples, in tokens."""
    packed: list[int] = field(default_factory=list)
    """Lengths of the samples and windows that pack keeps, with padding."""
    rejected: Counter[str] = field(default_factory=Counter)
    not_selected: int = 0
    licenses: Counter[str] = field(default_factory=Counter)
    """Trained tokens by the license that a row states."""
    not_read: str = ""
    """Columns and keys that no format reads."""
    read: str = ""
    """The format."""


def load_chat(prep: Prep, base: Path, fast: bool = False) -> ChatTemplate:
    """Return template and tokenizer of a param set; `base`: models/base. `fast`: as prep does for many rows."""
    template = Path(prep.template)
    known = base / template.name if template.parent == Path("models/base") else resolve_repo_file(str(template))
    return ChatTemplate.load(str(known), base, fast=fast, settings=Settings.of(prep))


def measure(folder: Path, name: str, read: Read, params: Params, chat: ChatTemplate) -> Measured:
    """Return the figures of all rows below a folder. Raises InputError: no row has the fields of the format."""
    read, _ = decide_read(folder, read.model_copy(update={"split": ALL, "config": None}))
    measured, fields, counts = Measured(read=read_line(read)), FieldCounts(unseen_select=set(read.select)), RowCounts()

    def counted(rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            measured.figures[row.location] = np.eye(1, len(FIGURES))[0]  # rows: 1
            yield row

    pipeline = load_pipeline(params.filter.model_dump_json(), None, "")
    examined = examine_rows(read_folder(folder, read, fields, counted), pipeline, name, counts, str(folder))
    for batch in itertools.batched(examined, ROWS_AT_ONCE):
        measured.rejected.update(row["reason"] for row in batch if "reason" in row)
        _prepare([row for row in batch if "reason" not in row], name, params, chat, measured)
    fields.check(read.format, read.fields)
    measured.not_selected = fields.not_selected
    measured.not_read = counts.not_read.line()
    return measured


def _prepare(kept: list[dict[str, Any]], name: str, params: Params, chat: ChatTemplate, measured: Measured) -> None:
    """Add the samples of kept rows to the figures of their rows."""
    if not kept:
        return
    reasoning = Shares(**params.prep.reasoning.model_dump())
    prepared = prepare_examined(chat, kept, reasoning, params.prep.max_tokens)
    measured.rejected.update(row["reason"] for row in prepared.rejected)
    rejected = Counter(row["id"] for row in prepared.rejected)  # ids repeat, and only one of two may be rejected
    rows, begun = list[dict[str, Any]](), 0
    for row in kept:
        if rejected[row["id"]]:
            rejected[row["id"]] -= 1
        else:
            rows.append(row)
    of_source = params.fetch.sources[name].license

    def is_excluded(license: str) -> bool:
        return is_under(license or of_source, params.pack.exclude_licenses)

    for batch in prepared.samples.combine_chunks().to_batches():
        sizes = measure_rows(batch, name, params.pack)
        length, trained = sizes["length"].to_numpy(), sizes["trained"].to_numpy()
        windows = -(-length // params.pack.pack_size)
        measured.lengths += length.tolist()
        numbers = begun + np.cumsum(batch["sample"].to_numpy() == 0) - 1  # a row's first sample is number 0
        begun, licenses = int(numbers[-1]) + 1, batch["license"].to_pylist()
        figures = zip(numbers, licenses, length, trained, windows, _packed(sizes, params.pack), strict=True)
        for number, license, *values, packed in figures:
            figure = measured.figures[rows[number]["location"]]
            figure[1] = 1
            figure[2:5] += values
            if not is_excluded(license):
                figure[5:] += packed
                measured.packed += packed[:1][packed[:1] > 0].tolist()
            measured.licenses[license] += int(values[1])
        if params.pack.over_length != "window":
            continue
        limit = longest(params.pack.pack_size, params.pack.pad_segments_to)
        too_long = np.flatnonzero(sizes["kept"].to_numpy() == 0)
        for number, license in {numbers[place]: licenses[place] for place in too_long}.items():
            made = [] if is_excluded(license) else list(window_rows(chat, reasoning, rows[number], limit, name))
            if made:
                sizes = measure_rows(pa.RecordBatch.from_pylist(made, WINDOWS), name, params.pack)
                by_key = _packed(sizes, params.pack)[np.argsort(sizes["key"].to_numpy())]
                packed = by_key[by_key[:, -1] > 0][: params.pack.max_windows]
                measured.figures[rows[number]["location"]][5:] += packed.sum(0)
                measured.packed += packed[:, 0].tolist()


def _packed(sizes: pa.RecordBatch, params: Pack) -> npt.NDArray[np.int64]:
    """Return the last three of FIGURES of each sample, (samples, 3); `sizes`: what `measure_rows` returns."""
    tokens = padded(sizes["kept"].to_numpy().astype(np.int64), params.pad_segments_to)
    trained = sizes["trained_kept"].to_numpy()
    packed: npt.NDArray[np.int64] = np.stack([tokens, trained, np.ones_like(tokens)], 1) * (trained > 0)[:, None]
    return packed
