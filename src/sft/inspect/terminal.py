"""Untrusted text on the terminal: data cannot move the cursor, change colors, forge a mark or hide.

All data goes to the screen through `visible`, which returns printable text only. Our own marks are in brackets that
`visible` replaces in data: MARKED around what color shows if there is color, ASIDE around what is not text of the data.
"""

import contextlib
import os
import re
import unicodedata
from collections.abc import Iterator

from rich.console import Console

MARKED = "⟦", "⟧"
ASIDE = "⟨", "⟩"
SIGNS = {"\n": "⏎", "\t": "⇥", "\r": "␍", "\x7f": "␡"}
# Joiners shape letters of Persian, of Indic scripts and of emoji; they hide nothing.
JOINERS = "\u200c\u200d"
TO_REPLACE = re.compile("[^ -~]")
# Options of less(1) if you set none: colors, no paging of what fits the screen (as git does).
LESS = "FRX"


class Screen(Console):
    """A console that prints text as it is (no markup, no emoji codes), and exits with 0 when its pipe closes."""

    def __init__(self) -> None:
        super().__init__(markup=False, highlight=False, emoji=False)

    @property
    def plain(self) -> bool:
        """Whether there is no color: a pipe, NO_COLOR, a terminal without colors."""
        return self.color_system is None or self.no_color

    def on_broken_pipe(self) -> None:
        """Exit with 0: a reader that closes the pipe (`| head`) has seen enough."""
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise SystemExit(0) from None


@contextlib.contextmanager
def paged() -> Iterator[Screen]:
    """Yield a screen; on a terminal it goes through your pager ($PAGER, else less)."""
    screen = Screen()
    if screen.is_terminal:
        os.environ.setdefault("LESS", LESS)
        with screen.pager(styles=True):
            yield screen
    else:
        yield screen


def aside(text: str) -> str:
    """Return our own words in brackets that data cannot forge."""
    return f"{ASIDE[0]}{text}{ASIDE[1]}"


def visible(text: str) -> str:
    r"""Return text with a sign for every character that is not printable, and for our brackets.

    Newlines and tabs have signs of their own; other control characters, direction marks, invisible characters and
    unassigned code points are named.

    >>> visible("a\n\x1b[31m\u202e⟨")
    'a⏎␛[31m⟨U+202E⟩⟨U+27E8⟩'
    """
    return TO_REPLACE.sub(lambda match: _sign(match[0]), text)


def _sign(character: str) -> str:
    if character in SIGNS:
        return SIGNS[character]
    if character < " ":
        return chr(0x2400 + ord(character))  # Unicode's pictures of the control characters
    if unicodedata.category(character) == "Zs":
        return "␣"  # a space other than the ASCII one
    if (character.isprintable() or character in JOINERS) and character not in (*MARKED, *ASIDE):
        return character
    return aside(f"U+{ord(character):04X}")
