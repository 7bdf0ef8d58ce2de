"""sample: a pack as the trainer reads it, for people: which tokens are trained, where samples begin and end.

data/packed/{training,validation,test}/*.parquet, models/base (tokenizer)
    ->  the terminal, through the user's pager, or a page of HTML (--html)

--sample says what: a number, the n-th pack of training from 0; validation:3, a pack of another split; the id
of a conversation, or its first 6 or more digits, or such with :1 for its second sample. In colour, trained
tokens are green, and shades alternate from token to token; without colour what is trained stands in ⟦ ⟧.
In ⟨ ⟩ stands what is not text: control tokens, padding, the names of invisible characters.
"""

import html
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.cells import cell_len, chop_cells
from rich.text import Text

from sft.cli import make_parser, run_or_exit
from sft.files import publish_file
from sft.inspect.packs import UTF8_BYTES, Piece, Shown, heading, unpack
from sft.inspect.terminal import MARKED, Screen, aside, paged, visible

MARGIN_CELLS = 15
NARROWEST = 20  # cells for text, however narrow the terminal
# Trained or not -> two shades by turns, so that one sees where a token ends; readable on dark and on light.
SHADES = {True: ("#0b3d1e on #b8ecc8", "#0b3d1e on #8fdcaa"), False: ("default", "bright_black")}
CONTROL = {True: "bold #8a1c8a on #b8ecc8", False: "bold magenta"}

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --faint: #667085; --line: #dfe3ea; --page: #fbfbfc; --card: #fff;
  --other: #eceff4; --trained: #c4efd1; --shade: #9fe0b5; --control: #8a1c8a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --faint: #93a0b4; --line: #2c3542; --page: #12161c;
  --card: #191f28; --other: #2a3442; --trained: #1d4a30; --shade: #27633f; --control: #f0a3f0; } }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.3rem; margin: 0 0 .4rem; } p { margin: .3rem 0; overflow-wrap: anywhere; }
details { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .6rem 1rem;
  margin: 1rem 0; }
summary { cursor: pointer; color: var(--faint); font-size: .9rem; overflow-wrap: anywhere; }
details.asked > summary { color: var(--ink); font-weight: 600; }
div.text { margin: .8rem 0 .2rem; font: 12.5px/1.75 ui-monospace, Menlo, Consolas, monospace; }
div.text div { position: relative; padding-left: 4.5rem; white-space: pre-wrap; overflow-wrap: anywhere; }
div.text div::before { content: attr(data-at); position: absolute; left: 0; width: 3.5rem; text-align: right;
  color: var(--faint); }
