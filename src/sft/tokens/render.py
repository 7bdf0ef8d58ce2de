"""Render: conversations -> samples, each a list of token ids and a loss mask made together.

Trained is what an assistant turn adds behind its generation prompt, up to and including the stop token. Not trained
are headers, prompts, tool results, reasoning of earlier turns, and turns with `loss: false`. The template
(sft.tokens.template) renders the text, which is tokenized once as a whole (sft.tokens.tokenizer); content cannot become
structure. A template without an exact mask fails when it is loaded, before a token is written (sft.tokens.checks).

A conversation is one sample if that is exact, else as few as possible (sft.tokens.partition). The reference renders the
prompt and the end of each turn and compares (sft.tokens.spans). A sample is rendered once only where that gives the
same, which is asked for each shape of a conversation (sft.tokens.shapes). For templates/nano3.jinja there is a way
without Jinja (sft.tokens.fast_nano3).
"""

import contextlib
import functools
import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2

from sft import chat_files
from sft.cli import InputError
from sft.conversation import NO_KWARGS, Message, Rejection, TemplateKwargs, Tools, trained_turns
from sft.tokens import checks
from sft.tokens.completeness import missing_in_tool
from sft.tokens.fast_nano3 import MAX_CACHED_TOOLS, SHA256, FastNano3
from sft.tokens.forms import SPLICED, USUAL, Form, make_turns
from sft.tokens.partition import Part, partition
from sft.tokens.row_kwargs import NOT_OF_ROWS
from sft.tokens.segments import Segments
from sft.tokens.shapes import Shape, example_of, shape_of
from sft.tokens.spans import (
    DROPS,
    DROPS_CONTEXT,
    EVIDENCE_CHARS,
    ByHeaders,
    ByPrompts,
    Header,
    IrregularError,
    Render,
    Stops,
    mask_reasoning,
    render_parts,
)
from sft.tokens.template import Template, limited
from sft.tokens.tokenizer import FIRST_GUARD, Rendered, SafeTokenizer, Sample, any_of, guard_for, restore_guard

if TYPE_CHECKING:
    from sft.params.data import Prep


class Settings(NamedTuple):
    """`prep` of params.yaml: what a template does not say itself."""

    stop_tokens: tuple[str, ...] = ()
    """Further tokens that end an answer, beside those of the model."""
    date: str | None = None
    """What the template writes as today's date."""
    train_answers: str = "all"
    """all, or last: of each conversation."""
    train_reasoning: str = "all"
    """all, except-cut-ends: not what closes reasoning that was cut, or none."""

    @classmethod
    def of(cls, prep: "Prep") -> "Settings":
        """Return those of `prep` of params.yaml."""
        return cls(tuple(prep.stop_tokens), prep.date, prep.train_answers, prep.train_reasoning)

    @classmethod
    def of_task(cls, values: list[Any]) -> "Settings":
        """Return those of a task, which is JSON: tuples become lists."""
        return cls(tuple(values[0]), *values[1:])


NO_SETTINGS = Settings()
Cut = frozenset[int]
NOT_CUT: Cut = frozenset()
# Conversations of agents may each have a shape of its own. What is forgotten is asked again, with the same answer.
MAX_SHAPES = 4096


class Support(NamedTuple):
    """What is known about conversations of a shape."""

    by_headers: bool
    """Whether `ByHeaders` gives the samples of `ByPrompts`."""
    parts: list[Part] | None = None
    """The samples of each such conversation; None if the shape is not the whole."""
    fault: Rejection | None = None
    """What the template leaves out of them."""


