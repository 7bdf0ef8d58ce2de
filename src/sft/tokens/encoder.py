"""Engine: texts -> token ids, as fast as an exact tokenizer can be, and where in a text each token stands.

`tokenizers` is the reference. `fastokens` gives the same ids some fifty times faster; it is used only where it
does so on all of PROBES and on text of the data, else it is left alone. Where each token stands follows from the
bytes that it holds, where a tokenizer is byte-level (its tokens then add up to the text, which is checked wherever it
matters); from the reference's own offsets where it is not.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
from tokenizers import Tokenizer

Ids = npt.NDArray[np.int32]
Sizes = npt.NDArray[np.int64]
Encode = Callable[[list[str]], tuple[Ids, Sizes]]

PROBES_SEED, PROBES_NUMBER = 7, 600
# Pre-tokenizers that neither drop nor change text.
LOSSLESS = {"Sequence", "Split", "ByteLevel", "Digits", "Punctuation"}


class Described(NamedTuple):
    """A tokenizer, not loaded yet: as text a tenth of what it takes as Python's objects, which may go."""

    text: str
    """Its tokenizer.json."""
    bytes: npt.NDArray[np.int64] | None
    """(ids,) How many bytes of text each id holds, where that can be said (`token_bytes`)."""


def describe(settings: dict[str, Any]) -> Described:
    """Describe the tokenizer of a tokenizer.json that was read."""
    text = orjson.dumps({**settings, "model": _shorter(settings["model"])}).decode()
    return Described(text, token_bytes(settings))


class Engine:
    """The tokenizer that a tokenizer.json describes, without its post-processor."""

    def __init__(self, described: Described, quick: bool = False) -> None:
        """Load it; `quick`: use fastokens, if it gives the ids of the reference for PROBES."""
        self._bytes = described.bytes
        fast = _fastokens(described.text) if quick else None  # takes most memory while it loads: before the other
        self.reference = Tokenizer.from_str(described.text)
        self._encode: Encode = self._encode_by_reference
        if fast and same(fast, self._encode, probes()):
            self._encode = fast

    @property
    def is_quick(self) -> bool:
        """Whether fastokens is in use."""
        return self._encode != self._encode_by_reference

    def agrees(self, texts: Sequence[str]) -> bool:
        """Say whether the ids in use are those of the reference for these texts."""
        return not self.is_quick or same(self._encode, self._encode_by_reference, list(texts))

    def encode(self, texts: list[str]) -> tuple[Ids, Sizes]:
        """Return the ids of all texts, one after the other, and how many each has.

        Shapes:  ids (T,), T = tokens of all; sizes (N,), N = texts.
        """
        return self._encode(texts)

    def edges(self, texts: list[str], ids: Ids, sizes: Sizes, wanted: dict[int, int]) -> dict[int, tuple[int, str]]:
        """Find the token edges at which texts are parted.

        `wanted` has a number of characters for some texts; returned is, for each, how many tokens stand before
        that place, and the text of a token that it would cut in two, or "".
        """
        ends, found = np.cumsum(sizes), {}
        for index, place in wanted.items():
            text, own = texts[index], ids[ends[index] - sizes[index] : ends[index]]
            before, bound = self._bytes_before(text, own), _utf8_size(text[:place])
            number = int(np.searchsorted(before, bound)) if before is not None else 0
            if before is not None and before[number] == bound:
                found[index] = number, ""
            else:
                found[index] = self._edge_by_offsets(text, place)
        return found

    def ranges(self, text: str, most: int | None = None) -> list[tuple[int, int]]:
        """Say which characters of a text each of its (first `most`) tokens covers; tokens may share a character."""
        ids, _ = self._encode([text])
        before = self._bytes_before(text, ids)
        if before is None:
            offsets: list[tuple[int, int]] = self.reference.encode(text, add_special_tokens=False).offsets
            return offsets[:most]
        before = before if most is None else before[: most + 1]
        if text.isascii():
            return list(itertools.pairwise(before.tolist()))
        data = np.frombuffer(text.encode(), np.uint8)[: before[-1]]
        character = np.cumsum((data & 0xC0) != 0x80) - 1  # of each byte: all but the first of a character are 10xxxxxx
        return list(zip(character[before[:-1]].tolist(), (character[before[1:] - 1] + 1).tolist(), strict=True))

    def count(self, text: str) -> int:
        """Count the tokens of a text."""
        return int(self._encode([text])[1][0])

    def _encode_by_reference(self, texts: list[str]) -> tuple[Ids, Sizes]:
        every = [encoding.ids for encoding in self.reference.encode_batch_fast(texts, add_special_tokens=False)]
        sizes = np.fromiter(map(len, every), np.int64, len(every))
        return np.fromiter(itertools.chain.from_iterable(every), np.int32, int(sizes.sum())), sizes

    def _bytes_before(self, text: str, ids: Ids) -> Sizes | None:
        """Return how many bytes stand before each token of a text, and in all; None if they do not add up to it."""
        if self._bytes is None:
            return None
        before = np.zeros(len(ids) + 1, np.int64)
        np.cumsum(self._bytes[ids], out=before[1:])
        return before if before[-1] == _utf8_size(text) else None

    def _edge_by_offsets(self, text: str, place: int) -> tuple[int, str]:
        offsets = self.reference.encode(text, add_special_tokens=False).offsets
        cut = next((text[start:end] for start, end in offsets if start < place < end), "")
        return sum(start < place for start, _ in offsets), cut


