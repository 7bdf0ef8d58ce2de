"""Encoding garbage: text that was decoded wrongly, or that has hidden characters.

`find_garbage` does not reject valid text: all scripts, emoji, terminal colors, joiners inside words, and text about
broken text.
"""

# ruff: noqa: RUF001 (characters that look like others are what this module looks for)
import re
import unicodedata
from collections.abc import Iterable

# Searched first: one character class is about five times faster than the patterns below.
SUSPECT = re.compile(
    "[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f\u200b-\u200d\u202d\u202e\u2060\ud800-\udfff\ufeff\ufffd-\uffff]"
)
PLAIN = bytes(code for code in range(128) if not SUSPECT.match(chr(code)))
# In no valid text: zero bytes, halves of surrogate pairs, characters that Unicode never assigns, overrides of the
# writing direction, several invisible characters in a row (one may join or separate words).
HIDDEN = re.compile("[\x00\ud800-\udfff\ufffe\uffff\u202d\u202e]|[\u200b-\u200d\u2060\ufeff]{3}")
# Wrongly decoded bytes: C0 controls except tab, newline, form feed, return and escape (terminals); C1 controls except
# the newline of mainframes; the replacement character.
LOST = re.compile("[\x01-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f\ufffd]")
# UTF-8 decoded as Windows-1252: its continuation bytes become signs. No language writes the forms below; signs that may
# follow such a letter at the end of a word (quotes, dashes, spaces) are left out.
UNDEFINED = "\x81\x8d\x8f\x90\x9d"
SIGNS = "€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ\xa0-¿" + UNDEFINED
MOJIBAKE_START = re.compile(f"[ÂÃÐÑà-ð][{SIGNS}]")
MOJIBAKE = re.compile(
    "Ã¢(?:â‚¬|â€|Å“)"  # quotes and marks, twice
    "|Ã[¡-ª¬-º¼-¿€ŸœžŽƒ‚‰ˆ]"  # á ... ü
    "|Â[¡-ª¬®-±µ¶¼-¿]"  # £ ° ¿
    f"|â€[{SIGNS}]|â[†œ˜][{SIGNS}]"  # quotes and dashes, arrows and marks
    f"|(?:[ÐÑ][{SIGNS}]){{2}}"  # two Cyrillic letters
    f"|(?:[à-ï][{SIGNS}]{{2}}){{2}}"  # two characters of Asia
    f"|ðŸ[{SIGNS}]{{2}}"  # an emoji
    "|ï»¿|ï¿½"  # a byte order mark, a replacement character
)
# More marks on one letter than any language has. Normalizing text takes the square of such a run.
MAX_MARKS = 64
BECOME_MARKS = "\u0f73\u0f75\u0f81\uff9e\uff9f"  # when text is normalized; none before
MARKS = re.compile(
    "["
    + BECOME_MARKS
    + "".join(re.escape(chr(code)) for code in range(0x300, 0x1F000) if unicodedata.combining(chr(code)))
    + f"]{{{MAX_MARKS + 1}}}"
)
CONTEXT_CHARS, QUOTED_CHARS = 100, 160


def find_garbage(written: Iterable[tuple[str, str]], by_machines: Iterable[tuple[str, str]]) -> str:
    """Return the evidence of the first garbage in (place, text) pairs; empty if there is none.

    `by_machines` are results and arguments of tools: they may have control characters, bytes of a binary file and
    replacement characters, but no hidden ones.
    """
    written, by_machines = list(written), list(by_machines)
    joined = "".join([text for _, text in (*written, *by_machines)])
    others = joined.encode("utf-8", "surrogatepass").translate(None, PLAIN).decode("utf-8", "surrogatepass")
    if not SUSPECT.search(others) and not MOJIBAKE_START.search(others) and not MARKS.search(others):  # most
        return ""
    suspect = [(place, text, [HIDDEN, LOST]) for place, text in written if SUSPECT.search(text)]
    suspect += [(place, text, [HIDDEN]) for place, text in by_machines if SUSPECT.search(text)]
    for place, text, patterns in suspect:
        for pattern in patterns:
            if match := pattern.search(text):
                return f"{place}: U+{ord(match[0][0]):04X} in {quote_match(text, match)}"
    for place, text in (*written, *by_machines) if MARKS.search(others) else ():
        if match := MARKS.search(text):
            return f"{place}: more than {MAX_MARKS} marks on one letter in {quote_match(text, match)}"
    spared: set[str] = set()
    for place, text in written:
        for match in MOJIBAKE.finditer(text) if MOJIBAKE_START.search(text) else ():
            if match[0] in spared:
                continue
            repaired = _repaired(match[0])
            # A conversation about broken text has the repaired text as well.
            if not any(repaired in other.replace(match[0], "") for _, other in written):
                return f"{place}: {match[0]!r} for {repaired!r} in {quote_match(text, match)}"
            spared.add(match[0])
    return ""


def quote(text: str) -> str:
    """Return a text as evidence, cut to QUOTED_CHARS."""
    return repr(text if len(text) <= QUOTED_CHARS else text[: QUOTED_CHARS - 3] + "...")


def quote_match(text: str, match: re.Match[str]) -> str:
    """Return a match with its surroundings, quoted as evidence."""
    return repr(text[max(0, match.start() - CONTEXT_CHARS) : match.end() + CONTEXT_CHARS])


def _repaired(text: str) -> str:
    raw = b"".join(sign.encode("latin-1" if sign in UNDEFINED else "cp1252") for sign in text)
    return raw.decode("utf-8", "replace")


def valid_text(text: str) -> str:
    """Return a text that UTF-8 can hold: lone surrogates are written as escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
