"""Words: what texts have in common whatever their case, punctuation and line breaks.

`words` splits a text; `hash_words` does so with many texts at once and gives a 64-bit number for each word, the same
on every machine. What compares texts by sequences of words (duplicates, contamination) works on these numbers.
"""

import functools
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Hashes = npt.NDArray[np.uint64]

# Scripts that write no space between words, by the ranges of their letters: each of those is a word.
SPACELESS = (
    range(0x0E00, 0x0F00),  # Thai, Lao
    range(0x1000, 0x10A0),  # Myanmar
    range(0x1780, 0x1800),  # Khmer
    range(0x3040, 0x3100),  # Hiragana, Katakana
    range(0x3400, 0xA000),  # Han
    range(0xF900, 0xFB00),  # Han, compatibility
    range(0x20000, 0x32000),  # Han, extensions
)
# 2**64 / golden ratio and the multipliers of splitmix64, all odd: they spread numbers over 64 bits.
MULTIPLIERS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
# Bytes that no word has: what parts words, what parts texts, and what marks a word with digits other than 0 to 9.
SPACE, END, MARK = b" ", b"\n", b"\x01"
# Hashed together; so few that the numbers on the way stay in the processor's cache.
BLOCK_BYTES = 1 << 18


class _Letters(dict[int, str]):
    """What each character is in words: letters, marks and digits stay, without case; all others part words."""

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        if unicodedata.category(letter)[0] == "L" and any(code in script for script in SPACELESS):
            self[code] = f" {letter}"
        else:
            self[code] = letter.casefold() if unicodedata.category(letter)[0] in "LMN" else " "
        return self[code]


LETTERS = _Letters()
ASCII = "".join(LETTERS[code] for code in range(128)).encode() + bytes(range(128, 256))
"""The same for the bytes of an ASCII text."""


class WordHashes(NamedTuple):
    """The words of texts, one text after the other."""

    hashes: "Hashes"
    """(words,) A number for each word."""
    numbers: "npt.NDArray[np.bool_]"
    """(words,) Whether it has a digit."""
    starts: "npt.NDArray[np.int64]"
    """(texts + 1,) Where the words of each text begin; the last is their number."""


def words(text: str) -> list[str]:
    """Split text into words: NFKC, without case, punctuation and spaces.

    >>> words("It's NEW: snake_case, 3.5 km!")
    ['it', 's', 'new', 'snake', 'case', '3', '5', 'km']
    """
    if text.isascii():
        return text.translate(LETTERS).split()
    # Line by line, because other text takes four times as long, and many lines are ASCII still.
    lines = [line if line.isascii() else unicodedata.normalize("NFKC", line) for line in text.split("\n")]
    return [word for line in lines for word in line.translate(LETTERS).split()]


def hash_words(texts: Sequence[str]) -> WordHashes:
    """Return the words of texts as numbers: equal words, equal numbers, in whatever text they stand."""
    import numpy as np

    blocks: list[WordHashes] = []
    block: list[bytes] = []
    size = 0
    for place, text in enumerate(texts):
        block.append(_spelled(text))
        size += len(block[-1])
        if size >= BLOCK_BYTES or place == len(texts) - 1:
            blocks.append(_hash_block(block))
            block, size = [], 0
    if not blocks:
        return WordHashes(np.empty(0, np.uint64), np.empty(0, np.bool_), np.zeros(1, np.int64))
    counts = [np.diff(one.starts) for one in blocks]
    return WordHashes(
        np.concatenate([one.hashes for one in blocks]),
        np.concatenate([one.numbers for one in blocks]),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(counts))]),
    )


def spread(numbers: "Hashes") -> "Hashes":
    """Spread numbers over 64 bits (splitmix64), in place."""
    import numpy as np

    for shift, multiplier in zip((30, 27), MULTIPLIERS[1:], strict=True):
        numbers ^= numbers >> np.uint64(shift)
        numbers *= np.uint64(multiplier)
    numbers ^= numbers >> np.uint64(31)
    return numbers


def _spelled(text: str) -> bytes:
    """Return the words of a text as bytes, with one or more SPACE between them."""
    if text.isascii():
        return text.encode().translate(ASCII)
    found = [word if word.isascii() or not _has_other_digit(word) else f"{word}{MARK.decode()}" for word in words(text)]
    return " ".join(found).encode("utf-8", "surrogatepass")


def _has_other_digit(word: str) -> bool:
    return any(letter.isdigit() and not letter.isascii() for letter in word)


def _hash_block(spelled: list[bytes]) -> WordHashes:
    """Hash the words of a few texts: of each a polynomial of its bytes, modulo 2**64."""
    import numpy as np

    ends = np.cumsum(np.array([len(text) + 1 for text in spelled]))
    letters = np.frombuffer(END.join([*spelled, b""]), np.uint8)
    parts = (letters == SPACE[0]) | (letters == END[0])
    edges = np.flatnonzero(np.diff(parts, prepend=True))  # begins and ends by turns: a text ends with END
    begins, stops = edges[::2], edges[1::2]
    byte_values, powers, inverses = _polynomial(len(letters) + 1)
    sums = np.empty(len(letters) + 1, np.uint64)
    sums[0] = 0
    np.cumsum(byte_values[letters] * powers[: len(letters)], out=sums[1:])
    hashes = (sums[stops] - sums[begins]) * inverses[begins]
    digits = np.empty(len(letters) + 1, np.int32)
    digits[0] = 0
    np.cumsum((letters - np.uint8(ord("0")) < 10) | (letters == MARK[0]), out=digits[1:])
    starts = np.searchsorted(begins, np.concatenate([np.zeros(1, np.int64), ends]))
    return WordHashes(spread(hashes), digits[stops] > digits[begins], starts)


@functools.cache
def _polynomial_of(size: int) -> "tuple[Hashes, Hashes, Hashes]":
    import numpy as np

    base = MULTIPLIERS[0]
    byte_values = spread(np.arange(1, 257, dtype=np.uint64) * np.uint64(base))
    powers, inverses = (
        np.cumprod(np.concatenate([np.ones(1, np.uint64), np.full(size - 1, value, np.uint64)]))
        for value in (base, pow(base, -1, 1 << 64))
    )
    return byte_values, powers, inverses


def _polynomial(size: int) -> "tuple[Hashes, Hashes, Hashes]":
    """Return a number for each byte value, and the powers of the base and of its inverse, `size` or more of them."""
    return _polynomial_of(max(2 * BLOCK_BYTES, 1 << (size - 1).bit_length()))
