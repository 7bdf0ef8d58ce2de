"""Near-duplicates: conversations that ask nearly the same and are answered nearly the same.

`signatures` sketches conversations in SIGNATURE_BYTES bytes each; `NearDuplicates` finds, among those added so far,
the earliest that is similar. Those of all sources together: sft.filters.dedup.groups.

Two conversations are as similar as the less similar of their two sides, what was asked (user turns, tool
results) and what was answered (assistant turns: reasoning, content, calls); and not at all where the numbers
in user and assistant turns differ. So the same question with another answer, another question to the same
tools, and the same exercise with other numbers are all kept. System prompts and tool lists do not count:
templates share them. Similarity of a side is the Jaccard index of its word shingles, estimated by MinHash; a
side of few words is similar only to its equal.

Same conversation, same bytes: whatever the machine, process or hash seed. Other versions of rensa or other
constants give other signatures, and those must not be compared.
"""

import array
import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sft.conversation import Conversation, Rejection
from sft.filters.dedup.words import MULTIPLIERS, WordHashes, hash_words, mix64

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from sft.filters.dedup.words import Hashes

# Chosen on the half "choose" of tests/labelled/duplicates.jsonl, for a threshold of 0.8: of 2 to 5 words, 2 and 3
# find most, and 3 keeps more that differs.
SHINGLE_WORDS = 3
# A side of fewer words has too few shingles for a share of them to mean much.
FEWEST_WORDS = 16
# MinHash slots of a side, a byte each: the standard error of the estimate is at most 0.045.
SLOTS = 128
NUMBERS_BYTES = 8
SIGNATURE_BYTES = NUMBERS_BYTES + 2 * SLOTS
MINHASH_SEED = 1234
# Two different slots have the same byte so often.
CHANCE = 1 / 256
# An index finds this share of the pairs that are exactly as similar as its threshold on both sides, and more of
# the others; each band costs 8 bytes of memory per conversation.
RECALL = 0.99
MOST_BANDS = 18
# Conversations that the index keeps in a dictionary before it sorts them into arrays.
RECENT = 4096
ID_CHARS = 32
# Of the number in a run, the low bits are a row, the high ones a key.
ROW_BITS, LAST_ROW = 32, 0xFFFFFFFF


@dataclass(frozen=True)
class Match:
    """A conversation that is similar to one that was looked for."""

    winner: str
    """Its id."""
    similarity: float
    """From the threshold to 1."""


def signature(conversation: Conversation) -> bytes:
    """Sketch a conversation: the numbers in it, what was asked, what was answered."""
    parts = list(conversation.parts())
    return signatures([conversation], [parts], hash_words([text for _, text in parts]))[0]


def signatures(
    conversations: Sequence[Conversation], parts: Sequence[Sequence[tuple[int, str]]], found: WordHashes
) -> list[bytes]:
    """Sketch conversations; `parts` are theirs (Conversation.parts), `found` the words of all these in order."""
    import numpy as np
    from rensa import RMinHash

    if not conversations:
        return []
    starts, lengths = found.starts.tolist(), np.diff(found.starts).tolist()
    places_of_numbers = np.flatnonzero(found.numbers)
    numbers = found.hashes[places_of_numbers].astype("<u8").tobytes()
    number_starts = (np.searchsorted(places_of_numbers, found.starts) * 8).tolist()
    digests: list[bytes] = []
    spans: list[Hashes] = []  # words, of one side after the other
    sizes: list[int] = []  # of sides, in words
    short: list[bytes] = []  # of sides of few words, what stands for them
    place = 0
    for conversation, own in zip(conversations, parts, strict=True):
        # By who speaks: user and assistant, whose numbers count, and tools, whose results are part of the question.
        said: dict[str, list[int]] = {"user": [], "assistant": [], "tool": [], "system": []}
        for part, (message, _) in enumerate(own, place):
            said[conversation.messages[message]["role"]].append(part)
        told = [numbers[number_starts[part] : number_starts[part + 1]] for part in said["user"]] + [b"|"]
        told += [numbers[number_starts[part] : number_starts[part + 1]] for part in said["assistant"]] + [b"|"]
        digests.append(hashlib.blake2b(b"".join(told), digest_size=NUMBERS_BYTES).digest())
        for side in (said["user"] + said["tool"], said["assistant"]):
            spans += [found.hashes[starts[part] : starts[part + 1]] for part in side]
            sizes.append(sum([lengths[part] for part in side]))
            if sizes[-1] < FEWEST_WORDS:
                short.append(_plainly([own[part - place][1] for part in side]))
        place += len(own)
    shingles, offsets = _shingles(np.concatenate([*spans, np.empty(0, np.uint64)]), sizes, short)
    rows = RMinHash.digest_matrix_from_flat_token_hashes(shingles, offsets, SLOTS, MINHASH_SEED).to_rows()
    slots = np.frombuffer(b"".join([array.array("I", row) for row in rows]), np.uint32).astype(np.uint8)
    return [one + row.tobytes() for one, row in zip(digests, slots.reshape(-1, 2 * SLOTS), strict=True)]


