"""The report of a run: one HTML page that shows what training changed. Pure: numbers and texts in, text out.

The page stands alone: its style, its plots (SVG) and nothing fetched, no script. It follows the reader's
light or dark setting. Answers and names come from data and from models, so every one of them is escaped.
Same inputs, same bytes.
"""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sft.domains import BY_SLUG, describe, in_order

TOOL_SHARES = {
    "tool_call_well_formed": "well-formed",
    "tool_call_known_function": "known function",
    "tool_call_fits": "arguments fit",
    "tool_call_exact": "exact",
}
SHARES = {**TOOL_SHARES, "stopped": "stopped by itself", "think_balanced": "think tags balanced"}
EXAMPLES = 6
SHOWN_CHARS = 1_200
LABEL_CHARS = 26
TICKS = 4
SMOOTH_SHARE = 12
"""The running mean is over a twelfth of the steps: packs of one step are of other domains than those of the next."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --faint: #667085; --line: #dfe3ea; --page: #fbfbfc;
  --card: #fff; --before: #a9b4c4; --after: #2563b8; --good: #19764a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --faint: #93a0b4; --line: #2c3542;
  --page: #12161c; --card: #191f28; --before: #5d6b80; --after: #6aa5f2; --good: #63c497; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 2.5rem 1.25rem 4rem; background: var(--page);
  color: var(--ink); font: 15px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; letter-spacing: -.01em; }
h2 { font-size: 1.05rem; margin: 2.4rem 0 .7rem; }
p { margin: .3rem 0; }
code, pre { font: 12.5px/1.5 ui-monospace, Menlo, Consolas, monospace; }
.faint { color: var(--faint); } .key { overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: .8rem;
  margin-top: 1.4rem; }
.card, details { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .8rem 1rem; }
.card b { display: block; font-size: 1.45rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.plot { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .6rem; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--faint); font-size: 12px; }
svg .value { fill: var(--ink); } svg .grid { stroke: var(--line); } svg .before { fill: var(--before); }
svg .after { fill: var(--after); } svg path { fill: none; stroke: var(--after); stroke-width: 2; }
svg path.step { stroke-width: 1; opacity: .35; } svg path.validation { stroke: var(--good); stroke-dasharray: 5 4; }
svg circle { fill: var(--good); }
.legend span { margin-right: 1em; }
.legend span::before { content: ""; display: inline-block; width: .7em; height: .7em; margin-right: .4em;
  border-radius: 2px; background: var(--before); } .legend span.after::before { background: var(--after); }
.legend span.validation::before { background: var(--good); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td, th { border-bottom: 1px solid var(--line); padding: .35rem .5rem; text-align: right;
  font-weight: normal; } td:first-child, th:first-child { text-align: left; } th { color: var(--faint); }
details { margin: .6rem 0; } summary { cursor: pointer; overflow-wrap: anywhere; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: .8rem;
  margin-top: .7rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0; max-height: 22rem; overflow: auto; }
.pair > div { border-top: 2px solid var(--before); padding-top: .3rem; min-width: 0; }
.pair > div.after { border-color: var(--after); }
"""


def render(
    evaluation: Mapping[str, Any],
    answers: Sequence[Mapping[str, Any]],
    curve: Sequence[Mapping[str, float]],
    lineage_key: str,
    domains: Mapping[str, Mapping[str, Any]],
) -> str:
    """Render the page.

    `evaluation` is reports/eval.json, `answers` the rows of reports/answers.jsonl, `curve` the points of the
    training: iteration, loss and, where it was measured, validation_loss; `domains` counts what was packed, by
    domain (data/packed/metadata.json).
    """
    before, after = evaluation["before"], evaluation["after"]
    sections = [
        "<h1>What training changed</h1>",
        f'<p class="faint key">lineage key <code>{escaped(lineage_key)}</code></p>',
        _cards(before, after),
        _curve(curve),
        "<h2>Held-out loss by domain</h2>" + _legend(),
        _bars(
            [
                (describe(domain).name, before["loss_by_domain"][domain], after["loss_by_domain"][domain])
                for domain in in_order(after["loss_by_domain"])
            ]
        ),
        "<h2>Tool calls and form, share of held-out prompts</h2>" + _legend(),
        _bars([(label, before[name], after[name]) for name, label in SHARES.items()], top=1.0),
        "<p class='faint'>A tool call is well-formed, then known, then fitting, then exact: each asks more "
        "than the one before it.</p>",
        "<h2>What was measured</h2>" + _counts(evaluation),
        "<h2>What the data is</h2>" + _domains(domains),
        "<h2>Answers</h2>",
        *(_example(answer, shown=not index) for index, answer in enumerate(_examples(answers))),
    ]
    if not answers:
        sections.append('<p class="faint">No prompts.</p>')
    return whole_page("What training changed", "\n".join(part for part in sections if part))


