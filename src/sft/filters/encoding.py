"""Encoding garbage: text that was decoded wrongly, or that holds characters which nobody sees.

`find_garbage` is made not to refuse what is right: every script, emoji, terminal colours, joiners inside
words, and people who talk about broken text.
"""

# ruff: noqa: RUF001 (signs that look like others are what is looked for)
import re
from collections.abc import Iterable

# A search for one character of a class is some five times faster than those below: it comes first.
SUSPECT = re.compile(
    "[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f\u200b-\u200d\u202d\u202e\u2060\ud800-\udfff\ufeff\ufffd-\uffff]"
)
PLAIN = bytes(code for code in range(128) if not SUSPECT.match(chr(code)))
# What no text holds: zero bytes, halves of surrogate pairs, characters that Unicode never assigns, overrides of
# the writing direction, runs of invisible characters (one may join or part words).
HIDDEN = re.compile("[\x00\ud800-\udfff\ufffe\uffff\u202d\u202e]|[\u200b-\u200d\u2060\ufeff]{3}")
# Bytes read as what they are not: C0 controls but tab, newline, form feed, return and escape (terminals);
# C1 controls but the newline of mainframes; the replacement character.
LOST = re.compile("[\x01-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f\ufffd]")
# UTF-8 read as Windows-1252: its following bytes become signs. Each form here is one that no language writes;
# signs that may follow such a letter at the end of a word (quotes, dashes, spaces) are left out.
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
CONTEXT_CHARS = 100


def find_garbage(judged: Iterable[tuple[str, str]], unjudged: Iterable[tuple[str, str]]) -> str:
    """Describe the first garbage in (place, text) pairs; empty if there is none.

    `unjudged` are texts of machines (results and arguments of tools): control keys, bytes of a binary file and
    lost characters may stand there, hidden ones may not.
    """
    judged, unjudged = list(judged), list(unjudged)
    whole = "".join([text for _, text in (*judged, *unjudged)])
    others = whole.encode("utf-8", "surrogatepass").translate(None, PLAIN).decode("utf-8", "surrogatepass")
    if not SUSPECT.search(others) and not MOJIBAKE_START.search(others):  # most texts
        return ""
    suspect = [(place, text, [HIDDEN, LOST]) for place, text in judged if SUSPECT.search(text)]
    suspect += [(place, text, [HIDDEN]) for place, text in unjudged if SUSPECT.search(text)]
    for place, text, patterns in suspect:
        for pattern in patterns:
            if found := pattern.search(text):
                return f"{place}: U+{ord(found[0][0]):04X} in {around(text, found)}"
    for place, text in judged:
        for found in MOJIBAKE.finditer(text) if MOJIBAKE_START.search(text) else ():
            meant = _repaired(found[0])
            # Who talks about broken text also writes it right.
            if not any(meant in other.replace(found[0], "") for _, other in judged):
                return f"{place}: {found[0]!r} for {meant!r} in {around(text, found)}"
    return ""


def around(text: str, found: re.Match[str]) -> str:
    """Show a match with what surrounds it, as evidence."""
    return repr(text[max(0, found.start() - CONTEXT_CHARS) : found.end() + CONTEXT_CHARS])


def _repaired(text: str) -> str:
    raw = b"".join(sign.encode("latin-1" if sign in UNDEFINED else "cp1252") for sign in text)
    return raw.decode("utf-8", "replace")


def valid_text(text: str) -> str:
    """Return a text that UTF-8 can hold: lone surrogates are written as escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
