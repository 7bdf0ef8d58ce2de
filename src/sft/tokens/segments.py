"""Segments: samples as texts with control ids between them -> columns of ids, masks and turn ends.

A sample is a list of segments: a text, then ids of control tokens that are inserted as they are. The text of a segment
is trained from a character on or not at all, its control ids up to a number. So ids and masks are made for a whole
batch in array operations, and a token edge is looked up only where the trained part begins inside a text, or in masked
ranges. If a token spans that place, the sample is rejected; one that is partly masked is not trained.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sft.conversation import Rejection
from sft.tokens.encoder import Encoder

UNTRAINED = -1
IS_CONTROL = 2  # a second bit, beside the mask's
Masked = tuple[tuple[int, int], ...]
NOT_MASKED: Masked = ()


class SampleColumns(NamedTuple):
    """Samples as columns. Shapes: N samples, T tokens and E turn ends of all of them."""

    ids: npt.NDArray[np.int32]
    """(T,), sample by sample."""
    mask: npt.NDArray[np.uint8]
    """(T,), 1 = this token is trained."""
    sizes: npt.NDArray[np.int64]
    """(N,), tokens of each."""
    trained: npt.NDArray[np.int64]
    """(N,), trained tokens of each."""
    masked: npt.NDArray[np.int64]
    """(N,), tokens of each that are not trained because they are in a masked range."""
    turn_ends: npt.NDArray[np.int32]
    """(E,), index in its sample behind the stop token of each trained turn."""
    turns: npt.NDArray[np.int64]
    """(N,), trained turns of each."""
    rejected: dict[int, Rejection]
    """By sample: a token is part prompt, part answer. Ignore the sample's columns."""


Segment = tuple[str, int, tuple[int, ...], int, int]


class Segments:
    """Collects the segments of samples."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        """Segments of each sample."""
        self._segments: list[Segment] = []
        self._masked: dict[int, Masked] = {}
        self._masked_ids: dict[int, int] = {}
        self._begin = 0

    def add(
        self,
        text: str,
        trained_from: int,
        control_ids: tuple[int, ...] = (),
        trained_ids: int = 0,
        end: int = 0,
        masked: Masked = NOT_MASKED,
        masked_ids: int = 0,
    ) -> None:
        """Add a segment to the current sample.

        trained_from: the first character of the text that is trained, or UNTRAINED. control_ids: ids behind the text;
        trained_ids: how many of them, from the first on, are trained. end: 1 if a trained turn ends behind the text,
        2 if it ends behind the first control id, else 0. masked: ranges of characters; a token with one is not trained.
        masked_ids: control ids that are not trained because they are in such a range.
        """
        if masked:
            self._masked[len(self._segments)] = masked
        if masked_ids:
            self._masked_ids[len(self._segments)] = masked_ids
        self._segments.append((text, trained_from, control_ids, trained_ids, end))

    def end_sample(self) -> None:
        """End the current sample."""
        self.sizes.append(len(self._segments) - self._begin)
        self._begin = len(self._segments)

    def truncate(self, samples: int) -> None:
        """Keep the first `samples` samples only, and drop the current one."""
        del self.sizes[samples:]
        self._begin = sum(self.sizes)
        del self._segments[self._begin :]
        self._masked = {index: ranges for index, ranges in self._masked.items() if index < self._begin}
        self._masked_ids = {index: ids for index, ids in self._masked_ids.items() if index < self._begin}

    def texts(self) -> Iterator[str]:
        """Yield the text of each segment."""
        return (segment[0] for segment in self._segments)

    def encode(self, encoder: Encoder) -> SampleColumns:
        """Tokenize all texts in one call; return the samples."""
        number = len(self._segments)
        columns = map(list, zip(*self._segments, strict=True)) if self._segments else ([] for _ in range(5))
        texts, trained_from, control_ids, trained_ids, turn_ends_at = columns
        ids, in_text = encoder.encode(texts)
        in_control = np.fromiter(map(len, control_ids), np.int64, number)
        all_control_ids = np.fromiter(itertools.chain.from_iterable(control_ids), np.int32, int(in_control.sum()))
        place, trained = np.array(trained_from, np.int64), np.array(trained_ids, np.int64)

        untrained = np.where(place == UNTRAINED, in_text, 0)
        inside = {int(index): trained_from[index] for index in np.flatnonzero(place > 0)}
        edges = encoder.token_edges(texts, ids, in_text, inside) if inside else {}
        for index, (tokens, _) in edges.items():
            untrained[index] = tokens
        lengths = np.stack([untrained, in_text - untrained, trained, in_control - trained], axis=1)
        kinds = np.repeat(np.tile(np.array([0, 1, 1 | IS_CONTROL, IS_CONTROL], np.uint8), number), lengths.ravel())
        mask, is_control = (kinds & 1).astype(np.uint8, copy=False), kinds >= IS_CONTROL
        joined = np.empty(len(kinds), np.int32)
        joined[~is_control], joined[is_control] = ids, all_control_ids

        in_both = in_text + in_control
        ends, masked = np.cumsum(in_both), np.zeros(number, np.int64)
        begins = ends - in_both
        for index, ranges in self._masked.items():
            for token, (start, end) in enumerate(encoder.token_ranges(texts[index])):
                if any(start < last and first < end for first, last in ranges):
                    masked[index] += mask[begins[index] + token]
                    mask[begins[index] + token] = 0

        segments = np.array(self.sizes, np.int64)
        sample_of = np.repeat(np.arange(len(segments)), segments)
        sizes = np.bincount(sample_of, in_both, len(segments)).astype(np.int64)
        starts = np.cumsum(sizes) - sizes
        end_code = np.array(turn_ends_at, np.int64)
        has_end = np.flatnonzero(end_code)
        turn_ends = (ends - in_control)[has_end] + end_code[has_end] - 1 - starts[sample_of[has_end]]
        rejected = {
            int(sample_of[index]): Rejection("token-crosses-mask", f"token {token!r} is part prompt, part answer")
            for index, (_, token) in edges.items()
            if token
        }
        turns = np.bincount(sample_of[has_end], minlength=len(segments))
        of_segment = in_text - untrained + trained - masked
        for index, some in self._masked_ids.items():
            masked[index] += some
        trained_tokens, masked = (
            np.bincount(sample_of, each, len(segments)).astype(np.int64) for each in (of_segment, masked)
        )
        return SampleColumns(joined, mask, sizes, trained_tokens, masked, turn_ends.astype(np.int32), turns, rejected)