def _plainly(texts: list[str]) -> bytes:
    """Return a number, as bytes, for a side of few words: punctuation counts here, x + 1 is not x - 1."""
    plain = " ".join(unicodedata.normalize("NFKC", "\n".join(texts)).casefold().split())
    return hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _shingles(hashes: "Hashes", sizes: list[int], short: list[bytes]) -> "tuple[Hashes, Hashes]":
    """Return a number for each sequence of SHINGLE_WORDS words of each side, and where those of each side begin.

    `hashes` are the words of all sides, `sizes` how many each has; one with few has one number, the next of `short`.
    """
    import numpy as np

    total = hashes[: max(0, len(hashes) - SHINGLE_WORDS + 1)].copy()
    for word in range(1, SHINGLE_WORDS):
        total *= np.uint64(MULTIPLIERS[0])
        total += hashes[word : len(total) + word]
    mix64(total)
    pieces, begin, plain = [np.empty(0, np.uint64)], 0, iter(np.frombuffer(b"".join(short), "<u8").reshape(-1, 1))
    for size in sizes:
        pieces.append(total[begin : begin + size - SHINGLE_WORDS + 1] if size >= FEWEST_WORDS else next(plain))
        begin += size
    return np.concatenate(pieces), np.cumsum(list(map(len, pieces)), dtype=np.uint64)


