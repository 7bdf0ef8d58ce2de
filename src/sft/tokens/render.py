"""Chat: conversations -> samples, each a list of token ids and a loss mask made together.

The mask comes from rendering, never from searching for tokens: what an assistant turn adds behind its
generation prompt, up to and including the stop token, is trained; headers, prompts, tool results, reasoning of
earlier turns and turns that say `loss: false` are not. Text is rendered by the template (sft.tokens.template) and
tokenised once as a whole (sft.tokens.tokenizer), in a way that keeps content from becoming structure.

A conversation is one sample where that is exact. Where the template rewrites earlier turns once a conversation
goes on (it drops their reasoning, say), each user turn makes a sample of its own, with all before it as
context; and if that is not exact either, each answer. A template that is exact in none of these ways is
refused when it is loaded, before a token is written.

Any template is rendered by Jinja, a prompt and a turn for each answer. For our own template there is a faster way
(sft.tokens.fast_nano3), taken where it gives the same.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from sft.cli import InputError
from sft.conversation import Message, Rejection
from sft.tokens.fast_nano3 import MOST_CHARS, PROBES, SHA256, Nano3, UnusualError
from sft.tokens.segments import Pieces
from sft.tokens.template import Template, limited
from sft.tokens.tokenizer import Rendered, SafeTokenizer, Sample, guard_for, samples_of

Tools = list[dict[str, Any]] | None
EVIDENCE_CHARS = 80


class Window(NamedTuple):
    """Which part of a conversation makes a sample: messages[:end], trained from message `first` on."""

    first: int
    end: int


def _whole_conversation(messages: list[Message]) -> list[Window]:
    return [Window(0, len(messages))]


def _user_turns(messages: list[Message]) -> list[Window]:
    """One window for each user message and its answers; what stands before the first belongs to the first."""
    starts = [i for i, message in enumerate(messages) if message["role"] == "user"] or [0]
    return [Window(*pair) for pair in zip([0, *starts[1:]], [*starts[1:], len(messages)], strict=True)]


def _answers(messages: list[Message]) -> list[Window]:
    return [Window(i, i + 1) for i, message in enumerate(messages) if message["role"] == "assistant"]


CUTS: tuple[Callable[[list[Message]], list[Window]], ...] = (_whole_conversation, _user_turns, _answers)


@dataclass
class ChatTemplate:
    """A chat template bound to a tokenizer, checked."""

    source: str
    """The template's text."""
    stop_token: str
    stop_id: int
    tokenizer: SafeTokenizer
    _template: Template
    _coarsest: dict[bool, int]
    """From which of CUTS on the template is exact: on conversations without, with reasoning."""
    _nano3: Nano3 | None = None
    """The faster way to render it, where there is one."""

    @staticmethod
    def load(template: str, tokenizer_folder: Path, whole: bool = True, quick: bool = False) -> "ChatTemplate":
        """Load a template (path of a .jinja file), bind it to the tokenizer of a folder, and check it.

        Without `whole`, `check_whole` is left to another process: it loads the tokenizer a second time. `quick`: with
        the faster tokenizer, where its ids are the same.
        Raises:  InputError: no such file, a template that does not compile, has no exact mask, or does
        not stop, or exhausts its limits; a tokenizer whose pieces do not add up to the whole.
        """
        compiled, tokenizer = Template(Path(template)), SafeTokenizer(tokenizer_folder, quick)
        stop = tokenizer.special.get("eos_token", "")
        if stop not in tokenizer.control:
            raise InputError(
                f"{tokenizer_folder}: eos_token is {stop!r}, which is not a control token of the tokenizer"
            )
        chat = ChatTemplate(compiled.source, stop, tokenizer.control[stop], tokenizer, compiled, {})
        with limited(compiled.name):
            _check(chat, compiled.name)
        if whole:
            chat.check_whole()
        if hashlib.sha256(compiled.source.encode()).hexdigest() == SHA256:
            nano3 = Nano3(tokenizer)
            if nano3.fits() and all(_agrees(chat, nano3, *probe) for probe in PROBES):
                chat._nano3 = nano3
        return chat

    def check_whole(self) -> None:
        """Raise InputError unless the pieces of a conversation, tokenised apart, are the whole tokenised at once."""
        rendered = self.samples([ASK, ANSWER, ASK, ANSWER], None)
        assert not isinstance(rendered, Rejection)  # _check has looked at it
        whole = self.tokenizer.whole()  # large, and not kept
        for text, sample in zip(rendered, self.encode(rendered), strict=True):
            if isinstance(sample, Rejection) or whole.encode(text.text, add_special_tokens=False).ids != sample.ids:
                raise InputError(
                    f"{self._template.name}: this tokenizer gives other ids for text cut at control tokens "
                    "than for the whole"
                )

    @property
    def is_compiled(self) -> bool:
        """Whether it is rendered the faster way."""
        return self._nano3 is not None

    def add(self, pieces: Pieces, messages: list[Message], tools: Tools, budget: int | None = None) -> int | Rejection:
        """Add the samples of a conversation to `pieces`; return how many, or why there are none.

        `budget` of reasoning is what the template is told.
        Raises:  InputError: the template used up its limits.
        """
        before = len(pieces.sizes)
        if self._nano3 is not None and self._add_compiled(self._nano3, pieces, messages, tools, budget):
            return len(pieces.sizes) - before
        rendered = self.samples(messages, tools, budget)
        if isinstance(rendered, Rejection):
            return rendered
        for each in rendered:
            if fault := self.tokenizer.cut(each, pieces):
                pieces.forget(before)
                return fault
        return len(rendered)

    def _add_compiled(
        self, nano3: Nano3, pieces: Pieces, messages: list[Message], tools: Tools, budget: int | None
    ) -> bool:
        """Add the samples the faster way; say whether that can be."""
        before = len(pieces.sizes)
        reasoned = any(["reasoning_content" in message for message in messages])
        trained = [i for i, turn in enumerate(messages) if turn["role"] == "assistant" and turn.get("loss", True)]
        try:
            if sum([len(message["content"]) for message in messages]) > MOST_CHARS:
                return False
            for first, end in CUTS[self._coarsest[reasoned]](messages):
                if chosen := [index for index in trained if first <= index < end]:
                    nano3.add(pieces, messages[:end], chosen, tools, budget)
        except (UnusualError, AttributeError, LookupError, TypeError):
            pieces.forget(before)
            return False
        return len(pieces.sizes) > before

    def samples(self, messages: list[Message], tools: Tools, budget: int | None = None) -> list[Rendered] | Rejection:
        """Render one conversation to its samples, see `samples_of_batch`."""
        return self.samples_of_batch([(messages, tools, budget)])[0]

    def samples_of_batch(
        self, conversations: Iterable[tuple[list[Message], Tools, int | None]]
    ) -> list[list[Rendered] | Rejection]:
        """Render conversations (messages, tools, budget of reasoning that the template is told) to samples.

        Raises:  InputError: the template used up its limits.
        """
        with limited(self._template.name):
            return [self._samples(messages, tools, budget) for messages, tools, budget in conversations]

    def _samples(self, messages: list[Message], tools: Tools, budget: int | None) -> list[Rendered] | Rejection:
        """Render with the coarsest cut that is exact."""
        trained = {i for i, turn in enumerate(messages) if turn["role"] == "assistant" and turn.get("loss", True)}
        if not trained:
            return Rejection("nothing-trained", "no assistant turn, or each says loss: false")
        reasoned = any("reasoning_content" in message for message in messages)
        guard = guard_for([messages, tools])
        turns, shielded = self._shield(messages, guard), self.tokenizer.shield(tools, guard)
        outcome: list[Rendered] | Rejection = []
        for cut in CUTS[self._coarsest[reasoned] :]:
            outcome = self._render_windows(cut(messages), trained, turns, shielded, budget, guard)
            if not isinstance(outcome, Rejection) or outcome.reason != "template-mismatch":
                break
        return outcome

    def _render_windows(
        self,
        windows: list[Window],
        trained: set[int],
        turns: list[Message],
        tools: Tools,
        budget: int | None,
        guard: str,
    ) -> list[Rendered] | Rejection:
        """Render the windows in which something is trained; a rejection of one is a rejection of all."""
        samples = []
        for first, end in windows:
            chosen = [index for index in range(first, end) if index in trained]
            if not chosen:
                continue
            try:
                sample = self._render_sample(turns[:end], chosen, tools, budget, guard)
            except jinja2.TemplateError as error:
                return Rejection("template-refuses", str(error)[:EVIDENCE_CHARS])
            if isinstance(sample, Rejection):
                return sample
            samples.append(sample)
        return samples

    def _render_sample(
        self, turns: list[Message], trained: list[int], tools: Tools, budget: int | None, guard: str
    ) -> Rendered | Rejection:
        """Render one sample in which the assistant turns `trained` are trained."""
        reasoned = any("reasoning_content" in turns[index] for index in trained)
        budget = budget if reasoned else None
        whole = self.render(turns, tools, thinking=reasoned, budget=budget)
        spans = []
        for index in trained:
            thinking = "reasoning_content" in turns[index]
            prompt = self.render(turns[:index], tools, thinking=thinking, budget=budget, generation_prompt=True)
            turn = whole
            if index + 1 < len(turns) or thinking != reasoned:
                turn = self.render(turns[: index + 1], tools, thinking=thinking, budget=budget)
            for shorter, longer in ((prompt, turn), (turn, whole)):
                if not longer.startswith(shorter):
                    return Rejection("template-mismatch", f"messages[{index}]: {_divergence(shorter, longer)}")
            if (stops := turn.count(self.stop_token, len(prompt))) != 1:
                return Rejection("no-stop-token", f"messages[{index}]: {stops} of {self.stop_token} in it, expected 1")
            end = turn.index(self.stop_token, len(prompt)) + len(self.stop_token)
            if lost := _lost(turns[index], turn[len(prompt) : end]):
                return Rejection("template-drops-text", f"messages[{index}].{lost} is not in the rendered turn")
            spans.append((len(prompt), end))
        for tool in tools or []:
            if tool["function"]["name"] not in whole:
                return Rejection(
                    "template-drops-text", f"tools: {tool['function']['name']} is not in the rendered text"
                )
        return Rendered(whole, spans, guard)

    def render(
        self,
        messages: list[Message],
        tools: Tools,
        *,
        thinking: bool,
        budget: int | None = None,
        generation_prompt: bool = False,
    ) -> str:
        """Render messages to text, without limits. Raises jinja2.TemplateError where the template fails on them."""
        control: dict[str, Any] = {"enable_thinking": thinking}
        if budget is not None:
            control["reasoning_budget"] = budget
        return self._template.render(
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=generation_prompt,
            chat_template_kwargs=control,  # where NVIDIA's template for data preparation looks
            **control,
            **self.tokenizer.special,
        )

    def prompt_ids(self, messages: list[Message], tools: Tools, *, thinking: bool) -> list[int]:
        """Return the ids of a prompt: the messages rendered up to and including the generation prompt."""
        guard = guard_for([messages, tools])
        with limited(self._template.name):
            text = self.render(
                self._shield(messages, guard),
                self.tokenizer.shield(tools, guard),
                thinking=thinking,
                generation_prompt=True,
            )
        (sample,) = self.encode([Rendered(text, [], guard)])
        assert isinstance(sample, Sample)  # without spans nothing can cross one
        return sample.ids

    def encode(self, batch: list[Rendered]) -> list[Sample | Rejection]:
        """Tokenise a batch of rendered samples."""
        return self.tokenizer.encode(batch)

    def decode(self, ids: list[int]) -> str:
        """Turn ids into text; control tokens stay, as text."""
        return self.tokenizer.decode(ids)

    def _shield(self, messages: list[Message], guard: str) -> list[Message]:
        """Shield messages; their keys and roles are ours, and the loss flag is no business of a template."""
        return [
            {
                key: value if key == "role" else self.tokenizer.shield(value, guard)
                for key, value in message.items()
                if key != "loss"
            }
            for message in messages
        ]


