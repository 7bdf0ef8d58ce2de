"""rejected: what the data stages refused, for people: how much for which reason, and examples with the evidence.

data/filtered/<source>/rejected-*.parquet, data/prepared/<source>/rejected.jsonl, data/packed/rejected.jsonl
    ->  the terminal, through the user's pager

Without --reason a table: how much was refused, by source, stage and reason, and its share of what the stage
read. With --reason its examples: where the row came from, the evidence, and the conversation in short, the
evidence marked where it occurs (without colours: in ⟦ ⟧). Same data, same order: --from goes on where one stopped.
"""

import argparse
import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from sft.cli import InputError, make_parser, run_or_exit
from sft.inspect.rejections import FILTERED, STAGES, UNITS, count, examples, place, sources, taken_in
from sft.inspect.terminal import MARKED, aside, paged, visible

WHOLE_CHARS = 500  # a text up to this long is shown whole
AROUND_CHARS = 160  # of a longer one: so much of its start and end, and around what is marked
SHORTEST_NEEDLE = 2
MOST_MARKS = 8  # places of one text that are kept in sight
EDGE_PARTS = 4  # of a long conversation: so many parts from the start and from the end, and all with a mark

QUOTED = re.compile(r"""'(?:[^'\\]|\\.)+'|"(?:[^"\\]|\\.)+"|“[^”]+”|«[^»]+»""")
CALLED = re.compile(r"\bcalls (\S+)")
NAMED = re.compile(r"messages\[(\d+)\]")
ELLIPSIS = re.compile(r"…|\.\.\.")

MARK = "black on yellow"

Span = tuple[int, int]


class Part(NamedTuple):
    """A text of a message: what someone says or thinks, a call, or what else there is."""

    message: int
    """Its index."""
    label: str
    text: str


# --- The table of reasons --------------------------------------------------------------------------------


