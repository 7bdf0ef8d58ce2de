"""sample: a pack as the trainer reads it: which tokens are trained, where samples start and end.

data/packed/{training,validation,test}/*.parquet, models/base (tokenizer)
    ->  the terminal, through your pager; or JSON (--json); or a page of HTML (--html)

--pack selects: a number (the n-th pack of training, from 0); validation:3, a pack of another split; the first 6 or
more digits of a conversation id, or these with :1 for the conversation's second sample. In color, trained tokens are
green, and shades alternate from token to token. Without color, trained text is in ⟦ ⟧. In ⟨ ⟩ is what is not text:
control tokens, padding, names of invisible characters.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.cells import cell_len, chop_cells
from rich.text import Text

from sft.cli import add_json_option, file_to_write, make_parser, print_facts, run_or_exit
from sft.files import write_text
from sft.inspect.packs import UTF8_BYTES, PackedSample, Piece, ShownPack, heading, unpack
from sft.inspect.terminal import MARKED, Screen, aside, paged, visible
from sft.pages.render import render

MARGIN_CELLS = 15
MIN_TEXT_CELLS = 20  # however narrow the terminal is
# By trained or not: two shades in turn, so that the ends of tokens can be seen; readable on dark and on light.
SHADES = {True: ("#0b3d1e on #b8ecc8", "#0b3d1e on #8fdcaa"), False: ("default", "bright_black")}
CONTROL = {True: "bold #8a1c8a on #b8ecc8", False: "bold magenta"}


class Chunk(NamedTuple):
    """The part of a piece that is on one line."""

    piece: Piece
    text: str
    """Printable."""
    turn: int
    """0 or 1, alternating from piece to piece."""


def lines(pieces: Iterable[Piece], width: int | None) -> Iterator[list[Chunk]]:
    """Yield pieces as lines: a line ends at a newline of the text, and before it exceeds `width` cells."""
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


def show(screen: Screen, title: str, samples: Sequence[PackedSample]) -> None:
    """Print a pack: all boundaries, and the tokens of the selected samples."""
    screen.print(Text(visible(title), "bold"), soft_wrap=True)
    _rule(screen, "═", "start of the pack; in the margin: position in the pack, in the sample")
    for index, sample in enumerate(samples):
        if not sample.is_selected:
            _rule(screen, "─", f"{heading(index, samples)}, not shown", "bright_black")
            continue
        show_sample(screen, heading(index, samples), sample)
    _rule(screen, "═", "end of the pack")


def show_sample(screen: Screen, title: str, sample: PackedSample) -> None:
    """Print the tokens of a sample below a line."""
    width = max(MIN_TEXT_CELLS, screen.width - MARGIN_CELLS)
    _rule(screen, "─", title, "bold cyan")
    for line in lines(sample.pieces, width):
        screen.print(_line(line, sample.start, screen.plain), soft_wrap=True)


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


def page(summary: str, samples: Sequence[PackedSample]) -> str:
    """Return a page; pointing at a token shows its position, its id and whether it is trained."""
    return render(
        "sample.html.j2",
        title="A pack as it is trained",
        summary=visible(summary),
        samples=[
            {
                "heading": visible(heading(index, samples)),
                "is_selected": sample.is_selected,
                "lines": [
                    (line[0].piece.first, [_token(chunk, sample.start) for chunk in line])
                    for line in lines(sample.pieces, None)
                ],
            }
            for index, sample in enumerate(samples)
        ],
    )


def _token(chunk: Chunk, start: int) -> tuple[str, str, str]:
    """Return CSS classes, tooltip and text; `start` is the position of the sample's first token."""
    piece = chunk.piece
    last = piece.first + len(piece.ids) - 1
    positions = f"token {piece.first}" if last == piece.first else f"tokens {piece.first} to {last}"
    ids = ", ".join(map(str, piece.ids[:UTF8_BYTES])) + (", ..." if len(piece.ids) > UTF8_BYTES else "")
    trained = "trained" if piece.is_trained else "not trained"
    classes = [("t", piece.is_trained), ("o", chunk.turn), ("c", piece.is_control)]
    return (
        " ".join(name for name, holds in classes if holds),
        f"{positions} ({piece.first - start} in the sample), id {ids}, {trained}",
        chunk.text,
    )


def main(name: str, html_file: Path | None, *, as_json: bool = False) -> None:
    """Show the pack that `name` selects, on the terminal or as a page."""

    def show_pack(pack: ShownPack) -> None:
        if html_file:
            Screen().print(Text(f"{visible(pack.title)}\n-> {visible(str(html_file))}"), soft_wrap=True)
            return
        with paged() as screen:
            show(screen, pack.title, pack.samples)

    pack = print_facts(lambda: unpack(name), show_pack, as_json=as_json)
    if html_file:
        write_text(html_file, page(pack.title, pack.samples))


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--pack", default="0", metavar="N|SPLIT:N|ID", help="what to show; default: the first pack")
    parser.add_argument("--html", type=file_to_write, metavar="FILE", help="write a page instead")
    add_json_option(parser)
    arguments = parser.parse_args()
    run_or_exit(lambda: main(arguments.pack, arguments.html, as_json=arguments.json))
