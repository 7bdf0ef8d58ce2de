"""A fast screen for sft.filters.repetition: which texts may have a loop of lines or of words. Few do.

`screen` returns flags for each text (may it have a loop of lines, or of words?) and for each conversation (over all its
turns together?). False is certain, True is not: the screen tests what every loop must have. Equal words or lines get
equal numbers; different ones may get equal numbers too (by chance, by case, by the order of their letters), which only
makes True more likely. All texts are one array of bytes, which is read a few times.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from sft.params.data import Repetition

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Flags = npt.NDArray[np.bool_]
    Places = npt.NDArray[np.int64]
    Hashes = npt.NDArray[np.uint32]

# A longer word outside ASCII is text without spaces (Chinese, Thai): each of its characters counts as a word.
MAX_WORD_CHARS = 20
# Shorter lines ("}", "return x", "yes") are no evidence of a loop; their words may be.
MIN_LINE_CHARS = 16
SENTENCE_ENDS = (". ", "! ", "? ")
OTHER_SENTENCE_ENDS = ("。", "！", "？", "।")  # noqa: RUF001
# All that str.split treats as space outside ASCII.
OTHER_SPACES = (
    "\u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
# A byte that UTF-8 does not have: it ends a line, but separates no words.
LINE_END = b"\xff"
# Odd numbers without a pattern, which spread sums over 32 bits.
SPREAD, SECOND, THIRD = 0x9E3779B1, 0xC2B2AE35, 0x27D4EB2F


class Screened(NamedTuple):
    """Which texts and groups may have a loop."""

    lines: "Flags"
    """(texts,) Loops of lines."""
    words: "Flags"
    """(texts,) Loops of words."""
    together: "Flags"
    """(groups,) Loops of lines over all texts of a group."""


class _Items(NamedTuple):
    """Lines, or sequences of words, in the order of the texts; each array is (items,)."""

    hashes: "Hashes"
    owners: "Places"
    letters: "Places"
    """Of a line, or of the first word of a sequence; in UTF-8 bytes, at least as many as there are."""
    before: "Places"
    """Letters of all text before the item."""


def screen(texts: Sequence[str], groups: Sequence[int], number: int, limits: Repetition, together: int) -> Screened:
    """Return which texts and groups may have a loop.

    Args:  groups: the group of each text, below `number`. together: in a loop over a group, a line occurs `together`
    times as often.
    """
    import numpy as np

    encoded = [_encode(text) for text in texts]
    data = np.frombuffer(b"\n".join([b"", *encoded, b""]), np.uint8)
    begins = np.cumsum(np.array([1, *(len(text) + 1 for text in encoded)]))
    is_ascii = np.array([text.isascii() for text in texts], np.bool_)
    sums = np.cumsum(_byte_values().take(data, mode="wrap"), dtype=np.uint32)  # the mode makes it twice as fast

    is_word = ((data | 32) - np.uint8(ord("a")) < 26) | (data > 127)
    edges = np.flatnonzero(is_word[1:] != is_word[:-1]) + 1  # begins and ends by turns: a line break is first and last
    first, end = edges[::2], edges[1::2]
    starts = np.searchsorted(first, begins)
    sizes = end - first
    before = np.concatenate([[0], np.cumsum(sizes)])
    sequences = _sequences(sums[end - 1] - sums[first - 1], limits.ngram)  # a few span two texts
    of_text = np.repeat(np.arange(len(texts)), np.diff(starts))[: len(sequences)]
    items = _Items(sequences, of_text, sizes[: len(sequences)], before[: len(sequences)])
    words = _may_loop(items, is_ascii, limits.ngram_repeats, limits)
    for place in np.flatnonzero(sizes >= MAX_WORD_CHARS) if not is_ascii.all() else ():
        word = data[first[place] : end[place]]
        is_first = word & 0xC0 != 0x80  # of the bytes of a character
        if is_first.sum() >= MAX_WORD_CHARS and (word > 127).any():
            words[np.searchsorted(starts, place, "right") - 1] = (
                True  # its characters are words, which the screen does not count
            )

    marks = (data == ord(".")) | (data == ord("!")) | (data == ord("?"))
    ends = (data == ord("\n")) | (data == LINE_END[0])
    ends[1:] |= marks[:-1] & (data[1:] == ord(" "))
    places = np.flatnonzero(ends)
    lengths = np.diff(places) - 1
    long = np.flatnonzero(lengths >= MIN_LINE_CHARS)
    of_text = np.searchsorted(begins, places[long] + 1, "right") - 1
    before = before[np.searchsorted(first, places)]
    letters = np.where(is_ascii[of_text], before[long + 1] - before[long], lengths[long])
    items = _Items(sums[places[long + 1]] - sums[places[long]], of_text, letters, before[long])
    lines = _may_loop(items, is_ascii, limits.line_repeats, limits)
    items = items._replace(owners=np.array(groups, np.int64)[of_text])
    in_order = np.zeros(number, np.bool_)  # the texts of a group are not consecutive
    return Screened(lines, words, _may_loop(items, in_order, together * limits.line_repeats, limits))


def _encode(text: str) -> bytes:
    """Return a text in UTF-8 with the ends of lines and the spaces of ASCII, as sft.filters.repetition splits it."""
    if not text.isascii():
        for space in OTHER_SPACES:
            text = text.replace(space, "\t")  # a blank would end sentences
    raw = text.encode("utf-8", "surrogatepass")
    if not text.isascii():
        for mark in OTHER_SENTENCE_ENDS:
            raw = raw.replace(mark.encode(), LINE_END)
    return raw


@functools.cache
def _byte_values() -> "Hashes":
    """Return a number for each byte: 0 for what str.strip removes, the same for both cases of a letter."""
    import numpy as np

    lower = np.frombuffer(bytes(range(256)).lower(), np.uint8).astype(np.uint32)
    values = (lower + np.uint32(1)) * np.uint32(SPREAD)
    values ^= values >> np.uint32(15)
    values *= np.uint32(SECOND)
    values[[byte for byte in range(128) if chr(byte).isspace()] + [LINE_END[0]]] = 0
    return values


def _may_loop(items: _Items, is_counted: "Flags", repeats: int, limits: Repetition) -> "Flags":
    """Return for each owner whether its items may have a loop, in which one item occurs `repeats` times.

    `is_counted` says for which owners the letters before each item are known.
    """
    import numpy as np

    keys = _slots(items.hashes, items.owners, len(items.hashes).bit_length() + 4)
    often = np.flatnonzero(np.bincount(keys, minlength=1)[keys] >= repeats)
    letters = np.bincount(items.owners[often], items.letters[often], minlength=len(is_counted))
    # A span is covered by intervals of which at most two overlap, so at least half of min_repeated_share of its
    # letters are of repeated items. One less, for rounding.
    can = letters >= limits.min_repeated_share / 2 * limits.min_letters - 1
    # And `repeats` occurrences of one item lie within as many letters as all repeated items can fill densely enough.
    order = often[np.argsort(keys[often], kind="stable")]
    begin, last = order[: max(0, len(order) - repeats + 1)], order[repeats - 1 :]
    within = items.before[last] + items.letters[last] - items.before[begin]
    is_near = (keys[begin] == keys[last]) & (limits.min_repeated_share * within <= letters[items.owners[begin]] + 1)
    near = ~is_counted
    near[items.owners[begin[is_near]]] = True
    return can & near


def _sequences(words: "Hashes", size: int) -> "Hashes":
    """Return a hash for each sequence of `size` words."""
    import numpy as np

    number = max(0, len(words) - size + 1)
    hashes = np.zeros(number, np.uint32)
    for place in range(size):
        hashes = hashes * np.uint32(SECOND) + words[place : place + number]
    return hashes


def _slots(hashes: "Hashes", owners: "Places", bits: int) -> "Places":
    """Return a number of `bits` bits for each hash and its owner."""
    import numpy as np

    mixed = (hashes ^ (owners.astype(np.uint32) * np.uint32(THIRD))) * np.uint32(SPREAD)
    return (mixed >> np.uint32(32 - bits)).astype(np.int64)
