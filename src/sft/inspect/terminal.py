"""The terminal as a place for text of others: data cannot move the cursor, change colours, forge a mark or hide.

`visible` is the one way from data to the screen: what it returns is printable, whatever came in. Marks of
our own stand in brackets that `visible` never lets through from data: MARKED around what colour would show
where there is none, ASIDE around what is not text of the data at all.
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
# What less(1) gets where the user has not said otherwise: colours, no paging of what fits the screen (as git does).
LESS = "FRX"


class Screen(Console):
    """A console that prints as told (no markup, no emoji codes) and leaves in peace when its reader does."""

    def __init__(self) -> None:
        super().__init__(markup=False, highlight=False, emoji=False)

    @property
    def plain(self) -> bool:
        """Whether colours are not shown: a pipe, NO_COLOR, a terminal without them."""
        return self.color_system is None or self.no_color

    def on_broken_pipe(self) -> None:
        """End well: who closes the pipe (`| head`) has seen enough."""
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise SystemExit(0) from None


@contextlib.contextmanager
def paged() -> Iterator[Screen]:
    """Yield a screen that goes through the user's pager ($PAGER, else less) where it is a terminal."""
    screen = Screen()
    if screen.is_terminal:
        os.environ.setdefault("LESS", LESS)
        with screen.pager(styles=True):
            yield screen
    else:
        yield screen


def aside(text: str) -> str:
    """Put our own words among text of the data: brackets that data cannot forge."""
    return f"{ASIDE[0]}{text}{ASIDE[1]}"


def visible(text: str) -> str:
    r"""Return text with a sign in place of every character that is not printable, and of our brackets.

    Newlines and tabs become one sign each; other control characters, direction marks, invisible characters
    and unassigned code points are named.

    >>> visible("a\n\x1b[31m\u202e⟨")
    'a⏎␛[31m⟨U+202E⟩⟨U+27E8⟩'
    """
    return TO_REPLACE.sub(lambda found: _sign(found[0]), text)


def _sign(character: str) -> str:
    if character in SIGNS:
        return SIGNS[character]
    if character < " ":
        return chr(0x2400 + ord(character))  # Unicode's pictures of the control characters
    if unicodedata.category(character) == "Zs":
        return "␣"  # a space, but not the plain one
    if (character.isprintable() or character in JOINERS) and character not in (*MARKED, *ASIDE):
        return character
    return aside(f"U+{ord(character):04X}")
