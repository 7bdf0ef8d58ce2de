"""Render: conversations -> samples, each a list of token ids and a loss mask made together.

The mask comes from rendering, never from a search for tokens. Trained is what an assistant turn adds behind its
generation prompt, up to and including the stop token. Not trained are headers, prompts, tool results, reasoning of
earlier turns, and turns with `loss: false`. The template (sft.tokens.template) renders the text, which is tokenized
once as a whole (sft.tokens.tokenizer); content cannot become structure.

A conversation is one sample if that is exact. If the template rewrites earlier turns when a conversation continues
(it drops their reasoning, for example), each user turn becomes a sample, with everything before it as context; if
that is not exact either, each answer. A template that is exact in none of these ways fails when it is loaded, before a
token is written.

Jinja renders any template: a prompt and a turn for each answer. For templates/nano3.jinja there is a faster way
(sft.tokens.fast_nano3), used if it gives the same samples.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from sft.cli import InputError
from sft.conversation import Message, Rejection
from sft.tokens.fast_nano3 import MAX_CHARS, PROBES, SHA256, FastNano3, UnsupportedError
from sft.tokens.segments import Segments
from sft.tokens.template import Template, limited
from sft.tokens.tokenizer import Rendered, SafeTokenizer, Sample, guard_for, iter_samples

Tools = list[dict[str, Any]] | None
EVIDENCE_CHARS = 80


class MessageRange(NamedTuple):
    """A part of a conversation that is a sample: messages[:end], trained from message `first` on."""

    first: int
    end: int


def _whole_conversation(messages: list[Message]) -> list[MessageRange]:
    return [MessageRange(0, len(messages))]


def _user_turns(messages: list[Message]) -> list[MessageRange]:
    """Return a range for each user message and its answers; messages before the first belong to the first."""
    starts = [i for i, message in enumerate(messages) if message["role"] == "user"] or [0]
    return [MessageRange(*pair) for pair in zip([0, *starts[1:]], [*starts[1:], len(messages)], strict=True)]


def _answers(messages: list[Message]) -> list[MessageRange]:
    return [MessageRange(i, i + 1) for i, message in enumerate(messages) if message["role"] == "assistant"]


GRANULARITIES: tuple[Callable[[list[Message]], list[MessageRange]], ...] = (_whole_conversation, _user_turns, _answers)


@dataclass
class ChatTemplate:
    """A checked chat template with its tokenizer."""

    source: str
    """The template's text."""
    stop_token: str
    stop_id: int
    tokenizer: SafeTokenizer
    _template: Template
    _coarsest: dict[bool, int]
    """The first exact one of GRANULARITIES, for conversations without and with reasoning."""
    _fast: FastNano3 | None = None
    """The faster way to render it, if there is one."""

    @staticmethod
    def load(template: str, tokenizer_folder: Path, whole: bool = True, fast: bool = False) -> "ChatTemplate":
        """Load a template (path of a .jinja file) and the tokenizer of a folder, and check them.

        Without `whole`, `check_whole`, which loads the tokenizer a second time, is left to another process. `fast`: use
        the faster tokenizer, if its ids are the same.

        Raises:  InputError: the template does not exist, does not compile, has no exact mask, does not stop, or exceeds
        its limits; or the tokenizer gives other ids for segments than for the whole text.
        """
        compiled, tokenizer = Template(Path(template)), SafeTokenizer(tokenizer_folder, fast)
        stop = tokenizer.special.get("eos_token", "")
        if stop not in tokenizer.control:
            raise InputError(
                f"{tokenizer_folder}/tokenizer_config.json: eos_token: found {stop!r}, expected a control token"
            )
        chat = ChatTemplate(compiled.source, stop, tokenizer.control[stop], tokenizer, compiled, {})
        with limited(compiled.name):
            _check(chat, compiled.name)
        if whole:
            chat.check_whole()
        if hashlib.sha256(compiled.source.encode()).hexdigest() == SHA256:
            fast_nano3 = FastNano3(tokenizer)
            if fast_nano3.supports_tokenizer() and all(_is_exact(chat, fast_nano3, *probe) for probe in PROBES):
                chat._fast = fast_nano3
        return chat

    def check_whole(self) -> None:
        """Raise InputError unless the segments of a conversation get the ids of the whole text."""
        rendered = self.render_samples([ASK, ANSWER, ASK, ANSWER], None)
        assert not isinstance(rendered, Rejection)  # _check rejects such templates
        plain = self.tokenizer.load_plain()  # large, not kept
        for text, sample in zip(rendered, self.encode(rendered), strict=True):
            if isinstance(sample, Rejection) or plain.encode(text.text, add_special_tokens=False).ids != sample.ids:
                raise InputError(
                    f"{self._template.name}: the tokenizer of the base model gives other ids for text between control "
                    "tokens than for the whole text. Choose another base model."
                )

    @property
    def is_fast(self) -> bool:
        """Whether it is rendered the faster way."""
        return self._fast is not None

    def add_samples(
        self, segments: Segments, messages: list[Message], tools: Tools, budget: int | None = None
    ) -> int | Rejection:
        """Add the samples of a conversation to `segments`; return their number, or why there are none.

        `budget` is the reasoning budget that the template writes in the prompt.

        Raises:  InputError: the template exceeded its limits.
        """
        before = len(segments.sizes)
        if self._fast is not None and self._add_fast(self._fast, segments, messages, tools, budget):
            return len(segments.sizes) - before
        rendered = self.render_samples(messages, tools, budget)
        if isinstance(rendered, Rejection):
            return rendered
        for each in rendered:
            if rejection := self.tokenizer.add_segments(each, segments):
                segments.truncate(before)
                return rejection
        return len(rendered)

    def _add_fast(
        self, fast: FastNano3, segments: Segments, messages: list[Message], tools: Tools, budget: int | None
    ) -> bool:
        """Add the samples the faster way; return whether that was possible."""
        before = len(segments.sizes)
        reasoned = any(["reasoning_content" in message for message in messages])
        trained = [i for i, turn in enumerate(messages) if turn["role"] == "assistant" and turn.get("loss", True)]
        try:
            if sum([len(message["content"]) for message in messages]) > MAX_CHARS:
                return False
            for first, end in GRANULARITIES[self._coarsest[reasoned]](messages):
                if chosen := [index for index in trained if first <= index < end]:
                    fast.add(segments, messages[:end], chosen, tools, budget)
        except (UnsupportedError, AttributeError, LookupError, TypeError):
            segments.truncate(before)
            return False
        return len(segments.sizes) > before

    def render_samples(
        self, messages: list[Message], tools: Tools, budget: int | None = None
    ) -> list[Rendered] | Rejection:
        """Render a conversation to its samples. Raises InputError: the template exceeded its limits."""
        with limited(self._template.name):
            return self._samples(messages, tools, budget)

    def _samples(self, messages: list[Message], tools: Tools, budget: int | None) -> list[Rendered] | Rejection:
        """Render with the coarsest granularity that is exact."""
        trained = {i for i, turn in enumerate(messages) if turn["role"] == "assistant" and turn.get("loss", True)}
        if not trained:
            return Rejection("nothing-trained", "no assistant turn, or each says loss: false")
        reasoned = any("reasoning_content" in message for message in messages)
        guard = guard_for([messages, tools])
        turns, shielded = self._shield(messages, guard), self.tokenizer.shield(tools, guard)
        outcome: list[Rendered] | Rejection = []
        for granularity in GRANULARITIES[self._coarsest[reasoned] :]:
            outcome = self._render_ranges(granularity(messages), trained, turns, shielded, budget, guard)
            if not isinstance(outcome, Rejection) or outcome.reason != "template-mismatch":
                break
        return outcome

    def _render_ranges(
        self,
        ranges: list[MessageRange],
        trained: set[int],
        turns: list[Message],
        tools: Tools,
        budget: int | None,
        guard: str,
    ) -> list[Rendered] | Rejection:
        """Render the ranges in which something is trained; one rejection rejects all."""
        samples = []
        for first, end in ranges:
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
            if missing := _missing_field(turns[index], turn[len(prompt) : end]):
                return Rejection("template-drops-text", f"messages[{index}].{missing} is not in the rendered turn")
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
        """Return messages as text, without limits. Raises jinja2.TemplateError: the template fails on them."""
        control: dict[str, Any] = {"enable_thinking": thinking}
        if budget is not None:
            control["reasoning_budget"] = budget
        return self._template.render(
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=generation_prompt,
            chat_template_kwargs=control,  # NVIDIA's template for data preparation reads these
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
        assert isinstance(sample, Sample)  # no trained range, so no token can cross one
        return sample.ids

    def encode(self, batch: list[Rendered]) -> list[Sample | Rejection]:
        """Tokenize a batch of rendered samples."""
        return self.tokenizer.encode(batch)

    def decode(self, ids: list[int]) -> str:
        """Return ids as text, control tokens included."""
        return self.tokenizer.decode(ids)

    def _shield(self, messages: list[Message], guard: str) -> list[Message]:
        """Shield messages, except keys and roles; the template does not see `loss`."""
        return [
            {
                key: value if key == "role" else self.tokenizer.shield(value, guard)
                for key, value in message.items()
                if key != "loss"
            }
            for message in messages
        ]


def _missing_field(message: Message, turn: str) -> str:
    """Return the field of a message that its rendered turn does not contain, or ""."""
    for field in ("reasoning_content", "content"):
        if message.get(field, "").strip() not in turn:
            return field
    for index, call in enumerate(message.get("tool_calls", [])):
        if call["function"]["name"] not in turn:
            return f"tool_calls[{index}]"
    return ""


def _divergence(shorter: str, longer: str) -> str:
    start = next((i for i, (a, b) in enumerate(zip(shorter, longer, strict=False)) if a != b), len(longer))
    return f"{shorter[start : start + EVIDENCE_CHARS]!r} became {longer[start : start + EVIDENCE_CHARS]!r} later"


# --- Checks of a template before it is used --------------------------------------------------------------

ASK = {"role": "user", "content": "What is 1 + 1?"}
ANSWER = {"role": "assistant", "content": "It is 2."}
THOUGHT = {"role": "assistant", "content": "It is 2.", "reasoning_content": "Count: 1, 2."}


def _check(chat: ChatTemplate, name: str) -> None:
    """Raise InputError for a template without an exact mask; set the coarsest exact granularity.

    Checks on a conversation of two turns: one granularity is exact; each answer ends with the trained stop token; there
    is at most one BOS. A template may drop or reject reasoning: such conversations are rejected and counted.
    """
    chat._coarsest.update({True: _coarsest_exact(chat, THOUGHT), False: _coarsest_exact(chat, ANSWER)})
    rendered = chat._samples([ASK, ANSWER, ASK, ANSWER], None, None)
    if isinstance(rendered, Rejection):
        why = {
            "template-mismatch": "an answer does not start with its generation prompt, or changes when the "
            "conversation continues, so no exact loss mask exists",
            "no-stop-token": "an answer does not end with the tokenizer's eos_token, so a trained model would never "
            "stop",
            "template-drops-text": "it drops text of an answer",
        }.get(rendered.reason, "it rejects a plain conversation of two turns")
        raise InputError(f"{name}: {why} ({rendered.evidence}). Choose another prep.template.")
    bos, trained_stops = chat.tokenizer.control.get(chat.tokenizer.special.get("bos_token", "")), 0
    for sample in chat.encode(rendered):
        if isinstance(sample, Rejection):
            raise InputError(f"{name}: {sample.evidence}: no exact loss mask exists. Choose another prep.template.")
        if sample.ids[:2] == [bos, bos]:
            raise InputError(
                f"{name}: a sample starts with two BOS tokens, expected one. Choose another prep.template."
            )
        trained_stops += [i for i, kept in zip(sample.ids, sample.mask, strict=True) if kept].count(chat.stop_id)
    if trained_stops != 2:
        raise InputError(
            f"{name}: {chat.stop_token} is not trained at the end of each answer. Choose another prep.template."
        )


def _is_exact(chat: ChatTemplate, fast: FastNano3, messages: list[Message], tools: Tools, budget: int | None) -> bool:
    """Return whether the faster way gives the samples of the template, or leaves them to it."""
    segments = Segments()
    if not chat._add_fast(fast, segments, messages, tools, budget):
        return True
    rendered = chat.render_samples(messages, tools, budget)
    return not isinstance(rendered, Rejection) and chat.encode(rendered) == list(
        iter_samples(segments.encode(chat.tokenizer.encoder))
    )


def _coarsest_exact(chat: ChatTemplate, answer: Message) -> int:
    """Return the index of the coarsest exact granularity for a conversation of two such answers; 0 if none is."""
    messages = [ASK, answer, ASK, answer]
    for index, granularity in enumerate(GRANULARITIES):
        outcome = chat._render_ranges(granularity(messages), {1, 3}, messages, None, None, guard_for(messages))
        if not isinstance(outcome, Rejection):
            return index
    return 0
