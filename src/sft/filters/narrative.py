"""Narrative: political and nationalistic speech in the assistant's own voice.

filters/narrative.toml has the patterns, by language and theme, each with the reason why it exists and examples that run
at every load; its head says how to write one. `check_narrative` reads what the assistant answers and reasons, never
users, systems, tools or arguments. A match is excused

- in a quotation, a block quote or code;
- if a context gives it another meaning (`unless`), or none confirms its meaning (`near`);
- if the user asked for such a text: a translation, a speech, a role, history (`tasks`, by theme);
- if the user wrote the same words before ("our country"): it is an echo.

Fast: RE2 finds in one pass which patterns have a literal in a text, and their regexes run only around it. Bounded: no
regex has unlimited repetition, a group is at most optional, and a match is within REACH characters of a literal.
"""

import bisect
import itertools
import re
import string
import tomllib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import re2
from pydantic import BaseModel, ConfigDict, ValidationError

from sft.cli import InputError
from sft.conversation import Conversation, Message, Rejection

REACH = 120  # characters on each side of a literal in which its pattern may match
NEAR = 200  # characters on each side of a match that are its context
REQUEST = 600  # characters at the start and at the end of a message that may be a request
MAX_QUOTATION = 600  # characters
SURROUNDINGS = 80  # characters on each side of a match in the evidence
LITERALS_BYTES = 64 << 20  # memory in which RE2 finds all literals at once

INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
CODE_OR_BLOCK_QUOTE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]{1,600}`|^[ \t]{0,8}>[^\n]*", re.DOTALL | re.MULTILINE)
CURLY = "\u2019"
APOSTROPHE = re.compile(rf"{CURLY}(?<=\w{CURLY})(?=\w)")  # inside a word; elsewhere it closes a quotation
# ASCII as it is compared.
FLAT = bytes.maketrans(f"{string.ascii_uppercase}\n\t\r".encode(), f"{string.ascii_lowercase}   ".encode())
# What a regex must not have, after escapes and character sets are removed.
ESCAPE_OR_SET = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]")
UNBOUNDED = re.compile(r"(?<!\()[*+]|\{\d*,\}|\{\d*,?\d{3,}\}|\)\{")
CAPTURE = re.compile(r"\((?!\?(?::|=|!|<=|<!))")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Language(_Entry):
    spaced: bool
    contexts: dict[str, str] = {}


class _Quotation(_Entry):
    pairs: list[str]


class _Task(_Entry):
    name: str
    why: str
    spares: list[str]
    regex: dict[str, str]


class _Pattern(_Entry):
    name: str
    language: str
    theme: str
    why: str
    literals: list[str]
    regex: str
    near: list[str] = []
    unless: list[str] = []
    matches: list[str]
    spares: list[str]


class _File(_Entry):
    themes: list[str]
    quotation: _Quotation
    tasks: list[_Task]
    languages: dict[str, _Language]
    patterns: list[_Pattern]


@dataclass(frozen=True)
class Pattern:
    """One pattern, ready to search."""

    name: str
    theme: str
    literals: tuple[str, ...]
    regex: re.Pattern[str]
    near: re.Pattern[str] | None
    unless: re.Pattern[str] | None

    def matches(self, flat: str) -> Iterator[re.Match[str]]:
        """Yield the matches that contain a literal and whose context agrees; the same match may be yielded twice."""
        for literal in self.literals:
            at = flat.find(literal)
            while at >= 0:
                for match in self.regex.finditer(flat, max(0, at - REACH), at + len(literal) + REACH):
                    if match.start() <= at < match.end() and self._agrees(flat, match):
                        yield match
                at = flat.find(literal, at + 1)

    def _agrees(self, flat: str, match: re.Match[str]) -> bool:
        """Return whether the context of a match agrees."""
        context = flat[max(0, match.start() - NEAR) : match.end() + NEAR]
        if self.near is not None and not self.near.search(context):
            return False
        return self.unless is None or not self.unless.search(context)


@dataclass(frozen=True)
class Task:
    """A request of users, and the themes that it excuses."""

    name: str
    spares: frozenset[str]
    regexes: tuple[re.Pattern[str], ...]


@dataclass(frozen=True)
class NarrativePatterns:
    """The patterns of a file, checked and compiled."""

    patterns: tuple[Pattern, ...]
    tasks: tuple[Task, ...]
    quotations: tuple[re.Pattern[str], ...]
    literals: re2.Set
    """Finds the numbers of the patterns that have a literal in a text."""

    @classmethod
    def load(cls, path: Path) -> "NarrativePatterns":
        """Return the patterns of a file; checks it and runs its examples.

        Raises:  InputError: names the file, the entry and the fault.
        """
        if not path.is_file():
            raise InputError(
                f"{path}: no such file. If it was deleted: git restore {path}. To do without this filter: null"
            )
        try:
            content = _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not valid TOML: {error}") from error
        except ValidationError as error:
            faults = "\n".join(f"{path}: {_place(fault['loc'])}: {fault['msg']}" for fault in error.errors())
            raise InputError(faults) from error
        patterns = tuple(_compile_pattern(path, content, entry) for entry in content.patterns)
        loaded = cls(
            patterns,
            tuple(_compile_task(path, content, entry) for entry in content.tasks),
            tuple(_compile_quotation(path, pair) for pair in content.quotation.pairs),
            _literal_set(patterns),
        )
        names = [task.name for task in content.tasks] + [entry.name for entry in content.patterns]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"{path}: two entries are named {', '.join(repeated)}. Rename one: evidence names it.")
        for entry, pattern in zip(content.patterns, patterns, strict=True):
            _run_examples(path, entry, pattern)
        return loaded

    def find(self, text: str, requests: "Requests") -> tuple[Pattern, str, str] | None:
        """Return the first pattern that a text matches without excuse, the match, and its surroundings.

        `requests` are those before the text, which may excuse it.
        """
        numbers = self.literals.Match(flat_bytes(text))
        if not numbers:
            return None
        shown, flat = _flatten(text)
        quoted: Quoted | None = None
        for pattern in (self.patterns[number] for number in sorted(numbers)):
            for match in pattern.matches(flat):
                if quoted is None:
                    regexes = (CODE_OR_BLOCK_QUOTE, *self.quotations)
                    quoted = Quoted([quote.span() for regex in regexes for quote in regex.finditer(shown)])
                if quoted.has(*match.span()) or requests.excuse(pattern.theme, match[0], self.tasks):
                    continue
                start, end = match.span()
                surroundings = shown[max(0, start - SURROUNDINGS) : end + SURROUNDINGS]
                return pattern, shown[start:end], surroundings
        return None


class Quoted:
    """The quotations of a text, for the search for many places."""

    def __init__(self, spans: list[tuple[int, int]]) -> None:
        spans.sort()
        self._starts = [start for start, _ in spans]
        self._ends = list(itertools.accumulate((end for _, end in spans), max))

    def has(self, start: int, end: int) -> bool:
        """Return whether a quotation has all of a place."""
        before = bisect.bisect_right(self._starts, start)
        return before > 0 and end <= self._ends[before - 1]


class Requests:
    """What users and systems wrote before a text; a conversation has one, which grows. What excused once excuses."""

    def __init__(self) -> None:
        self._waiting: list[str] = []
        self._texts: list[str] = []
        self._excused: set[str] = set()

    def add(self, message: Message) -> None:
        """Add a message that comes before the texts to come."""
        if message["role"] in ("user", "system"):
            self._waiting.append(message["content"])

    def excuse(self, theme: str, words: str, tasks: Sequence[Task]) -> bool:
        """Return whether the user asked for such a text, or wrote the same words."""
        self._texts += [_flatten(text)[1] for text in self._waiting]
        self._waiting.clear()
        if theme in self._excused or any(words in text for text in self._texts):
            return True
        requests = " | ".join(part for text in self._texts for part in (text[:REQUEST], text[REQUEST:][-REQUEST:]))
        if any(regex.search(requests) for task in tasks if theme in task.spares for regex in task.regexes):
            self._excused.add(theme)
        return theme in self._excused


def check_narrative(conversation: Conversation, patterns: NarrativePatterns) -> Rejection | None:
    """Reject political or nationalistic speech in the assistant's own voice, in answers or reasoning."""
    requests = Requests()
    for index, message in enumerate(conversation.messages):
        for field in ("reasoning_content", "content") if message["role"] == "assistant" else ():
            if (text := message.get(field)) and (hit := patterns.find(text, requests)):
                pattern, words, surroundings = hit
                evidence = f"messages[{index}].{field}: {pattern.name}: {words!r} in {surroundings!r}"
                return Rejection("narrative", evidence)
        requests.add(message)
    return None


def _flatten(text: str) -> tuple[str, str]:
    """Return a text as it is shown and as it is compared, of equal length."""
    if not text.isascii():
        text = INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
    lower = text.lower()
    flat = lower.replace("\n", " ").replace("\t", " ").replace("\r", " ")
    if CURLY in flat:
        flat = APOSTROPHE.sub("'", flat)
    return (text if len(text) == len(flat) else lower), flat


def flat_bytes(text: str) -> bytes:
    """Return a text as it is compared, in UTF-8."""
    if text.isascii():  # here `_flatten` does no more than FLAT
        return text.encode().translate(FLAT)
    return _flatten(text)[1].encode("utf-8", "surrogatepass")


def _literal_set(patterns: Sequence[Pattern]) -> re2.Set:
    options = re2.Options()
    options.max_mem = LITERALS_BYTES
    found = re2.Set.SearchSet(options)
    for pattern in patterns:
        found.Add("|".join(map(re2.escape, pattern.literals)))
    found.Compile()
    return found


# --- Reading the file: every error names the file and the entry -----------------------------------------------


def _compile_pattern(path: Path, content: _File, entry: _Pattern) -> Pattern:
    place = f"{path}: pattern {entry.name}"
    if entry.language not in content.languages:
        raise InputError(f"{place}: language {entry.language!r}; known: {', '.join(content.languages)}")
    if entry.theme not in content.themes:
        raise InputError(f"{place}: theme {entry.theme!r}; known: {', '.join(content.themes)}")
    if not entry.literals or not entry.matches or not all(entry.literals):
        raise InputError(f"{place}: expected at least one literal and one example that matches, none empty")
    language = content.languages[entry.language]
    if unknown := sorted({*entry.near, *entry.unless} - set(language.contexts)):
        raise InputError(f"{place}: context {', '.join(unknown)}; {entry.language} has {', '.join(language.contexts)}")
    edge = r"\b" if language.spaced else ""

    def context(names: list[str]) -> re.Pattern[str] | None:
        joined = "|".join(language.contexts[name] for name in names)
        return _compile(place, joined, edge, "") if names else None

    regex = _compile(place, entry.regex, edge, edge)
    return Pattern(entry.name, entry.theme, tuple(entry.literals), regex, context(entry.near), context(entry.unless))


def _compile_task(path: Path, content: _File, entry: _Task) -> Task:
    place = f"{path}: task {entry.name}"
    if unknown := sorted(set(entry.spares) - set(content.themes)):
        raise InputError(f"{place}: theme {', '.join(unknown)}; known: {', '.join(content.themes)}")
    if unknown := sorted(set(entry.regex) - set(content.languages)):
        raise InputError(f"{place}: language {', '.join(unknown)}; known: {', '.join(content.languages)}")
    regexes = []
    for language, regex in entry.regex.items():
        edge = r"\b" if content.languages[language].spaced else ""
        regexes.append(_compile(place, regex, edge, edge))
    return Task(entry.name, frozenset(entry.spares), tuple(regexes))


def _compile_quotation(path: Path, pair: str) -> re.Pattern[str]:
    if len(pair) != 2:
        raise InputError(f"{path}: quotation: expected an opening and a closing mark, found {pair!r}")
    start, end = re.escape(pair[0]), re.escape(pair[1])
    return re.compile(rf"{start}(?:(?!\n\s{{0,80}}\n)[^{end}]){{1,{MAX_QUOTATION}}}{end}")


def _compile(place: str, regex: str, before: str, after: str) -> re.Pattern[str]:
    """Return a compiled regex of the file. Raises InputError: it may match the empty text, or without limit."""
    bare = ESCAPE_OR_SET.sub("x", regex)
    if match := UNBOUNDED.search(bare):
        raise InputError(f"{place}: {match[0]!r} in {regex!r}. Write {{m,n}} with n < 100, and only ? after a group.")
    if CAPTURE.search(bare):
        raise InputError(f"{place}: a capturing or inline-flag group in {regex!r}. Write (?:...)")
    try:
        if re.compile(regex).match(""):
            raise InputError(f"{place}: {regex!r} matches the empty text")
        return re.compile(before + f"(?:{regex})".replace(" ", r"\s{1,3}") + after)
    except re.error as error:
        raise InputError(f"{place}: {regex!r}: {error}") from error


def _run_examples(path: Path, entry: _Pattern, pattern: Pattern) -> None:
    for expected, examples in ((True, entry.matches), (False, entry.spares)):
        for example in examples:
            is_matched = any(match[0] for match in pattern.matches(_flatten(example)[1]))
            if is_matched != expected:
                raise InputError(
                    f"{path}: pattern {entry.name}: its example {example!r} "
                    f"{'does not match' if expected else 'matches'}. Correct the regex, the literals or the example."
                )


def _place(location: tuple[int | str, ...]) -> str:
    """Return a place in the file as text: ('patterns', 3, 'regex') as patterns[3].regex."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
