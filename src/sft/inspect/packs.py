"""A pack taken apart again: its samples, their tokens as text, and which of them are trained.

data/packed/{training,validation,test}/*.parquet, models/base (tokenizer)  ->  `unpack`: what `sample` shows

The mask stands in the data shifted to the labels; here it is moved back: a token counts as trained if the
model learns to say it. Text is cut where tokens end, but never inside a character.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sft.cli import InputError
from sft.files import read_json
from sft.hashing import file_digest
from sft.inspect.rejections import refusals
from sft.packing.splits import SPLITS

BASE = Path("models/base")
PACKED = Path("data/packed")
PACK = re.compile(rf"(?:({'|'.join(SPLITS)}):)?([0-9]+)")
CONVERSATION = re.compile(r"([0-9a-f]{6,})(?::([0-9]+))?")
LISTED = 5
UTF8_BYTES = 4  # of one character at most: more tokens than that do not wait for the rest of it


class Place(NamedTuple):
    """Where a pack is, and which of its samples is asked for."""

    split: str
    pack: int
    """Number of the pack in its split, from 0."""
    sample: int | None = None
    """Index in the pack; None: all of them."""


class Piece(NamedTuple):
    """The fewest tokens, mostly one, that make whole characters."""

    first: int
    """Position of the first token in the pack."""
    ids: list[int]
    text: str
    is_trained: bool
    is_control: bool
    """Whether it is no text of the conversation: a control token, padding, an id that the tokenizer does not know."""


@dataclass(frozen=True)
class Shown:
    """One sample of a pack."""

    source: str
    name: str
    """Conversation id, number of the sample in its conversation, and which copy where it is packed repeatedly."""
    start: int
    """Position of its first token in the pack."""
    tokens: int
    """Without padding."""
    trained: int
    """Trained tokens."""
    pieces: list[Piece]
    is_asked_for: bool


def unpack(wanted: str) -> tuple[str, list[Shown]]:
    """Find the pack that `wanted` names and take it apart; returns a line about it and its samples, in order.

    Raises:  InputError: no such pack or conversation, several conversations, no packs, another tokenizer.
    """
    from tokenizers import Tokenizer

    if not (PACKED / "metadata.json").exists():
        raise InputError(f"{PACKED}: not found. Run the pack stage first: make pack")
    metadata = read_json(PACKED / "metadata.json")
    place, elsewhere = locate(wanted)
    tokenizer = BASE / "tokenizer.json"
    if not tokenizer.exists() or file_digest(tokenizer) != metadata["tokenizer_sha256"]:
        raise InputError(f"{tokenizer}: not the tokenizer that {PACKED} was made with. Run: make pack")
    shown = samples(read_pack(place), place.sample, Tokenizer.from_file(str(tokenizer)), metadata["pad_segments_to"])
    return summary(place, shown, metadata["pack_size"], elsewhere), shown


def locate(wanted: str) -> tuple[Place, list[Place]]:
    """Find the place that `wanted` names, and the other places of the same conversation.

    A number of digits only is a pack where there are so many packs, else the start of an id.
    """
    counts = {split: _count_packs(split) for split in SPLITS}
    if pack := PACK.fullmatch(wanted):
        split, number = pack[1] or SPLITS[0], int(pack[2])
        if number < counts[split]:
            return Place(split, number), []
    asked = CONVERSATION.fullmatch(wanted)
    if asked:
        found = _find_conversations(asked[1])
        if len(found) > 1:
            some = ", ".join([*found][:LISTED]) + (", ..." if len(found) > LISTED else "")
            raise InputError(f"{wanted}: {len(found)} conversations start so: {some}. Give more digits.")
        places = [place for numbered in found.values() for _, place in numbered]
        named = [p for numbered in found.values() for n, p in numbered if asked[2] in (None, str(n))]
        if named:
            return named[0], [place for place in places if place != named[0]]
    why = refusals(asked[1]) if asked else []
    known = ", ".join(f"{split}:0 to {split}:{count - 1}" for split, count in counts.items() if count)
    raise InputError(
        f"{wanted!r}: neither a pack nor a sample of {PACKED}. Give a number (a pack of training), or {known}, or "
        "the id of a conversation, its first 6 digits at least (with :1 for its second sample). "
        + (f"{'; '.join(why[:LISTED])}." if why else "What was refused is not packed: make rejected lists it.")
    )


def _count_packs(split: str) -> int:
    import pyarrow.parquet as pq

    from sft.parquet import shard_paths

    return sum(int(pq.read_metadata(path).num_rows) for path in shard_paths(PACKED / split))


def _find_conversations(start: str) -> dict[str, list[tuple[int, Place]]]:
    """List the samples (number in its conversation, place) of every conversation whose id starts so, in order."""
    from sft.parquet import read_rows

    found: dict[str, list[tuple[int, Place]]] = {}
    for split in SPLITS:
        for pack, row in enumerate(read_rows(PACKED / split, columns=["conversation_id", "sample"])):
            for index, (conversation, number) in enumerate(zip(row["conversation_id"], row["sample"], strict=True)):
                if conversation.startswith(start):
                    found.setdefault(conversation, []).append((number, Place(split, pack, index)))
    return {conversation: sorted(found[conversation]) for conversation in sorted(found)}


def read_pack(place: Place) -> dict[str, Any]:
    """Read one pack; of the rest, at most its row group is decoded."""
    import pyarrow.parquet as pq

    from sft.parquet import shard_paths

    before = place.pack
    for path in shard_paths(PACKED / place.split):
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if before < rows:
                    (pack,) = file.read_row_group(group).slice(before, 1).to_pylist()
                    return dict(pack)
                before -= rows
    raise AssertionError(f"{place}: counted, but not there")


def trained_tokens(loss_mask: Sequence[int]) -> list[bool]:
    """Move the mask of one sample from the positions that predict back to the tokens that are predicted.

    >>> trained_tokens([0, 1, 1, 0])
    [False, False, True, True]
    """
    return [False, *(bool(kept) for kept in loss_mask[:-1])]


def samples(pack: dict[str, Any], asked_for: int | None, tokenizer: Any, multiple: int) -> list[Shown]:
    """Take a pack apart.

    A sample ends with its padding to a multiple of `multiple`: fewer tokens than that, all the same control
    token, none trained. (By itself a sample ends with a stop token that is trained, or with text.)
    """
    ids, starts = pack["input_ids"], pack["seq_start_id"]
    control = tokenizer.get_added_tokens_decoder()
    shown = []
    for index, (start, end) in enumerate(itertools.pairwise([*starts, len(ids)])):
        trained = trained_tokens(pack["loss_mask"][start:end])
        last = end
        while (
            end - last < multiple - 1
            and start < last - 1
            and ids[last - 1] == ids[end - 1] in control
            and not trained[last - 1 - start]
        ):
            last -= 1
        cut = list(pieces(ids[start:last], trained[: last - start], tokenizer, start))
        if last < end:
            cut.append(Piece(last, ids[last:end], f"padding, {_plural(end - last, 'token')}", False, True))
        repeat = pack["repeat"][index] if "repeat" in pack else 0
        name = f"{pack['conversation_id'][index]}:{pack['sample'][index]}"
        shown.append(
            Shown(
                source=pack["source"][index],
                name=f"{name}, copy {repeat + 1}" if repeat else name,
                start=start,
                tokens=last - start,
                trained=sum(trained),
                pieces=cut,
                is_asked_for=asked_for in (None, index),
            )
        )
    return shown


def pieces(ids: Sequence[int], trained: Sequence[bool], tokenizer: Any, start: int = 0) -> Iterator[Piece]:
    """Cut tokens into pieces of whole characters, each all trained or all not.

    Where tokens do not make whole characters, before a control token, a change of the mask or the end, the
    rest is a piece with U+FFFD in its text. Else the texts of the pieces are the text of the tokens.
    """
    control = tokenizer.get_added_tokens_decoder()
    before: list[int] = []  # the piece before, if whole: some decoders treat a text's first token in a way of its own
    waiting: list[int] = []
    for position, token in enumerate(ids):
        waiting.append(token)
        known = len(tokenizer.decode(before, skip_special_tokens=False))
        text = tokenizer.decode([*before, *waiting], skip_special_tokens=False)[known:]
        following = position + 1
        ends = following == len(ids) or ids[following] in control or trained[following] != trained[position]
        if text.endswith("\ufffd") and len(waiting) < UTF8_BYTES and not ends:
            continue
        is_control = token in control or not text
        if is_control:
            text = control[token].content if token in control else f"no text for id {token}"
        yield Piece(start + following - len(waiting), waiting, text, trained[position], is_control)
        before, waiting = [] if "\ufffd" in text else waiting, []


def summary(place: Place, shown: Sequence[Shown], pack_size: int, elsewhere: Sequence[Place] = ()) -> str:
    """Say what is shown: of which source, where, how many tokens, how many of them trained."""
    tokens, trained = sum(sample.tokens for sample in shown), sum(sample.trained for sample in shown)
    pack = f"{place.split} pack {place.pack} (from 0), {_plural(len(shown), 'sample')}"
    if place.sample is None:
        sources = ", ".join(sorted({sample.source for sample in shown}))
        return f"{sources}: {pack}, {_counts(tokens, trained)}, {pack_size} fit"
    said = f"{pack}: {heading(place.sample, shown)}"
    if elsewhere:
        rest = ", ".join(f"{other.split} pack {other.pack}" for other in elsewhere[:LISTED])
        said += f"; the conversation is also in {rest}{', ...' if len(elsewhere) > LISTED else ''}"
    return said


def heading(index: int, shown: Sequence[Shown]) -> str:
    """Say what a sample is, where it lies in its pack, and how much of it is trained."""
    sample = shown[index]
    return (
        f"sample {index + 1} of {len(shown)}, {sample.source} {sample.name}, positions {sample.start} to "
        f"{sample.start + sample.tokens - 1}, {_counts(sample.tokens, sample.trained)}"
    )


def _counts(tokens: int, trained: int) -> str:
    return f"{_plural(tokens, 'token')}, {trained} trained ({trained / tokens:.1%})"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
