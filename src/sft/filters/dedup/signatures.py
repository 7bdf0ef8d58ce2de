"""MinHash signatures: how similar two conversations are, in SIGNATURE_BYTES bytes each.

`signatures` computes them, `band_keys` gives the keys by which similar ones find each other. Duplicates within a
source: sft.filters.dedup.within_source; across sources: sft.filters.dedup.across_sources.

Two conversations are as similar as the less similar of their two sides: what was asked (user turns, tool results)
and what was answered (assistant turns: reasoning, content, calls). They are not similar at all if the numbers in
their user and assistant turns differ. So the pipeline keeps the same question with another answer, another question
to the same tools, and the same exercise with other numbers. System prompts and tool lists do not count, because
templates share them. The similarity of a side is the Jaccard index of its word shingles, estimated by MinHash; a side
of few words is similar only to its equal.

The same conversation gives the same bytes on every machine, in every process and for every hash seed. Another version
of rensa, or other constants, give other signatures: do not compare those.
"""

import array
import hashlib
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sft.conversation import Conversation
from sft.filters.dedup.words import MULTIPLIERS, WordHashes, hash_words, mix64

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from sft.filters.dedup.words import Hashes

# Chosen on the half "choose" of tests/labelled/duplicates.jsonl for a threshold of 0.8: of 2 to 5 words, 2 and 3
# find most, and 3 keeps more conversations that differ.
SHINGLE_WORDS = 3
# A side with fewer words has too few shingles to compare them by share.
MIN_WORDS = 16
# MinHash slots per side, one byte each: the standard error of the estimate is at most 0.045.
SLOTS = 128
NUMBERS_BYTES = 8
SIGNATURE_BYTES = NUMBERS_BYTES + 2 * SLOTS
MINHASH_SEED = 1234
# The probability that two different slots have the same byte.
CHANCE = 1 / 256
# The share of pairs found that are exactly as similar as the threshold on both sides; of more similar pairs more are
# found. Each band costs 8 bytes per conversation.
RECALL = 0.99
MAX_BANDS = 18


def signature(conversation: Conversation) -> bytes:
    """Return the signature of one conversation."""
    parts = list(conversation.parts())
    return signatures([conversation], [parts], hash_words([text for _, text in parts]))[0]


def signatures(
    conversations: Sequence[Conversation], parts: Sequence[Sequence[tuple[int, str]]], words: WordHashes
) -> list[bytes]:
    """Return the signature of each conversation: its numbers, what was asked, what was answered.

    Args:  parts: Conversation.parts of each. words: the words of all these parts, in order.
    """
    import numpy as np
    from rensa import RMinHash

    if not conversations:
        return []
    starts, lengths = words.starts.tolist(), np.diff(words.starts).tolist()
    number_places = np.flatnonzero(words.numbers)
    numbers = words.hashes[number_places].astype("<u8").tobytes()
    number_starts = (np.searchsorted(number_places, words.starts) * 8).tolist()
    digests: list[bytes] = []  # of the numbers of each conversation
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
        pieces += [numbers[number_starts[part] : number_starts[part + 1]] for part in by_role["assistant"]] + [b"|"]
        digests.append(hashlib.blake2b(b"".join(pieces), digest_size=NUMBERS_BYTES).digest())
        for side in (by_role["user"] + by_role["tool"], by_role["assistant"]):
            spans += [words.hashes[starts[part] : starts[part + 1]] for part in side]
            sizes.append(sum([lengths[part] for part in side]))
            if sizes[-1] < MIN_WORDS:
                short.append(_text_digest([conversation_parts[part - place][1] for part in side]))
        place += len(conversation_parts)
    shingles, offsets = _shingles(np.concatenate([*spans, np.empty(0, np.uint64)]), sizes, short)
    rows = RMinHash.digest_matrix_from_flat_token_hashes(shingles, offsets, SLOTS, MINHASH_SEED).to_rows()
    slots = np.frombuffer(b"".join([array.array("I", row) for row in rows]), np.uint32).astype(np.uint8)
    return [digest + row.tobytes() for digest, row in zip(digests, slots.reshape(-1, 2 * SLOTS), strict=True)]


def _text_digest(texts: list[str]) -> bytes:
    """Return 8 bytes that stand for a side of few words. Punctuation counts here: x + 1 is not x - 1."""
    normalized = " ".join(unicodedata.normalize("NFKC", "\n".join(texts)).casefold().split())
    return hashlib.blake2b(normalized.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _shingles(hashes: "Hashes", sizes: list[int], short: list[bytes]) -> "tuple[Hashes, Hashes]":
    """Return the hashes of the shingles of all sides, and where those of each side begin.

    Args:  hashes: the words of all sides. sizes: words of each side. short: a digest for each side with fewer than
    MIN_WORDS words, which is its only shingle.
    """
    import numpy as np

    total = hashes[: max(0, len(hashes) - SHINGLE_WORDS + 1)].copy()
    for word in range(1, SHINGLE_WORDS):
        total *= np.uint64(MULTIPLIERS[0])
        total += hashes[word : len(total) + word]
    mix64(total)
    pieces, begin = [np.empty(0, np.uint64)], 0
    digests = iter(np.frombuffer(b"".join(short), "<u8").reshape(-1, 1))
    for size in sizes:
        pieces.append(total[begin : begin + size - SHINGLE_WORDS + 1] if size >= MIN_WORDS else next(digests))
        begin += size
    return np.concatenate(pieces), np.cumsum(list(map(len, pieces)), dtype=np.uint64)


def banding(threshold: float) -> tuple[int, int]:
    """Return (slots of each side in a band, bands): as selective as RECALL and MAX_BANDS allow.

    >>> banding(0.8)
    (3, 16)
    """
    best = (1, SLOTS)
    for slots in range(1, SLOTS + 1):
        same = threshold ** (2 * slots)
        bands = next((n for n in range(1, min(MAX_BANDS, SLOTS // slots) + 1) if 1 - (1 - same) ** n >= RECALL), None)
        if bands is not None:
            best = (slots, bands)
    return best


def band_keys(signatures: "npt.NDArray[np.uint8]", slots: int, bands: int) -> "Hashes":
    """Return a key for each band of each signature: a hash of its place, its slots on both sides, and the numbers.

    Shapes:  signatures: (rows, SIGNATURE_BYTES); result: (rows, bands), uint64.
    """
    import numpy as np

    numbers = signatures[:, :NUMBERS_BYTES].copy().view("<u8")
    used = signatures[:, NUMBERS_BYTES:].reshape(-1, 2, SLOTS)[:, :, : slots * bands]
    values = used.reshape(-1, 2, bands, slots).swapaxes(1, 2).reshape(-1, bands, 2 * slots)
    powers = np.array([pow(MULTIPLIERS[0], power, 1 << 64) for power in range(2 * slots + 1)], np.uint64)
    places = np.arange(1, bands + 1, dtype=np.uint64) * powers[-1]
    keys: Hashes = mix64(values.astype(np.uint64) @ powers[:-1] + places ^ numbers)
    return keys