span { border-radius: 2px; } .o { background: var(--other); } .t { background: var(--trained); }
.t.o { background: var(--shade); } .c { color: var(--control); font-weight: 600; }
div.text span:hover { outline: 1px solid var(--ink); }
"""


class Chunk(NamedTuple):
    """What of a piece stands on one line."""

    piece: Piece
    text: str
    """Printable."""
    turn: int
    """0 or 1 by turns, from piece to piece."""


def lines(pieces: Iterable[Piece], width: int | None) -> Iterator[list[Chunk]]:
    """Lay pieces out in lines: a line ends at a newline of the text, and before it exceeds `width` cells."""
    line: list[Chunk] = []
    used = 0
    for number, piece in enumerate(pieces):
        for part in [piece.text] if piece.is_control else re.findall(r"[^\n]*\n|[^\n]+", piece.text):
            text = aside(visible(part)) if piece.is_control else visible(part).replace(" ", "·")
            for chunk in chop_cells(text, width) if width else [text]:
                if width and line and used + cell_len(chunk) > width:
                    yield line
                    line, used = [], 0
                line.append(Chunk(piece, chunk, number % 2))
                used += cell_len(chunk)
            if part.endswith("\n") and not piece.is_control:
                yield line
                line, used = [], 0
    if line:
        yield line


# --- On the terminal -------------------------------------------------------------------------------------


def show(screen: Screen, title: str, shown: Sequence[Shown]) -> None:
    """Print a pack: every boundary, and the tokens of the samples that are asked for."""
    width = max(NARROWEST, screen.width - MARGIN_CELLS)
    screen.print(Text(visible(title), "bold"), soft_wrap=True)
    _rule(screen, "═", "start of the pack; in the margin: position in the pack, in the sample")
    for index, sample in enumerate(shown):
        if not sample.is_asked_for:
            _rule(screen, "─", f"{heading(index, shown)}, not shown", "bright_black")
            continue
        _rule(screen, "─", heading(index, shown), "bold cyan")
        for line in lines(sample.pieces, width):
            screen.print(_line(line, sample.start, screen.plain), soft_wrap=True)
    _rule(screen, "═", "end of the pack")


def _line(line: Sequence[Chunk], start: int, plain: bool) -> Text:
    first = line[0].piece.first
    text = Text().append(f"{first:6} {first - start:5} │ ", "bright_black")
    for is_trained, run in itertools.groupby(line, key=lambda chunk: chunk.piece.is_trained):
        opening, closing = MARKED if is_trained and plain else ("", "")
        text.append(opening)
        for piece, chunk, turn in run:
            text.append(chunk, CONTROL[is_trained] if piece.is_control else SHADES[is_trained][turn])
        text.append(closing)
    return text


def _rule(screen: Screen, line: str, title: str, style: str = "cyan") -> None:
    text = f"{line * 2} {visible(title)} "
    screen.print(Text(text + line * (screen.width - cell_len(text)), style), soft_wrap=True)


# --- As a page -------------------------------------------------------------------------------------------


def page(title: str, shown: Sequence[Shown]) -> str:
    """Render a pack as HTML that stands alone: no script, nothing fetched; a token says what it is when pointed at."""
    sections = []
    for index, sample in enumerate(shown):
        rows = "".join(_row(line, sample.start) for line in lines(sample.pieces, None))
        kind = ' class="asked" open' if sample.is_asked_for else ""
        head = f"<details{kind}><summary>{_text(heading(index, shown))}</summary>"
        sections.append(f'{head}<div class="text">{rows}</div></details>')
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>A pack as it is trained</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>A pack as it is trained</h1>\n<p>{_text(title)}</p>\n"
        '<p>Green is <span class="t">trained</span>, <span class="c">⟨⟩</span> is not text. Point at a token for its '
        "position and id.</p>\n" + "\n".join(sections) + "\n</body>\n</html>\n"
    )


def _row(line: Sequence[Chunk], start: int) -> str:
    spans = []
    for piece, chunk, turn in line:
        last = piece.first + len(piece.ids) - 1
        where = f"token {piece.first}" if last == piece.first else f"tokens {piece.first} to {last}"
        ids = ", ".join(map(str, piece.ids[:UTF8_BYTES])) + (", ..." if len(piece.ids) > UTF8_BYTES else "")
        told = f"{where} ({piece.first - start} in the sample), id {ids}, {'' if piece.is_trained else 'not '}trained"
        kinds = [("t", piece.is_trained), ("o", turn), ("c", piece.is_control)]
        names = " ".join(name for name, holds in kinds if holds)
        spans.append(f'<span class="{names}" title="{told}">{html.escape(chunk)}</span>')
    return f'<div data-at="{line[0].piece.first}">{"".join(spans)}</div>'


def _text(value: str) -> str:
    return html.escape(visible(value))


def main(wanted: str, target: Path | None) -> None:
    """Show what `--sample` names."""
    title, shown = unpack(wanted)
    if target is None:
        with paged() as screen:
            show(screen, title, shown)
        return
    with publish_file(target) as partial:
        partial.write_text(page(title, shown), encoding="utf-8")
    Screen().print(Text(f"{visible(title)}\n-> {visible(str(target))}"), soft_wrap=True)


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--sample", default="0", metavar="N|SPLIT:N|ID", help="what to show; the first pack by default")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page instead")
    given = parser.parse_args()
    run_or_exit(lambda: main(given.sample, given.html))