def table(names: Sequence[str]) -> Table:
    """Build the table of reasons of some sources, the most frequent of a stage first."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("source", "stage", "reason"):
        shown.add_column(name, overflow="fold")
    for name in ("number", "share"):
        shown.add_column(name, justify="right", no_wrap=True)
    for source in names:
        for stage in STAGES:
            total = taken_in(stage, source)
            first = [_text(source if stage == STAGES[0] else "", "bold"), _text(stage)]
            if not place(stage, source).exists():
                shown.add_row(*first, _text(f"{place(stage, source)} not found: make {stage}", "yellow"))
                continue
            reasons = sorted(count(stage, source).items(), key=lambda item: (-item[1], item[0]))
            lost = sum(number for _, number in reasons)
            shown.add_row(*first, _text(f"{UNITS[stage]} in", "bright_black"), "-" if total is None else f"{total:,}")
            for reason, number in reasons:
                shown.add_row("", "", _text(reason, "red"), f"{number:,}", _share(number, total))
            if len(reasons) > 1:
                shown.add_row("", "", _text("all refused", "bright_black"), f"{lost:,}", _share(lost, total))
        shown.add_section()
    return shown


def _share(number: int, total: int | None) -> str:
    return f"{number / total:.2%}" if total else "-"


# --- Examples of one reason ------------------------------------------------------------------------------


def needles(evidence: str) -> list[re.Pattern[str]]:
    """Return patterns for what evidence quotes; case, spaces and punctuation between words do not matter.

    Of a quotation inside a quotation, the inner one counts: the outer shows where it stands.

    >>> (quoted,) = needles("messages[1]: 'get weather'")
    >>> bool(quoted.search("Get  weather!")), bool(quoted.search("get the weather"))
    (True, False)
    """
    if evidence.startswith('{"'):  # what an adapter knows of the row, not a text in it
        return []
    said = NAMED.sub("", evidence)
    quoted = [_unquoted(found[0]) for found in QUOTED.finditer(said)]
    called = [found[1].rstrip(";,.:") for found in CALLED.finditer(said)]
    texts = [said, *quoted, *called]
    patterns = {}
    for text in (one for one in texts if not any(other != one and other in one for other in texts)):
        for piece in ELLIPSIS.split(text):
            words = re.findall(r"\w+", piece)
            if len(words) == 1:
                patterns[rf"\b{re.escape(words[0])}\b"] = True
            elif len(piece.strip()) >= SHORTEST_NEEDLE:  # may start and end in the middle of a word
                patterns[r"\W+".join(map(re.escape, words)) or re.escape(piece.strip())] = True
    return [re.compile(pattern, re.IGNORECASE) for pattern in patterns]


def _unquoted(text: str) -> str:
    try:
        return str(ast.literal_eval(text))
    except (SyntaxError, ValueError):
        return text[1:-1]


def parts(messages: Any) -> list[Part]:
    """Take the messages of a row apart, however malformed: all that is in them is in one of the parts."""
    if not isinstance(messages, list):
        raw = messages["raw"] if isinstance(messages, dict) and list(messages) == ["raw"] else messages
        return [Part(0, "row", _plain(raw))]
    found: list[Part] = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            found.append(Part(index, "message", _plain(message)))
            continue
        rest = {name: value for name, value in message.items() if value not in (None, "", [], {})}
        role = _plain(rest.pop("role", "no role"))
        said = [
            Part(index, label, _plain(rest.pop(name)))
            for name, label in (("reasoning_content", "thinks"), ("reasoning", "thinks"), ("content", role))
            if name in rest
        ]
        calls = rest.pop("tool_calls", [])
        said += [Part(index, "calls", _call(call)) for call in (calls if isinstance(calls, list) else [calls])]
        said += [Part(index, "also", _plain(rest))] if rest else []
        if all(part.label != role for part in said):  # so that one sees who thinks, or calls
            said.insert(0, Part(index, role, ""))
        found += said
    return found


def tool_names(tools: Any) -> str:
    """List the names of the tools of a row; what has no such form is shown as it stands."""
    listed = tools if isinstance(tools, list) else [None]
    functions = [tool.get("function", tool) if isinstance(tool, dict) else None for tool in listed]
    names = [function.get("name") if isinstance(function, dict) else None for function in functions]
    return ", ".join(map(str, names)) if all(isinstance(name, str) for name in names) else _plain(tools)


def _call(call: Any) -> str:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or function.keys() - {"name", "arguments"}:
        return _plain(call)
    return f"{_plain(function.get('name'))} {_plain(function.get('arguments'))}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def marks(text: str, patterns: Iterable[re.Pattern[str]]) -> list[Span]:
    """Return the ranges of a text that the patterns find, in order, joined where they touch.

    >>> marks("a bb a", [re.compile("a"), re.compile(" b")])
    [(0, 3), (5, 6)]
    """
    return _joined(found.span() for pattern in patterns for found in pattern.finditer(text))


def windows(length: int, spans: Sequence[Span]) -> list[Span]:
    """Choose what to show of a text: all of a short one, else its ends and what is around its first marks."""
    if length <= WHOLE_CHARS:
        return [(0, length)]
    ends = [(0, AROUND_CHARS), (length - AROUND_CHARS, length)]
    return _joined(ends + [(max(0, a - AROUND_CHARS), min(length, b + AROUND_CHARS)) for a, b in spans[:MOST_MARKS]])


def _joined(spans: Iterable[Span]) -> list[Span]:
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def example(stage: str, source: str, row: dict[str, Any], plain: bool) -> Table:
    """Lay out one refused row: where it is from, the evidence, the conversation in short."""
    shown = Table.grid(padding=(0, 1))
    shown.add_column(justify="right", no_wrap=True)
    shown.add_column(overflow="fold")
    meta = json.loads(row.get("meta") or "{}")
    where = meta.get("location") or meta.get("where", "")  # `where` in data of version 0.1.0
    evidence = row["evidence"].removeprefix(f"{where}: ")
    named = {int(found[1]) for found in NAMED.finditer(evidence)}
    patterns = needles(evidence)

    def add(label: str, text: str, spans: Sequence[Span] = (), style: str = "bright_black") -> None:
        shown.add_row(_text(label, style), _marked(text, spans, plain))

    add("where", f"data/raw/{source}/{where}" if where else f"not found in {FILTERED / source}")
    add("id", row["id"])
    shown.add_row(_text("evidence", "red"), _text(evidence))
    if row.get("tools"):
        names = tool_names(json.loads(row["tools"]))
        add("tools", names, [] if named else marks(names, patterns))
    conversation = parts(json.loads(row["messages"])) if row.get("messages") else []
    found = [marks(part.text, patterns) if part.message in named or not named else [] for part in conversation]
    hidden = 0
    for number, (part, spans) in enumerate(zip(conversation, found, strict=True)):
        is_edge = min(number, len(conversation) - 1 - number) < EDGE_PARTS
        if not (is_edge or spans or part.message in named):
            hidden += 1
            continue
        if hidden:
            shown.add_row("", Text(aside(f"{hidden} parts left out"), "bright_black"))
        hidden = 0
        style = "red" if part.message in named else "cyan"
        add(f"{part.message} {part.label}", part.text, spans, style)
    return shown


def _marked(text: str, spans: Sequence[Span], plain: bool) -> Text:
    """Return what to show of a text, its marks in colour, or in brackets."""
    shown, after = Text(), 0
    for start, end in windows(len(text), spans):
        if start > after:
            shown.append(aside(f"{start - after} characters left out"), "bright_black")
        inside = [(max(a, start), min(b, end)) for a, b in spans if a < end and start < b]
        for a, b in inside:
            shown.append(_breakable(text[start:a]))
            opening, closing = MARKED if plain else ("", "")
            shown.append(f"{opening}{_breakable(text[a:b])}{closing}", MARK)
            start = b
        shown.append(_breakable(text[start:end]))
        after = end
    return shown if text else Text(aside("nothing"), "bright_black")


def _breakable(text: str) -> str:
    return visible(text).replace("⏎", "⏎ ")


def _text(value: str, style: str = "") -> Text:
    return Text(visible(value), style)


def main(source: str | None, reason: str | None, number: int, start: int) -> None:
    """Show the table of reasons, or examples of one reason."""
    known = sources()
    if not known:
        raise InputError(f"{FILTERED}: no source was filtered yet. Run the filter stage first: make filter")
    if source is not None and source not in known:
        raise InputError(f"{source!r}: not a source in {FILTERED}: {', '.join(known)}")
    names = known if source is None else [source]
    if reason is None:
        with paged() as screen:
            screen.print(table(names))
        return
    counts = sum((count(stage, name) for name in names for stage in STAGES), Counter[str]())
    if reason not in counts:
        found = ", ".join(f"{name} ({counts[name]})" for name in sorted(counts)) or "none"
        raise InputError(f"{reason!r}: no row of {', '.join(names)} was refused for that. Reasons found: {found}")
    if start >= counts[reason]:
        raise InputError(f"FROM={start}: {counts[reason]} rows were refused for {reason}, numbered from 0")
    with paged() as screen:
        for n, (stage, name, row) in enumerate(examples(names, reason, start, number), start):
            title = f"── example {n} of {counts[reason]}, from 0: {name}, {stage}: {reason} "
            screen.print(_text(title, "bold"), soft_wrap=True)
            screen.print(example(stage, name, row, screen.plain))
            screen.print()
        if (following := start + number) < counts[reason]:
            screen.print(_text(f"{counts[reason] - following} more: FROM={following}"), soft_wrap=True)


def _number(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a number from {least}")
        return int(text)

    return number


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--source", metavar="NAME", help="a source of the blend; all of them by default")
    parser.add_argument("--reason", metavar="REASON", help="show examples of this reason")
    parser.add_argument("--number", type=_number(1), default=5, metavar="N", help="how many examples (5)")
    parser.add_argument("--from", type=_number(0), default=0, dest="start", metavar="N", help="the first of them (0)")
    given = parser.parse_args()
    run_or_exit(lambda: main(given.source, given.reason, given.number, given.start))
