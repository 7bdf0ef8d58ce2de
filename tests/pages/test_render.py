"""render: templates filled in, escaped, and packaged."""

import re
import tomllib
from pathlib import Path

import jinja2
import pytest

from sft.pages import render as module
from sft.pages.render import render

ROOT = Path(__file__).parents[2]
HOSTILE = "</title><script>alert('1')</script>&\""


def test_values_are_escaped():
    page = render("base.html.j2", title=HOSTILE)
    assert re.findall(r"<title>(.*)</title>", page) == [
        "&lt;/title&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;&#34;"
    ]


def test_a_value_that_is_not_given_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="title"):
        render("base.html.j2")


def test_a_page_is_self_contained():
    page = render("base.html.j2", title="t")
    assert page.startswith("<!doctype html>")
    assert not re.search(r"<script|<link|src=|url\(|@import|https?:", page)


def test_every_template_is_package_data():
    """So that an installed package has them."""
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    (pattern,) = built["sft.pages"]
    folder = Path(module.__file__).parent
    templates = {path.name for path in folder.iterdir() if path.suffix not in (".py", "") and path.is_file()}
    assert {path.name for path in folder.glob(pattern)} == templates
    assert "base.html.j2" in templates
