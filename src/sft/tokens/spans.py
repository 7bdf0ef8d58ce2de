"""Spans: which characters of a rendered sample are trained.

Trained is what an assistant turn adds behind its generation prompt, up to and including the stop token. There are two
ways to find that. `ByPrompts` takes nothing for granted: it renders the prompt and the end of each turn, and compares.
`ByHeaders` renders a sample once and looks for the header of assistant turns in it; it is used where it gives what
`ByPrompts` gives (sft.tokens.render). Headers and stop tokens are control tokens, so no content can have one.
"""

import re
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from sft.conversation import Message, Rejection
from sft.tokens.completeness import missing_context, missing_in_turn
from sft.tokens.forms import Turns
from sft.tokens.partition import Part
from sft.tokens.tokenizer import Rendered

EVIDENCE_CHARS = 160
# Shorter reasoning may be in other text by chance.
MIN_REASONING = 24
DROPS_CONTEXT = "template-drops-context"
DROPS = ("template-drops-text", DROPS_CONTEXT)


class Stops(NamedTuple):
    """The control tokens that end an answer."""

    pattern: re.Pattern[str]

    def end_of(self, turn: str, start: int) -> int | str:
        """Return where the answer from `start` on ends, behind its stop token; or what was found in its place.

        Behind it only other stop tokens may follow: some templates close the conversation with one.
        """
        found = list(self.pattern.finditer(turn, start))
        if not found:
            return "no stop token in it; if another token ends it, name that in prep.stop_tokens"
        first = found[0]
        same = [match for match in found if match[0] == first[0]]
        if len(same) > 1:
            return f"{len(same)} of {first[0]} in it, expected 1"
        if len(found) > 1 and self.pattern.sub("", turn[first.end() :]).strip():
            return f"text between {first[0]} and {found[-1][0]}, expected none"
        return first.end()


class Render(NamedTuple):
    """A conversation, and the function that renders its first messages."""

    turns: Turns
    thinks: list[bool]
    """By message: whether it has reasoning."""
    budget: int | None
    text: Callable[..., str]
    """(number of messages, thinking=, budget=, generation_prompt=) -> text. Cached."""

    def sample(self, end: int, trained: Sequence[int]) -> str:
        """Return the text of a sample in which some turns are trained."""
        reasoned = any(self.thinks[turn] for turn in trained)
        return self.text(end, thinking=reasoned, budget=self.budget if reasoned else None)


class ByPrompts:
    """Finds spans by rendering the prompt and the end of every trained turn."""

    def __init__(self, render: Render, stops: Stops) -> None:
        self._render, self._stops = render, stops
        self._ends: dict[tuple[int, bool], int] = {}
        """By turn, and whether the sample has a budget."""
        self.faults: dict[int, Rejection] = {}
        """By turn: why it was not exact, where it was last tried."""

    def exact(self, end: int, trained: list[int]) -> list[int]:
        """Return the turns that are exact in messages[:end], if these turns are trained."""
        return [turn for turn in trained if self._is_exact(turn, end, trained)]

    def _is_exact(self, index: int, end: int, trained: list[int]) -> bool:
        turns, thinks, budget, text = self._render
        reasoned = any(thinks[turn] for turn in trained)
        budget = budget if reasoned else None
        whole = self._render.sample(end, trained)
        prompt = text(index, thinking=thinks[index], budget=budget, generation_prompt=True)
        turn = whole
        if index + 1 < end or thinks[index] != reasoned:
            turn = text(index + 1, thinking=thinks[index], budget=budget)
        name = f"messages[{index}]"
        if not turn.startswith(prompt):
            self.faults[index] = Rejection("template-mismatch", f"{name}: {_divergence(prompt, turn)}")
            return False
        place = self._stops.end_of(turn, len(prompt))
        if isinstance(place, str):
            self.faults[index] = Rejection("no-stop-token", f"{name}: {place}")
            return False
        if missing := missing_in_turn(turns.plain[index], turn[len(prompt) : place], turns.guard):
            self.faults[index] = Rejection(DROPS[0], f"{name}.{missing} is not in the rendered turn")
            return False
        if not whole.startswith(turn[:place]):
            self.faults[index] = Rejection("template-mismatch", f"{name}: {_divergence(turn[:place], whole)}")
            return False
        self._ends[index, budget is not None] = place
        return True

    def spans(self, part: Part) -> list[tuple[int, int]]:
        """Return the trained character ranges of a sample whose turns are exact."""
        _, thinks, budget, text = self._render
        budget = budget if any(thinks[turn] for turn in part.turns) else None
        prompts = [text(turn, thinking=thinks[turn], budget=budget, generation_prompt=True) for turn in part.turns]
        ends = [self._ends[turn, budget is not None] for turn in part.turns]
        return list(zip(map(len, prompts), ends, strict=True))


class Header(NamedTuple):
    """How a template opens an assistant turn."""

    text: str
    """What all its generation prompts start with; starts with a control token."""
    prompts: tuple[str, str]
    """The generation prompt without and with reasoning."""


class IrregularError(Exception):
    """The headers in the text are not one for each assistant turn, or a turn is not what its header promises."""


