"""Pieces: samples as texts with runs of control ids between them -> ids, mask and turn ends of all, as columns.

A sample is pieces one after the other: a text, then a run of ids that stand for themselves. Of a piece, the text is
trained from a place on or not at all, and the run up to a number of ids; so the mask is made with the ids, in whole
arrays for a batch of samples, and only where a text is parted is a token edge looked for. A token across such a
place refuses the sample.
"""

import itertools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sft.data.conversation import Rejection
from sft.tokens.engine import Engine

UNTRAINED = -1


class Samples(NamedTuple):
    """Samples as columns. Shapes: N samples, T tokens and E turn ends of all of them."""

    ids: npt.NDArray[np.int32]
    """(T,), one sample after the other."""
    mask: npt.NDArray[np.uint8]
    """(T,), 1 = this token is trained."""
    sizes: npt.NDArray[np.int64]
    """(N,), tokens of each."""
    turn_ends: npt.NDArray[np.int32]
    """(E,), index in its sample behind the stop token of each trained turn."""
    turns: npt.NDArray[np.int64]
    """(N,), trained turns of each."""
    refused: dict[int, Rejection]
    """Samples, by number, in which a token is part prompt and part answer; what the columns say of them is void."""


class Pieces:
    """Collects the pieces of samples; each list has one value for each piece."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.places: list[int] = []
        """From which character on the text is trained; UNTRAINED: not at all."""
        self.runs: list[tuple[int, ...]] = []
        """The ids behind the text."""
        self.trained: list[int] = []
        """How many ids of the run are trained, from its start."""
        self.ends: list[int] = []
        """1: a trained turn ends behind the text; 2: behind the first id of the run; 0: none does."""
        self.sizes: list[int] = []
        """Of each sample: its pieces."""
        self._begun = 0

    def add(self, text: str, place: int, run: tuple[int, ...] = (), trained: int = 0, end: int = 0) -> None:
        """Add a piece to the sample that is not finished."""
        self.texts.append(text)
        self.places.append(place)
        self.runs.append(run)
        self.trained.append(trained)
        self.ends.append(end)

    def finish(self) -> None:
        """What was added since the last sample is a sample."""
        self.sizes.append(len(self.texts) - self._begun)
        self._begun = len(self.texts)

    def forget(self, samples: int) -> None:
        """Forget what is not finished, and all samples but the first `samples`."""
        del self.sizes[samples:]
        self._begun = sum(self.sizes)
        for column in (self.texts, self.places, self.runs, self.trained, self.ends):
            del column[self._begun :]

    def encode(self, engine: Engine) -> Samples:
        """Tokenise all texts in one call and put the samples together."""
        number = len(self.texts)
        ids, in_text = engine.encode(self.texts)
        in_run = np.fromiter(map(len, self.runs), np.int64, number)
        run_ids = np.fromiter(itertools.chain.from_iterable(self.runs), np.int32, int(in_run.sum()))
        places, trained = np.array(self.places, np.int64), np.array(self.trained, np.int64)

        untrained = np.where(places == UNTRAINED, in_text, 0)
        parted = {int(index): self.places[index] for index in np.flatnonzero(places > 0)}
        edges = engine.edges(self.texts, ids, in_text, parted) if parted else {}
        for index, (tokens, _) in edges.items():
            untrained[index] = tokens
        stretches = np.stack([untrained, in_text - untrained, trained, in_run - trained], axis=1)
        mask = np.repeat(np.tile(np.array([0, 1, 1, 0], np.uint8), number), stretches.ravel())
        is_text = np.repeat(np.tile([True, False], number), np.stack([in_text, in_run], axis=1).ravel())
        joined = np.empty(len(is_text), np.int32)
        joined[is_text], joined[~is_text] = ids, run_ids

        pieces = np.array(self.sizes, np.int64)
        sample_of = np.repeat(np.arange(len(pieces)), pieces)
        ends = np.cumsum(in_text + in_run)
        sizes = np.bincount(sample_of, in_text + in_run, len(pieces)).astype(np.int64)
        starts = np.cumsum(sizes) - sizes
        ending = np.array(self.ends, np.int64)
        here = np.flatnonzero(ending)
        turn_ends = (ends - in_run)[here] + ending[here] - 1 - starts[sample_of[here]]
        refused = {
            int(sample_of[index]): Rejection("token-crosses-mask", f"token {token!r} is part prompt, part answer")
            for index, (_, token) in edges.items()
            if token
        }
        turns = np.bincount(sample_of[here], minlength=len(pieces))
        return Samples(joined, mask, sizes, turn_ends.astype(np.int32), turns, refused)