def _lost(message: Message, turn: str) -> str:
    """Name what a message says and its rendered turn does not; empty if nothing is lost."""
    for field in ("reasoning_content", "content"):
        if message.get(field, "").strip() not in turn:
            return field
    for index, call in enumerate(message.get("tool_calls", [])):
        if call["function"]["name"] not in turn:
            return f"tool_calls[{index}]"
    return ""


def _divergence(shorter: str, longer: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(shorter, longer, strict=False)) if a != b), len(longer))
    return f"{shorter[at : at + EVIDENCE_CHARS]!r} became {longer[at : at + EVIDENCE_CHARS]!r} later"


# --- What is asked of a template before it is used ------------------------------------------------------

ASK = {"role": "user", "content": "What is 1 + 1?"}
ANSWER = {"role": "assistant", "content": "It is 2."}
THOUGHT = {"role": "assistant", "content": "It is 2.", "reasoning_content": "Count: 1, 2."}


def _check(chat: ChatTemplate, name: str) -> None:
    """Refuse a template without an exact mask; learn from which cut on it is exact.

    Asked of it, on a conversation of two turns: some cut is exact; each answer ends with the trained stop
    token; at most one BOS. That it drops reasoning, or refuses it, is no fault of the template: such rows are
    refused, and counted.
    """
    chat._coarsest.update({True: _coarsest_exact(chat, THOUGHT), False: _coarsest_exact(chat, ANSWER)})
    rendered = chat._samples([ASK, ANSWER, ASK, ANSWER], None, None)
    if isinstance(rendered, Rejection):
        why = {
            "template-mismatch": "an answer does not start with its generation prompt, or is rendered otherwise once "
            "the conversation goes on, so no exact loss mask exists",
            "no-stop-token": "an answer does not end with the tokenizer's eos_token, so a model trained on it "
            "would never stop",
            "template-drops-text": "it leaves out what an answer says",
        }.get(rendered.reason, "it refuses a plain conversation of two turns")
        raise InputError(f"{name}: {why} ({rendered.evidence}). Choose another prep.template.")
    bos, trained_stops = chat.tokenizer.control.get(chat.tokenizer.special.get("bos_token", "")), 0
    for sample in chat.encode(rendered):
        if isinstance(sample, Rejection):
            raise InputError(f"{name}: {sample.evidence}: this tokenizer joins prompt and answer into one token")
        if sample.ids[:2] == [bos, bos]:
            raise InputError(f"{name}: a sample starts with two BOS tokens")
        trained_stops += [i for i, kept in zip(sample.ids, sample.mask, strict=True) if kept].count(chat.stop_id)
    if trained_stops != 2:
        raise InputError(f"{name}: the stop token {chat.stop_token} is not trained at the end of each answer")


def _agrees(chat: ChatTemplate, nano3: Nano3, messages: list[Message], tools: Tools, budget: int | None) -> bool:
    """Say whether the faster way gives the samples of the template itself, or leaves them to it."""
    pieces = Pieces()
    if not chat._add_compiled(nano3, pieces, messages, tools, budget):
        return True
    rendered = chat.samples(messages, tools, budget)
    return not isinstance(rendered, Rejection) and chat.encode(rendered) == list(
        samples_of(pieces.encode(chat.tokenizer.engine))
    )


def _coarsest_exact(chat: ChatTemplate, answer: Message) -> int:
    """Find the coarsest cut with which a conversation of two such answers is exact; the first if none is."""
    messages = [ASK, answer, ASK, answer]
    for index, cut in enumerate(CUTS):
        outcome = chat._render_windows(cut(messages), {1, 3}, messages, None, None, guard_for(messages))
        if not isinstance(outcome, Rejection):
            return index
    return 0