class ByHeaders:
    """Finds spans in one rendered text, by the header and the stop token of each turn."""

    def __init__(self, render: Render, stops: Stops, header: Header) -> None:
        self._render, self._stops, self._header = render, stops, header
        roles = [message["role"] for message in render.turns.plain]
        self._assistants = [index for index, role in enumerate(roles) if role == "assistant"]
        self._found: dict[str, dict[int, tuple[int, int]]] = {}
        """By text: the range of each assistant turn in it, from its header on."""
        self._spans: dict[tuple[str, int], tuple[int, int]] = {}
        """By text and turn: the trained range."""

    def exact(self, end: int, trained: list[int]) -> list[int]:
        """Return turns that are surely exact in messages[:end], if these turns are trained."""
        text = self._render.sample(end, trained)
        return [turn for turn in trained if self._is_sure(turn, end, text)]

    def spans(self, part: Part) -> list[tuple[int, int]]:
        """Return the trained character ranges of a sample whose turns are exact. Raises IrregularError: one is not."""
        text = self._render.sample(part.end, part.turns)
        return [self._span(turn, part.end, text) for turn in part.turns]

    def _is_sure(self, index: int, end: int, text: str) -> bool:
        """Return whether a turn is exact in a text: it has the reasoning that its prompt has, and its own."""
        try:
            start, behind = self._span(index, end, text)
        except IrregularError:
            return False
        messages, thinks, ranges = self._render.turns.plain, self._render.thinks, self._ranges(end, text)
        if thinks[index] and not _has_reasoning(messages[index], text[start:behind]):
            return False
        for earlier in range(index - 1, -1, -1):
            if messages[earlier]["role"] == "user":
                break
            if thinks[earlier] and not _has_reasoning(messages[earlier], text[slice(*ranges[earlier])]):
                return False
        return True

    def _span(self, index: int, end: int, text: str) -> tuple[int, int]:
        """Return the trained range of a turn. Raises IrregularError: its header or end is not where it should be."""
        span = self._spans.get((text, index))
        if span is None:
            span = self._spans[text, index] = self._find_span(index, end, text)
        return span

    def _find_span(self, index: int, end: int, text: str) -> tuple[int, int]:
        turns, (start, limit) = self._render.turns, self._ranges(end, text)[index]
        prompt = self._header.prompts[self._render.thinks[index]]
        stop = self._stops.pattern.search(text, start + len(prompt), limit)
        if stop is None or not text.startswith(prompt, start):
            raise IrregularError
        start += len(prompt)
        if missing_in_turn(turns.plain[index], text[start : stop.end()], turns.guard):
            raise IrregularError
        return start, stop.end()

    def _ranges(self, end: int, text: str) -> dict[int, tuple[int, int]]:
        ranges = self._found.get(text)
        if ranges is None:
            header, place, places = self._header.text, -1, list[int]()
            while (place := text.find(header, place + 1)) >= 0:
                places.append(place)
            assistants = [index for index in self._assistants if index < end]
            if len(places) != len(assistants):
                raise IrregularError
            pairs = zip(places, [*places[1:], len(text)], strict=True)
            ranges = self._found[text] = dict(zip(assistants, pairs, strict=True))
        return ranges


def _has_reasoning(message: Message, turn: str) -> bool:
    """Return whether a turn surely has its reasoning: long enough, and not as a part of what follows it."""
    reasoning, content = message["reasoning_content"].strip(), message["content"].strip()
    place = turn.find(reasoning) if len(reasoning) >= MIN_REASONING else -1
    return place >= 0 and turn.find(content, place + len(reasoning)) >= 0


def render_parts(render: Render, way: ByPrompts | ByHeaders, parts: list[Part]) -> list[Rendered] | Rejection:
    """Return the samples of a conversation, or why it is rejected."""
    samples = []
    for part in parts:
        text = render.sample(part.end, part.turns)
        messages: list[Message] = render.turns.plain[: part.end]
        if missing := missing_context(messages, render.turns.tools, text, part.turns, render.turns.guard):
            return Rejection(DROPS_CONTEXT, f"{missing} is not in the rendered text")
        samples.append(Rendered(text, way.spans(part), render.turns.guard, tuple(part.turns)))
    return samples


def mask_reasoning(
    rendered: Rendered, messages: list[Message], closing: str, cut: Collection[int] | None
) -> Rendered | Rejection:
    """Return a sample whose reasoning is not trained, nor `closing`, what the template writes behind it.

    With `cut`, only `closing` is not trained, in these messages. `messages` are shielded, as in the text.
    """
    masked = []
    for turn, (start, end) in zip(rendered.turns, rendered.spans, strict=True):
        reasoning = messages[turn].get("reasoning_content", "").strip()
        if not reasoning or (cut is not None and turn not in cut):
            continue
        behind = rendered.text.find(reasoning, start, end) + len(reasoning)
        closed = re.compile(r"\s*" + re.escape(closing)).match(rendered.text, behind, end)
        if behind < start + len(reasoning) or closed is None:
            evidence = f"messages[{turn}].reasoning_content: not found with {closing!r} behind it"
            return Rejection("no-reasoning-end", evidence)
        masked.append((start if cut is None else behind, closed.end()))
    return rendered._replace(masked=tuple(masked))


def first_difference(first: str, second: str) -> int:
    """Return how many characters two texts share at their start."""
    same, end = 0, min(len(first), len(second))
    while same < end:
        middle = (same + end + 1) // 2
        if first[same:middle] == second[same:middle]:
            same = middle
        else:
            end = middle - 1
    return same


def _divergence(shorter: str, longer: str) -> str:
    start = first_difference(shorter, longer)
    return f"{shorter[start : start + EVIDENCE_CHARS]!r} became {longer[start : start + EVIDENCE_CHARS]!r} later"
