"""Tokenizer: text with marked ranges -> token ids and a mask, so that content never becomes structure.

Structure is the tokenizer's control tokens (its added tokens). Before a template renders, `shield` puts a guard
character into every text that looks like one, or like a part of one that other text or the template's own
brackets would complete; what is still one afterwards was written by the template. `encode` cuts there: control
tokens are inserted by id, everything between is encoded, without guards, by a tokenizer that knows no control
tokens. So ordinary text gets the ids that the plain tokenizer gives, and pieces add up to the whole.
"""

import json
import re
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from tokenizers import Tokenizer

from sft.cli import InputError
from sft.conversation import Rejection
from sft.tokens.encoder import Engine, describe
from sft.tokens.segments import UNTRAINED, Pieces, Samples

PRIVATE_USE = range(0xE000, 0xF8FF)
# Keys of calls and tools that templates look up by name; they are ours, and stay as they are.
LOOKED_UP = {"type", "function", "name", "arguments", "description", "parameters", "properties", "required"}
PUNCTUATED = re.compile(r"(\W*).*?(\W*)", re.DOTALL)


class Rendered(NamedTuple):
    """The text of one sample and which of its characters are trained."""

    text: str
    spans: list[tuple[int, int]]
    """Trained ranges of characters, in order, one for each trained turn; each ends with a stop token."""
    guard: str
    """The character put into control-token look-alikes of the content; not part of the text."""


class Sample(NamedTuple):
    """One training sequence. Shapes: ids, mask (T,), T = tokens; mask 1 = this token is trained."""

    ids: list[int]
    mask: list[int]
    turn_ends: list[int]
    """Index behind the stop token of each trained turn, ascending: a cut there leaves whole turns."""


