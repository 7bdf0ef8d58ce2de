"""parallel: experiments as one page with parallel coordinates. Pure: rows in, text out.

An axis for each param that varies and each measure, a line for each experiment; the best is drawn strong. The page
stands alone (its style, one SVG, no script, nothing fetched). A line under the pointer tells its name and values.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sft.pages.report import escaped, whole_page

LEFT, TOP, WIDTH, HEIGHT = 70, 40, 900, 300  # pixels
LOG_RATIO = 20  # an axis whose largest value is so many times the smallest is logarithmic
MOST_TICKS = 6

MORE_STYLE = """
body { max-width: 80rem; } svg path.line { stroke: var(--before); stroke-width: 1.6; opacity: .75; }
svg path.best { stroke: var(--after); stroke-width: 3; opacity: 1; }
svg path.line:hover { stroke: var(--good); opacity: 1; }
svg .axis { stroke: var(--line); } svg .name { fill: var(--ink); } tr.best td { font-weight: 600; }
"""

Row = Mapping[str, Any]


def page(title: str, rows: Sequence[Row], axes: Sequence[str], ended: Mapping[str, str]) -> str:
    """Render the page: `rows` best first, each with a name; `ended` are those without results, and why."""
    head = "".join(f"<th>{escaped(name)}</th>" for name in ("experiment", *axes))
    body = "".join(
        f"<tr{' class=best' if index == 0 else ''}><td>{escaped(row['name'])}</td>"
        + "".join(f"<td>{escaped(shown(row.get(axis)))}</td>" for axis in axes)
        + "</tr>"
        for index, row in enumerate(rows)
    )
    others = "".join(f"<p>{escaped(name)}: {escaped(state)}</p>" for name, state in ended.items())
    plot = f'<div class="plot">{drawing(rows, axes)}</div>' if rows and axes else ""
    parts = [
        f"<h1>{escaped(title)}</h1>",
        f'<p class="faint">{len(rows)} experiments with results, the lowest held-out loss first and drawn strong.</p>',
        plot,
        f"<table><tr>{head}</tr>{body}</table>",
        *([f"<h2>Without results</h2>{others}"] if ended else []),
    ]
    return whole_page(title, "\n".join(parts), MORE_STYLE)


def drawing(rows: Sequence[Row], axes: Sequence[str]) -> str:
    """Draw the axes and a line for each row; a row's line has a gap where it has no value."""
    gap = WIDTH / max(1, len(axes) - 1)
    parts = [f'<svg viewBox="0 0 {WIDTH + 2 * LEFT} {HEIGHT + 2 * TOP}" role="img" aria-label="parallel coordinates">']
    heights = {axis: places([row.get(axis) for row in rows]) for axis in axes}
    for index, axis in enumerate(axes):
        x = LEFT + index * gap
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{TOP + HEIGHT}"/>')
        parts.append(f'<text class="name" x="{x:.1f}" y="{TOP - 18}" text-anchor="middle">{escaped(axis)}</text>')
        for value, height in ticks(heights[axis]):
            parts.append(
                f'<text x="{x - 6:.1f}" y="{_y(height) + 4:.1f}" text-anchor="end">{escaped(shown(value))}</text>'
            )
    for index, row in reversed(list(enumerate(rows))):  # the best on top
        told = ", ".join(f"{axis} {shown(row.get(axis))}" for axis in axes)
        points = [
            None if row.get(axis) is None else (LEFT + place * gap, _y(heights[axis][str(row[axis])][1]))
            for place, axis in enumerate(axes)
        ]
        kind = "line best" if index == 0 else "line"
        parts.append(
            f'<path class="{kind}" d="{_path(points)}"><title>{escaped(row["name"])}: {escaped(told)}</title></path>'
        )
    return "".join(parts) + "</svg>"


def places(values: Sequence[Any]) -> dict[str, tuple[Any, float]]:
    """Return (value, height from 0 to 1) of every value by its text: numbers by size, others in order of name.

    >>> places([1.0, 3.0, 2.0])["2.0"]
    (2.0, 0.5)
    >>> places(["b", "a", None])
    {'a': ('a', 0.0), 'b': ('b', 1.0)}
    """
    known = [value for value in values if value is not None]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)
    if not numbers or not known:
        names = sorted({str(value) for value in known})
        return {name: (name, 0.5 if len(names) == 1 else index / (len(names) - 1)) for index, name in enumerate(names)}
    low, high = min(known), max(known)
    scale = math.log if low > 0 and high / low >= LOG_RATIO else float
    span = scale(high) - scale(low)
    return {str(value): (value, (scale(value) - scale(low)) / span if span else 0.5) for value in known}


def ticks(heights: Mapping[str, tuple[Any, float]]) -> list[tuple[Any, float]]:
    """Return the values that are written at an axis: all, or some that lie apart."""
    ordered = sorted(heights.values(), key=lambda one: one[1])
    chosen: list[tuple[Any, float]] = []
    for value, height in ordered:
        if not chosen or height - chosen[-1][1] >= 1 / MOST_TICKS:
            chosen.append((value, height))
    if ordered and chosen[-1] != ordered[-1]:
        chosen[-1] = ordered[-1]
    return chosen


def shown(value: Any) -> str:
    """Show a value in a cell or at an axis."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    words, drawn = [], False
    for point in points:
        if point is not None:
            words.append(f"{'L' if drawn else 'M'}{point[0]:.1f} {point[1]:.1f}")
        drawn = point is not None
    return " ".join(words)


def _y(height: float) -> float:
    return TOP + HEIGHT * (1 - height)
