"""Contamination: conversations that hold items of the evaluation sets that a model will be measured on.

`Benchmarks` indexes the texts of the items (sft.formats.benchmarks reads them); `check_contamination` refuses a
conversation in which enough of an item occurs.

An item occurs by the share of its n-grams of words that one message of the conversation holds. An item shorter
than n words must stand in it whole; one shorter than FEWEST_WORDS must be the whole message of a user.
N-grams of more than MOST_ITEMS items are instructions or licences that these share, and do not count, unless an
item has no others. Words are those of sft.filters.dedup.words: without case, punctuation and spaces. Reasoning and the
arguments of calls are messages, too. Answers of the items, paraphrases and translations are not looked for.

Source: 13-grams, leaving out the frequent ones, as Brown et al. 2020 (GPT-3), appendix C; a share of an item, as
Lambert et al. 2024 (Tulu 3), section 3.2, who take 8-grams and a half.
"""

import hashlib
import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sft.cli import InputError
from sft.conversation import Conversation, Rejection
from sft.filters.dedup.words import LETTERS, MULTIPLIERS, WordHashes, hash_words

if TYPE_CHECKING:
    from sft.filters.dedup.words import Hashes

CONTAMINATED = "contaminated"
# Fewer words stand in a text by chance.
FEWEST_WORDS = 8
MOST_ITEMS = 10
# What is looked up passes a table with this many places per n-gram first, because most of it is in no benchmark.
TABLE_PLACES = 32
ITEMS_AT_ONCE = 4096
# Of a longer text in common, so many characters of its start and end are shown.
SHOWN_CHARS = 160


@dataclass(frozen=True)
class Match:
    """How much of an item stands in a text."""

    item: int
    """Its number among the items."""
    share: float
    """Of its n-grams, those that are there."""
    start: int
    end: int
    """From which word of the text to which the longest stretch in common reaches."""


class Benchmarks:
    """The n-grams of the items of evaluation sets, to be found in conversations.

    Built from items (benchmark, id, text); equal texts are one item, named after the first. Memory: 12 bytes per
    n-gram, and TABLE_PLACES to twice as many.

    Raises:  InputError: n is less than FEWEST_WORDS, or there are no items.
    """

    def __init__(self, items: Iterable[tuple[str, str, str]], n: int) -> None:
        import numpy as np

        if n < FEWEST_WORDS:
            raise InputError(f"n-grams of {n} words stand in texts by chance: take {FEWEST_WORDS} or more")
        self.names: list[tuple[str, str]] = []
        self._short: dict[bytes, int] = {}  # items of fewer than FEWEST_WORDS words, by their hashes
        grams: list[Hashes] = []
        lengths, seen = {n}, set[bytes]()
        for batch in itertools.batched(items, ITEMS_AT_ONCE):
            found = hash_words([text for _, _, text in batch])
            for (benchmark, item, _), start, end in zip(batch, found.starts, found.starts[1:], strict=False):
                hashes = found.hashes[start:end]
                whole = hashlib.blake2b(hashes.tobytes(), digest_size=16).digest()
                if not len(hashes) or whole in seen:
                    continue
                seen.add(whole)
                length = min(n, len(hashes))
                if length < FEWEST_WORDS:
                    self._short[hashes.tobytes()] = len(self.names)
                    grams.append(np.empty(0, np.uint64))
                else:
                    lengths.add(length)
                    grams.append(np.unique(dict(_rolling(hashes, [length]))[length]))
                self.names.append((benchmark, item))
        if not self.names:
            raise InputError("no benchmark items to compare with: name files that hold some, or switch this check off")
        self._lengths = sorted(lengths)
        hashes = np.concatenate(grams)
        order = hashes.argsort(kind="stable")
        self._hashes = hashes[order]
        self._items = np.repeat(np.arange(len(grams), dtype=np.uint32), list(map(len, grams)))[order]
        self._leave_out_common()
        self._grams = np.bincount(self._items, minlength=len(grams))
        bits = (TABLE_PLACES * len(self._hashes)).bit_length()
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, bool)
        self._table[self._hashes >> self._shift] = True

    def _leave_out_common(self) -> None:
        """Keep of each item the n-grams that few others have; all, if it has no such."""
        import numpy as np

        _, number, holders = np.unique(self._hashes, return_inverse=True, return_counts=True)
        rare = holders[number] <= MOST_ITEMS
        kept = rare | (np.bincount(self._items[rare], minlength=len(self.names))[self._items] == 0)
        self._hashes, self._items = self._hashes[kept], self._items[kept]

    def matches(self, found: WordHashes) -> dict[int, list[Match]]:
        """Return, by the number of a text, the items of which something stands in it, and how much of them does."""
        import numpy as np

        matches: dict[int, list[Match]] = {}
        if self._short:
            for text in np.flatnonzero(np.diff(found.starts) < FEWEST_WORDS).tolist():
                start, end = found.starts[text], found.starts[text + 1]
                if (item := self._short.get(found.hashes[start:end].tobytes())) is not None:
                    matches[text] = [Match(item, 1.0, 0, int(end - start))]
        spans: dict[tuple[int, int], dict[int, tuple[int, int]]] = {}
        for length, hashes in _rolling(found.hashes, self._lengths):
            places = np.flatnonzero(self._table[hashes >> self._shift])
            texts = np.searchsorted(found.starts, places, "right") - 1
            inside = places + length <= found.starts[texts + 1]
            first = np.searchsorted(self._hashes[:-1], hashes[places])
            known = inside & (self._hashes[first] == hashes[places])
            places, texts, first = places[known], texts[known], first[known]
            last = np.searchsorted(self._hashes, hashes[places], "right")
            for place, text, one, end in zip(*map(np.ndarray.tolist, (places, texts, first, last)), strict=True):
                start = place - int(found.starts[text])
                for item in self._items[one:end].tolist():
                    # A stretch that stands there twice counts once.
                    spans.setdefault((item, text), {}).setdefault(int(hashes[place]), (start, start + length))
        for (item, text), stretches in spans.items():
            share = len(stretches) / int(self._grams[item])
            matches.setdefault(text, []).append(Match(item, share, *_longest(sorted(stretches.values()))))
        return matches