class SafeTokenizer:
    """A tokenizer that takes structure from templates and nothing but text from content."""

    def __init__(self, folder: Path, quick: bool = False) -> None:
        """Load tokenizer.json and tokenizer_config.json of a Hugging Face folder; `quick`: see Engine."""
        self._file = folder.absolute() / "tokenizer.json"
        settings, config = _read(folder)
        settings = {**settings, "post_processor": None, "truncation": None, "padding": None}  # adds and cuts nothing
        tokens = settings["added_tokens"]
        # Runs of blanks and single characters are text that a vocabulary happens to hold as added tokens.
        self.control = {token["content"]: int(token["id"]) for token in tokens if len(token["content"].strip()) > 1}
        """Id of each control token, by its text."""
        names = {key: _token_text(config.get(key)) for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
        self.special = {key: text for key, text in names.items() if text}
        """Text of bos_token, eos_token, pad_token, unk_token: those that there are."""
        others = [token for token in tokens if token["content"] not in self.control]
        described = describe({**settings, "added_tokens": others})
        del settings  # large: goes before tokenizers are loaded
        self.engine = Engine(described, quick)
        """Encodes content: knows no control tokens."""
        self.pattern = re.compile(_any_of(self.control))
        """Finds control tokens in rendered text."""
        self._parts = _Parts.of(self.control)

    def whole(self) -> Tokenizer:
        """Load the plain tokenizer, which takes structure from any text."""
        tokenizer = Tokenizer.from_file(str(self._file))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def _whole(self) -> Tokenizer:
        return self.whole()

    def shield(self, value: Any, guard: str) -> Any:
        """Put the guard wherever a text in a JSON-like value could become a control token."""
        if isinstance(value, str):
            return self._shield_text(value, guard)
        if isinstance(value, list):
            return [self.shield(item, guard) for item in value]
        if isinstance(value, dict):
            return {
                key if key in LOOKED_UP else self._shield_text(key, guard): self.shield(item, guard)
                for key, item in value.items()
            }
        return value

    def _shield_text(self, text: str, guard: str) -> str:
        """Break what is a control token, and at the ends what could become one with what stands beside it."""
        parts, bare, longest = self._parts, text.strip(), self._parts.lengths.stop
        if not any(bracket in bare for bracket in parts.brackets) and not (len(bare) < longest and bare in parts.inner):
            return text
        text = self.pattern.sub(lambda found: found[0][0] + guard + found[0][1:], text)
        bare = text.strip()
        head, tail = bare[:longest], bare[-longest:]
        starts = any(bracket in head for bracket in parts.brackets)  # each part that closes a token ends with one
        if head in parts.inner or (starts and any(head[:length] in parts.closing for length in parts.lengths)):
            start = len(text) - len(text.lstrip())  # inside the blanks: a template may trim them
            text = text[:start] + guard + text[start:]
        ends = any(bracket in tail for bracket in parts.brackets)
        if ends and any(tail[-length:] in parts.opening for length in parts.lengths):
            end = len(text.rstrip())
            text = text[:end] + guard + text[end:]
        return text

    def encode(self, batch: list[Rendered]) -> list[Sample | Rejection]:
        """Tokenise a batch of rendered samples: one call of the tokenizer for all of their text."""
        pieces = Pieces()
        refused = {index: fault for index, rendered in enumerate(batch) if (fault := self.cut(rendered, pieces))}
        encoded = samples_of(pieces.encode(self.engine))
        return [refused[index] if index in refused else next(encoded) for index in range(len(batch))]

    def cut(self, rendered: Rendered, pieces: Pieces) -> Rejection | None:
        """Cut a text at its control tokens and add it to `pieces` as a sample, or say why it cannot be one.

        A span that begins or ends inside a control token, or ends inside a text, is no span.
        """
        text, guard, position = rendered.text, rendered.guard, 0
        spans, nowhere = iter(rendered.spans), (len(text) + 1, len(text) + 1)
        start, end = next(spans, nowhere)
        matches = [(found.start(), found.end()) for found in self.pattern.finditer(text)]
        for before, behind in [*matches, (len(text), len(text))]:
            plain, place = text[position:before].replace(guard, ""), UNTRAINED
            if start < before and position < end:
                if end < before:
                    pieces.forget(len(pieces.sizes))
                    return _crossing(text[position:before])
                place = len(text[position : max(position, start)].replace(guard, ""))
                if end == before:
                    pieces.add(plain, place, end=1)
                    plain, place = "", UNTRAINED
                    start, end = next(spans, nowhere)
            if before < behind:
                run, trained = (self.control[text[before:behind]],), start < behind and before < end
                if trained and not (start <= before and behind <= end):
                    pieces.forget(len(pieces.sizes))
                    return _crossing(text[before:behind])
                ends = trained and end == behind
                pieces.add(plain, place, run, int(trained), end=2 if ends else 0)
                if ends:
                    start, end = next(spans, nowhere)
            elif plain:
                pieces.add(plain, place)
            position = behind
        pieces.finish()
        return None

    def literal(self, text: str) -> "Literal":
        """Cut a text that a template writes at its first and behind its last control token."""
        matches = list(self.pattern.finditer(text))
        if not matches:
            return Literal(text, (), "")
        run: list[int] = []
        for found, following in zip(matches, [*matches[1:], None], strict=True):
            run.append(self.control[found[0]])
            if following and following.start() > found.end():
                run += self.engine.encode([text[found.end() : following.start()]])[0].tolist()
        return Literal(text[: matches[0].start()], tuple(run), text[matches[-1].end() :])

    def whole_ids(self, text: str) -> list[int]:
        """Tokenise a text as the plain tokenizer does, whoever wrote what looks like structure in it."""
        ids: list[int] = self._whole.encode(text, add_special_tokens=False).ids
        return ids

    def ranges(self, text: str, most: int | None = None) -> list[tuple[int, int]]:
        """Say which characters of a content each of its tokens covers; tokens may share a character."""
        return self.engine.ranges(text, most)

    def decode(self, ids: list[int]) -> str:
        """Turn ids into text; control tokens stay, as text."""
        return str(self._whole.decode(ids, skip_special_tokens=False))


class Literal(NamedTuple):
    """A text of a template, cut at its control tokens."""

    head: str
    run: tuple[int, ...]
    """The ids from its first control token to its last."""
    tail: str


def samples_of(columns: Samples) -> Iterator[Sample | Rejection]:
    """Yield samples one by one."""
    ends, turns = np.cumsum(columns.sizes).tolist(), np.cumsum(columns.turns).tolist()
    for index, (start, end, turn, turn_end) in enumerate(zip([0, *ends], ends, [0, *turns], turns, strict=False)):
        rows = columns.ids[start:end], columns.mask[start:end], columns.turn_ends[turn:turn_end]
        yield columns.refused.get(index) or Sample(*(row.tolist() for row in rows))


def _crossing(token: str) -> Rejection:
    return Rejection("token-crosses-mask", f"token {token!r} is part prompt, part answer")


def _any_of(texts: Collection[str]) -> str:
    """Return a pattern for the longest of some texts that starts at a place: it fails at the first wrong character."""
    if not texts:
        return "(?!)"
    following: dict[str, list[str]] = {}
    for text in sorted(texts, key=len, reverse=True):
        following.setdefault(text[:1], []).append(text[1:])
    ends = following.pop("", None) is not None
    branches = [re.escape(first) + (_any_of(rest) if rest != [""] else "") for first, rest in following.items()]
    if not branches:
        return ""
    return f"(?:{'|'.join(branches)})" + ("?" if ends else "")


class _Parts(NamedTuple):
    """What becomes a control token when it stands beside other text."""

    closing: frozenset[str]
    """Control tokens without their start: `end|>` of `<|im_end|>`."""
    opening: frozenset[str]
    """Without their end: `<|im`."""
    inner: frozenset[str]
    """Without outer punctuation, which a template writes around a text: `im_end`, `|im_end|`."""
    lengths: range
    """Of the closing and opening ones."""
    brackets: str
    """The first and last characters of control tokens: a text without them is an inner part or none."""

    @staticmethod
    def of(tokens: Collection[str]) -> "_Parts":
        closing = frozenset(token[start:] for token in tokens for start in range(1, len(token)))
        opening = frozenset(token[:stop] for token in tokens for stop in range(1, len(token)))
        inner = set[str]()
        for token in tokens:
            if found := PUNCTUATED.fullmatch(token):
                starts, stops = range(1, found.end(1) + 1), range(found.start(2), len(token))
                inner.update(token[start:stop] for start in starts for stop in stops)
        ends = "".join(sorted({character for token in tokens for character in (token[0], token[-1])}))
        lengths = range(1, max(map(len, tokens), default=1))
        return _Parts(closing, opening, frozenset(inner - {""}), lengths, ends)


def guard_for(value: Any) -> str:
    """Choose a character that a JSON-like value does not contain."""
    text = json.dumps(value, ensure_ascii=False)
    for code in PRIVATE_USE:
        if chr(code) not in text:
            return chr(code)
    raise InputError("a conversation uses every private-use character; it cannot be text")


def token_id(folder: Path, name: str, default: int | None = None) -> int:
    """Return the id of a named token (`eos_token`, `pad_token`) of a tokenizer; InputError if it has none."""
    settings, config = _read(folder)
    text = _token_text(config.get(name))
    for token in settings["added_tokens"]:
        if token["content"] == text:
            return int(token["id"])
    if default is None:
        raise InputError(f"{folder}: {name} is {text!r}, which is not a control token of the tokenizer")
    return default


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read tokenizer.json and tokenizer_config.json. Raises InputError: they are no tokenizer's."""
    found = []
    for name, wanted in (("tokenizer.json", {"added_tokens", "model"}), ("tokenizer_config.json", set())):
        try:
            value = orjson.loads((folder / name).read_bytes())
        except orjson.JSONDecodeError as error:
            raise InputError(f"{folder / name}: not JSON: {error}. Run: dvc repro --force fetch-model") from error
        if not isinstance(value, dict) or not wanted <= value.keys():
            raise InputError(f"{folder / name}: not of a tokenizer. Run: dvc repro --force fetch-model")
        found.append(value)
    settings, config = found
    return settings, config


def _token_text(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else token or ""
