"""Encoder: texts -> token ids, as fast as an exact tokenizer can be, and which characters each token covers.

`tokenizers` is the reference. `fastokens` gives the same ids about fifty times faster; it is used only if its ids are
the same on all of PROBES and on text of the data. For a byte-level tokenizer, the characters of a token follow from
the number of bytes that it holds, wherever these add up to the text; otherwise from the offsets of the reference.
"""

import itertools
import os
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


class TokenizerSpec(NamedTuple):
    """A tokenizer that is not loaded yet. As text it takes a tenth of the memory of the parsed JSON, which can go."""

    text: str
    """Its tokenizer.json."""
    bytes: npt.NDArray[np.int64] | None
    """(ids,) How many bytes of text each id holds; None if that is unknown (`token_bytes`)."""


def make_spec(settings: dict[str, Any]) -> TokenizerSpec:
    """Return the spec of a parsed tokenizer.json."""
    text = orjson.dumps({**settings, "model": _with_text_merges(settings["model"])}).decode()
    return TokenizerSpec(text, token_bytes(settings))


class Encoder:
    """The tokenizer of a tokenizer.json, without its post-processor."""

    def __init__(self, spec: TokenizerSpec, fast: bool = False) -> None:
        """Load it; `fast`: use fastokens, if its ids for PROBES are the reference's and SFT_FASTOKENS is not 0."""
        self._bytes = spec.bytes
        fast = fast and os.environ.get("SFT_FASTOKENS") != "0"
        fastokens = _load_fastokens(spec.text) if fast else None  # needs most memory while loading, so it goes first
        self.reference = Tokenizer.from_str(spec.text)
        self._encode: Encode = self._encode_by_reference
        if fastokens and same_ids(fastokens, self._encode, probes()):
            self._encode = fastokens

    @property
    def is_fast(self) -> bool:
        """Whether fastokens is in use."""
        return self._encode != self._encode_by_reference

    def matches_reference(self, texts: Sequence[str]) -> bool:
        """Return whether the reference gives the same ids for these texts."""
        return not self.is_fast or same_ids(self._encode, self._encode_by_reference, list(texts))

    def encode(self, texts: list[str]) -> tuple[Ids, Sizes]:
        """Return the ids of all texts, concatenated, and the number of ids of each.

        Shapes:  ids (T,), T = tokens of all; sizes (N,), N = texts.
        """
        return self._encode(texts)

    def token_edges(
        self, texts: list[str], ids: Ids, sizes: Sizes, places: dict[int, int]
    ) -> dict[int, tuple[int, str]]:
        """Return, for a character place in some of the texts, the number of tokens before it.

        `places` maps the index of a text to a number of characters. The second value is the text of the token that
        spans the place, or "" if the place is at a token edge.
        """
        if self._bytes is None:
            return {index: self._edge_by_offsets(texts[index], place) for index, place in places.items()}
        indices = list(places)
        bytes_before = np.zeros(len(ids) + 1, np.int64)
        np.cumsum(self._bytes[ids], out=bytes_before[1:])
        ends = np.cumsum(sizes)[indices]
        starts = ends - sizes[indices]
        text_bytes = np.array([_utf8_size(texts[index]) for index in indices], np.int64)
        bounds = bytes_before[starts] + np.array([_utf8_size(texts[index][: places[index]]) for index in indices])
        edges = np.minimum(np.searchsorted(bytes_before, bounds), len(ids))
        known = (bytes_before[ends] - bytes_before[starts] == text_bytes) & (bytes_before[edges] == bounds)
        numbers = (edges - starts).tolist()
        return {
            index: (number, "") if is_known else self._edge_by_offsets(texts[index], places[index])
            for index, number, is_known in zip(indices, numbers, known.tolist(), strict=True)
        }

    def token_ranges(self, text: str, most: int | None = None) -> list[tuple[int, int]]:
        """Return the characters that each token of a text, or of its first `most`, covers; tokens may share one."""
        ids, _ = self._encode([text])
        before = self._bytes_before(text, ids)
        if before is None:
            offsets: list[tuple[int, int]] = self.reference.encode(text, add_special_tokens=False).offsets
            return offsets[:most]
        before = before if most is None else before[: most + 1]
        if text.isascii():
            return list(itertools.pairwise(before.tolist()))
        data = np.frombuffer(text.encode(), np.uint8)[: before[-1]]
        character = np.cumsum((data & 0xC0) != 0x80) - 1  # of each byte: continuation bytes are 10xxxxxx
        return list(zip(character[before[:-1]].tolist(), (character[before[1:] - 1] + 1).tolist(), strict=True))

    def count(self, text: str) -> int:
        """Return the number of tokens of a text."""
        return int(self._encode([text])[1][0])

    def _encode_by_reference(self, texts: list[str]) -> tuple[Ids, Sizes]:
        every = [encoding.ids for encoding in self.reference.encode_batch_fast(texts, add_special_tokens=False)]
        sizes = np.fromiter(map(len, every), np.int64, len(every))
        return np.fromiter(itertools.chain.from_iterable(every), np.int32, int(sizes.sum())), sizes

    def _bytes_before(self, text: str, ids: Ids) -> Sizes | None:
        """Return the number of bytes before each token of a text, then all; None if they do not add up to the text."""
        if self._bytes is None:
            return None
        before = np.zeros(len(ids) + 1, np.int64)
        np.cumsum(self._bytes[ids], out=before[1:])
        return before if before[-1] == _utf8_size(text) else None

    def _edge_by_offsets(self, text: str, place: int) -> tuple[int, str]:
        offsets = self.reference.encode(text, add_special_tokens=False).offsets
        spanning = next((text[start:end] for start, end in offsets if start < place < end), "")
        return sum(start < place for start, _ in offsets), spanning


