"""Contamination: conversations that hold items of the evaluation sets that a model will be measured on.

`Benchmarks` indexes the texts of the items (sft.data.benchmarks reads them); `check_contamination` refuses a
conversation in which enough of an item occurs.

An item occurs by the share of its n-grams of words that one message of the conversation holds. An item shorter
than n words must stand in it whole; one shorter than FEWEST_WORDS must be the message, other than a system's.
N-grams of more than MOST_ITEMS items are instructions or licences that these share, and do not count, unless an
item has no others. Words are those of sft.data.duplicates: without case, punctuation and spaces. Reasoning and the
arguments of calls are messages, too. Answers of the items, paraphrases and translations are not looked for.

Source: 13-grams, leaving out the frequent ones, as Brown et al. 2020 (GPT-3), appendix C; a share of an item, as
Lambert et al. 2024 (Tulu 3), section 3.2, who take 8-grams and a half.
"""

import bisect
import hashlib
import itertools
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sft.command import InputError
from sft.data.conversation import Conversation, Rejection
from sft.data.duplicates import LETTERS, words

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Hashes = npt.NDArray[np.uint64]

CONTAMINATED = "contaminated"
# Fewer words stand in a text by chance.
FEWEST_WORDS = 8
MOST_ITEMS = 10
# 2**64 / golden ratio and the multipliers of splitmix64, all odd: they spread word numbers over 64 bits.
MULTIPLIERS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
# What is looked up passes a table with this many places per n-gram first, because most of it is in no benchmark.
TABLE_PLACES = 32
# Of a longer text in common, so many characters of its start and end are shown.
SHOWN_CHARS = 160


@dataclass(frozen=True)
class Match:
    """How much of an item stands in a message."""

    item: int
    """Its number among the items."""
    share: float
    """Of its n-grams, those that are there."""
    message: int
    start: int
    end: int
    """From which word of the message to which the longest stretch in common reaches."""


class Benchmarks:
    """The n-grams of the items of evaluation sets, to be found in conversations.

    Built from items (benchmark, id, text); equal texts are one item, named after the first. Memory: 12 bytes per
    n-gram, a Python string per different word.

    Raises:  InputError: n is less than FEWEST_WORDS, or there are no items.
    """

    def __init__(self, items: Iterable[tuple[str, str, str]], n: int) -> None:
        import numpy as np

        if n < FEWEST_WORDS:
            raise InputError(f"n-grams of {n} words stand in texts by chance: take {FEWEST_WORDS} or more")
        self.names: list[tuple[str, str]] = []
        self._short: dict[str, int] = {}  # items of fewer than FEWEST_WORDS words
        self._vocabulary: dict[str, int] = {}
        grams: list[Hashes] = []
        lengths, seen = {n}, set[bytes]()
        for benchmark, item, text in items:
            found = words(text)
            numbers = np.array([self._vocabulary.setdefault(word, len(self._vocabulary) + 1) for word in found], "<u8")
            if not found or (same := hashlib.blake2b(numbers.tobytes(), digest_size=16).digest()) in seen:
                continue
            seen.add(same)
            length = min(n, len(found))
            if length < FEWEST_WORDS:
                self._short[" ".join(found)] = len(self.names)
                grams.append(np.empty(0, np.uint64))
            else:
                lengths.add(length)
                grams.append(np.unique(_rolling(numbers, [length])[length]))
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

    def matches(self, messages: list[list[str]]) -> Iterator[Match]:
        """Yield the items of which something stands in the words of a message, and how much of them does."""
        import numpy as np

        for number, found in enumerate(messages):
            if len(found) < FEWEST_WORDS and (item := self._short.get(" ".join(found))) is not None:
                yield Match(item, 1.0, number, 0, len(found))
        # All messages in one array, apart by a number that no word has; so have words that no item has.
        lengths = [len(found) + 1 for found in messages]
        words_of_all = itertools.chain.from_iterable([*found, ""] for found in messages)
        numbers = np.fromiter(map(self._vocabulary.get, words_of_all, itertools.repeat(0)), "<u8", sum(lengths))
        starts_of = [0, *itertools.accumulate(lengths)]
        spans: dict[tuple[int, int], dict[int, tuple[int, int]]] = {}
        for length, hashes in _rolling(numbers, self._lengths).items():
            starts = np.flatnonzero(self._table[hashes >> self._shift])
            first = np.searchsorted(self._hashes[:-1], hashes[starts])
            known = self._hashes[first] == hashes[starts]
            starts, first = starts[known], first[known]
            last = np.searchsorted(self._hashes, hashes[starts], "right")
            for place, one, end in zip(starts.tolist(), first.tolist(), last.tolist(), strict=True):
                message = bisect.bisect(starts_of, place) - 1
                start = place - starts_of[message]
                for item in self._items[one:end].tolist():
                    # A stretch that stands there twice counts once.
                    spans.setdefault((item, message), {}).setdefault(int(hashes[place]), (start, start + length))
        for (item, message), stretches in spans.items():
            yield Match(item, len(stretches) / int(self._grams[item]), message, *_longest(sorted(stretches.values())))


def check_contamination(conversation: Conversation, benchmarks: Benchmarks, ratio: float) -> Rejection | None:
    """Refuse a conversation a message of which holds at least this share of the n-grams of a benchmark item.

    The evidence names the item of which most is there, and shows the longest stretch in common.
    """
    parts = list(conversation.parts())
    systems = {index for index, message in enumerate(conversation.messages) if message["role"] == "system"}
    enough = [
        match
        for match in benchmarks.matches([words(text) for _, text in parts])
        if match.share >= ratio and not (match.end < FEWEST_WORDS and parts[match.message][0] in systems)
    ]
    if not enough:
        return None
    best = max(enough, key=lambda match: (match.share, -match.item, -match.message))
    benchmark, item = benchmarks.names[best.item]
    message, text = parts[best.message]
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


def _rolling(numbers: "Hashes", lengths: list[int]) -> "dict[int, Hashes]":
    """Return, for each length, a hash of every stretch of so many words, in order; `lengths` ascend."""
    import numpy as np

    power = np.uint64(MULTIPLIERS[0])
    spread = (numbers + np.uint64(1)) * power
    for shift, multiplier in zip((30, 27), MULTIPLIERS[1:], strict=True):
        spread ^= spread >> np.uint64(shift)
        spread *= np.uint64(multiplier)
    hashes: dict[int, Hashes] = {}
    total = spread
    for length in range(1, min(lengths[-1], len(numbers)) + 1):
        if length > 1:
            total = total[:-1] * power
            total += spread[length - 1 :]
        if length in lengths:
            hashes[length] = total
    return hashes
