"""parallel: a page of experiments that stands alone and escapes what comes from params."""

from html.parser import HTMLParser

import pytest

from sft.pages.parallel import drawing, page, places, ticks

ROWS = [
    {"name": "s-2", "optimizer.lr": 1e-3, "filter.narrative": None, "held-out loss": 1.0},
    {"name": "s-1", "optimizer.lr": 1e-5, "filter.narrative": "<b>x", "held-out loss": 2.0},
]
AXES = ["optimizer.lr", "filter.narrative", "held-out loss"]


def test_a_value_stands_where_its_size_says_also_on_a_logarithmic_axis():
    heights = [height for _, height in places([1e-5, 1e-4, 1e-3]).values()]
    assert heights == pytest.approx([0.0, 0.5, 1.0])
    assert places([2, 2]) == {"2": (2, 0.5)}
    assert places([True, False])["True"] == ("True", 1.0)
    assert places([]) == {}


def test_values_that_lie_close_are_not_written_over_each_other():
    heights = places([0.0, 0.01, 0.02, 0.5, 0.99, 1.0])
    assert [value for value, _ in ticks(heights)] == [0.0, 0.5, 1.0]


def test_the_best_is_drawn_strong_and_a_missing_value_is_a_gap():
    drawn = drawing(ROWS, AXES)
    best = drawn[drawn.index('class="line best"') :].split('"')[3]
    assert best.count("M") == 2, "it begins again behind the gap"
    assert drawn.count("<path") == 2


def test_the_page_stands_alone_and_escapes():
    text = page("s", ROWS, AXES, {"s-3": "failed"})
    assert "<b>x" not in text
    assert "&lt;b&gt;x" in text
    assert "s-3: failed" in text
    assert not any(word in text for word in ("<script", "http:", "https:", "src="))
    HTMLParser().feed(text)
    assert page("s", [], [], {"s-1": "failed"}).count("<path") == 0