def _load_fastokens(settings: str) -> Encode | None:
    """Return the encode function of fastokens; None if it does not support this kind of tokenizer."""
    import fastokens

    try:
        fast = fastokens.Tokenizer.from_json_str(settings)
    except ValueError:
        return None

    def encode(texts: list[str]) -> tuple[Ids, Sizes]:
        ids, offsets = fast.encode_batch_flat(texts)
        bounds = np.frombuffer(offsets, np.int64)
        return np.frombuffer(ids, np.int32), bounds[1:] - bounds[:-1]

    return encode


def same_ids(first: Encode, second: Encode, texts: list[str]) -> bool:
    """Return whether two encode functions give the same ids."""
    (ids, sizes), (other_ids, other_sizes) = first(texts), second(texts)
    return np.array_equal(ids, other_ids) and np.array_equal(sizes, other_sizes)


def _with_text_merges(model: dict[str, Any]) -> dict[str, Any]:
    """Return a model with merges as text, `a b` for [a, b], as in older files: it loads in two thirds of the time."""
    pairs = model.get("merges") or [""]
    if isinstance(pairs[0], str):
        return model
    merges = [" ".join(pair) for pair in pairs]
    joined = "\n".join(merges)
    if joined.count(" ") != len(merges) or "#version" in joined:  # tokens with blanks, or the comment of older files
        return model
    return {**model, "merges": merges}


def token_bytes(settings: dict[str, Any]) -> npt.NDArray[np.int64] | None:
    """Return how many bytes of text each id holds, for a byte-level tokenizer that changes no text; else None."""
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
    sizes[[*vocabulary.values()]] = [*map(len, vocabulary)]  # a character of the vocabulary is a byte of text
    for token in added:
        sizes[token["id"]] = _utf8_size(token["content"])
    return sizes


def _pre_tokenizers(settings: dict[str, Any] | None) -> list[dict[str, Any]]:
    if settings is None:
        return []
    inner = settings.get("pretokenizers", []) if settings["type"] == "Sequence" else []
    return [settings, *(each for part in inner for each in _pre_tokenizers(part))]


def _utf8_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def probes() -> list[str]:
    """Return texts on which tokenizers differ: scripts, blanks, digits, contractions, combining marks, loops."""
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
