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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from sft.command import InputError
from sft.data.conversation import Rejection

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


@dataclass(frozen=True)
class SafeTokenizer:
    """A tokenizer that takes structure from templates and nothing but text from content."""

    special: dict[str, str]
    """Text of bos_token, eos_token, pad_token, unk_token: those that there are."""
    control: dict[str, int]
    """Id of each control token, by its text."""
    _whole: Tokenizer
    _content: Tokenizer
    _pattern: re.Pattern[str]
    _parts: "_Parts"

    @staticmethod
    def load(folder: Path) -> "SafeTokenizer":
        """Load tokenizer.json and tokenizer_config.json of a Hugging Face folder."""
        settings, config = _read(folder)
        settings["post_processor"] = None  # keeps offsets whole, adds nothing
        settings["truncation"] = settings["padding"] = None
        tokens = settings["added_tokens"]
        # Runs of blanks and single characters are text that a vocabulary happens to hold as added tokens.
        control = {token["content"]: int(token["id"]) for token in tokens if len(token["content"].strip()) > 1}
        texts = [token for token in tokens if token["content"] not in control]
        names = {key: _token_text(config.get(key)) for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
        return SafeTokenizer(
            special={key: text for key, text in names.items() if text},
            control=control,
            _whole=Tokenizer.from_str(json.dumps(settings)),
            _content=Tokenizer.from_str(json.dumps({**settings, "added_tokens": texts})),
            _pattern=re.compile("|".join(re.escape(text) for text in sorted(control, key=len, reverse=True)) or "(?!)"),
            _parts=_Parts.of(control),
        )

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
        parts, bare = self._parts, text.strip()
        if bare not in parts.inner and not parts.brackets.search(bare):
            return text
        text = self._pattern.sub(lambda found: found[0][0] + guard + found[0][1:], text)
        bare = text.strip()
        if bare in parts.inner or any(bare[:length] in parts.closing for length in parts.lengths):
            start = len(text) - len(text.lstrip())  # inside the blanks: a template may trim them
            text = text[:start] + guard + text[start:]
        if any(bare[-length:] in parts.opening for length in parts.lengths):
            end = len(text.rstrip())
            text = text[:end] + guard + text[end:]
        return text

    def encode(self, batch: list[Rendered]) -> list[Sample | Rejection]:
        """Tokenise a batch of rendered samples: one call of the tokenizer for all of their text."""
        pieces = [list(self._pieces(rendered)) for rendered in batch]
        texts = [piece.text for sample in pieces for piece in sample if piece.control is None]
        encodings = iter(self._content.encode_batch(texts, add_special_tokens=False))
        return [_assemble(rendered, sample, encodings) for rendered, sample in zip(batch, pieces, strict=True)]

    def _pieces(self, rendered: Rendered) -> Iterator["_Piece"]:
        """Cut a text at its control tokens."""
        position = 0
        for found in self._pattern.finditer(rendered.text):
            if found.start() > position:
                yield _Piece(rendered.text[position : found.start()].replace(rendered.guard, ""), position, None)
            yield _Piece(found[0], found.start(), self.control[found[0]])
            position = found.end()
        if position < len(rendered.text):
            yield _Piece(rendered.text[position:].replace(rendered.guard, ""), position, None)

    def whole_ids(self, text: str) -> list[int]:
        """Tokenise a text as the plain tokenizer does, whoever wrote what looks like structure in it."""
        ids: list[int] = self._whole.encode(text, add_special_tokens=False).ids
        return ids

    def ranges(self, text: str) -> list[tuple[int, int]]:
        """Say which characters of a content each of its tokens covers; tokens may share a character."""
        offsets: list[tuple[int, int]] = self._content.encode(text, add_special_tokens=False).offsets
        return offsets

    def decode(self, ids: list[int]) -> str:
        """Turn ids into text; control tokens stay, as text."""
        return str(self._whole.decode(ids, skip_special_tokens=False))


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
    brackets: re.Pattern[str]
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
        ends = sorted({re.escape(character) for token in tokens for character in (token[0], token[-1])})
        lengths = range(1, max(map(len, tokens), default=1))
        return _Parts(closing, opening, frozenset(inner - {""}), lengths, re.compile("|".join(ends) or "(?!)"))


class _Piece(NamedTuple):
    text: str
    """Without guards."""
    start: int
    """Where it starts in the rendered text, guards counted."""
    control: int | None
    """The id of a control token; None for text."""


def guard_for(value: Any) -> str:
    """Choose a character that a JSON-like value does not contain."""
    text = json.dumps(value, ensure_ascii=False)
    for code in PRIVATE_USE:
        if chr(code) not in text:
            return chr(code)
    raise InputError("a conversation uses every private-use character; it cannot be text")


def _assemble(rendered: Rendered, pieces: list[_Piece], encodings: Iterator[Any]) -> Sample | Rejection:
    """Put the ids of the pieces together, mark the trained ones, and note where trained turns end."""
    spans = [(_plain(rendered, start), _plain(rendered, end)) for start, end in rendered.spans]
    ids: list[int] = []
    mask: list[int] = []
    turn_ends: list[int] = []
    crossing = None
    for piece in pieces:
        start = _plain(rendered, piece.start)
        end = start + len(piece.text)
        near = [(a, b) for a, b in spans if a < end and start < b]
        if piece.control is not None:
            tokens, offsets = [piece.control], [(0, len(piece.text))]
        else:
            encoding = next(encodings)
            tokens, offsets = encoding.ids, encoding.offsets if near else []
        ids += tokens
        if not near:
            mask += [0] * len(tokens)
        elif near[-1][1] == end:
            turn_ends.append(len(ids))
        for begin, stop in ((start + a, start + b) for a, b in offsets if near):
            inside = any(a <= begin and stop <= b for a, b in near)
            mask.append(int(inside))
            if not inside and any(begin < edge < stop for span in near for edge in span):
                crossing = rendered.text.replace(rendered.guard, "")[begin:stop]
    if crossing is not None:  # after the loop, so that every encoding is taken
        return Rejection("token-crosses-mask", f"token {crossing!r} is part prompt, part answer")
    return Sample(ids, mask, turn_ends)


def _plain(rendered: Rendered, position: int) -> int:
    """Turn a position in the rendered text into one in the text without guards."""
    return position - rendered.text.count(rendered.guard, 0, position)


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
    settings, config = (folder / "tokenizer.json", folder / "tokenizer_config.json")
    return json.loads(settings.read_text(encoding="utf-8")), json.loads(config.read_text(encoding="utf-8"))


def _token_text(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else token or ""
