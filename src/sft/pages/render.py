"""Pages of HTML from the templates beside this module (`*.html.j2`).

A page is self-contained: style and plots are inside, it has no script and loads nothing. Values come from data and
from models, so everything is escaped that is not `Markup`. Same values, same bytes.
"""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def number(value: float | None) -> str:
    """Return a number in few digits, or a dash for None; templates have it as the filter `number`.

    >>> number(2), number(0.123456), number(12345.678), number(None)
    ('2', '0.123', '12,346', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"


ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
ENVIRONMENT.filters["number"] = number


def render(template: str, **values: object) -> str:
    """Return a template filled in.

    Raises:  jinja2.UndefinedError: the template names a value that is not given.

    >>> "<title>1 &lt; 2</title>" in render("base.html.j2", title="1 < 2")
    True
    """
    return ENVIRONMENT.get_template(template).render(**values)
