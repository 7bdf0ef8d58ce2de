"""blame: the conversations that the trained model predicts worst, with their lines in the raw data.

models/base, models/final, data/packed/<split>, data/filtered
    ->  the terminal, through your pager; or JSON (--json)

Two lists: by loss after training, and by how much the loss grew. Rows that contradict the other rows of their kind
(a wrong answer, a broken text, another language) are at their top. Losses are per trained token, in nats, of all
measured samples of a conversation. Of a large split, --rows samples are measured, chosen by a hash of their ids; a
conversation in windows has several.
Measurements are kept in runs/measured: another --number takes no time.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from sft.cli import InputError, add_json_option, at_least, make_parser, print_facts, run_or_exit
from sft.evaluation.intervals import pair_losses
from sft.evaluation.measure import measure_models
from sft.evaluation.prompts import Segment, choose_segments, split_packs
from sft.files import read_json
from sft.inspect.rejected import parts
from sft.inspect.rejections import kept_rows, row_location
from sft.inspect.terminal import paged, visible
from sft.packing.splits import SPLITS
from sft.params.read import load

BASE, FINAL, PACKED = Path("models/base"), Path("models/final"), Path("data/packed")
ROWS, NUMBER = 5_000, 20
SHOWN_CHARS = 240
"""Characters shown of a text."""


@dataclass(frozen=True)
class Row:
    """What both models make of one conversation."""

    source: str
    conversation_id: str
    tokens: int
    """Trained tokens."""
    before: float
    """Loss per trained token of the base model, in nats."""
    after: float
    """The same of the trained model."""
    change: float
    location: str | None = None
    """File and line below data/raw/<source>."""
    messages: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Blame:
    """The first rows of both orders."""

    split: str
    samples: int
    """Samples of the split, windows among them."""
    measured_samples: int
    measured: int
    """Their conversations."""
    by_loss: list[Row]
    by_change: list[Row]


def measure_split(split: str, rows: int) -> tuple[list[Row], int, int]:
    """Return what both models make of at most `rows` samples; how many the split has, and how many were measured.

    Raises:  InputError: no packs, or no model.
    """
    from sft.parquet import read_rows

    if not (PACKED / "metadata.json").exists():
        raise InputError(f"{PACKED}: not found. Run: make pack")
    for folder, target in ((BASE, "fetch"), (FINAL, "train")):  # before the other one is measured, for minutes
        if not (folder / "config.json").exists():
            raise InputError(f"{folder}: not found. Run: make {target}")
    metadata, params = read_json(PACKED / "metadata.json"), load("eval")
    packs = read_rows(PACKED / split) if (PACKED / split).is_dir() else iter(())
    samples = 0

    def trained() -> Iterator[Segment]:
        nonlocal samples
        for segment in split_packs(packs, params.seed):
            samples += any(segment.marks)
            yield segment

    segments = choose_segments(trained(), dict.fromkeys(metadata["sources"], split), rows).get(split, [])
    if not segments:
        raise InputError(
            f"SPLIT={split}: no samples in {PACKED / split}. Raise pack.{split}, or look at another split."
        )
    before, after = measure_models(BASE, FINAL, segments, [], [], params)
    return join_losses(segments, before.losses, after.losses), samples, len(segments)


def join_losses(
    segments: Sequence[Segment], before: Sequence[tuple[float, int]], after: Sequence[tuple[float, int]]
) -> list[Row]:
    """Return one row for each conversation, from the (summed loss, tokens) of its samples."""
    numbers: dict[tuple[str, str], int] = {}
    groups = [numbers.setdefault((each.source, each.conversation_id), len(numbers)) for each in segments]
    pairs = pair_losses(groups, before, after)
    return [
        Row(*name, tokens, was / tokens, now / tokens, (now - was) / tokens)
        for name, (was, now, tokens) in zip(numbers, pairs, strict=True)
    ]


def rank_rows(rows: Sequence[Row], number: int) -> tuple[list[Row], list[Row]]:
    """Return the first rows by loss after training, and by its change, each with its conversation and its place."""
    by_loss = sorted(rows, key=lambda row: (-row.after, row.conversation_id))[:number]
    by_change = sorted(rows, key=lambda row: (-row.change, row.conversation_id))[:number]
    ids: dict[str, set[str]] = {}
    for row in (*by_loss, *by_change):
        ids.setdefault(row.source, set()).add(row.conversation_id)
    found = {(source, identity): kept for source in ids for identity, kept in kept_rows(source, ids[source]).items()}

    def with_text(row: Row) -> Row:
        kept: Mapping[str, Any] = found.get((row.source, row.conversation_id), {})
        values = {**vars(row), "location": row_location(dict(kept))}
        return Row(**{**values, "messages": json.loads(kept["messages"]) if kept else None})

    return [with_text(row) for row in by_loss], [with_text(row) for row in by_change]


def find(split: str, rows: int, number: int) -> Blame:
    """Measure the conversations of a split and return the first `number` of both orders."""
    measured, samples, measured_samples = measure_split(split, rows)
    return Blame(split, samples, measured_samples, len(measured), *rank_rows(measured, number))


def show(blame: Blame) -> None:
    """Print both lists."""
    lists = (("by loss after training", blame.by_loss), ("by change of the loss", blame.by_change))
    with paged() as screen:
        for title, rows in lists:
            of = f"{len(rows)} of {blame.measured:,} conversations of {blame.split}"
            screen.print(Text(f"── {title}: {of}", "bold"), soft_wrap=True)
            for number, row in enumerate(rows, 1):
                place = f"data/raw/{row.source}/{row.location}" if row.location else f"{row.source}, line not found"
                losses = f"{row.after:.3f} after, {row.before:.3f} before, {row.change:+.3f}"
                screen.print(Text(visible(f"{number:4} {place}"), "cyan"), soft_wrap=True)
                details = f"     {losses}, {row.tokens} trained tokens, make show PACK={row.conversation_id[:12]}"
                screen.print(Text(visible(details), "bright_black"), soft_wrap=True)
                texts = parts(row.messages or [])
                for part in texts if len(texts) <= 2 else (texts[0], texts[-1]):
                    screen.print(Text(f"     {visible(part.label)}: {_start(part.text)}"))
            screen.print()
        if blame.measured_samples < blame.samples:
            note = f"{blame.measured_samples:,} of {blame.samples:,} samples were measured; "
            screen.print(Text(f"{note}all: ROWS={blame.samples}"), soft_wrap=True)


def _start(text: str) -> str:
    return visible(text[:SHOWN_CHARS]) + ("..." if len(text) > SHOWN_CHARS else "")


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--split", choices=SPLITS, default=SPLITS[0], help=f"which packs; default: {SPLITS[0]}")
    parser.add_argument(
        "--rows", type=at_least(1), default=ROWS, metavar="N", help=f"samples measured at most; default: {ROWS:,}"
    )
    parser.add_argument(
        "--number", type=at_least(1), default=NUMBER, metavar="N", help=f"length of each list; default: {NUMBER}"
    )
    add_json_option(parser)
    given = parser.parse_args()
    run_or_exit(lambda: print_facts(lambda: find(given.split, given.rows, given.number), show, as_json=given.json))
