"""How similar two conversations are, by definition: what the search for near-duplicates has to find."""

import numpy as np

from sft.conversation import Conversation
from sft.filters.dedup.signatures import HEADER, Shingles, signatures
from sft.filters.dedup.words import hash_words


def signature(conversation: Conversation) -> bytes:
    """Return the signature of one conversation."""
    parts = list(conversation.parts())
    return signatures([conversation], [parts], hash_words([text for _, text in parts]))[0]


def similarity(left: bytes, right: bytes) -> float:
    """Return the similarity of two conversations by their signatures, from 0 to 1."""
    if left[:8] != right[:8]:
        return 0.0
    shares = []
    for a, b in zip(*(_sides(np.frombuffer(each, "<u4")) for each in (left, right)), strict=True):
        common = len(np.intersect1d(a, b, assume_unique=True))
        shares.append(common / (len(a) + len(b) - common))
    return min(shares)


def _sides(numbers: Shingles) -> tuple[Shingles, Shingles]:
    asked = HEADER + int(numbers[2])
    return numbers[HEADER:asked], numbers[asked:]
