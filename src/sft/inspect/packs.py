"""The samples of a pack, their tokens as text, and which tokens are trained.

data/packed/{training,validation,test}/*.parquet, models/base (tokenizer)  ->  `unpack`: what sft.inspect.sample shows

In the data the loss mask is shifted to the labels. Here it is shifted back: a token is trained if the model learns to
predict it. Text is split where tokens end, but never inside a character.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from sft.cli import InputError
from sft.files import read_json
from sft.hashing import file_digest
from sft.inspect.rejections import why_rejected
from sft.packing.splits import SPLITS
from sft.parquet import read_rows, shard_paths

BASE = Path("models/base")
PACKED = Path("data/packed")
PACK = re.compile(rf"(?:({'|'.join(SPLITS)}):)?([0-9]+)")
CONVERSATION = re.compile(r"([0-9a-f]{6,})(?::([0-9]+))?")
LISTED = 5
UTF8_BYTES = 4  # a character has no more, so it has no more tokens


class Place(NamedTuple):
    """A pack, or one of its samples."""

    split: str
    pack: int
    """Number of the pack in its split, from 0."""
    sample: int | None = None
    """Index in the pack; None: all samples."""


class Piece(NamedTuple):
    """The fewest tokens that make whole characters, mostly one."""

    first: int
    """Position of the first token in the pack."""
    ids: list[int]
    text: str
    is_trained: bool
    is_control: bool
    """Whether it is not text of the conversation: a control token, padding, an id that the tokenizer does not know."""


@dataclass(frozen=True)
class PackedSample:
    """A sample of a pack."""

    source: str
    name: str
    """Conversation id, number of the sample in its conversation, and which window and copy, if there are several."""
    start: int
    """Position of its first token in the pack."""
    tokens: int
    """Number of tokens without padding."""
    trained: int
    """Number of trained tokens."""
    pieces: list[Piece]
    is_selected: bool


@dataclass(frozen=True)
class ShownPack:
    """A pack and what of it is shown."""

    split: str
    pack: int
    """Number of the pack in its split, from 0."""
    pack_size: int
    """Longest pack, in tokens."""
    title: str
    """A line about all this."""
    samples: list[PackedSample]
    """In order."""


def unpack(name: str) -> ShownPack:
    """Return the pack that `name` selects (see `locate`).

    Raises:  InputError: no such pack or conversation, several conversations, no packs, another tokenizer.
    """
    from tokenizers import Tokenizer

    if not (PACKED / "metadata.json").exists():
        raise InputError(f"{PACKED}: not found. Run: make pack")
    metadata = read_json(PACKED / "metadata.json")
    place, other_places = locate(name)
    tokenizer = BASE / "tokenizer.json"
    if not tokenizer.exists() or file_digest(tokenizer) != metadata["tokenizer_sha256"]:
        raise InputError(f"{tokenizer}: found another tokenizer than the one of {PACKED}. Run: make pack")
    pack = read_pack(place)
    packed_samples = samples(pack, place.sample, Tokenizer.from_file(str(tokenizer)), metadata["pad_segments_to"])
    title = summary(place, packed_samples, metadata["pack_size"], other_places)
    return ShownPack(place.split, place.pack, metadata["pack_size"], title, packed_samples)


def locate(name: str) -> tuple[Place, list[Place]]:
    """Return the place that `name` selects, and the other places of the same conversation.

    `name`: a number (a pack of training), a split and a number (validation:3), the start of a conversation id, or that
    with the number of a sample (0a1b2c:1). Digits are a number if there is such a pack, else an id.
    """
    counts = {split: _count_packs(split) for split in SPLITS}
    if pack := PACK.fullmatch(name):
        split, number = pack[1] or SPLITS[0], int(pack[2])
        if number < counts[split]:
            return Place(split, number), []
    id_and_sample = CONVERSATION.fullmatch(name)
    if id_and_sample:
        conversations = _find_conversations(id_and_sample[1])
        if len(conversations) > 1:
            ids = ", ".join([*conversations][:LISTED]) + (", ..." if len(conversations) > LISTED else "")
            raise InputError(f"{name}: {len(conversations)} conversations have ids that start so: {ids}. Add digits.")
        numbered = [item for items in conversations.values() for item in items]
        selected = [place for number, place in numbered if id_and_sample[2] in (None, str(number))]
        if selected:
            return selected[0], [place for _, place in numbered if place != selected[0]]
    reasons = why_rejected(id_and_sample[1]) if id_and_sample else []
    packs = ", ".join(f"{split}:0 to {split}:{count - 1}" for split, count in counts.items() if count)
    raise InputError(
        f"{name!r}: no pack or conversation of {PACKED}. Expected a number (a pack of training), or {packs}, or the "
        "first 6 or more digits of a conversation id (with :1 for its second sample). "
        + (f"{'; '.join(reasons[:LISTED])}." if reasons else "To list conversations that were rejected: make rejected")
    )


def _count_packs(split: str) -> int:
    return sum(int(pq.read_metadata(path).num_rows) for path in shard_paths(PACKED / split))


def _find_conversations(start: str) -> dict[str, list[tuple[int, Place]]]:
    """Return (number in the conversation, place) of each sample, for every conversation whose id starts so."""
    conversations: dict[str, list[tuple[int, Place]]] = {}
    for split in SPLITS:
        for pack, row in enumerate(read_rows(PACKED / split, columns=["conversation_id", "sample"])):
            for index, (conversation, number) in enumerate(zip(row["conversation_id"], row["sample"], strict=True)):
                if conversation.startswith(start):
                    conversations.setdefault(conversation, []).append((number, Place(split, pack, index)))
    return {conversation: sorted(conversations[conversation]) for conversation in sorted(conversations)}


def read_pack(place: Place) -> dict[str, Any]:
    """Return one pack; at most its row group is decoded."""
    remaining = place.pack
    for path in shard_paths(PACKED / place.split):
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if remaining < rows:
                    (pack,) = file.read_row_group(group).slice(remaining, 1).to_pylist()
                    return dict(pack)
                remaining -= rows
    raise AssertionError(f"{place}: counted, but not found")


def trained_tokens(loss_mask: Sequence[int]) -> list[bool]:
    """Return for each token of a sample whether it is trained; `loss_mask` marks the positions that predict.

    >>> trained_tokens([0, 1, 1, 0])
    [False, False, True, True]
    """
    return [False, *map(bool, loss_mask[:-1])]


def samples(pack: dict[str, Any], selected: int | None, tokenizer: Any, multiple: int) -> list[PackedSample]:
    """Return the samples of a pack; `selected` is the index of one, None selects all.

    The padding of a sample to a multiple of `multiple` is what it ends with of one control token that is not trained,
    fewer tokens than `multiple`. (A sample without padding ends with a trained stop token, or with text.)
    """
    ids, starts = pack["input_ids"], pack["seq_start_id"]
    control = tokenizer.get_added_tokens_decoder()
    packed_samples = []
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
        parts = list(pieces(ids[start:last], trained[: last - start], tokenizer, start))
        if last < end:
            parts.append(Piece(last, ids[last:end], f"padding, {_plural(end - last, 'token')}", False, True))
        copy = pack["repeat"][index] if "repeat" in pack else 0
        window = pack["window"][index] if "window" in pack else 0
        name = f"{pack['conversation_id'][index]}:{pack['sample'][index]}" + (f", window {window}" if window else "")
        packed_samples.append(
            PackedSample(
                source=pack["source"][index],
                name=f"{name}, copy {copy + 1}" if copy else name,
                start=start,
                tokens=last - start,
                trained=sum(trained),
                pieces=parts,
                is_selected=selected in (None, index),
            )
        )
    return packed_samples


def pieces(ids: Sequence[int], trained: Sequence[bool], tokenizer: Any, start: int = 0) -> Iterator[Piece]:
    """Yield tokens in pieces of whole characters; a piece is trained or not, never in part.

    Tokens that make no whole character, before a control token, a change of the mask or the end, are a piece with
    U+FFFD in its text. Otherwise the texts of the pieces add up to the text of the tokens.
    """
    control = tokenizer.get_added_tokens_decoder()
    before: list[int] = []  # the piece before, if whole: some decoders treat the first token of a text differently
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


def summary(
    place: Place, packed_samples: Sequence[PackedSample], pack_size: int, other_places: Sequence[Place] = ()
) -> str:
    """Return a line about a pack or a sample: sources, place, number of tokens and of trained tokens."""
    tokens, trained = sum(sample.tokens for sample in packed_samples), sum(sample.trained for sample in packed_samples)
    pack = f"{place.split} pack {place.pack} (from 0), {_plural(len(packed_samples), 'sample')}"
    if place.sample is None:
        sources = ", ".join(sorted({sample.source for sample in packed_samples}))
        return f"{sources}: {pack}, {_counts(tokens, trained)}, pack size {pack_size}"
    line = f"{pack}: {heading(place.sample, packed_samples)}"
    if other_places:
        others = ", ".join(f"{other.split} pack {other.pack}" for other in other_places[:LISTED])
        line += f"; the conversation is also in {others}{', ...' if len(other_places) > LISTED else ''}"
    return line


def heading(index: int, packed_samples: Sequence[PackedSample]) -> str:
    """Return a line about a sample: its name, positions in the pack, number of tokens and of trained tokens."""
    sample = packed_samples[index]
    return (
        f"sample {index + 1} of {len(packed_samples)}, {sample.source} {sample.name}, positions {sample.start} to "
        f"{sample.start + sample.tokens - 1}, {_counts(sample.tokens, sample.trained)}"
    )


def _counts(tokens: int, trained: int) -> str:
    return f"{_plural(tokens, 'token')}, {trained} trained ({trained / tokens:.1%})"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
