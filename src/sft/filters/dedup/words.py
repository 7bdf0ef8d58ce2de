"""The words of texts, whatever their case, punctuation and line breaks, and a hash of each.

`words` splits a text; `hash_words` splits many texts at once and gives a 64-bit number for each word, the same on
every machine. Filters that compare texts by sequences of words (duplicates, contamination) work on these numbers.
"""

import functools
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

# Scripts without spaces between words, by the ranges of their letters: each letter is a word.
SPACELESS = (
    range(0x0E00, 0x0F00),  # Thai, Lao
    range(0x1000, 0x10A0),  # Myanmar
    range(0x1780, 0x1800),  # Khmer
    range(0x3040, 0x3100),  # Hiragana, Katakana
    range(0x3400, 0xA000),  # Han
    range(0xF900, 0xFB00),  # Han, compatibility
    range(0x20000, 0x32000),  # Han, extensions
)
# 2**64 / golden ratio and the multipliers of splitmix64: odd numbers that spread others over 64 bits.
MULTIPLIERS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
# Bytes that no word has: between words, between texts, and after a digit other than 0 to 9.
SPACE, END, MARK = b" ", b"\n", b"\xff"
# Texts of this size are hashed together: intermediate results stay in the processor's cache.
BLOCK_BYTES = 1 << 18
# In UTF-8, consecutive characters outside ASCII; written with + the search takes twice as long.
NON_ASCII = re.compile(rb"([\x80-\xff][\x80-\xff]*)")
# A text with more such parts is normalized as a whole.
MAX_PARTS_PER_BYTE = 1 / 32


class _Letters(dict[int, str]):
    """What each character becomes in words: letters, marks and digits stay, without case; all others become a space."""

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        if unicodedata.category(letter)[0] == "L" and any(code in script for script in SPACELESS):
            self[code] = f" {letter}"
        else:
            self[code] = letter.casefold() if unicodedata.category(letter)[0] in "LMN" else " "
        return self[code]


class _Marked(dict[int, str]):
    """The same, with MARK after each digit other than 0 to 9."""

    def __missing__(self, code: int) -> str:
        is_marked = chr(code).isdigit() and code >= 128
        self[code] = LETTERS[code] + (MARK.decode("utf-8", "surrogateescape") if is_marked else "")
        return self[code]


LETTERS, MARKED = _Letters(), _Marked()
ASCII = "".join(LETTERS[code] for code in range(128)).encode() + bytes(range(128, 256))
"""The same for the bytes of ASCII; all other bytes stay."""


class WordHashes(NamedTuple):
    """The words of texts, text after text."""

    hashes: Hashes
    """(words,) The hash of each word."""
    numbers: npt.NDArray[np.bool_]
    """(words,) Whether it has a digit."""
    starts: npt.NDArray[np.int64]
    """(texts + 1,) Where the words of each text begin; the last entry is the number of words."""


def words(text: str) -> list[str]:
    """Return the words of a text: NFKC, without case, punctuation and spaces.

    >>> words("It's NEW: snake_case, 3.5 km!")
    ['it', 's', 'new', 'snake', 'case', '3', '5', 'km']
    """
    if text.isascii():
        return text.translate(LETTERS).split()
    # Line by line: other text takes four times as long as ASCII, and most lines are ASCII.
    lines = [line if line.isascii() else unicodedata.normalize("NFKC", line) for line in text.split("\n")]
    return [word for line in lines for word in line.translate(LETTERS).split()]


