"""Charts as inline SVG for the pages: lines over iterations, pairs of bars.

The colors are those of the page: a line or bar names a CSS class of base.html.j2.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from sft.pages.render import render

Point = tuple[float, float]

LEFT, TOP, WIDTH, HEIGHT = 56, 14, 660, 220  # pixels of the area that lines are drawn in
TICKS = 4
BARS_LEFT, BARS_WIDTH = 190, 480  # pixels
NARROWEST_BAR = 1.5
LABEL_CHARS = 26


class Line(NamedTuple):
    """A line of a chart."""

    style: str
    """CSS class: after, step, validation, a or b."""
    points: Sequence[Point]
    """(x, y) in order of x."""
    has_dots: bool = False
    """Whether each point has a dot; a line of one point always has."""


def line_chart(lines: Sequence[Line], x_name: str = "iteration") -> Markup:
    """Return a chart of lines that share their axes; there must be a point in one of them."""
    points = [point for line in lines for point in line.points]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    low, high = (low - 0.5, high + 0.5) if low == high else (low, high)

    def place(x: float, y: float) -> Point:
        across = (x - first) / ((last - first) or 1)
        return round(LEFT + WIDTH * across, 1), round(TOP + HEIGHT * (high - y) / (high - low), 1)

    ticks = [high - (high - low) * tick / TICKS for tick in range(TICKS + 1)]
    drawn = [line._replace(points=[place(*point) for point in line.points]) for line in lines if line.points]
    return Markup(
        render(
            "line_chart.svg.j2",
            lines=drawn,
            grid=[(place(first, value)[1], value) for value in ticks],
            left=LEFT,
            right=LEFT + WIDTH,
            bottom=TOP + HEIGHT,
            ends=(first, last),
            x_name=x_name,
        )
    )


class Bar(NamedTuple):
    """A bar of a chart."""

    value: float | None
    """None: not measured."""
    bounds: tuple[float, float] | None = None
    """The interval of the value, drawn as a line on the bar."""


def bar_chart(rows: Sequence[tuple[str, Bar, Bar]], top: float | None = None) -> Markup:
    """Return two bars for each (label, before, after), the longest `top` or the largest value or bound."""
    bars = [bar for _, *pair in rows for bar in pair]
    ends = [number for bar in bars for number in (bar.value, *(bar.bounds or ())) if number is not None]
    longest = top or max([*ends, 0.0]) or 1.0

    def width(value: float) -> float:
        return round(max(BARS_WIDTH * value / longest, 0.0), 1)

    def drawn(pair: Sequence[Bar]) -> Iterator[dict[str, Any]]:
        for style, (value, bounds) in zip(("before", "after"), pair, strict=True):
            long = 0.0 if value is None else max(width(value), NARROWEST_BAR)
            low, high = (width(bounds[0]), width(bounds[1])) if bounds else (0.0, 0.0)
            yield {"style": style, "value": value, "width": long, "bounds": bounds, "low": low, "high": high}

    return Markup(
        render("bar_chart.svg.j2", rows=[(_short(label), list(drawn(pair))) for label, *pair in rows], left=BARS_LEFT)
    )


def _short(label: str) -> str:
    return label if len(label) <= LABEL_CHARS else label[: LABEL_CHARS - 3] + "..."
