"""Screen: which of many texts can hold a loop of lines or of words at all; few can.

Texts -> for each whether sft.filters.repetition must look for lines and for words in it, for each conversation whether
it must look at all turns together: `screen`. A "no" is certain, a "yes" is not: what is asked is necessary for a loop,
and equal words or lines get equal numbers, while different ones may (by chance, by their case or by their order of
letters), which only makes a "yes" more likely. All texts are one array of bytes here, looked at a few times.
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

# Without spaces (Chinese, Thai) a word as long as this, in characters, is taken character by character.
LONGEST_WORD = 20
# Shorter lines ("}", "return x", "yes") are no evidence of a loop; the words in them may be.
SHORTEST_LINE = 16
SENTENCE_ENDS = (". ", "! ", "? ")
OTHER_SENTENCE_ENDS = ("。", "！", "？", "।")  # noqa: RUF001
# All that str.split takes for space, outside ASCII.
OTHER_SPACES = (
    "\u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
# A byte that UTF-8 has not: it ends a line, and parts no words.
LINE_END = b"\xff"
# Odd numbers without a pattern: they spread sums over 32 bits.
SPREAD, SECOND, THIRD = 0x9E3779B1, 0xC2B2AE35, 0x27D4EB2F


class Screened(NamedTuple):
    """What must be looked at."""

    lines: "Flags"
    """(texts,)"""
    words: "Flags"
    """(texts,)"""
    together: "Flags"
    """(groups,) Lines over all texts of a group."""


class _Items(NamedTuple):
    """Lines, or sequences of words: (items,) each, in the order of the texts."""

    hashes: "Hashes"
    owners: "Places"
    letters: "Places"
    """Of a line, or of the first word of a sequence; in UTF-8 bytes, no fewer than there are."""
    before: "Places"
    """Letters of all that stands before."""


def screen(texts: Sequence[str], groups: Sequence[int], number: int, limits: Repetition, together: int) -> Screened:
    """Say which texts can hold a loop.

    Args:  groups: of each text, below `number`. together: a line comes so many times as often in a loop of a group.
    """
    import numpy as np

    spelled = [_spelled(text) for text in texts]
    data = np.frombuffer(b"\n".join([b"", *spelled, b""]), np.uint8)
    begins = np.cumsum(np.array([1, *(len(one) + 1 for one in spelled)]))
    is_ascii = np.array([text.isascii() for text in texts], np.bool_)
    sums = np.cumsum(_byte_values().take(data, mode="wrap"), dtype=np.uint32)  # twice as fast as without a mode

    is_word = ((data | 32) - np.uint8(ord("a")) < 26) | (data > 127)
    edges = np.flatnonzero(is_word[1:] != is_word[:-1]) + 1  # begins and ends by turns: a line break is first and last
    first, end = edges[::2], edges[1::2]
    starts = np.searchsorted(first, begins)
    sizes = end - first
    before = np.concatenate([[0], np.cumsum(sizes)])
    sequences = _sequences(sums[end - 1] - sums[first - 1], limits.ngram)  # a few reach over two texts
    of_text = np.repeat(np.arange(len(texts)), np.diff(starts))[: len(sequences)]
    found = _Items(sequences, of_text, sizes[: len(sequences)], before[: len(sequences)])
    words = _may_loop(found, is_ascii, limits.ngram_repeats, limits)
    for place in np.flatnonzero(sizes >= LONGEST_WORD) if not is_ascii.all() else ():
        word = data[first[place] : end[place]]
        is_first = word & 0xC0 != 0x80  # of the bytes of a character
        if is_first.sum() >= LONGEST_WORD and (word > 127).any():
            words[np.searchsorted(starts, place, "right") - 1] = True  # its characters are words, and not looked at

    marks = (data == ord(".")) | (data == ord("!")) | (data == ord("?"))
    ends = (data == ord("\n")) | (data == LINE_END[0])
    ends[1:] |= marks[:-1] & (data[1:] == ord(" "))
    places = np.flatnonzero(ends)
    lengths = np.diff(places) - 1
    long = np.flatnonzero(lengths >= SHORTEST_LINE)
    of_text = np.searchsorted(begins, places[long] + 1, "right") - 1
    before = before[np.searchsorted(first, places)]
    letters = np.where(is_ascii[of_text], before[long + 1] - before[long], lengths[long])
    found = _Items(sums[places[long + 1]] - sums[places[long]], of_text, letters, before[long])
    lines = _may_loop(found, is_ascii, limits.line_repeats, limits)
    found = found._replace(owners=np.array(groups, np.int64)[of_text])
    in_order = np.zeros(number, np.bool_)  # the texts of a group do not follow one another
    return Screened(lines, words, _may_loop(found, in_order, together * limits.line_repeats, limits))


def _spelled(text: str) -> bytes:
    """Return a text in UTF-8, its ends of lines and its spaces those of ASCII, as far as repetition sees any."""
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
    """Return a number for each byte: none for what str.strip takes away, the same for both cases of a letter."""
    import numpy as np

    lower = np.frombuffer(bytes(range(256)).lower(), np.uint8).astype(np.uint32)
    values = (lower + np.uint32(1)) * np.uint32(SPREAD)
    values ^= values >> np.uint32(15)
    values *= np.uint32(SECOND)
    values[[byte for byte in range(128) if chr(byte).isspace()] + [LINE_END[0]]] = 0
    return values


def _may_loop(items: _Items, is_counted: "Flags", repeats: int, limits: Repetition) -> "Flags":
    """Say for each owner whether its items can make a loop, in which one comes `repeats` times.

    `is_counted`: of which owners the letters before each item are known.
    """
    import numpy as np

    keys = _slots(items.hashes, items.owners, len(items.hashes).bit_length() + 4)
    often = np.flatnonzero(np.bincount(keys, minlength=1)[keys] >= repeats)
    letters = np.bincount(items.owners[often], items.letters[often], minlength=len(is_counted))
    # The intervals of a stretch lie one over the other, at most two of them anywhere if none is left out that is needed
    # to cover it: so no less than half of `density` of its letters are of what is repeated. One less, for rounding.
    can = letters >= limits.min_repeated_share / 2 * limits.min_letters - 1
    # And `repeats` of one item are within as many letters as all that is repeated makes dense.
    order = often[np.argsort(keys[often], kind="stable")]
    begin, last = order[: max(0, len(order) - repeats + 1)], order[repeats - 1 :]
    within = items.before[last] + items.letters[last] - items.before[begin]
    is_near = (keys[begin] == keys[last]) & (limits.min_repeated_share * within <= letters[items.owners[begin]] + 1)
    near = ~is_counted
    near[items.owners[begin[is_near]]] = True
    return can & near


def _sequences(words: "Hashes", size: int) -> "Hashes":
    """Return a number for each sequence of so many words."""
    import numpy as np

    number = max(0, len(words) - size + 1)
    found = np.zeros(number, np.uint32)
    for place in range(size):
        found = found * np.uint32(SECOND) + words[place : place + number]
    return found


def _slots(hashes: "Hashes", owners: "Places", bits: int) -> "Places":
    """Return a number of so many bits for each hash of an owner."""
    import numpy as np

    mixed = (hashes ^ (owners.astype(np.uint32) * np.uint32(THIRD))) * np.uint32(SPREAD)
    return (mixed >> np.uint32(32 - bits)).astype(np.int64)
