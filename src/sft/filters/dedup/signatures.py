"""Signatures: what two conversations are compared by, as bytes.

A signature is an array of 32-bit numbers: HEADER of them (a key of 64 bits, then how many shingles each side has), and
the shingles of both sides, each side in order. `signatures` computes it, and sft.filters.dedup.search finds the similar
ones among millions.

Two conversations are as similar as the less similar of their two sides: what was asked (user turns, tool results)
and what was answered (assistant turns: reasoning, content, calls). They are not similar at all if the numbers in
their user and assistant turns differ. So the pipeline keeps the same question with another answer, another question
to the same tools, and the same exercise with other numbers. System prompts and tool lists do not count, because
templates share them. The similarity of a side is the Jaccard index of its word shingles; a side of few words is
similar only to its equal.

The same conversation gives the same bytes on every machine, in every process and for every hash seed.
"""

import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sft.conversation import Conversation
from sft.filters.dedup.words import MULTIPLIERS, Hashes, WordHashes, mix64

Shingles = npt.NDArray[np.uint32]

# Chosen on the half "choose" of tests/labelled/duplicates.jsonl for a threshold of 0.8: of 2 to 5 words, 2 and 3
# find most, and 3 keeps more conversations that differ.
SHINGLE_WORDS = 3
# A side with fewer words has too few shingles to compare them by share.
MIN_WORDS = 16
# 32-bit numbers before the shingles: the key, low half first, and the number of shingles of each side.
HEADER = 4


def signatures(
    conversations: Sequence[Conversation], parts: Sequence[Sequence[tuple[int, str]]], words: WordHashes
) -> list[bytes]:
    """Return the signature of each conversation.

    Args:  parts: Conversation.parts of each. words: the words of all these parts, in order.
    """
    if not conversations:
        return []
    starts, lengths = words.starts.tolist(), np.diff(words.starts).tolist()
    number_places = np.flatnonzero(words.numbers)
    numbers = words.hashes[number_places].astype("<u8").tobytes()
    number_starts = (np.searchsorted(number_places, words.starts) * 8).tolist()
    keys: list[bytes] = []  # of each conversation: its numbers, and its sides with few words
    spans: list[Hashes] = []  # words, of one side after the other
    sizes: list[int] = []  # of sides, in words
    short: list[bytes] = []  # the digest of each side with few words
    place = 0
    for conversation, conversation_parts in zip(conversations, parts, strict=True):
        # Numbers count in what user and assistant write; tool results belong to the question.
        by_role: dict[str, list[int]] = {"user": [], "assistant": [], "tool": [], "system": []}
        for part, (message, _) in enumerate(conversation_parts, place):
            by_role[conversation.messages[message]["role"]].append(part)
        pieces = [numbers[number_starts[part] : number_starts[part + 1]] for part in by_role["user"]] + [b"|"]
        pieces += [numbers[number_starts[part] : number_starts[part + 1]] for part in by_role["assistant"]]
        for side in (by_role["user"] + by_role["tool"], by_role["assistant"]):
            spans += [words.hashes[starts[part] : starts[part + 1]] for part in side]
            sizes.append(sum([lengths[part] for part in side]))
            pieces.append(b"|")
            if sizes[-1] < MIN_WORDS:
                short.append(_text_digest([conversation_parts[part - place][1] for part in side]))
                pieces.append(short[-1])
        keys.append(hashlib.blake2b(b"".join(pieces), digest_size=8).digest())
        place += len(conversation_parts)
    shingles, counts = _distinct_shingles(np.concatenate([*spans, np.empty(0, np.uint64)]), sizes, short)
    ends = np.cumsum(counts.sum(axis=1)).tolist()
    headers = [key + row.tobytes() for key, row in zip(keys, counts.astype("<u4"), strict=True)]
    data = shingles.astype("<u4", copy=False)
    return [
        header + data[begin:end].tobytes() for header, begin, end in zip(headers, [0, *ends[:-1]], ends, strict=True)
    ]


def _text_digest(texts: list[str]) -> bytes:
    """Return 8 bytes that stand for a side of few words. Punctuation counts here: x + 1 is not x - 1."""
    normalized = " ".join(unicodedata.normalize("NFKC", "\n".join(texts)).casefold().split())
    return hashlib.blake2b(normalized.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _distinct_shingles(hashes: Hashes, sizes: list[int], short: list[bytes]) -> tuple[Shingles, npt.NDArray[np.int64]]:
    """Return the distinct shingles of all sides, each side in order, and how many each side has.

    Args:  hashes: the words of all sides. sizes: words of each side. short: a digest for each side with fewer than
    MIN_WORDS words, which is its only shingle.
    Shapes:  the counts: (conversations, 2).
    """
    mixed = hashes[: max(0, len(hashes) - SHINGLE_WORDS + 1)].copy()
    for word in range(1, SHINGLE_WORDS):
        mixed *= np.uint64(MULTIPLIERS[0])
        mixed += hashes[word : len(mixed) + word]
    high = (mix64(mixed) >> np.uint64(32)).astype(np.uint32)
    digests = iter(np.frombuffer(b"".join(short), "<u4")[::2].reshape(-1, 1))
    pieces: list[Shingles] = []
    begin = 0
    for size in sizes:
        if size < MIN_WORDS:
            pieces.append(next(digests))
        else:
            pieces.append(high[begin : begin + size - SHINGLE_WORDS + 1])
            pieces[-1].sort()
        begin += size
    side = np.repeat(np.arange(len(sizes)), list(map(len, pieces)))
    shingles = np.concatenate([*pieces, np.empty(0, np.uint32)])
    is_first = np.ones(len(shingles), np.bool_)
    is_first[1:] = (shingles[1:] != shingles[:-1]) | (side[1:] != side[:-1])
    return shingles[is_first], np.bincount(side[is_first], minlength=len(sizes)).reshape(-1, 2)