@dataclass
class ChatTemplate:
    """A checked chat template with its tokenizer."""

    source: str = field(repr=False)
    """The template's text."""
    stop_token: str
    """The tokenizer's eos_token, or the first token that ends answers."""
    stop_id: int
    stop_ids: tuple[int, ...]
    """All tokens that end an answer, `stop_id` first."""
    tokenizer: SafeTokenizer = field(repr=False)
    _template: Template = field(repr=False)
    stops: Stops = field(repr=False)
    settings: Settings = NO_SETTINGS
    form: Form = USUAL
    """How the template gets reasoning and arguments."""
    modes: dict[str, str] = field(default_factory=dict)
    """Kinds of conversations that it cannot render exactly, and why."""
    _header: Header | None = None
    _behind_last: tuple[str, str] = ("", "")
    """The stop token behind a last answer without and with calls, if the template writes it with the next turn."""
    _support: dict[tuple[Shape, str], Support] = field(default_factory=dict, repr=False)
    _tools: dict[tuple[int, str], tuple[Tools, Tools]] = field(default_factory=dict, repr=False)
    """By identity and guard: tools, and the same shielded."""
    _fast: FastNano3 | None = None
    """The way without Jinja, if there is one."""

    @staticmethod
    def load(
        template: str, tokenizer_folder: Path, whole: bool = True, fast: bool = False, settings: Settings = NO_SETTINGS
    ) -> "ChatTemplate":
        """Load a template (a path, see sft.chat_files) and the tokenizer of a folder, and check them.

        Without `whole`, `check_whole`, which loads the tokenizer a second time, is left to another process. `fast`: use
        the faster tokenizer, if its ids are the same.

        Raises:  InputError: the template does not exist, does not compile, has no exact mask, does not stop, or exceeds
        its limits; or the tokenizer gives other ids for segments than for the whole text.
        """
        compiled, tokenizer = Template(Path(template), settings.date), SafeTokenizer(tokenizer_folder, fast)
        stops = _stop_tokens(tokenizer_folder, tokenizer, settings)
        chat = ChatTemplate(compiled.source, "", 0, (), tokenizer, compiled, Stops(re.compile(any_of(()))), settings)
        chat._set_stops(stops)
        eos = tokenizer.special.get("eos_token", "")
        with limited(compiled.name):
            ending = checks.find_ending(chat)
            if ending.token:
                chat._set_stops([*stops, ending.token])
            if not chat.stop_ids or (eos and eos not in tokenizer.control):
                raise InputError(
                    f"{tokenizer_folder}/tokenizer_config.json: eos_token: found {eos!r}, expected a control token"
                )
            chat._behind_last = ending.behind_last
            chat._header = checks.find_header(chat)
            chat.modes = checks.check(chat, compiled.name)
        if whole:
            chat.check_whole()
        if settings.train_reasoning == "all" and hashlib.sha256(compiled.source.encode()).hexdigest() == SHA256:
            fast_nano3 = FastNano3(tokenizer)
            if fast_nano3.supports({*stops, ending.token} - {""}, compiled.source):
                chat._fast = fast_nano3
        return chat

    def _set_stops(self, tokens: list[str]) -> None:
        self.stop_ids = tuple(dict.fromkeys(self.tokenizer.control[token] for token in tokens))
        self.stops = Stops(re.compile(any_of(tokens)))
        if tokens:
            self.stop_token, self.stop_id = tokens[0], self.stop_ids[0]

    def check_whole(self) -> None:
        """Raise InputError unless the segments of a conversation get the ids of the whole text."""
        rendered = self.render_samples(checks.PLAIN, None)
        if isinstance(rendered, Rejection):
            rendered = self.render_samples(checks.REASONED, None)
        assert not isinstance(rendered, Rejection)  # such templates are not loaded
        plain = self.tokenizer.load_plain()  # large, not kept
        for text, sample in zip(rendered, self.encode(rendered), strict=True):
            if isinstance(sample, Rejection) or plain.encode(text.text, add_special_tokens=False).ids != sample.ids:
                raise InputError(
                    f"{self._template.name}: the tokenizer of the base model gives other ids for text between control "
                    "tokens than for the whole text. Choose another base model."
                )

    def limited(self) -> contextlib.AbstractContextManager[None]:
        """Limit memory and time of rendering until the block ends (sft.tokens.template); methods do so themselves."""
        return limited(self._template.name)

    @property
    def opener(self) -> int | None:
        """The control token that opens an assistant turn, if the template has one."""
        found = self.tokenizer.pattern.match(self._header.text) if self._header else None
        return self.tokenizer.control[found[0]] if found else None

    def header_ids(self, *, thinking: bool) -> list[int]:
        """Return the ids of the header of an assistant turn, inside its reasoning or not; [] if that is not known."""
        if self._header is None:
            return []
        (sample,) = self.encode([Rendered(self._header.prompts[thinking], [], FIRST_GUARD)])
        assert isinstance(sample, Sample)  # no trained range, so no token can cross one
        return sample.ids

    @property
    def is_fast(self) -> bool:
        """Whether it is rendered without Jinja."""
        return self._fast is not None

    def add_samples(
        self,
        segments: Segments,
        messages: list[Message],
        tools: Tools,
        budget: int | None = None,
        cut: Cut = NOT_CUT,
        kwargs: TemplateKwargs = NO_KWARGS,
    ) -> int | Rejection:
        """Add the samples of a conversation to `segments`; return their number, or why there are none.

        `budget` is the reasoning budget that the template writes in the prompt; `cut`: messages whose reasoning is cut;
        `kwargs`: what the row gives the template (sft.tokens.row_kwargs).

        Raises:  InputError: the template exceeded its limits.
        """
        before = len(segments.sizes)
        if self._fast is not None and not kwargs and self._fast.add_samples(segments, messages, tools, budget):
            return len(segments.sizes) - before
        rendered = self.render_samples(messages, tools, budget, cut, kwargs)
        if isinstance(rendered, Rejection):
            return rendered
        for each in rendered:
            if rejection := self.tokenizer.add_segments(each, segments):
                segments.truncate(before)
                return rejection
        return len(rendered)

    def render_samples(
        self,
        messages: list[Message],
        tools: Tools,
        budget: int | None = None,
        cut: Cut = NOT_CUT,
        kwargs: TemplateKwargs = NO_KWARGS,
    ) -> list[Rendered] | Rejection:
        """Render a conversation to its samples. Raises InputError: the template exceeded its limits."""
        with self.limited():
            support = self._support_of(shape_of(messages, tools), kwargs)
            render, trained = self._prepare(messages, tools, budget, kwargs)
            if support.by_headers and budget is None and not self._looks_for_text_of(messages):
                rendered = self._by_headers(render, trained, support.parts)
                if rendered is not None:
                    return self._mask_reasoning(rendered, render, cut)
            _, outcome = self._by_prompts(render, trained)
            if isinstance(outcome, Rejection):
                return outcome
            return support.fault or self._mask_reasoning(outcome, render, cut)

    def _mask_reasoning(self, samples: list[Rendered], render: Render, cut: Cut) -> list[Rendered] | Rejection:
        """Return the samples with the reasoning masked that `prep.train_reasoning` leaves out."""
        if self.settings.train_reasoning == "all":
            return samples
        of = None if self.settings.train_reasoning == "none" else cut
        masked = list[Rendered]()
        for sample in samples:
            outcome = mask_reasoning(sample, render.turns.plain, self._closing, of)
            if isinstance(outcome, Rejection):
                return outcome
            masked.append(outcome)
        return masked

    @functools.cached_property
    def _closing(self) -> str:
        """What the template writes behind reasoning, without blanks, such as `</think>`."""
        rendered, thought = self.render_by_prompts(checks.REASONED, None), checks.THOUGHT
        text = "" if isinstance(rendered, Rejection) else rendered[-1].text
        return text.rpartition(thought["reasoning_content"])[2].partition(thought["content"])[0].strip()

    def left_out(self, messages: list[Message], tools: Tools) -> Rejection | None:
        """Return what the template leaves out of any conversation of the same shape, without limits."""
        return self._support_of(shape_of(messages, tools)).fault

    def _looks_for_text_of(self, messages: list[Message]) -> bool:
        looks_for = self._template.looks_for
        return any([text in message["content"] for message in messages for text in looks_for])

    def _support_of(self, shape: Shape, kwargs: TemplateKwargs = NO_KWARGS) -> Support:
        """Return what is known about a shape, with arguments of the template; ask when it is first seen."""
        key = shape, repr(sorted(kwargs.items()))  # True is not 1
        support = self._support.get(key)
        if support is None:
            if len(self._support) >= MAX_SHAPES:
                self._support.clear()
            support = self._support[key] = self._ask(shape, kwargs)
        return support

    def _ask(self, shape: Shape, kwargs: TemplateKwargs) -> Support:
        messages, tools = example_of(shape)
        render, trained = self._prepare(messages, tools, None, kwargs)
        parts, expected = self._by_prompts(render, trained)
        if isinstance(expected, Rejection):
            return Support(False, fault=expected if expected.reason in DROPS else None)
        for tool in tools or ():
            if missing := missing_in_tool(tool, expected[-1].text):
                fault = Rejection(DROPS_CONTEXT, f"tools: the {missing} of a tool is not in the rendered text")
                return Support(False, fault=fault)
        known = parts if shape.is_whole else None
        return Support(self._by_headers(render, trained, known) == expected, known)

    def _by_headers(self, render: Render, trained: list[int], parts: list[Part] | None) -> list[Rendered] | None:
        """Render each sample once; None if that is not surely exact. `parts`: the samples, if they are known."""
        if self._header is None:
            return None
        way = ByHeaders(render, self.stops, self._header)
        try:
            found = partition(trained, render.thinks, way.exact) if parts is None else parts
            samples = render_parts(render, way, found) if isinstance(found, list) else []
        except (IrregularError, jinja2.TemplateError):
            return None
        return samples if isinstance(samples, list) and samples else None

    def render_by_prompts(
        self, messages: list[Message], tools: Tools, budget: int | None = None
    ) -> list[Rendered] | Rejection:
        """Render a conversation to its samples by the reference, without limits."""
        return self._by_prompts(*self._prepare(messages, tools, budget))[1]

    def _by_prompts(self, render: Render, trained: list[int]) -> tuple[list[Part], list[Rendered] | Rejection]:
        if not trained:
            return [], Rejection("nothing-trained", "no assistant turn, or each says loss: false")
        way = ByPrompts(render, self.stops)
        try:
            parts = partition(trained, render.thinks, way.exact)
            if isinstance(parts, list):
                return parts, render_parts(render, way, parts)
        except jinja2.TemplateError as error:
            return [], Rejection("template-refuses", _shorten(str(error)))
        reason = way.faults[parts].reason
        return [], min((turn, fault) for turn, fault in way.faults.items() if fault.reason == reason)[1]

    @functools.cached_property
    def row_kwargs(self) -> frozenset[str]:
        """The arguments that a row may give the template: variables that it reads and that nothing else sets."""
        return self._template.reads - NOT_OF_ROWS - self.tokenizer.special.keys()

    def _prepare(
        self, messages: list[Message], tools: Tools, budget: int | None, kwargs: TemplateKwargs = NO_KWARGS
    ) -> tuple[Render, list[int]]:
        """Return a conversation ready to render, and which of its turns are trained."""
        trained = trained_turns(messages)
        texts_in = [messages, tools, *kwargs.values()]
        guard = guard_for(texts_in)
        shield = functools.partial(self.tokenizer.shield, guard=guard)
        mark = guard_for([*texts_in, guard]) if self.form.reasoning == SPLICED else ""
        turns = make_turns(messages, self._shield_tools(tools, guard), self.form, shield, guard, mark)
        texts: dict[tuple[Any, ...], str] = {}

        def text(number: int, *, thinking: bool, budget: int | None, generation_prompt: bool = False) -> str:
            key = number, thinking, budget, generation_prompt
            if key not in texts:
                shown = turns.first(number, generation_prompt)
                rendered = self._render(shown, turns.tools, thinking, budget, generation_prompt, kwargs)
                rendered = restore_guard(rendered, guard)
                if mark:
                    rendered = turns.with_tags(restore_guard(rendered, mark))
                    if mark in rendered:
                        raise jinja2.TemplateError("the template writes reasoning in an answer not once")
                if not generation_prompt and shown and shown[-1]["role"] == "assistant":
                    rendered += self._behind_last["tool_calls" in shown[-1]]
                texts[key] = rendered
            return texts[key]

        return Render(turns, ["reasoning_content" in message for message in messages], budget, text), trained

    def _shield_tools(self, tools: Tools, guard: str) -> Tools:
        """Shield tools; those of the last conversations are kept, because many conversations share them."""
        if not tools:
            return tools
        kept, shielded = self._tools.get((id(tools), guard), (None, None))
        if kept is not tools:
            if len(self._tools) >= MAX_CACHED_TOOLS:
                self._tools.clear()
            shielded = self.tokenizer.shield(tools, guard)
            self._tools[id(tools), guard] = tools, shielded
        return shielded

    def render(
        self,
        messages: list[Message],
        tools: Tools,
        *,
        thinking: bool,
        budget: int | None = None,
        generation_prompt: bool = False,
    ) -> str:
        """Return messages in normal form as text, without limits. Raises jinja2.TemplateError: the template fails."""
        turns = make_turns(messages, tools, self.form, lambda value: value, "")
        return self._render(turns.messages, tools, thinking, budget, generation_prompt)

    def _render(
        self,
        messages: list[Message],
        tools: Tools,
        thinking: bool,
        budget: int | None,
        generation_prompt: bool,
        kwargs: TemplateKwargs = NO_KWARGS,
    ) -> str:
        control: dict[str, Any] = {**kwargs, "enable_thinking": thinking}
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

    def prompt_ids(
        self,
        messages: list[Message],
        tools: Tools,
        *,
        thinking: bool,
        budget: int | None = None,
        kwargs: TemplateKwargs = NO_KWARGS,
    ) -> list[int]:
        """Return the ids of a prompt: the messages rendered up to and including the generation prompt."""
        render, _ = self._prepare(messages, tools, budget, kwargs)
        with self.limited():
            text = render.text(len(messages), thinking=thinking, budget=budget, generation_prompt=True)
        (sample,) = self.encode([Rendered(text, [], render.turns.guard)])
        assert isinstance(sample, Sample)  # no trained range, so no token can cross one
        return sample.ids

    def encode(self, batch: list[Rendered]) -> list[Sample | Rejection]:
        """Tokenize a batch of rendered samples."""
        return self.tokenizer.encode(batch)

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a text."""
        return self.tokenizer.encoder.count(text)

    def decode(self, ids: list[int]) -> str:
        """Return ids as text, control tokens included."""
        return self.tokenizer.decode(ids)


def _stop_tokens(folder: Path, tokenizer: SafeTokenizer, settings: Settings) -> list[str]:
    """Return the control tokens that end an answer: eos_token, those of generation_config.json, those of the params.

    Raises:  InputError: one of the params is no control token.
    """
    for token in settings.stop_tokens:
        if token not in tokenizer.control:
            raise InputError(f"prep.stop_tokens: {token!r} is no control token of {folder}/tokenizer.json")
    names = {number: token for token, number in tokenizer.control.items()}
    of_model = [tokenizer.special.get("eos_token", ""), *(names.get(i, "") for i in chat_files.stop_ids(folder))]
    return list(dict.fromkeys(token for token in [*of_model, *settings.stop_tokens] if token in tokenizer.control))


def _shorten(text: str) -> str:
    """Return the first words of a text, at most EVIDENCE_CHARS characters."""
    return text if len(text) <= EVIDENCE_CHARS else text[: EVIDENCE_CHARS - 3].rpartition(" ")[0] + " ..."
