"""Tokenizer: rendered text with trained ranges -> token ids and a mask; content never becomes structure.

Structure is the tokenizer's control tokens (its added tokens). Before a template renders, `shield` puts a guard
character into every text that looks like a control token, or like a part that other text or the template's own
brackets would complete. After rendering, only the template can have written a control token. `encode` inserts
control tokens by id and encodes the text between them, guards removed, with a tokenizer that knows no control tokens.
So ordinary text gets the ids of the plain tokenizer, and segments add up to the whole.
"""

import contextlib
import functools
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from tokenizers import Tokenizer

from sft.cli import InputError
from sft.conversation import Rejection
from sft.tokens.encoder import Encoder, make_spec
from sft.tokens.segments import NOT_MASKED, UNTRAINED, Masked, SampleColumns, Segments

PRIVATE_USE = range(0xE000, 0xF8FF)
# Keys of calls and tools that templates look up by name: never shielded.
LOOKED_UP = {"type", "function", "name", "arguments", "description", "parameters", "properties", "required"}
PUNCTUATED = re.compile(r"(\W*).*?(\W*)", re.DOTALL)


class Rendered(NamedTuple):
    """The text of a sample, and which of its characters are trained."""

    text: str
    spans: list[tuple[int, int]]
    """Trained character ranges, one for each trained turn, in order; each ends with a stop token."""
    guard: str
    """The character inside control-token look-alikes of the content; no part of the text."""
    turns: tuple[int, ...] = ()
    """The message that each of `spans` belongs to."""
    masked: tuple[tuple[int, int], ...] = ()
    """Character ranges inside of spans that are not trained, in order; nor is a token that is partly in one."""


class Sample(NamedTuple):
    """One training sequence. Shapes: ids, mask (T,), T = tokens; mask 1 = this token is trained."""

    ids: list[int]
    mask: list[int]
    turn_ends: list[int]
    """Index behind the stop token of each trained turn, ascending. A sample cut there has whole turns."""


