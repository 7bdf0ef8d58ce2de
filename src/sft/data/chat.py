"""Chat: conversations -> samples, each a list of token ids and a loss mask made together.

The mask comes from rendering, never from searching for tokens: what an assistant turn adds behind its
generation prompt, up to and including the stop token, is trained; headers, prompts, tool results and
reasoning of earlier turns are not. Text is rendered by the template in a sandbox and tokenised once as a
whole: structure tokens (the tokenizer's added tokens) are inserted by id where the *template* wrote them,
everything between is encoded by a tokenizer that knows no added tokens. So content can never become a
control token, and ordinary text gets the ids that the plain tokenizer gives.

A template for which this cannot be exact is refused when it is loaded, before a token is written.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
from tokenizers import Tokenizer

from sft.command import InputError
from sft.data.conversation import Message, Rejection

Tools = list[dict[str, Any]] | None
PRIVATE_USE = range(0xE000, 0xF8FF)
EVIDENCE_CHARS = 80
# What the expressions of a template raise on data that it does not expect.
TEMPLATE_FAULTS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class Rendered(NamedTuple):
    """The text of one sample and which of its characters are trained."""

    text: str
    spans: list[tuple[int, int]]
    """Trained ranges of characters, in order."""
    guard: str
    """The character put into control-token look-alikes of the content; not part of the text."""


class Sample(NamedTuple):
    """One training sequence. Shapes: ids, mask (T,), T = tokens; mask 1 = this token is trained."""

    ids: list[int]
    mask: list[int]


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template bound to a tokenizer, checked."""

    source: str
    """The template's text."""
    stop_token: str
    stop_id: int
    drops_reasoning: bool
    """Whether turns before the last user message lose their reasoning."""
    _template: jinja2.Template
    _variables: dict[str, str]
    _tokenizer: Tokenizer
    _content: Tokenizer
    _added: dict[str, int]
    _added_pattern: re.Pattern[str]

    @staticmethod
    def load(template: str, tokenizer_folder: Path) -> "ChatTemplate":
        """Load a template (path of a .jinja file), bind it to the tokenizer of a folder, and check it.

        Raises:  InputError: no such file, a template that does not compile, has no exact mask, or does
        not stop; a tokenizer whose pieces do not add up to the whole.
        """
        path = Path(template)
        if not path.is_file():
            raise InputError(
                f"{path}: no such chat template. prep.template is a .jinja file: templates/nano3.jinja is ours, "
                "models/base/chat_template.jinja the one that the base model brings, if it brings one."
            )
        source = path.read_text(encoding="utf-8")
        settings = json.loads((tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8"))
        config = json.loads((tokenizer_folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        settings["post_processor"] = None  # keeps offsets whole, adds nothing
        settings["truncation"] = settings["padding"] = None
        tokenizer = Tokenizer.from_str(json.dumps(settings))
        content = Tokenizer.from_str(json.dumps({**settings, "added_tokens": []}))
        added = {token["content"]: int(token["id"]) for token in settings["added_tokens"]}
        names = {key: _token_text(config.get(key)) for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
        stop = names["eos_token"]
        if stop not in added:
            raise InputError(
                f"{tokenizer_folder}: eos_token is {stop!r}, which is not a control token of the tokenizer"
            )
        chat = ChatTemplate(
            source=source,
            stop_token=stop,
            stop_id=added[stop],
            drops_reasoning=False,
            _template=_compile(path, source),
            _variables={key: text for key, text in names.items() if text},
            _tokenizer=tokenizer,
            _content=content,
            _added=added,
            _added_pattern=re.compile("|".join(re.escape(text) for text in sorted(added, key=len, reverse=True))),
        )
        object.__setattr__(chat, "drops_reasoning", _check(chat, str(path)))
        return chat

    def render(self, messages: list[Message], tools: Tools, *, thinking: bool, generation_prompt: bool) -> str:
        """Render messages to text. Raises jinja2.TemplateError where the template refuses or fails on them."""
        try:
            return self._template.render(
                messages=messages,
                tools=tools,
                add_generation_prompt=generation_prompt,
                enable_thinking=thinking,
                **self._variables,
            )
        except TEMPLATE_FAULTS as error:
            raise jinja2.TemplateError(f"{type(error).__name__}: {error}") from error

    def samples(self, messages: list[Message], tools: Tools) -> list[Rendered] | Rejection:
        """Render a conversation to its samples.

        One sample holds every assistant turn, except where the template drops the reasoning of earlier
        turns: then each user turn makes a sample of its own, in which the answers to it are trained with
        their reasoning and all before is context without.
        """
        guard = _guard(messages, tools)
        messages, tools = self._shield(messages, guard), self._shield(tools, guard)
        reasoned = any("reasoning_content" in message for message in messages)
        try:
            if not (reasoned and self.drops_reasoning):
                rendered = [self._render_sample(messages, tools, 0, guard)]
            else:
                windows = _user_windows(messages)
                rendered = [self._render_sample(messages[:end], tools, start, guard) for start, end in windows]
        except jinja2.TemplateError as error:
            return Rejection("template-refuses", str(error)[:EVIDENCE_CHARS])
        for sample in rendered:
            if isinstance(sample, Rejection):
                return sample
        return [sample for sample in rendered if isinstance(sample, Rendered)]

    def _render_sample(self, messages: list[Message], tools: Tools, first: int, guard: str) -> Rendered | Rejection:
        """Render one sample in which the assistant turns from message `first` on are trained."""
        trained = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i >= first]
        reasoned = any("reasoning_content" in messages[i] for i in trained)
        whole = self.render(messages, tools, thinking=reasoned, generation_prompt=False)
        spans = []
        for index in trained:
            thinking = "reasoning_content" in messages[index]
            prompt = self.render(messages[:index], tools, thinking=thinking, generation_prompt=True)
            turn = self.render(messages[: index + 1], tools, thinking=thinking, generation_prompt=False)
            for shorter, longer in ((prompt, turn), (turn, whole)):
                if not longer.startswith(shorter):
                    return Rejection("template-mismatch", f"messages[{index}]: {_divergence(shorter, longer)}")
            stop = turn.rfind(self.stop_token, len(prompt))
            if stop < 0:
                return Rejection("no-stop-token", f"messages[{index}]: no {self.stop_token} ends the turn")
            spans.append((len(prompt), stop + len(self.stop_token)))
        return Rendered(whole, spans, guard)

    def prompt_ids(self, messages: list[Message], tools: Tools, *, thinking: bool) -> list[int]:
        """Return the ids of a prompt: the messages rendered up to and including the generation prompt."""
        guard = _guard(messages, tools)
        messages, tools = self._shield(messages, guard), self._shield(tools, guard)
        text = self.render(messages, tools, thinking=thinking, generation_prompt=True)
        (sample,) = self.encode([Rendered(text, [], guard)])
        assert isinstance(sample, Sample)  # without spans nothing can cross one
        return sample.ids

    def decode(self, ids: list[int]) -> str:
        """Turn ids into text; control tokens stay, as text."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    def encode(self, batch: list[Rendered]) -> list[Sample | Rejection]:
        """Tokenise a batch of rendered samples: one call of the tokenizer for all of their text."""
        pieces = [list(self._pieces(rendered)) for rendered in batch]
        texts = [piece.text for sample in pieces for piece in sample if piece.added is None]
        encodings = iter(self._content.encode_batch(texts, add_special_tokens=False))
        return [_assemble(rendered, sample, encodings) for rendered, sample in zip(batch, pieces, strict=True)]

    def _pieces(self, rendered: Rendered) -> Iterator["_Piece"]:
        """Cut a text at its control tokens; every piece knows where it starts in the text without guards."""
        position = 0
        for found in self._added_pattern.finditer(rendered.text):
            if found.start() > position:
                yield _Piece(rendered.text[position : found.start()].replace(rendered.guard, ""), position, None)
            yield _Piece(found[0], found.start(), self._added[found[0]])
            position = found.end()
        if position < len(rendered.text):
            yield _Piece(rendered.text[position:].replace(rendered.guard, ""), position, None)

    def _shield(self, value: Any, guard: str) -> Any:
        """Put the guard into every look-alike of a control token in a JSON-like value."""
        if isinstance(value, str):
            return self._added_pattern.sub(lambda found: found[0][0] + guard + found[0][1:], value)
        if isinstance(value, list):
            return [self._shield(item, guard) for item in value]
        if isinstance(value, dict):
            return {self._shield(key, guard): self._shield(item, guard) for key, item in value.items()}
        return value


class _Piece(NamedTuple):
    text: str
    """Without guards."""
    start: int
    """Where it starts in the rendered text, guards counted."""
    added: int | None
    """The id of a control token; None for text."""


def token_id(tokenizer_folder: Path, name: str, default: int | None = None) -> int:
    """Return the id of a named token (`eos_token`, `pad_token`) of a tokenizer; InputError if it has none."""
    settings = json.loads((tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((tokenizer_folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    text = _token_text(config.get(name))
    for token in settings["added_tokens"]:
        if token["content"] == text:
            return int(token["id"])
    if default is None:
        raise InputError(f"{tokenizer_folder}: {name} is {text!r}, which is not a control token of the tokenizer")
    return default


def _assemble(rendered: Rendered, pieces: list[_Piece], encodings: Iterator[Any]) -> Sample | Rejection:
    """Put the ids of the pieces together and mark the trained ones."""
    spans = [(_plain(rendered, start), _plain(rendered, end)) for start, end in rendered.spans]
    ids: list[int] = []
    mask: list[int] = []
    crossing = None
    for piece in pieces:
        start = _plain(rendered, piece.start)
        end = start + len(piece.text)
        near = [(a, b) for a, b in spans if a < end and start < b]
        if piece.added is not None:
            tokens, offsets = [piece.added], [(0, len(piece.text))]
        else:
            encoding = next(encodings)
            tokens, offsets = encoding.ids, encoding.offsets if near else []
        ids += tokens
        if not near:
            mask += [0] * len(tokens)
        for begin, stop in ((start + a, start + b) for a, b in offsets if near):
            inside = any(a <= begin and stop <= b for a, b in near)
            mask.append(int(inside))
            if not inside and any(begin < edge < stop for span in near for edge in span):
                crossing = rendered.text.replace(rendered.guard, "")[begin:stop]
    if crossing is not None:  # after the loop, so that every encoding is taken
        return Rejection("token-crosses-mask", f"token {crossing!r} is part prompt, part answer")
    return Sample(ids, mask)


def _plain(rendered: Rendered, position: int) -> int:
    """Turn a position in the rendered text into one in the text without guards."""
    return position - rendered.text.count(rendered.guard, 0, position)


def _user_windows(messages: list[Message]) -> list[tuple[int, int]]:
    """List (first trained message, end) of the answered user turns of a conversation."""
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    ends = [*users[1:], len(messages)]
    return [(user, end) for user, end in zip(users, ends, strict=True) if end > user + 1]


def _guard(messages: list[Message], tools: Tools) -> str:
    """Choose a character that the conversation does not contain."""
    text = json.dumps([messages, tools], ensure_ascii=False)
    for code in PRIVATE_USE:
        if chr(code) not in text:
            return chr(code)
    raise InputError("a conversation uses every private-use character; it cannot be text")


def _token_text(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else token or ""


def _divergence(shorter: str, longer: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(shorter, longer, strict=False)) if a != b), len(longer))
    return f"{shorter[at : at + EVIDENCE_CHARS]!r} became {longer[at : at + EVIDENCE_CHARS]!r} later"


# --- The template's sandbox, and what is asked of a template before it is used -------------------------


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks of Hugging Face templates: accepted and without effect here."""

    tags = {"generation"}  # noqa: RUF012 (the form that jinja2 prescribes)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Give the body back as it is."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(path: Path, source: str) -> jinja2.Template:
    """Compile a template in a sandbox with the functions that `transformers` gives to chat templates."""
    sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    sandbox.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    sandbox.globals["raise_exception"] = _refuse
    sandbox.globals["strftime_now"] = _no_clock
    try:
        return sandbox.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"{path}:{error.lineno}: not a Jinja template: {error.message}") from error


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _no_clock(_format: str) -> None:
    raise jinja2.TemplateError("the template asks for today's date: the same data would give other tokens tomorrow")


def _check(chat: ChatTemplate, name: str) -> bool:
    """Refuse a template without an exact mask; return whether it drops the reasoning of earlier turns.

    Asked of it, on small conversations: earlier turns do not change when a conversation goes on (but for
    their reasoning); an answer starts with its generation prompt and ends with the trained stop token; at
    most one BOS; the pieces tokenised apart are the whole tokenised at once.
    """
    ask, answer = {"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "It is 2."}
    thought = {"role": "assistant", "content": "It is 2.", "reasoning_content": "Count: 1, 2."}
    rendered = chat.samples([ask, answer, ask, answer], None)
    if isinstance(rendered, Rejection):
        why = {
            "template-mismatch": "an earlier turn is rendered otherwise once the conversation goes on, or an answer "
            "does not start with its generation prompt, so no exact loss mask exists",
            "no-stop-token": "an answer does not end with the tokenizer's eos_token, so a model trained on it "
            "would never stop",
        }.get(rendered.reason, "it refuses a plain conversation of two turns")
        raise InputError(f"{name}: {why} ({rendered.evidence}). Choose another prep.template.")
    (sample,) = chat.encode(rendered)
    if isinstance(sample, Rejection):
        raise InputError(f"{name}: {sample.evidence}: this tokenizer joins prompt and answer into one token")
    if sum(token == chat.stop_id for token, kept in zip(sample.ids, sample.mask, strict=True) if kept) != 2:
        raise InputError(f"{name}: the stop token {chat.stop_token} is not trained at the end of each answer")
    whole = chat._tokenizer.encode(rendered[0].text, add_special_tokens=False).ids
    if whole != sample.ids:
        raise InputError(f"{name}: this tokenizer gives other ids for a text cut at control tokens than for the whole")
    bos = chat._added.get(chat._variables.get("bos_token", ""))
    if sample.ids[:2] == [bos, bos]:
        raise InputError(f"{name}: a sample starts with two BOS tokens")
    try:
        alone = chat.render([ask, thought], None, thinking=True, generation_prompt=False)
        later = chat.render([ask, thought, ask, thought], None, thinking=True, generation_prompt=False)
    except jinja2.TemplateError as error:
        raise InputError(f"{name}: it fails on a conversation with reasoning: {error}") from error
    return not later.startswith(alone)