def whole_page(title: str, body: str, more_style: str = "") -> str:
    """Lay out a page that stands alone: other pages than this report have its style, and some more."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{STYLE}{more_style}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def escaped(value: object) -> str:
    """Return a value as text of a page."""
    return html.escape(str(value))


def number(value: float | None) -> str:
    """Show a number in few digits; what was not measured as a dash.

    >>> number(2), number(0.123456), number(12345.678), number(None)
    ('2', '0.123', '12,346', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"


def _cards(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    shown = {"loss": "held-out loss", "perplexity": "perplexity", "tool_call_fits": "tool calls that fit"}
    shown |= {"stopped": "answers that stop"}
    cards = [
        f'<div class="card"><span class="faint">{label}</span><b>{number(after[name])}</b>'
        f'<span class="faint">before: {number(before[name])}</span></div>'
        for name, label in shown.items()
    ]
    return f'<div class="cards">{"".join(cards)}</div>'


def _legend() -> str:
    return '<p class="legend faint"><span>before</span><span class="after">after</span></p>'


def _bars(rows: Sequence[tuple[str, float | None, float | None]], top: float | None = None) -> str:
    """Draw two horizontal bars a row; a row that was not measured says so."""
    measured = [value for _, *pair in rows for value in pair if value is not None]
    top = top or max([*measured, 0.0]) or 1.0
    left, full, height = 190, 480, 44
    parts = [f'<svg viewBox="0 0 740 {height * len(rows) + 6}" role="img">']
    for index, (label, *pair) in enumerate(rows):
        y = index * height + 8
        short = label if len(label) <= LABEL_CHARS else label[: LABEL_CHARS - 3] + "..."
        parts.append(f'<text x="{left - 12}" y="{y + 19}" text-anchor="end">{escaped(short)}</text>')
        for name, value, at in zip(("before", "after"), pair, (y, y + 15), strict=True):
            width = 0.0 if value is None else max(full * value / top, 1.5)
            shown = "no prompts" if value is None else number(value)
            parts.append(f'<rect class="{name}" x="{left}" y="{at}" width="{width:.1f}" height="13" rx="2"/>')
            parts.append(f'<text class="value" x="{left + width + 8:.1f}" y="{at + 11}">{shown}</text>')
    return f'<div class="plot">{"".join(parts)}</svg></div>'


def _curve(curve: Sequence[Mapping[str, float]]) -> str:
    """Draw the loss of each step, its running mean, and validations; nothing where there is no curve."""
    if len(curve) < 2:
        return ""
    left, top, width, height = 56, 14, 660, 220
    names = [name for name in ("loss", "validation_loss") if any(name in point for point in curve)]
    values = [point[name] for point in curve for name in names if name in point]
    first, last = curve[0]["iteration"], curve[-1]["iteration"]
    low, high = min(values), max(values)
    low, high = (low - 0.5, high + 0.5) if low == high else (low, high)
    parts = ['<svg viewBox="0 0 740 270" role="img">']
    for tick in range(TICKS + 1):
        y = top + height * tick / TICKS
        parts.append(f'<line class="grid" x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        value = high - (high - low) * tick / TICKS
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.2f}</text>')
    parts.append(f'<text x="{left}" y="{top + height + 20}">{first:.0f}</text>')
    parts.append(f'<text x="{left + width}" y="{top + height + 20}" text-anchor="end">iteration {last:.0f}</text>')

    def place(iteration: float, value: float) -> tuple[str, str]:
        x = left + width * (iteration - first) / ((last - first) or 1)
        return f"{x:.1f}", f"{top + height * (high - value) / (high - low):.1f}"

    steps = [(point["iteration"], point["loss"]) for point in curve if "loss" in point]
    validations = [(point["iteration"], point["validation_loss"]) for point in curve if "validation_loss" in point]
    lines = {"step": steps, "loss": running_mean(steps, len(steps) // SMOOTH_SHARE), "validation": validations}
    for name, points in lines.items():
        if points:
            path = " L".join(" ".join(place(*point)) for point in points)
            parts.append(f'<path class="{name}" d="M{path}"/>')
    for point in validations:
        at = place(*point)
        parts.append(f'<circle cx="{at[0]}" cy="{at[1]}" r="3.5"/>')
    legend = '<span class="after">training, each step and the running mean</span>'
    legend += '<span class="validation">validation</span>' if len(names) > 1 else ""
    svg = f'<div class="plot">{"".join(parts)}</svg></div>'
    return f'<h2>Loss while training</h2><p class="legend faint">{legend}</p>{svg}'


def running_mean(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Mean of each value and up to `window` - 1 before it.

    >>> running_mean([(1, 4.0), (2, 2.0), (3, 0.0)], 2)
    [(1, 4.0), (2, 3.0), (3, 1.0)]
    """
    means = []
    for index, (iteration, _) in enumerate(points):
        taken = [value for _, value in points[max(0, index + 1 - max(1, window)) : index + 1]]
        means.append((iteration, sum(taken) / len(taken)))
    return means


def _counts(evaluation: Mapping[str, Any]) -> str:
    rows: list[tuple[str, Any]] = [
        ("prompts that want a tool call", evaluation["tool_prompts"]),
        ("other prompts", evaluation["chat_prompts"]),
        *((f"prompts left out: {reason}", n) for reason, n in evaluation["prompts_left_out"].items()),
        *((f"held-out samples: {domain}", n) for domain, n in evaluation["samples_by_domain"].items()),
        ("trained tokens in them", evaluation["tokens"]),
    ]
    cells = "".join(f"<tr><td>{escaped(name)}</td><td>{number(count)}</td></tr>" for name, count in rows)
    return f"<table>{cells}</table>"


def _domains(domains: Mapping[str, Mapping[str, Any]]) -> str:
    """Table what was packed by domain: the recipe's fourteen, also those without data, then the user's own."""
    total = sum(counts["trained_tokens"] for counts in domains.values()) or 1
    heads = ("domain", "what it is", "conversations", "tokens", "trained", "share of trained")
    rows = ["".join(f"<th>{head}</th>" for head in heads)]
    for slug in in_order({*BY_SLUG, *domains}):
        known = describe(slug)
        cells = [f"<td>{escaped(known.name)}</td>", f'<td class="faint">{escaped(known.description)}</td>']
        counts = domains.get(slug)
        shown = ["-"] * 4
        if counts:
            shown = [number(counts[name]) for name in ("conversations", "tokens", "trained_tokens")]
            shown.append(f"{counts['trained_tokens'] / total:.1%}")
        rows.append("".join([*cells, *(f"<td>{one}</td>" for one in shown)]))
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _examples(answers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Take the first answers of each kind, tool calls first; no choosing by how they came out."""
    tool = [answer for answer in answers if answer["kind"] == "tool"]
    chat = [answer for answer in answers if answer["kind"] != "tool"]
    num_tool = min(len(tool), max(EXAMPLES - len(chat), EXAMPLES * 2 // 3))
    return tool[:num_tool] + chat[: EXAMPLES - num_tool]


def _example(answer: Mapping[str, Any], shown: bool) -> str:
    panels = []
    for name in ("before", "after"):
        said = answer[name]
        fault = "" if "verdict" not in said else said["verdict"]["fault"] or "exact"
        notes = [note for note in (fault, "" if said["stopped"] else "cut at max_new_tokens") if note]
        noted = f' <span class="faint">{escaped(", ".join(notes))}</span>' if notes else ""
        panels.append(f'<div class="{name}">{name}{noted}<pre>{escaped(_cut(said["text"]))}</pre></div>')
    question = answer["question"].strip()
    title = escaped(question if len(question) <= 110 else question[:107] + "...")
    origin = escaped(f"{answer['source']}, {answer['kind']}:")
    return (
        f'<details{" open" if shown else ""}><summary><span class="faint">{origin}</span> {title}</summary>'
        f'<div class="pair">{"".join(panels)}</div>'
        f'<p class="faint">Reference</p><pre>{escaped(_cut(_reference(answer["reference"])))}</pre></details>'
    )


def _reference(message: Mapping[str, Any]) -> str:
    calls = [call["function"] for call in message.get("tool_calls", [])]
    shown = [f"{call['name']} {json.dumps(call['arguments'], ensure_ascii=False)}" for call in calls]
    return "\n".join([message["content"], *shown]).strip()


def _cut(text: str) -> str:
    left_out = len(text) - SHOWN_CHARS
    return text if left_out <= 0 else f"{text[:SHOWN_CHARS]}\n[{left_out} more characters]"
