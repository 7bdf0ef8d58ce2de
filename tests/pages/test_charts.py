"""charts: lines and bars as SVG."""

import re
from xml.etree import ElementTree

from sft.pages.charts import BARS_LEFT, BARS_WIDTH, HEIGHT, LEFT, TOP, WIDTH, Bar, Line, bar_chart, line_chart

RIGHT, BOTTOM = LEFT + WIDTH, TOP + HEIGHT


def elements(svg: str, tag: str) -> list[dict[str, str]]:
    return [element.attrib for element in ElementTree.fromstring(svg).iter(tag)]


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]


def test_lines_share_their_axes_and_fill_the_area():
    svg = line_chart([Line("step", [(1, 2.0), (3, 1.0)]), Line("validation", [(2, 1.5)])])
    paths = {path["class"]: path["d"] for path in elements(svg, "path")}
    assert paths["step"] == f"M{LEFT:.1f} {TOP:.1f} L{RIGHT:.1f} {BOTTOM:.1f}"
    assert paths["validation"] == f"M{LEFT + WIDTH / 2:.1f} {TOP + HEIGHT / 2:.1f}"
    assert texts(svg) == ["2.00", "1.75", "1.50", "1.25", "1.00", "1", "iteration 3"]


def test_points_have_dots_where_asked_or_where_a_line_is_one_point():
    def dots(**more):
        return len(elements(line_chart([Line("a", **more)]), "circle"))

    assert dots(points=[(1, 1.0), (2, 1.0)]) == 0
    assert dots(points=[(1, 1.0), (2, 1.0)], has_dots=True) == 2
    assert dots(points=[(1, 1.0)]) == 1


def test_equal_values_and_a_line_without_points_are_drawn():
    svg = line_chart([Line("a", [(1, 2.0), (5, 2.0)]), Line("b", [])])
    (path,) = elements(svg, "path")
    assert path["d"] == f"M{LEFT:.1f} {TOP + HEIGHT / 2:.1f} L{RIGHT:.1f} {TOP + HEIGHT / 2:.1f}"


def test_bars_are_as_long_as_their_values_say():
    svg = bar_chart([("math", Bar(2.0), Bar(1.0)), ("code", Bar(0.0), Bar(None))])
    bars = [(bar["class"], float(bar["width"])) for bar in elements(svg, "rect")]
    assert bars == [("before", BARS_WIDTH), ("after", BARS_WIDTH / 2), ("before", 1.5), ("after", 0)]
    assert {bar["x"] for bar in elements(svg, "rect")} == {str(BARS_LEFT)}
    assert texts(svg) == ["math", "2.000", "1.000", "code", "0.000", "no prompts"]


def test_bars_of_shares_are_shares_of_the_whole_width():
    svg = bar_chart([("exact", Bar(0.25), Bar(None))], top=1.0)
    assert [float(bar["width"]) for bar in elements(svg, "rect")] == [BARS_WIDTH / 4, 0]


def test_labels_are_escaped_and_shortened():
    svg = bar_chart([("<script>" * 9, Bar(1.0), Bar(1.0))])
    assert texts(svg)[0] == ("<script>" * 9)[:23] + "..."
    assert not re.search("<script", svg)


def test_intervals_are_lines_on_their_bars_and_fit_the_chart():
    svg = bar_chart([("math", Bar(2.0), Bar(1.0, (0.5, 4.0)))])
    assert [float(bar["width"]) for bar in elements(svg, "rect")] == [BARS_WIDTH / 2, BARS_WIDTH / 4]
    (line,) = elements(svg, "line")
    assert (float(line["x1"]), float(line["x2"])) == (BARS_LEFT + BARS_WIDTH / 8, BARS_LEFT + BARS_WIDTH)
