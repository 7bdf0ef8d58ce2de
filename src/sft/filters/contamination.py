"""Contamination: conversations that contain items of the evaluation sets that measure the model.

`BenchmarkItems` indexes the texts of the items (sft.formats.benchmarks extracts them). `reject_contaminated` rejects a
conversation that contains enough of an item.

How much of an item a conversation contains is the share of the item's word n-grams that one of its messages has. An
item with fewer than n words must be in a message as a whole, one with fewer than MIN_WORDS words must be all that a
user writes in a message. N-grams that more than MAX_ITEMS items share are instructions or licenses: they do not count,
unless an item has no others. Words are those of sft.filters.dedup.words: without case, punctuation and spaces.
Reasoning and the arguments of calls count as messages. Answers of items, paraphrases and translations are not found.

Source: 13-grams without the frequent ones, as in Brown et al. 2020 (GPT-3), appendix C; a share of an item, as in
Lambert et al. 2024 (Tulu 3), section 3.2, with 8-grams and a half.
"""

import hashlib
import itertools
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sft.cli import InputError
from sft.conversation import Conversation, Rejection
from sft.filters.dedup.words import LETTERS, MULTIPLIERS, Hashes, WordHashes, hash_words

CONTAMINATED = "contaminated"
# Fewer words are in a text by chance.
MIN_WORDS = 8
MAX_ITEMS = 10
# A table with this many places per n-gram excludes most n-grams of a text before they are looked up.
TABLE_PLACES = 32
ITEMS_AT_ONCE = 4096
# Characters at the start and at the end of a long quotation.
QUOTED_CHARS = 160


def read_benchmark_items(path: Path) -> list[tuple[str, str, str]]:
    """Return (benchmark, item, text) of each item that the fetch stage wrote."""
    items = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(item["benchmark"], item["item"], item["text"]) for item in items]


def count_short_items(items: Iterable[tuple[str, str, str]]) -> int:
    """Return how many items have fewer than MIN_WORDS words, and so are not found inside a longer message."""
    batches = (hash_words([text for _, _, text in batch]) for batch in itertools.batched(items, ITEMS_AT_ONCE))
    return sum(int((np.diff(words.starts) < MIN_WORDS).sum()) for words in batches)


@dataclass(frozen=True)
class ItemMatch:
    """How much of an item a text contains."""

    item: int
    """Its number among the items."""
    share: float
    """Share of its n-grams that are in the text."""
    start: int
    end: int
    """First word and end of the longest part in common, in words of the text."""


class BenchmarkItems:
    """An index of the n-grams of benchmark items.

    Built from items (benchmark, id, text). Equal texts are one item, named after the first. Memory per n-gram: 12
    bytes, and TABLE_PLACES to twice as many bytes for the table.

    Raises:  InputError: n is less than MIN_WORDS, or there are no items.
    """

    def __init__(self, items: Iterable[tuple[str, str, str]], n: int) -> None:
        if n < MIN_WORDS:
            raise InputError(f"filter.contamination.n: {n} words are in texts by chance: use {MIN_WORDS} or more")
        self.names: list[tuple[str, str]] = []
        self._short: dict[bytes, int] = {}  # items with fewer than MIN_WORDS words, by the hashes of their words
        grams: list[Hashes] = []
        lengths, seen = {n}, set[bytes]()
        for batch in itertools.batched(items, ITEMS_AT_ONCE):
            words = hash_words([text for _, _, text in batch])
            for (benchmark, item, _), start, end in zip(batch, words.starts, words.starts[1:], strict=False):
                hashes = words.hashes[start:end]
                whole = hashlib.blake2b(hashes.tobytes(), digest_size=16).digest()
                if not len(hashes) or whole in seen:
                    continue
                seen.add(whole)
                length = min(n, len(hashes))
                if length < MIN_WORDS:
                    self._short[hashes.tobytes()] = len(self.names)
                    grams.append(np.empty(0, np.uint64))
                else:
                    lengths.add(length)
                    grams.append(np.unique(dict(_rolling(hashes, [length]))[length]))
                self.names.append((benchmark, item))
        if not self.names:
            raise InputError(
                "fetch.benchmarks: no items. Name files that have some, or set filter.contamination to null."
            )
        self._lengths = sorted(lengths)
        hashes = np.concatenate(grams)
        order = hashes.argsort(kind="stable")
        self._hashes = hashes[order]
        self._items = np.repeat(np.arange(len(grams), dtype=np.uint32), list(map(len, grams)))[order]
        self._drop_common()
        self._grams = np.bincount(self._items, minlength=len(grams))
        bits = (TABLE_PLACES * len(self._hashes)).bit_length()
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, bool)
        self._table[self._hashes >> self._shift] = True

    def _drop_common(self) -> None:
        """Keep the n-grams of each item that at most MAX_ITEMS items have; all of them if it has no such n-gram."""
        _, number, holders = np.unique(self._hashes, return_inverse=True, return_counts=True)
        rare = holders[number] <= MAX_ITEMS
        kept = rare | (np.bincount(self._items[rare], minlength=len(self.names))[self._items] == 0)
        self._hashes, self._items = self._hashes[kept], self._items[kept]

    def matches(self, words: WordHashes) -> dict[int, list[ItemMatch]]:
        """Return the items of which a text contains an n-gram, by the number of the text."""
        matches: dict[int, list[ItemMatch]] = {}
        if self._short:
            for text in np.flatnonzero(np.diff(words.starts) < MIN_WORDS).tolist():
                start, end = words.starts[text], words.starts[text + 1]
                if (item := self._short.get(words.hashes[start:end].tobytes())) is not None:
                    matches[text] = [ItemMatch(item, 1.0, 0, int(end - start))]
        spans: dict[tuple[int, int], dict[int, tuple[int, int]]] = {}
        for length, hashes in _rolling(words.hashes, self._lengths):
            places = np.flatnonzero(self._table[hashes >> self._shift])
            texts = np.searchsorted(words.starts, places, "right") - 1
            inside = places + length <= words.starts[texts + 1]
            first = np.searchsorted(self._hashes[:-1], hashes[places])
            known = inside & (self._hashes[first] == hashes[places])
            places, texts, first = places[known], texts[known], first[known]
            last = np.searchsorted(self._hashes, hashes[places], "right")
            for place, text, begin, end in zip(*map(np.ndarray.tolist, (places, texts, first, last)), strict=True):
                start = place - int(words.starts[text])
                for item in self._items[begin:end].tolist():
                    # An n-gram that is in the text twice counts once.
                    spans.setdefault((item, text), {}).setdefault(int(hashes[place]), (start, start + length))
        for (item, text), gram_spans in spans.items():
            share = len(gram_spans) / int(self._grams[item])
            longest = max(joined(gram_spans.values()), key=lambda span: span[1] - span[0])
            matches.setdefault(text, []).append(ItemMatch(item, share, *longest))
        return matches