def banding(threshold: float) -> tuple[int, int]:
    """Return (slots of each side in a band, bands): as selective as RECALL and MOST_BANDS allow.

    >>> banding(0.8)
    (3, 16)
    """
    best = (1, SLOTS)
    for slots in range(1, SLOTS + 1):
        same = threshold ** (2 * slots)
        bands = next((n for n in range(1, min(MOST_BANDS, SLOTS // slots) + 1) if 1 - (1 - same) ** n >= RECALL), None)
        if bands is not None:
            best = (slots, bands)
    return best


def band_keys(signatures: "npt.NDArray[np.uint8]", slots: int, bands: int) -> "Hashes":
    """Return a key for each band of each signature: of its place, its slots on both sides, and the numbers.

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


class NearDuplicates:
    """An index of signatures that finds those similar to a given one by locality-sensitive hashing.

    Each signature is filed under a key per band of slots. Similar ones share a key with near certainty; all that
    share one are compared, slot by slot. Memory: 264 bytes of signature, 32 of id, 8 per band.
    """

    def __init__(self, threshold: float) -> None:
        import numpy as np

        self._threshold = threshold
        self._slots, self._bands = banding(threshold)
        self._size = 0
        self._ids = np.empty(RECENT, f"S{ID_CHARS}")
        self._signatures = np.empty((RECENT, SIGNATURE_BYTES), np.uint8)
        self._recent: dict[int, list[int]] = {}
        self._recent_keys: list[npt.NDArray[np.uint32]] = []
        # Keys in order, each with its row in the low half; every run is more than twice as long as the next.
        self._runs: list[Hashes] = []

    def add(self, conversation_id: str, sketch: bytes, keys: "npt.NDArray[np.uint32] | None" = None) -> None:
        """Add a conversation, to be found from now on; `keys` are those of its signature, if they are known."""
        import numpy as np

        encoded = conversation_id.encode("ascii")
        if not 0 < len(encoded) <= ID_CHARS:
            raise ValueError(f"id {conversation_id!r}: expected 1 to {ID_CHARS} characters")
        if self._size == len(self._ids):
            self._ids, self._signatures = _doubled(self._ids), _doubled(self._signatures)
        row = np.frombuffer(sketch, np.uint8)
        self._ids[self._size], self._signatures[self._size] = encoded, row
        keys = self.keys(sketch) if keys is None else keys
        for key in keys.tolist():
            self._recent.setdefault(key, []).append(self._size)
        self._recent_keys.append(keys)
        self._size += 1
        if len(self._recent_keys) == RECENT:
            self._sort_recent()

    def find(self, sketch: bytes, keys: "npt.NDArray[np.uint32] | None" = None) -> Match | None:
        """Return the earliest conversation added that is similar."""
        rows, similarities = self.similar(sketch, keys)
        return Match(self.id(int(rows[0])), float(similarities[0])) if len(rows) else None

    def similar(
        self, sketch: bytes, keys: "npt.NDArray[np.uint32] | None" = None
    ) -> "tuple[npt.NDArray[np.uint32], npt.NDArray[np.float64]]":
        """Return all similar conversations: their numbers in order of adding, and their similarities."""
        import numpy as np

        keys = self.keys(sketch) if keys is None else keys
        found = [np.array(self._recent[key], np.uint32) for key in keys.tolist() if key in self._recent]
        lowest = keys.astype(np.uint64) << ROW_BITS
        for run in self._runs:
            first, last = np.searchsorted(run, lowest), np.searchsorted(run, lowest | LAST_ROW, "right")
            found += [run[first[band] : last[band]].astype(np.uint32) for band in np.flatnonzero(first < last)]
        if not found:
            return np.empty(0, np.uint32), np.empty(0)
        rows, row = np.unique(np.concatenate(found)), np.frombuffer(sketch, np.uint8)
        same = self._signatures[rows] == row
        slots = same[:, NUMBERS_BYTES:].view(np.uint8).reshape(-1, 2, SLOTS).sum(axis=2, dtype=np.uint8).min(axis=1)
        similarity = (slots / SLOTS - CHANCE) / (1 - CHANCE) * same[:, :NUMBERS_BYTES].all(axis=1)
        enough = similarity >= self._threshold
        return rows[enough], similarity[enough]

    def id(self, row: int) -> str:
        """Return the id of the conversation added as number `row`."""
        return bytes(self._ids[row]).decode("ascii")

    def keys(self, sketch: bytes) -> "npt.NDArray[np.uint32]":
        """Return a key for each band of a signature."""
        import numpy as np

        row = np.frombuffer(sketch, np.uint8).reshape(1, -1)
        high: npt.NDArray[np.uint32] = (band_keys(row, self._slots, self._bands)[0] >> np.uint64(32)).astype(np.uint32)
        return high

    def _sort_recent(self) -> None:
        """Turn the dictionary into a sorted run, and join runs of like size: a few runs, whatever the number."""
        import numpy as np

        first = self._size - len(self._recent_keys)
        rows = np.repeat(np.arange(first, self._size, dtype=np.uint64), self._bands)
        run = np.concatenate(self._recent_keys).astype(np.uint64) << np.uint64(ROW_BITS) | rows
        run.sort()
        self._runs.append(run)
        self._recent, self._recent_keys = {}, []
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            self._runs[-2:] = [np.concatenate(self._runs[-2:])]
            self._runs[-1].sort()


def _doubled(array: "npt.NDArray[Any]") -> "npt.NDArray[Any]":
    import numpy as np

    longer = np.empty((2 * len(array), *array.shape[1:]), array.dtype)
    longer[: len(array)] = array  # the rest takes no memory until it is written
    return longer


def check_near_duplicate(known: NearDuplicates, conversation_id: str, sketch: bytes) -> Rejection | None:
    """Refuse a conversation that equals or resembles an earlier one; add it to the known ones if it does not."""
    keys = known.keys(sketch)
    match = known.find(sketch, keys)
    if match is None:
        known.add(conversation_id, sketch, keys)
        return None
    if match.winner == conversation_id:  # equal ones have equal signatures
        return Rejection("duplicate", f"the same conversation came before: {conversation_id}")
    return Rejection("near-duplicate", f"{match.similarity:.2f} similar to {match.winner}, which came before")