class SafeTokenizer:
    """A tokenizer that reads control tokens from templates, and only text from content."""

    def __init__(self, folder: Path, fast: bool = False) -> None:
        """Load tokenizer.json and tokenizer_config.json of a Hugging Face folder; `fast`: see Encoder."""
        self._file = folder.absolute() / "tokenizer.json"
        settings, config = _read(folder)
        settings = {
            **settings,
            "post_processor": None,
            "truncation": None,
            "padding": None,
        }  # adds and removes no tokens
        tokens = settings["added_tokens"]
        # Blanks and single characters among the added tokens are text.
        self.control = {token["content"]: int(token["id"]) for token in tokens if len(token["content"].strip()) > 1}
        """The id of each control token, by its text."""
        names = {key: _token_text(config.get(key)) for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
        self.special = {key: text for key, text in names.items() if text}
        """The text of bos_token, eos_token, pad_token and unk_token, where defined."""
        others = [token for token in tokens if token["content"] not in self.control]
        spec = make_spec({**settings, "added_tokens": others})
        del settings  # large: freed before tokenizers are loaded
        self.encoder = Encoder(spec, fast)
        """Encodes content; knows no control tokens."""
        self.pattern = re.compile(any_of(self.control))
        """Finds control tokens in rendered text."""
        self._splitter = re.compile(f"({self.pattern.pattern})")
        self._control_ids = {token: (number,) for token, number in self.control.items()}
        self._parts = _TokenParts.of(self.control)

    def load_plain(self) -> Tokenizer:
        """Load the plain tokenizer, which reads control tokens from any text."""
        tokenizer = Tokenizer.from_file(str(self._file))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @functools.cached_property
    def plain(self) -> Tokenizer:
        """The plain tokenizer, kept."""
        return self.load_plain()

    def shield(self, value: Any, guard: str) -> Any:
        """Return a JSON-like value with the guard wherever a text could become a control token."""
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
        """Put the guard into control tokens, and at ends that could complete one with adjacent text."""
        parts, bare, longest = self._parts, text.strip(), self._parts.lengths.stop
        if not any([bracket in bare for bracket in parts.brackets]) and not (
            len(bare) < longest and bare in parts.inner
        ):
            return text
        text = self.pattern.sub(lambda token: token[0][0] + guard + token[0][1:], text)
        bare = text.strip()
        head, tail = bare[:longest], bare[-longest:]
        starts = any(bracket in head for bracket in parts.brackets)  # the last part of every control token has one
        if head in parts.inner or (starts and any(head[:length] in parts.closing for length in parts.lengths)):
            start = len(text) - len(text.lstrip())  # inside the blanks: a template may trim them
            text = text[:start] + guard + text[start:]
        ends = any(bracket in tail for bracket in parts.brackets)
        if ends and any(tail[-length:] in parts.opening for length in parts.lengths):
            end = len(text.rstrip())
            text = text[:end] + guard + text[end:]
        return text

    def encode(self, batch: list[Rendered]) -> list[Sample | Rejection]:
        """Tokenize a batch of rendered samples, with one call of the tokenizer for all text."""
        segments = Segments()
        rejections = {
            index: rejection
            for index, rendered in enumerate(batch)
            if (rejection := self.add_segments(rendered, segments))
        }
        encoded = iter_samples(segments.encode(self.encoder))
        return [rejections[index] if index in rejections else next(encoded) for index in range(len(batch))]

    def add_segments(self, rendered: Rendered, segments: Segments) -> Rejection | None:
        """Split a text at its control tokens and add it to `segments` as a sample.

        Returns a rejection if a trained range begins or ends inside a control token, or ends inside a text.
        """
        text, guard, position = rendered.text, rendered.guard, 0
        guarded = guard in text
        spans, behind_text = iter(rendered.spans), (len(text) + 1, len(text) + 1)
        start, end = next(spans, behind_text)
        parts = self._splitter.split(text)  # text, control token, text, ...
        masked = NOT_MASKED
        for plain, token in zip(parts[::2], [*parts[1::2], ""], strict=True):
            before, trained_from = position + len(plain), UNTRAINED
            behind = before + len(token)
            if guarded:
                plain = plain.replace(guard, "")
            if behind <= start and token:
                segments.add(plain, UNTRAINED, self._control_ids[token])
                position = behind
                continue
            if start < before and position < end:
                if end < before:
                    segments.truncate(len(segments.sizes))
                    return _crossing(text[position:before])
                trained_from = len(text[position : max(position, start)].replace(guard, ""))
                masked = _masked_in(rendered, position, before)
                if end == before:
                    segments.add(plain, trained_from, end=1, masked=masked)
                    plain, trained_from, masked = "", UNTRAINED, NOT_MASKED
                    start, end = next(spans, behind_text)
            if before < behind:
                control_ids, trained = self._control_ids[token], start < behind and before < end
                if trained and not (start <= before and behind <= end):
                    segments.truncate(len(segments.sizes))
                    return _crossing(token)
                ends = trained and end == behind
                left_out = trained and any(first < behind and before < last for first, last in rendered.masked)
                trained_ids = int(trained and not left_out)
                segments.add(plain, trained_from, control_ids, trained_ids, 2 if ends else 0, masked, int(left_out))
                if ends:
                    start, end = next(spans, behind_text)
            elif plain:
                segments.add(plain, trained_from, masked=masked)
            position, masked = behind, NOT_MASKED
        segments.end_sample()
        return None

    def template_text(self, text: str) -> "TemplateText":
        """Split a text that a template writes before its first and behind its last control token."""
        matches = list(self.pattern.finditer(text))
        if not matches:
            return TemplateText(text, (), "")
        ids: list[int] = []
        for match, following in zip(matches, [*matches[1:], None], strict=True):
            ids.append(self.control[match[0]])
            if following and following.start() > match.end():
                ids += self.encoder.encode([text[match.end() : following.start()]])[0].tolist()
        return TemplateText(text[: matches[0].start()], tuple(ids), text[matches[-1].end() :])

    def token_ranges(self, text: str, most: int | None = None) -> list[tuple[int, int]]:
        """Return the characters that each token of a content covers; tokens may share one."""
        return self.encoder.token_ranges(text, most)

    def decode(self, ids: list[int]) -> str:
        """Return ids as text, control tokens included."""
        return str(self.plain.decode(ids, skip_special_tokens=False))


class TemplateText(NamedTuple):
    """A text of a template, split at its control tokens."""

    head: str
    control_ids: tuple[int, ...]
    """The ids from its first control token to its last."""
    tail: str


def iter_samples(columns: SampleColumns) -> Iterator[Sample | Rejection]:
    """Yield samples one by one."""
    ends, turns = np.cumsum(columns.sizes).tolist(), np.cumsum(columns.turns).tolist()
    for index, (start, end, turn, turn_end) in enumerate(zip([0, *ends], ends, [0, *turns], turns, strict=False)):
        rows = columns.ids[start:end], columns.mask[start:end], columns.turn_ends[turn:turn_end]
        yield columns.rejected.get(index) or Sample(*(row.tolist() for row in rows))


def _masked_in(rendered: Rendered, begin: int, end: int) -> Masked:
    """Return the masked ranges of a part of a text, as characters of that part without guards."""
    return tuple(
        (_bare(rendered, begin, max(begin, first)), _bare(rendered, begin, min(end, last)))
        for first, last in rendered.masked
        if first < end and begin < last
    )


def _bare(rendered: Rendered, begin: int, end: int) -> int:
    return end - begin - rendered.text.count(rendered.guard, begin, end)


def _crossing(token: str) -> Rejection:
    return Rejection("token-crosses-mask", f"token {token!r} is part prompt, part answer")


def any_of(texts: Collection[str]) -> str:
    """Return a pattern that matches the longest of some texts, and fails at the first wrong character."""
    if not texts:
        return "(?!)"
    following: dict[str, list[str]] = {}
    for text in sorted(texts, key=len, reverse=True):
        following.setdefault(text[:1], []).append(text[1:])
    ends = following.pop("", None) is not None
    branches = [re.escape(first) + (any_of(rest) if rest != [""] else "") for first, rest in following.items()]
    if not branches:
        return ""
    return f"(?:{'|'.join(branches)})" + ("?" if ends else "")


class _TokenParts(NamedTuple):
    """Parts of control tokens, which adjacent text could complete."""

    closing: frozenset[str]
    """Control tokens without their start: `end|>` of `<|im_end|>`."""
    opening: frozenset[str]
    """Without their end: `<|im`."""
    inner: frozenset[str]
    """Without outer punctuation, which a template may write around a text: `im_end`, `|im_end|`."""
    lengths: range
    """Lengths of the closing and opening parts."""
    brackets: str
    """The first and last characters of control tokens; a text without them can only be an inner part."""

    @staticmethod
    def of(tokens: Collection[str]) -> "_TokenParts":
        closing = frozenset(token[start:] for token in tokens for start in range(1, len(token)))
        opening = frozenset(token[:stop] for token in tokens for stop in range(1, len(token)))
        inner = set[str]()
        for token in tokens:
            if match := PUNCTUATED.fullmatch(token):
                starts, stops = range(1, match.end(1) + 1), range(match.start(2), len(token))
                inner.update(token[start:stop] for start in starts for stop in stops)
        ends = "".join(sorted({character for token in tokens for character in (token[0], token[-1])}))
        lengths = range(1, max(map(len, tokens), default=1))
        return _TokenParts(closing, opening, frozenset(inner - {""}), lengths, ends)


def guard_for(value: Any) -> str:
    """Return a private-use character that a JSON-like value does not contain, neither as it is nor as an escape."""
    with contextlib.suppress(TypeError):  # large integers, lone surrogates
        data = orjson.dumps(value)
        if FIRST_GUARD.encode() not in data and FIRST_ESCAPE not in data:
            return FIRST_GUARD
    text = json.dumps(value, ensure_ascii=False)
    for guard in map(chr, PRIVATE_USE):
        if guard not in text and _escape(guard) not in text:
            return guard
    raise InputError("conversation: uses every private-use character, so it is no text. Remove the row.")


def restore_guard(text: str, guard: str) -> str:
    r"""Return rendered text with the guard itself where a template wrote it as an escape, as in `<\ue000|im_end|>`.

    JSON in ASCII and Python's repr write it so. Each later one doubles all backslashes, also those of the text in front
    of the guard: m of them and the escape are m * 2**j + 2**k with j > k, of which 2**k belong to the guard.
    """
    escape = _escape(guard)
    if escape not in text:
        return text
    # Only from the first backslash of a run on, without a second try: linear for any text.
    return re.sub(r"(?<!\\)(\\++)" + escape, lambda found: found[1][: len(found[1]) & len(found[1]) - 1] + guard, text)


@functools.cache
def _escape(guard: str) -> str:
    """Return the escape of a character in JSON and Python, `ue000`, without its backslashes."""
    return f"u{ord(guard):04x}"


FIRST_GUARD = chr(PRIVATE_USE[0])
FIRST_ESCAPE = _escape(FIRST_GUARD).encode()


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return tokenizer.json and tokenizer_config.json. Raises InputError: they are not of a tokenizer."""
    files = []
    for name, wanted in (("tokenizer.json", {"added_tokens", "model"}), ("tokenizer_config.json", set())):
        try:
            value = orjson.loads((folder / name).read_bytes())
        except orjson.JSONDecodeError as error:
            raise InputError(f"{folder / name}: not JSON: {error}. Run: dvc repro --force fetch-model") from error
        if not isinstance(value, dict) or not wanted <= value.keys():
            raise InputError(f"{folder / name}: keys of a tokenizer are missing. Run: dvc repro --force fetch-model")
        files.append(value)
    settings, config = files
    return settings, config


def _token_text(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else token or ""
