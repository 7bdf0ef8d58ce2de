"""Windows: a sample longer than a pack -> parts that fit, each trained token in at most one of them.

A window is a pinned start (the system message and tools), context, and trained tokens that follow each other:

    question  |  pinned start  |  whole messages, the question among them  |  answers, the last one cut if it is long
    running   |  pinned start, at most a quarter  |  header  |  text right before the cut  |  the rest of an answer

Tools of the pinned start are those that the window calls, and others as they fit. An answer that calls a tool for which
there is no space is not trained. An answer is cut behind a turn, a paragraph or a line, where there is one. The header
of a window that begins inside an answer opens the reasoning only if the window begins inside of it. Nothing is written
behind a cut: only the window with the stop token ends the turn. Pure functions; sft.packing.over_length has the texts.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from sft.tokens.outline import LINE, PARAGRAPH

Int32s = npt.NDArray[np.int32]
Mask = npt.NDArray[np.uint8]

# Of a window: the most that context and a pinned start without called tools take, and the least that is trained.
PART = 4
NOTHING = np.empty(0, np.int32)


class LongAnswer(NamedTuple):
    """A trained turn: tokens [start, end), the stop token included."""

    header: int
    """The first token of its header."""
    start: int
    end: int
    content: int
    """The first token behind the reasoning; `start` without reasoning."""
    called: frozenset[int]
    """The tools that it calls."""


class LongSample(NamedTuple):
    """A sample of T tokens that is longer than a pack."""

    ids: Int32s
    mask: Mask
    """As prepared: 1 = this token is trained."""
    pinned: int
    """Tokens of the pinned start."""
    starts: Sequence[int]
    """Where messages behind the pinned start begin, ascending."""
    questions: Sequence[int]
    """Those of the user."""
    answers: Sequence[LongAnswer]
    breaks: Mask
    """(T,) LINE or PARAGRAPH if one ends behind this token."""
    headers: tuple[Int32s, Int32s]
    """The header of an answer: behind its reasoning, and inside."""


class Pin(Protocol):
    """Returns the pinned start with some tools, of at most `most` tokens; None if it is longer.

    `fill`: also other tools, as they fit.
    """

    def __call__(self, called: frozenset[int], most: int, *, fill: bool = False) -> Int32s | None: ...  # noqa: D102


class Window(NamedTuple):
    """A part of a sample. Shapes: ids, mask (W,), W = tokens."""

    ids: Int32s
    mask: Mask
    """1 = this token is trained."""
    covered: int
    """Tokens of the sample that no earlier window has; those of the pinned start and of headers do not count."""


class Extent(NamedTuple):
    """Which part of a sample a window has."""

    pinned: Int32s
    header: Int32s
    begin: int
    """The first token of the context."""
    start: int
    """The first token that may be trained."""
    end: int


def cut_windows(sample: LongSample, pin: Pin, limit: int) -> list[Window]:
    """Return the windows of a sample, of at most `limit` tokens each; answers without space for a called tool are left.

    Raises:  AssertionError: a token would be trained twice, or a window exceeds the limit.
    """
    windows = list[Window]()
    covered, trained = np.zeros(len(sample.ids), np.bool_), np.zeros(len(sample.ids), np.bool_)
    turn, start = 0, 1  # nothing predicts the first token
    while turn < len(sample.answers):
        answer = sample.answers[turn]
        start = max(start, answer.start)
        # What is masked in front, such as reasoning, is context.
        ahead = np.flatnonzero(sample.mask[start : answer.end])
        start += int(ahead[0]) if len(ahead) else 0
        extent = _extent(sample, pin, limit, turn, start) if len(ahead) else None
        if extent is None:
            turn += 1
            continue
        before = NOTHING, sample.ids[extent.begin : extent.start]
        parts = [extent.pinned, extent.header, *before, sample.ids[start : extent.end]]
        ids = np.concatenate(parts).astype(np.int32)
        mask = np.concatenate([np.zeros(len(ids) - (extent.end - start), np.uint8), sample.mask[start : extent.end]])
        assert len(ids) <= limit, "a window is longer than a pack"
        assert not trained[start : extent.end].any(), "a token is trained twice"
        trained[start : extent.end] = True
        windows.append(Window(ids, mask, int((~covered[extent.begin : extent.end]).sum())))
        covered[extent.begin : extent.end] = True
        start = extent.end
        while turn < len(sample.answers) and sample.answers[turn].end <= start:
            turn += 1
    return windows


def _extent(sample: LongSample, pin: Pin, limit: int, turn: int, start: int) -> Extent | None:
    """Return the window that trains from `start`, inside answer number `turn`; None without space for a called tool."""
    answer = sample.answers[turn]
    called, part, header = answer.called, limit // PART, NOTHING
    least = min(answer.end - start, part)
    for begin in () if sample.mask[answer.start : start].any() else _question_begins(sample, start, part):
        pinned = pin(called, limit - (start - begin) - least)
        if pinned is not None:
            break
    else:
        asked = start - _question_begins(sample, start, part)[-1]
        pinned = pin(called, limit - least - min(part, asked) if called else part)
        if pinned is None and called:
            return None
        pinned = NOTHING if pinned is None else pinned
        begin, header = _running(sample, start, min(part, limit - len(pinned) - least))
    rest = limit - len(header) - (start - begin)  # for the pinned start and trained tokens
    end = answer.end
    if len(pinned) + end - start > rest:
        end = _cut(sample, start, rest - len(pinned))
    else:
        for following in sample.answers[turn + 1 :]:
            tools = called | following.called
            longer = pinned if tools == called else pin(tools, rest - (following.end - start))
            if longer is None or len(longer) + following.end - start > rest:
                break
            pinned, called, end = longer, tools, following.end
    if not len(header):
        filled = pin(called, rest - (end - start), fill=True)
        pinned = pinned if filled is None or not len(pinned) else filled
    for earlier in sample.starts:  # more context, where there is space
        if sample.pinned <= earlier < begin and len(pinned) + end - earlier <= limit:
            return Extent(pinned, NOTHING, earlier, start, end)
    if begin > sample.pinned and (begin not in sample.starts or begin == answer.header):  # a part of a message
        wider = _running(sample, start, limit - len(pinned) - (end - start))
        begin, header = wider if wider[0] < begin else (begin, header)
    return Extent(pinned, header, begin, start, end)


def _question_begins(sample: LongSample, start: int, part: int) -> list[int]:
    """Return where the context of an answer may begin: with more messages, if they take `part`, or its question."""
    question = max((place for place in sample.questions if place < start), default=sample.pinned)
    more = min((place for place in sample.starts if start - place <= part and place < question), default=question)
    return [more, question]


def _running(sample: LongSample, start: int, space: int) -> tuple[int, Int32s]:
    """Return where the text before `start` begins, so that it fits `space` with a header, and that header."""
    most = max(1, space - max(map(len, sample.headers)))
    low = max(min(sample.pinned, start - 1), start - most)
    half = start - (start - low) // 2
    begin = next((place for place in sample.starts if low <= place < half), -1)
    if begin >= 0:
        return begin, NOTHING
    begin = low
    if low > sample.pinned:
        for kind in (PARAGRAPH, LINE):
            found = np.flatnonzero(sample.breaks[low - 1 : half - 1] >= kind)
            if len(found):
                begin = low + int(found[0])
                break
    for answer in sample.answers:
        if answer.header < begin < answer.start < start:
            begin = answer.start
        if answer.start <= begin < answer.end:
            header = sample.headers[begin < answer.content]
            return begin, header if len(header) + start - begin <= space else NOTHING
    return begin, NOTHING


def _cut(sample: LongSample, start: int, space: int) -> int:
    """Return where to cut an answer that does not fit `space`: behind the last paragraph or line of the second half."""
    half = start + space // 2
    for kind in (PARAGRAPH, LINE):
        found = np.flatnonzero(sample.breaks[half : start + space] >= kind)
        if len(found):
            return half + int(found[-1]) + 1
    return start + space