def _fastokens(described: str) -> Encode | None:
    """Load fastokens; None: a kind of tokenizer that it does not know."""
    import fastokens

    try:
        fast = fastokens.Tokenizer.from_json_str(described)
    except ValueError:
        return None

    def encode(texts: list[str]) -> tuple[Ids, Sizes]:
        ids, offsets = fast.encode_batch_flat(texts)
        bounds = np.frombuffer(offsets, np.int64)
        return np.frombuffer(ids, np.int32), bounds[1:] - bounds[:-1]

    return encode


def same(one: Encode, other: Encode, texts: list[str]) -> bool:
    """Say whether two ways to encode give the same ids."""
    (ids, sizes), (other_ids, other_sizes) = one(texts), other(texts)
    return np.array_equal(ids, other_ids) and np.array_equal(sizes, other_sizes)


def _shorter(model: dict[str, Any]) -> dict[str, Any]:
    """Return a model whose merges are texts as in older files, `a b` for [a, b]: read in two thirds of the time."""
    pairs = model.get("merges") or [""]
    if isinstance(pairs[0], str):
        return model
    merges = [" ".join(pair) for pair in pairs]
    joined = "\n".join(merges)
    if joined.count(" ") != len(merges) or "#version" in joined:  # blanks in tokens; what older files have as a comment
        return model
    return {**model, "merges": merges}


def token_bytes(settings: dict[str, Any]) -> npt.NDArray[np.int64] | None:
    """Return how many bytes of text each id holds, for a byte-level tokenizer that keeps text as it is; else None."""
    kinds = list(_pre_tokenizers(settings.get("pre_tokenizer")))
    model = settings["model"]
    if (
        model.get("type") != "BPE"
        or settings.get("normalizer")
        or any(model.get(key) for key in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"))
        or any(kind["type"] not in LOSSLESS or kind.get("behavior") == "Removed" for kind in kinds)
        or [kind.get("add_prefix_space") for kind in kinds if kind["type"] == "ByteLevel"] != [False]
    ):
        return None
    added = settings["added_tokens"]
    vocabulary = model["vocab"]
    sizes = np.zeros(1 + max(itertools.chain(vocabulary.values(), (token["id"] for token in added))), np.int64)
    sizes[[*vocabulary.values()]] = [*map(len, vocabulary)]  # a character stands for a byte
    for token in added:
        sizes[token["id"]] = _utf8_size(token["content"])
    return sizes


def _pre_tokenizers(described: dict[str, Any] | None) -> list[dict[str, Any]]:
    if described is None:
        return []
    inner = described.get("pretokenizers", []) if described["type"] == "Sequence" else []
    return [described, *(each for part in inner for each in _pre_tokenizers(part))]


def _utf8_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def probes() -> list[str]:
    """Return texts on which tokenizers differ: scripts, blanks, digits, contractions, what decomposes, runs; seeded."""
    draw = random.Random(PROBES_SEED)
    scripts = [(32, 126)] * 6 + [(0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x5FF), (0x600, 0x6FF), (0x900, 0xDFF)]
    scripts += [(0x2000, 0x206F), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x1F300, 0x1FAFF)]
    scripts += [(0, 31), (0x1D400, 0x1D7FF), (0xE000, 0xE010), (0xFB00, 0xFDFF)]
    parts = [
        "  ",
        "\n",
        "\n\n",
        "\t",
        " \n ",
        "\r\n",
        "<|im_start|>",
        "</think>",
        "<|im_",
        "👨\u200d👩\u200d👧",
        "\u200b",
    ]
    parts += ["\xa0", "\u3000", "'s", "'LL", " don't", "0" * 9, "1234567", "a" * 300, "=-" * 40, " " * 90, "\n" * 70]
    parts += ["def f(x):\n    return x\n", " The quick brown fox", "e\u0301", "İ", "\u017f", "\u2028", "x\u0000y"]
    return [
        "".join(
            draw.choice(parts)
            if draw.random() < 0.3
            else "".join(chr(draw.randint(*draw.choice(scripts))) for _ in range(4))
            for _ in range(draw.randint(0, 24))
        )
        for _ in range(PROBES_NUMBER)
    ]
