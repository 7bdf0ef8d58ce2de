"""Pieces: samples as texts with runs of control ids between them -> ids, mask and turn ends of all, as columns.

A sample is pieces one after the other: a text, then a run of ids that stand for themselves. Of a piece, the text is
trained from a place on or not at all, and the run up to a number of ids; so the mask is made with the ids, in whole
arrays for a batch of samples, and only where a text is parted is a token edge looked for. A token across such a
place refuses the sample.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sft.conversation import Rejection
from sft.tokens.encoder import Engine

UNTRAINED = -1
IN_RUN = 2  # a bit beside that of the mask


class Samples(NamedTuple):
    """Samples as columns. Shapes: N samples, T tokens and E turn ends of all of them."""

    ids: npt.NDArray[np.int32]
    """(T,), one sample after the other."""
    mask: npt.NDArray[np.uint8]
    """(T,), 1 = this token is trained."""
    sizes: npt.NDArray[np.int64]
    """(N,), tokens of each."""
    trained: npt.NDArray[np.int64]
    """(N,), trained tokens of each."""
    turn_ends: npt.NDArray[np.int32]
    """(E,), index in its sample behind the stop token of each trained turn."""
    turns: npt.NDArray[np.int64]
    """(N,), trained turns of each."""
    refused: dict[int, Rejection]
    """Samples, by number, in which a token is part prompt and part answer; what the columns say of them is void."""


Piece = tuple[str, int, tuple[int, ...], int, int]


class Pieces:
    """Collects the pieces of samples."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        """Of each sample: its pieces."""
        self._pieces: list[Piece] = []
        self._begun = 0

    def add(self, text: str, place: int, run: tuple[int, ...] = (), trained: int = 0, end: int = 0) -> None:
        """Add a piece to the sample that is not finished.

        place: from which character on the text is trained; UNTRAINED: not at all. run: the ids behind the text;
        trained: how many of them are trained, from the start. end: 1, a trained turn ends behind the text; 2, behind
        the first id of the run; 0, none does.
        """
        self._pieces.append((text, place, run, trained, end))

    def finish(self) -> None:
        """What was added since the last sample is a sample."""
        self.sizes.append(len(self._pieces) - self._begun)
        self._begun = len(self._pieces)

    def forget(self, samples: int) -> None:
        """Forget what is not finished, and all samples but the first `samples`."""
        del self.sizes[samples:]
        self._begun = sum(self.sizes)
        del self._pieces[self._begun :]

    def texts(self) -> Iterator[str]:
        """Yield the text of each piece."""
        return (piece[0] for piece in self._pieces)

    def encode(self, engine: Engine) -> Samples:
        """Tokenise all texts in one call and put the samples together."""
        number = len(self._pieces)
        columns = map(list, zip(*self._pieces, strict=True)) if self._pieces else ([] for _ in range(5))
        texts, places, runs, in_trained, endings = columns
        ids, in_text = engine.encode(texts)
        in_run = np.fromiter(map(len, runs), np.int64, number)
        run_ids = np.fromiter(itertools.chain.from_iterable(runs), np.int32, int(in_run.sum()))
        place, trained = np.array(places, np.int64), np.array(in_trained, np.int64)

        untrained = np.where(place == UNTRAINED, in_text, 0)
        parted = {int(index): places[index] for index in np.flatnonzero(place > 0)}
        edges = engine.edges(texts, ids, in_text, parted) if parted else {}
        for index, (tokens, _) in edges.items():
            untrained[index] = tokens
        stretches = np.stack([untrained, in_text - untrained, trained, in_run - trained], axis=1)
        kinds = np.repeat(np.tile(np.array([0, 1, 1 | IN_RUN, IN_RUN], np.uint8), number), stretches.ravel())
        mask, is_run = (kinds & 1).astype(np.uint8, copy=False), kinds >= IN_RUN
        joined = np.empty(len(kinds), np.int32)
        joined[~is_run], joined[is_run] = ids, run_ids

        pieces = np.array(self.sizes, np.int64)
        sample_of = np.repeat(np.arange(len(pieces)), pieces)
        ends = np.cumsum(in_text + in_run)
        sizes = np.bincount(sample_of, in_text + in_run, len(pieces)).astype(np.int64)
        starts = np.cumsum(sizes) - sizes
        ending = np.array(endings, np.int64)
        here = np.flatnonzero(ending)
        turn_ends = (ends - in_run)[here] + ending[here] - 1 - starts[sample_of[here]]
        refused = {
            int(sample_of[index]): Rejection("token-crosses-mask", f"token {token!r} is part prompt, part answer")
            for index, (_, token) in edges.items()
            if token
        }
        turns = np.bincount(sample_of[here], minlength=len(pieces))
        learnt = np.bincount(sample_of, in_text - untrained + trained, len(pieces)).astype(np.int64)
        return Samples(joined, mask, sizes, learnt, turn_ends.astype(np.int32), turns, refused)
