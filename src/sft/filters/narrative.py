"""Narrative: political and nationalistic speech in the assistant's own voice.

filters/narrative.toml holds the patterns, by language and theme, each with the reason why it is there and
examples that are run at every load; how to write one stands at its top. `check_narrative` looks at what the
assistant says and reasons, never at users, systems, tools or arguments. A match is excused

- in a quotation, a block quote or code;
- where a context says that something else is meant (`unless`), or none says that this is meant (`near`);
- where the user asked for such a text: a translation, a speech, a role, history (`tasks`, by theme);
- where the user said the same words before ("our country"): an echo, not a voice.

Fast: a pattern's regex runs only around its literals. Bounded: no regex repeats without end, a group is at
most optional, and no more than REACH characters on either side of a literal are looked at.
"""

import re
import string
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from sft.cli import InputError
from sft.conversation import Conversation, Message, Rejection

REACH = 120  # characters on each side of a literal in which its pattern may match
NEAR = 200  # characters on each side of a match that are its context
REQUEST = 600  # characters at the start and at the end of a message in which the user says what to do
QUOTATION = 600  # characters of the longest quotation
SURROUNDINGS = 80  # characters of evidence on each side
# Literals that ordinary text is full of. What they are decides nothing but the speed: texts are screened for the
# regexes of the patterns that have them, not for their literals.
COMMON = {"values", "as a ", "as an ", "nous", "guide", "leader", "werte", "notre", "borders", "commander", " party"}

INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
CODE_OR_BLOCK_QUOTE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]{1,600}`|^[ \t]{0,8}>[^\n]*", re.DOTALL | re.MULTILINE)
CURLY = "\u2019"
APOSTROPHE = re.compile(rf"{CURLY}(?<=\w{CURLY})(?=\w)")  # inside a word; elsewhere it closes a quotation
# ASCII as it is compared.
FLAT = bytes.maketrans(f"{string.ascii_uppercase}\n\t\r".encode(), f"{string.ascii_lowercase}   ".encode())
# RE2 matches all that Python does, and perhaps more, where a regex without its look-arounds is PLAIN and where the
# classes that differ, \w and white space, are taken to hold everything outside ASCII.
LOOK_AROUND = re.compile(r"(?<!\\)\(\?<?[!=](?:[^()\\]|\([^()\\]*\))*\)")
PLAIN = re.compile(r"(?:\\w|\(\?:|[|)?]|\{\d+(?:,\d+)?\}|\[[^]\\[^ ]+\]|[^\\()[\]{}^$.*+?|])*")
RE2_WORD, RE2_SPACES = r"[\w[:^ascii:]]", r"[\s\x0b\x1c-\x1f[:^ascii:]]{1,3}"
# What a regex may not have, looked for after escapes and character sets are taken out.
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
    literals: tuple[tuple[str, frozenset[str]], ...]
    """Each with its characters outside ASCII: a text that lacks one of those need not be searched for it."""
    regex: re.Pattern[str]
    near: re.Pattern[str] | None
    unless: re.Pattern[str] | None

    def places(self, flat: str, letters: frozenset[str]) -> Iterator[re.Match[str]]:
        """Yield the matches that hold a literal, where the contexts agree; one may come twice.

        `letters` are the characters of the text outside ASCII, and perhaps others.
        """
        for literal, rare in self.literals:
            at = flat.find(literal) if rare <= letters else -1
            while at >= 0:
                for found in self.regex.finditer(flat, max(0, at - REACH), at + len(literal) + REACH):
                    if found.start() <= at < found.end() and self._is_meant(flat, found):
                        yield found
                at = flat.find(literal, at + 1)

    def _is_meant(self, flat: str, found: re.Match[str]) -> bool:
        context = flat[max(0, found.start() - NEAR) : found.end() + NEAR]
        if self.near is not None and not self.near.search(context):
            return False
        return self.unless is None or not self.unless.search(context)


@dataclass(frozen=True)
class Task:
    """What a user may ask for, and the themes that it excuses."""

    name: str
    spares: frozenset[str]
    regexes: tuple[re.Pattern[str], ...]


@dataclass(frozen=True)
class NarrativePatterns:
    """The patterns of a file, checked and compiled."""

    patterns: tuple[Pattern, ...]
    tasks: tuple[Task, ...]
    quotations: tuple[re.Pattern[str], ...]
    screen: str
    """A regex of RE2: a text that it does not match has no match of a pattern."""

    @classmethod
    def load(cls, path: Path) -> "NarrativePatterns":
        """Read, check and compile a pattern file, and run its examples.

        Raises:  InputError: names the file, the entry, and what is wrong with it.
        """
        if not path.is_file():
            raise InputError(f"{path}: not found. It is part of the repository: git restore {path}")
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
            _screen(content.patterns),
        )
        names = [task.name for task in content.tasks] + [entry.name for entry in content.patterns]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"{path}: two entries are named {', '.join(repeated)}: names stand in the evidence")
        for entry, pattern in zip(content.patterns, patterns, strict=True):
            _run_examples(path, entry, pattern)
        return loaded

    def find(self, text: str, before: list[Message]) -> tuple[Pattern, str, str] | None:
        """Return the first pattern that a text matches without excuse, what matched, and its surroundings.

        `before` are the messages before the one that the text is of: they say what was asked.
        """
        shown, flat = _flatten(text)
        letters = _letters(flat)
        quoted: list[tuple[int, int]] | None = None
        for pattern in self.patterns:
            for found in pattern.places(flat, letters):
                if quoted is None:
                    regexes = (CODE_OR_BLOCK_QUOTE, *self.quotations)
                    quoted = [quote.span() for regex in regexes for quote in regex.finditer(shown)]
                if any(start <= found.start() and found.end() <= end for start, end in quoted):
                    continue
                if self._asked(pattern.theme, found[0], before):
                    continue
                start, end = found.span()
                around = shown[max(0, start - SURROUNDINGS) : end + SURROUNDINGS]
                return pattern, shown[start:end], around
        return None

    def _asked(self, theme: str, words: str, before: list[Message]) -> bool:
        """Say whether the user asked for such a text, or said the same words."""
        asked = [_flatten(message["content"])[1] for message in before if message["role"] in ("user", "system")]
        if any(words in text for text in asked):
            return True
        requests = " | ".join(part for text in asked for part in (text[:REQUEST], text[REQUEST:][-REQUEST:]))
        return any(regex.search(requests) for task in self.tasks if theme in task.spares for regex in task.regexes)


def check_narrative(conversation: Conversation, patterns: NarrativePatterns) -> Rejection | None:
    """Political or nationalistic speech in the assistant's own voice, in answers or in reasoning."""
    return _first_hit(conversation, _spoken(conversation), patterns)


def check_narratives(conversations: Sequence[Conversation], patterns: NarrativePatterns) -> list[Rejection | None]:
    """Check many conversations: first with all texts at once, by one automaton; few texts remain."""
    import pyarrow as pa
    import pyarrow.compute as pc

    spoken = [(number, place) for number, one in enumerate(conversations) for place in _spoken(one)]
    # A view, for lone surrogates have no place in an array of texts; what is PLAIN matches none.
    flat = pa.array([_flat_bytes(text) for _, (_, _, text) in spoken], pa.large_binary()).view(pa.large_string())
    rejections: list[Rejection | None] = [None] * len(conversations)
    for index in pc.indices_nonzero(pc.match_substring_regex(flat, patterns.screen)).to_pylist():
        number, place = spoken[index]
        if rejections[number] is None:
            rejections[number] = _first_hit(conversations[number], [place], patterns)
    return rejections


def _first_hit(
    conversation: Conversation, spoken: Iterable[tuple[int, str, str]], patterns: NarrativePatterns
) -> Rejection | None:
    for index, field, text in spoken:
        if hit := patterns.find(text, conversation.messages[:index]):
            pattern, words, around = hit
            return Rejection("narrative", f"messages[{index}].{field}: {pattern.name}: {words!r} in {around!r}")
    return None


def _spoken(conversation: Conversation) -> Iterator[tuple[int, str, str]]:
    """Yield what the assistant reasons and answers, with the index of its message and the name of the field."""
    for index, message in enumerate(conversation.messages):
        if message["role"] == "assistant":
            for field in ("reasoning_content", "content"):
                if text := message.get(field):
                    yield index, field, text


def _flatten(text: str) -> tuple[str, str]:
    """Return a text as it is shown, and as it is compared: of equal length, so that places agree."""
    if not text.isascii():
        text = INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
    lower = text.lower()
    flat = lower.replace("\n", " ").replace("\t", " ").replace("\r", " ")
    if CURLY in flat:
        flat = APOSTROPHE.sub("'", flat)
    return (text if len(text) == len(flat) else lower), flat


def _flat_bytes(text: str) -> bytes:
    """Return a text as it is compared, in UTF-8."""
    if text.isascii():  # `_flatten` does no more to it than FLAT says
        return text.encode().translate(FLAT)
    return _flatten(text)[1].encode("utf-8", "surrogatepass")


def _letters(flat: str) -> frozenset[str]:
    return frozenset() if flat.isascii() else frozenset(flat)


def _screen(entries: Iterable[_Pattern]) -> str:
    """Return a regex of RE2 that matches wherever a pattern may: its literals, or all of it if they are COMMON."""
    alternatives: set[str] = set()
    for entry in entries:
        regex = LOOK_AROUND.sub("", entry.regex)
        if COMMON.isdisjoint(entry.literals) or not PLAIN.fullmatch(regex):
            alternatives.update(map(re.escape, entry.literals))
        else:
            alternatives.add(regex.replace(r"\w", RE2_WORD).replace(" ", RE2_SPACES))
    return "|".join(sorted(alternatives))


# --- Reading the file: every fault names the file and the entry ---------------------------------------------


def _compile_pattern(path: Path, content: _File, entry: _Pattern) -> Pattern:
    where = f"{path}: pattern {entry.name}"
    if entry.language not in content.languages:
        raise InputError(f"{where}: language {entry.language!r}; known: {', '.join(content.languages)}")
    if entry.theme not in content.themes:
        raise InputError(f"{where}: theme {entry.theme!r}; known: {', '.join(content.themes)}")
    if not entry.literals or not entry.matches or not all(entry.literals):
        raise InputError(f"{where}: give at least one literal and one example that matches, none empty")
    language = content.languages[entry.language]
    if unknown := sorted({*entry.near, *entry.unless} - set(language.contexts)):
        raise InputError(f"{where}: context {', '.join(unknown)}; {entry.language} has {', '.join(language.contexts)}")
    edge = r"\b" if language.spaced else ""

    def context(names: list[str]) -> re.Pattern[str] | None:
        joined = "|".join(language.contexts[name] for name in names)
        return _compile(where, joined, edge, "") if names else None

    regex = _compile(where, entry.regex, edge, edge)
    literals = tuple(
        (literal, frozenset(letter for letter in literal if not letter.isascii())) for literal in entry.literals
    )
    return Pattern(entry.name, entry.theme, literals, regex, context(entry.near), context(entry.unless))


def _compile_task(path: Path, content: _File, entry: _Task) -> Task:
    where = f"{path}: task {entry.name}"
    if unknown := sorted(set(entry.spares) - set(content.themes)):
        raise InputError(f"{where}: theme {', '.join(unknown)}; known: {', '.join(content.themes)}")
    if unknown := sorted(set(entry.regex) - set(content.languages)):
        raise InputError(f"{where}: language {', '.join(unknown)}; known: {', '.join(content.languages)}")
    regexes = []
    for language, regex in entry.regex.items():
        edge = r"\b" if content.languages[language].spaced else ""
        regexes.append(_compile(where, regex, edge, edge))
    return Task(entry.name, frozenset(entry.spares), tuple(regexes))


def _compile_quotation(path: Path, pair: str) -> re.Pattern[str]:
    if len(pair) != 2:
        raise InputError(f"{path}: quotation: expected an opening and a closing mark, found {pair!r}")
    start, end = re.escape(pair[0]), re.escape(pair[1])
    return re.compile(rf"{start}(?:(?!\n\s*\n)[^{end}]){{1,{QUOTATION}}}{end}")


def _compile(where: str, regex: str, before: str, after: str) -> re.Pattern[str]:
    """Compile a regex of the file, refusing what could match nothing, everything, or for ever."""
    bare = ESCAPE_OR_SET.sub("x", regex)
    if found := UNBOUNDED.search(bare):
        raise InputError(f"{where}: {found[0]!r} in {regex!r}: write {{m,n}} with n < 100, and only ? after a group")
    if found := CAPTURE.search(bare):
        raise InputError(f"{where}: a capturing or inline-flag group in {regex!r}: write (?:...)")
    try:
        if re.compile(regex).match(""):
            raise InputError(f"{where}: {regex!r} matches the empty text")
        return re.compile(before + f"(?:{regex})".replace(" ", r"\s{1,3}") + after)
    except re.error as error:
        raise InputError(f"{where}: {regex!r}: {error}") from error


def _run_examples(path: Path, entry: _Pattern, pattern: Pattern) -> None:
    for expected, examples in ((True, entry.matches), (False, entry.spares)):
        for example in examples:
            flat = _flatten(example)[1]
            found = any(place[0] for place in pattern.places(flat, _letters(flat)))
            if found != expected:
                raise InputError(
                    f"{path}: pattern {entry.name}: its example {example!r} "
                    f"{'does not match' if expected else 'matches'}: mend the regex, the literals or the example"
                )


def _place(location: tuple[int | str, ...]) -> str:
    """Write a place in the file: ('patterns', 3, 'regex') as patterns[3].regex."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