def check_contamination(conversation: Conversation, benchmarks: Benchmarks, ratio: float) -> Rejection | None:
    """Refuse a conversation a message of which holds at least this share of the n-grams of a benchmark item.

    The evidence names the item of which most is there, and shows the longest stretch in common.
    """
    parts = list(conversation.parts())
    matches = benchmarks.matches(hash_words([text for _, text in parts]))
    return rejection_of(conversation, parts, matches, benchmarks, ratio) if matches else None


def rejection_of(
    conversation: Conversation,
    parts: Sequence[tuple[int, str]],
    matches: Mapping[int, Sequence[Match]],
    benchmarks: Benchmarks,
    ratio: float,
) -> Rejection | None:
    """Return the rejection of a conversation with these parts, and matches by the number of the part."""
    users = {index for index, message in enumerate(conversation.messages) if message["role"] == "user"}
    enough = [
        (match, part)
        for part, own in matches.items()
        for match in own
        if match.share >= ratio and (match.end >= FEWEST_WORDS or parts[part][0] in users)
    ]
    if not enough:
        return None
    best, part = max(enough, key=lambda pair: (pair[0].share, -pair[0].item, -pair[1]))
    benchmark, item = benchmarks.names[best.item]
    message, text = parts[part]
    shown = quote(text, best.start, best.end)
    return Rejection(CONTAMINATED, f"{benchmark}: {best.share:.0%} of {item} in messages[{message}]: {shown!r}")


def quote(text: str, start: int, end: int) -> str:
    """Return the part of a text that its words number `start` to `end` take up; of a long one its start and end.

    >>> quote("Well: how MANY, did you say?", 1, 3)
    'how MANY'
    """
    text = unicodedata.normalize("NFKC", text)
    places: list[list[int]] = []  # of each word, where it starts and ends
    inside = False
    for place, letter in enumerate(text):
        kept = LETTERS[ord(letter)]
        if inside and not kept.startswith(" "):
            places[-1][1] = place + 1
        elif inside := kept != " ":
            places.append([place, place + 1])
    found = text[places[start][0] : places[end - 1][1]]
    return found if len(found) <= 2 * SHOWN_CHARS else f"{found[:SHOWN_CHARS]} ... {found[-SHOWN_CHARS:]}"


def _longest(spans: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the longest stretch that n-grams, each starting where the one before did or later, cover together."""
    runs: list[tuple[int, int]] = []
    for start, end in spans:
        if runs and start <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(end, runs[-1][1]))
        else:
            runs.append((start, end))
    return max(runs, key=lambda run: run[1] - run[0])


def _rolling(hashes: "Hashes", lengths: list[int]) -> "Iterator[tuple[int, Hashes]]":
    """Yield each length, they ascend, and a hash of every stretch of so many words, in order."""
    import numpy as np

    total = hashes
    for length in range(1, min(lengths[-1], len(hashes)) + 1):
        if length > 1:
            total = total[:-1] * np.uint64(MULTIPLIERS[0])
            total += hashes[length - 1 :]
        if length in lengths:
            yield length, total