def reject_contaminated(
    conversation: Conversation,
    parts: Sequence[tuple[int, str]],
    matches: Mapping[int, Sequence[ItemMatch]],
    items: BenchmarkItems,
    ratio: float,
) -> Rejection | None:
    """Reject a conversation with a message that contains at least `ratio` of the n-grams of an item.

    `matches` are by the number of the part. The evidence names the item with the largest share and quotes the longest
    part in common.
    """
    enough = contained_items(conversation, parts, matches, ratio)
    if not enough:
        return None
    best, part = max(enough, key=lambda pair: (pair[0].share, -pair[0].item, -pair[1]))
    benchmark, item = items.names[best.item]
    message, text = parts[part]
    quotation = quote(text, best.start, best.end)
    return Rejection(CONTAMINATED, f"{benchmark}: {best.share:.0%} of {item} in messages[{message}]: {quotation!r}")


def contained_items(
    conversation: Conversation,
    parts: Sequence[tuple[int, str]],
    matches: Mapping[int, Sequence[ItemMatch]],
    ratio: float,
) -> list[tuple[ItemMatch, int]]:
    """Return the items of which a message contains at least `ratio` of the n-grams, and the number of the part."""
    users = {index for index, message in enumerate(conversation.messages) if message["role"] == "user"}
    return [
        (match, part)
        for part, matches_of_part in matches.items()
        for match in matches_of_part
        if match.share >= ratio and (match.end >= MIN_WORDS or parts[part][0] in users)
    ]


def quote(text: str, start: int, end: int) -> str:
    """Return the part of a text from word `start` to word `end`; of a long part only its start and end.

    >>> quote("Well: how MANY, did you say?", 1, 3)
    'how MANY'
    """
    text = unicodedata.normalize("NFKC", text)
    places: list[list[int]] = []  # start and end of each word
    inside = False
    for place, letter in enumerate(text):
        in_words = LETTERS[ord(letter)]
        if inside and not in_words.startswith(" "):
            places[-1][1] = place + 1
        elif inside := in_words != " ":
            places.append([place, place + 1])
    part = text[places[start][0] : places[end - 1][1]]
    return part if len(part) <= 2 * QUOTED_CHARS else f"{part[:QUOTED_CHARS]} ... {part[-QUOTED_CHARS:]}"


def joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return (start, end) in order; those that overlap or touch are one.

    >>> joined([(7, 9), (0, 2), (2, 5), (3, 4)])
    [(0, 5), (7, 9)]
    """
    parts: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if parts and start <= parts[-1][1]:
            parts[-1] = (parts[-1][0], max(end, parts[-1][1]))
        else:
            parts.append((start, end))
    return parts


def _rolling(hashes: Hashes, lengths: list[int]) -> Iterator[tuple[int, Hashes]]:
    """Yield each of the ascending lengths with the hashes of all sequences of that many words, in order."""
    total = hashes
    for length in range(1, min(lengths[-1], len(hashes)) + 1):
        if length > 1:
            total = total[:-1] * np.uint64(MULTIPLIERS[0])
            total += hashes[length - 1 :]
        if length in lengths:
            yield length, total
