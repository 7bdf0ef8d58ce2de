"""graph: the chain of a model as one HTML page with a drawn graph. Pure: the chain as JSON in, text out.

The page stands alone (its style, one SVG, no script, nothing fetched) and follows the reader's light or dark
setting. Every box leads to what is known of it: digest, facts, how to get it. Same inputs, same bytes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sft.pages.report import escaped, whole_page

# What stands in which column, from left to right, and in which order below each other.
COLUMNS = (
    ("source", "benchmarks"),
    ("filtered",),
    ("prepared",),
    ("packed", "base", "params", "code", "packages"),
    ("run",),
    ("model",),
    ("evaluation",),
)
# The fact that stands in a box, and its unit.
TOLD = {
    "source": ("rows", "rows"),
    "benchmarks": ("texts", "texts"),
    "filtered": ("kept", "kept"),
    "prepared": ("tokens", "tokens"),
    "packed": ("trained tokens", "trained"),
    "base": ("parameters", ""),
    "packages": ("installed", "installed"),
    "run": ("iterations", "steps"),
    "model": ("versions", ""),
}
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 148, 46, 42, 16, 8  # pixels of a box and between boxes
TITLE_CHARS = 19
HEADS = ("published", "filtered", "rendered", "goes in", "training", "model", "measured")
HEAD_HEIGHT = 26

MORE_STYLE = """
body { max-width: 88rem; }
.wide { overflow-x: auto; } .wide svg { min-width: 62rem; }
svg .box { fill: var(--card); stroke: var(--line); } svg .state { fill: var(--before); }
svg .intact { fill: var(--good); } svg .differs { fill: var(--bad); }
svg a:hover .box, svg a:focus .box { stroke: var(--after); } svg path.edge { stroke: var(--line); stroke-width: 1.3; }
svg .title { fill: var(--ink); font-weight: 600; }
:root { --bad: #b3261e; } @media (prefers-color-scheme: dark) { :root { --bad: #ff8a80; } }
.links { display: grid; grid-template-columns: repeat(auto-fill, minmax(26rem, 1fr)); gap: .8rem; }
.links section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem 1rem;
  min-width: 0; overflow-wrap: anywhere; }
.links section:target { border-color: var(--after); } .links h3 { font-size: .95rem; margin: 0 0 .3rem; }
.links td { text-align: left; vertical-align: top; } .links td:first-child { color: var(--faint); width: 9rem; }
.fault { color: var(--bad); overflow-wrap: anywhere; }
"""


def page(chain: Mapping[str, Any]) -> str:
    """Render the chain (`Chain.as_json`)."""
    nodes = chain["nodes"]
    faults = "".join(
        f'<p class="fault">{escaped(where)}: expected {escaped(expected)}, found {escaped(found)}</p>'
        for where, expected, found in (fault.values() for fault in chain["faults"])
    )
    body = [
        f"<h1>Where {escaped(chain['model'])} comes from</h1>",
        f'<p class="faint key">lineage key <code>{escaped(chain["lineage_key"])}</code>; commands run in: '
        f"<code>{escaped(chain['where'])}</code></p>",
        f"<h2>Not what it was</h2>{faults}" if faults else "",
        f'<div class="plot wide">{_drawing(nodes, chain["edges"])}</div>',
        '<p class="faint">A bar at the left of a box: green, the files lie here and are what they were; red, they '
        "differ; grey, they are not here or there are none.</p>",
        '<h2>The links</h2><div class="links">' + "".join(_section(node) for node in nodes) + "</div>",
    ]
    return whole_page(f"Lineage of {chain['model']}", "\n".join(part for part in body if part), MORE_STYLE)


def shown(value: Any) -> str:
    """Show a fact on one line.

    >>> shown({"kept": 1893, "share": 0.25, "uri": "file://x", "none": []})
    'kept 1,893, share 0.25, uri file://x, none -'
    """
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(shown(inner) for inner in value) or "-"
    if isinstance(value, bool) or value is None:
        return "-" if value is None else "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else str(value)


def places(nodes: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Return the left upper corner of the box of every node, by id; columns stand centred."""
    columns = [[node["id"] for kind in kinds for node in nodes if node["kind"] == kind] for kinds in COLUMNS]
    tallest = max(len(column) for column in columns)
    found = {}
    for index, column in enumerate(columns):
        top = MARGIN + HEAD_HEIGHT + (tallest - len(column)) * (HEIGHT + GAP_Y) // 2
        for row, name in enumerate(column):
            found[name] = (MARGIN + index * (WIDTH + GAP_X), top + row * (HEIGHT + GAP_Y))
    return found


def _drawing(nodes: Sequence[Mapping[str, Any]], edges: Sequence[Sequence[str]]) -> str:
    at = places(nodes)
    right = MARGIN + len(COLUMNS) * (WIDTH + GAP_X) - GAP_X
    bottom = max(y for _, y in at.values()) + HEIGHT
    parts = [f'<svg viewBox="0 0 {right + MARGIN} {bottom + MARGIN}" role="img" aria-label="graph of the chain">']
    for index, head in enumerate(HEADS):
        parts.append(f'<text x="{MARGIN + index * (WIDTH + GAP_X)}" y="{MARGIN + 12}">{head}</text>')
    for source, made in edges:
        (x1, y1), (x2, y2) = at[source], at[made]
        x1, y1, y2, half = x1 + WIDTH, y1 + HEIGHT // 2, y2 + HEIGHT // 2, (x2 - x1 - WIDTH) // 2
        parts.append(f'<path class="edge" d="M{x1} {y1} C{x1 + half} {y1} {x2 - half} {y2} {x2} {y2}"/>')
    for node in nodes:
        x, y = at[node["id"]]
        state = escaped(node["state"].replace(" ", "-"))
        parts.append(
            f'<a href="#{escaped(node["id"])}"><title>{escaped(node["kind"])} {escaped(node["title"])}</title>'
            f'<rect class="box" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
            f'<rect class="state {state}" x="{x}" y="{y}" width="5" height="{HEIGHT}" rx="2"/>'
            f'<text class="title" x="{x + 13}" y="{y + 19}">{escaped(_short(node["title"]))}</text>'
            f'<text x="{x + 13}" y="{y + 36}">{escaped(_short(_told(node)))}</text></a>'
        )
    return "".join(parts) + "</svg>"


def _told(node: Mapping[str, Any]) -> str:
    """Return the line below the title of a box."""
    name, unit = TOLD.get(node["kind"], ("", ""))
    if node["kind"] == "code":
        return str(node["facts"].get("commit", ""))[:12]
    if node["kind"] == "evaluation" and "loss" in node["facts"]:
        return "loss {before:.3f} to {after:.3f}".format(**node["facts"]["loss"])
    if name in node["facts"]:
        return f"{shown(node['facts'][name])} {unit}".strip()
    return str((node["digest"] or "").partition(":")[2][:12])


def _section(node: Mapping[str, Any]) -> str:
    rows = {"digest": node["digest"], "on this disk": node["state"], **node["facts"], "get": node["get"]}
    cells = "".join(
        f"<tr><td>{escaped(name)}</td><td>{escaped(shown(value))}</td></tr>" for name, value in rows.items() if value
    )
    title = node["title"] if node["kind"] in node["title"] else f"{node['kind']} {node['title']}"
    return f'<section id="{escaped(node["id"])}"><h3>{escaped(title)}</h3><table>{cells}</table></section>'


def _short(text: str) -> str:
    return text if len(text) <= TITLE_CHARS else f"{text[: TITLE_CHARS - 3]}..."