def hash_words(texts: Sequence[str], split: Callable[[str], bytes] | None = None) -> WordHashes:
    """Return the words of texts as hashes. Equal words have equal hashes in all texts.

    Args:  split: returns the words of a text in UTF-8, with spaces between; default: those of `words`.
    """
    split = split or _word_bytes
    blocks: list[WordHashes] = []
    block: list[bytes] = []
    size = 0
    for place, text in enumerate(texts):
        block.append(split(text))
        size += len(block[-1])
        if size >= BLOCK_BYTES or place == len(texts) - 1:
            blocks.append(_hash_block(block))
            block, size = [], 0
    if not blocks:
        return WordHashes(np.empty(0, np.uint64), np.empty(0, np.bool_), np.zeros(1, np.int64))
    counts = [np.diff(hashed.starts) for hashed in blocks]
    return WordHashes(
        np.concatenate([hashed.hashes for hashed in blocks]),
        np.concatenate([hashed.numbers for hashed in blocks]),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(counts))]),
    )


def mix64(numbers: Hashes) -> Hashes:
    """Spread numbers over 64 bits in place (splitmix64); return them."""
    for shift, multiplier in zip((30, 27), MULTIPLIERS[1:], strict=True):
        numbers ^= numbers >> np.uint64(shift)
        numbers *= np.uint64(multiplier)
    numbers ^= numbers >> np.uint64(31)
    return numbers


def _word_bytes(text: str) -> bytes:
    """Return the words of a text as bytes, with one or more SPACE between them."""
    raw = text.encode("utf-8", "surrogatepass")
    if text.isascii():
        return raw.translate(ASCII)
    pieces = NON_ASCII.split(raw)
    if len(pieces) // 2 > len(raw) * MAX_PARTS_PER_BYTE:
        return _normalized(raw)
    for place in range(1, len(pieces), 2):
        before = pieces[place - 1]  # its last character may combine with the next ones: e and an accent
        pieces[place - 1], pieces[place] = before[:-1], _normalized(before[-1:] + pieces[place])
    return b"".join(pieces).translate(ASCII)


def _normalized(raw: bytes) -> bytes:
    text = unicodedata.normalize("NFKC", raw.decode("utf-8", "surrogatepass"))
    return text.translate(MARKED).encode("utf-8", "surrogateescape")


def _hash_block(texts: list[bytes]) -> WordHashes:
    """Return the words of a few texts; the hash of a word is a polynomial of its bytes, modulo 2**64."""
    ends = np.cumsum(np.array([1, *(len(text) + 1 for text in texts)]))
    letters = np.frombuffer(END.join([b"", *texts, b""]), np.uint8)
    is_gap = letters <= SPACE[0]  # SPACE and END
    edges = np.flatnonzero(is_gap[1:] != is_gap[:-1]) + 1  # begins and ends by turns: END is first and last
    begins = edges[::2]
    byte_values, powers, inverses = _polynomial(len(letters))
    sums = byte_values.take(letters, mode="wrap")  # twice as fast as without a mode
    sums *= powers[: len(letters)]
    before = np.cumsum(sums, out=sums)[edges - 1]
    hashes = (before[1::2] - before[::2]) * inverses[begins]
    digits = np.flatnonzero((letters - np.uint8(ord("0")) < 10) | (letters == MARK[0]))
    numbers = np.zeros(len(begins), np.bool_)
    numbers[np.searchsorted(begins, digits, "right") - 1] = True
    return WordHashes(mix64(hashes), numbers, np.searchsorted(begins, ends))


@functools.cache
def _polynomial_of(size: int) -> "tuple[Hashes, Hashes, Hashes]":
    base = MULTIPLIERS[0]
    byte_values = mix64(np.arange(1, 257, dtype=np.uint64) * np.uint64(base))
    powers, inverses = (
        np.cumprod(np.concatenate([np.ones(1, np.uint64), np.full(size - 1, value, np.uint64)]))
        for value in (base, pow(base, -1, 1 << 64))
    )
    return byte_values, powers, inverses


def _polynomial(size: int) -> "tuple[Hashes, Hashes, Hashes]":
    """Return a number for each byte value, and at least `size` powers of the base and of its inverse."""
    return _polynomial_of(max(2 * BLOCK_BYTES, 1 << (size - 1).bit_length()))
