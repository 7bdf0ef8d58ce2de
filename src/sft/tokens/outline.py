"""Outline: where the messages, answers and lines of a rendered sample are, in tokens.

A rendered sample (sft.tokens.render) and its messages  ->  `Outline`, to train a part of the sample.

Answers are where the loss mask says. Other messages are found by their content, in order; a message starts at the
control token that opens its turn. One that the template changed, or joined with the message before it, has no start of
its own, so no part begins there.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from sft.conversation import Message
from sft.tokens.tokenizer import Rendered

if TYPE_CHECKING:
    from sft.tokens.render import ChatTemplate

LINE, PARAGRAPH = 1, 2


class Start(NamedTuple):
    """Where a message starts."""

    token: int
    """Of its header."""
    message: int
    """Index of the message."""


class Answer(NamedTuple):
    """A trained turn: tokens [start, end), the stop token included."""

    start: int
    end: int
    content: int
    """The first token behind the reasoning; `start` without reasoning."""
    message: int
    """Index of the message."""


class Outline(NamedTuple):
    """The outline of a sample of T tokens."""

    starts: list[Start]
    """Ascending; of messages that have a start."""
    answers: list[Answer]
    """In order."""
    breaks: npt.NDArray[np.uint8]
    """(T,) LINE or PARAGRAPH if one ends behind this token, else 0."""


def outline(chat: "ChatTemplate", rendered: Rendered, messages: list[Message]) -> Outline:
    """Return the outline of a sample, whose messages are the first of `messages`."""
    text, contents, spans, ends, controls = _tokens(chat, rendered)
    token_starts = np.concatenate([[0], ends[:-1]])
    trained = dict(zip(rendered.turns, spans, strict=True))
    starts, answers, known = list[Start](), list[Answer](), 0
    for index, message in enumerate(messages):
        if index in trained:
            place, behind = trained[index]
        else:
            place, behind = _find(contents, message, known)
            if place < 0:
                continue
        first, last = (int(np.searchsorted(token_starts, bound)) for bound in (known, place))
        if (opening := _opening(chat, [control for control in controls if first <= control[0] < last])) is not None:
            starts.append(Start(opening, index))
        if index in trained:
            end = int(np.searchsorted(token_starts, behind))
            content = max(last, int(np.searchsorted(ends, _reasoning_end(text, message, place, behind), "right")))
            answers.append(Answer(last, end, min(content, end), index))
        known = behind
    breaks = np.zeros(len(ends), np.uint8)
    for token, end in enumerate(ends.tolist()):
        if text.startswith("\n", end - 1):
            breaks[token] = PARAGRAPH if text.startswith("\n\n", end - 2) else LINE
    return Outline(starts, answers, breaks)


def _tokens(
    chat: "ChatTemplate", rendered: Rendered
) -> tuple[str, str, list[tuple[int, int]], npt.NDArray[np.int64], list[tuple[int, int]]]:
    """Return text and spans without guards, the character behind each token, and (token, id) of control tokens.

    The second text has NUL for each character of a control token: no content is found there.
    """
    tokenizer, guard = chat.tokenizer, rendered.guard
    ends, controls, contents, position = list[int](), list[tuple[int, int]](), list[str](), 0
    parts = tokenizer.pattern.split(rendered.text)
    tokens = tokenizer.pattern.findall(rendered.text)
    for part, token in zip(parts, [*tokens, ""], strict=True):
        plain = part.replace(guard, "")
        if plain:
            ends += [position + end for _, end in tokenizer.token_ranges(plain)]
        contents += plain, "\0" * len(token)
        position += len(plain) + len(token)
        if token:
            controls.append((len(ends), tokenizer.control[token]))
            ends.append(position)
    spans = [
        (start - rendered.text.count(guard, 0, start), end - rendered.text.count(guard, 0, end))
        for start, end in rendered.spans
    ]
    return rendered.text.replace(guard, ""), "".join(contents), spans, np.array(ends, np.int64), controls


def _find(text: str, message: Message, known: int) -> tuple[int, int]:
    """Return where the content of a message is, from `known` on; (-1, -1) if it is not there."""
    calls = message.get("tool_calls", ())
    content = message["content"].strip() or (calls[0]["function"]["name"] if calls else "")
    place = text.find(content, known) if content else -1
    return (place, place + len(content)) if place >= 0 else (-1, -1)


def _opening(chat: "ChatTemplate", controls: list[tuple[int, int]]) -> int | None:
    """Return the token that opens a turn, of the control tokens between two contents; None if there is none."""
    if openers := [token for token, number in controls if number == chat.opener]:
        return openers[-1]
    begin = chat.tokenizer.control.get(chat.tokenizer.special.get("bos_token", ""))
    stops = [place for place, (_, number) in enumerate(controls) if number in chat.stop_ids]
    behind = controls[stops[-1] + 1 :] if stops else controls
    return next((token for token, number in behind if number != begin), None)


def _reasoning_end(text: str, message: Message, start: int, end: int) -> int:
    """Return the character behind the closing tag of an answer's reasoning; `start` if it has none in the text."""
    reasoning = message.get("reasoning_content", "").strip()
    place = text.find(reasoning, start, end) if reasoning else -1
    if place < 0:
        return start
    behind, content = place + len(reasoning), message["content"].strip()
    found = text.find(content, behind, end) if content else -1
    return found if found >= 0 else min(end, text.find("\n", behind + 1, end) + 1 or behind)
