"""rejected: what the data stages rejected: how many rows for which reason, and examples with their evidence.

data/filtered/<source>/rejected-*.parquet, data/prepared/<source>/rejected.jsonl, data/packed/rejected.jsonl
    ->  the terminal, through your pager; or JSON (--json)

Without --reason: a table of the rows rejected by source, stage and reason, and their share of what the stage read.
With --reason: examples with location, evidence and a shortened conversation; the evidence is marked in the text
(without color: in ⟦ ⟧). The order is always the same: --from N shows the next ones.
"""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from sft.cli import InputError, add_json_option, at_least, make_parser, print_facts, run_or_exit
from sft.filters.contamination import joined
from sft.inspect.rejections import (
    FILTERED,
    STAGES,
    UNITS,
    count_reasons,
    examples,
    num_read,
    rejected_path,
    row_location,
    sources,
)
from sft.inspect.terminal import MARKED, aside, paged, visible

WHOLE_CHARS = 500  # longer texts are shortened
AROUND_CHARS = 160  # shown of a longer text: at its start, at its end, and around marks
MIN_QUOTE_CHARS = 2
MAX_MARKS = 8  # shown in one text
EDGE_PARTS = 4  # shown of a long conversation: at its start and at its end, besides parts with a mark

QUOTED = re.compile(r"""'(?:[^'\\]|\\.)+'|"(?:[^"\\]|\\.)+"|“[^”]+”|«[^»]+»""")
CALLED = re.compile(r"\bcalls (\S+)")
MESSAGE_INDEX = re.compile(r"messages\[(\d+)\]")
ELLIPSIS = re.compile(r"…|\.\.\.")

MARK = "black on yellow"
NESTED = ("messages", "tools", "meta")  # columns that hold JSON

Span = tuple[int, int]


class Part(NamedTuple):
    """A text of a message: content, reasoning, a call, or anything else in it."""

    message: int
    """Index of the message."""
    label: str
    text: str


# --- The table of reasons --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """What a stage rejected of a source."""

    source: str
    stage: str
    unit: str
    """What the stage counts: rows, conversations or samples."""
    read: int | None
    """How many it read. None: it has no report."""
    rejected: int | None
    """How many it rejected. None: it did not run."""
    reasons: dict[str, int]
    """By reason, the most frequent first."""


def count(names: Sequence[str]) -> list[Counts]:
    """Return what each stage rejected of some sources."""
    counted = []
    for source in names:
        for stage in STAGES:
            by_reason = count_reasons(stage, source)
            reasons = dict(sorted(by_reason.items(), key=lambda item: (-item[1], item[0])))
            num_rejected = by_reason.total() if rejected_path(stage, source).exists() else None
            counted.append(Counts(source, stage, UNITS[stage], num_read(stage, source), num_rejected, reasons))
    return counted


def table(counted: Sequence[Counts]) -> Table:
    """Return the table of reasons."""
    laid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("source", "stage", "reason"):
        laid.add_column(name, overflow="fold")
    for name in ("number", "share"):
        laid.add_column(name, justify="right", no_wrap=True)
    for of in counted:
        first_cells = [_text(of.source if of.stage == STAGES[0] else "", "bold"), _text(of.stage)]
        if of.rejected is None:
            path = rejected_path(of.stage, of.source)
            laid.add_row(*first_cells, _text(f"{path} not found: make {of.stage}", "yellow"))
        else:
            unit = _text(f"{of.unit} in", "bright_black")
            laid.add_row(*first_cells, unit, "-" if of.read is None else f"{of.read:,}")
            for reason, number in of.reasons.items():
                laid.add_row("", "", _text(reason, "red"), f"{number:,}", _share(number, of.read))
            if len(of.reasons) > 1:
                label = _text("all rejected", "bright_black")
                laid.add_row("", "", label, f"{of.rejected:,}", _share(of.rejected, of.read))
        if of.stage == STAGES[-1]:
            laid.add_section()
    return laid


def _share(number: int, total: int | None) -> str:
    return f"{number / total:.2%}" if total else "-"


# --- Examples of one reason ------------------------------------------------------------------------------


def quote_patterns(evidence: str) -> list[re.Pattern[str]]:
    """Return patterns that find what evidence quotes; case, spaces and punctuation between words do not matter.

    Of a quotation inside a quotation, the inner one counts: the outer one shows its context.

    >>> (quoted,) = quote_patterns("messages[1]: 'get weather'")
    >>> bool(quoted.search("Get  weather!")), bool(quoted.search("get the weather"))
    (True, False)
    """
    if evidence.startswith('{"'):  # facts that the source publishes about the row, not a text in it
        return []
    prose = MESSAGE_INDEX.sub("", evidence)
    quoted = [_unquoted(match[0]) for match in QUOTED.finditer(prose)]
    called = [match[1].rstrip(";,.:") for match in CALLED.finditer(prose)]
    texts = [prose, *quoted, *called]
    patterns = {}
    for text in (text for text in texts if not any(other != text and other in text for other in texts)):
        for part in ELLIPSIS.split(text):
            words = re.findall(r"\w+", part)
            if len(words) == 1:
                patterns[rf"\b{re.escape(words[0])}\b"] = True
            elif len(part.strip()) >= MIN_QUOTE_CHARS:  # may start and end in the middle of a word
                patterns[r"\W+".join(map(re.escape, words)) or re.escape(part.strip())] = True
    return [re.compile(pattern, re.IGNORECASE) for pattern in patterns]


def _unquoted(text: str) -> str:
    try:
        return str(ast.literal_eval(text))
    except (SyntaxError, ValueError):
        return text[1:-1]


def parts(messages: Any) -> list[Part]:
    """Return all texts of the messages of a row, however malformed they are."""
    if not isinstance(messages, list):
        raw = messages["raw"] if isinstance(messages, dict) and list(messages) == ["raw"] else messages
        return [Part(0, "row", _plain(raw))]
    texts: list[Part] = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            texts.append(Part(index, "message", _plain(message)))
            continue
        rest = {name: value for name, value in message.items() if value not in (None, "", [], {})}
        role = _plain(rest.pop("role", "no role"))
        of_message = [
            Part(index, label, _plain(rest.pop(name)))
            for name, label in (("reasoning_content", "thinks"), ("reasoning", "thinks"), ("content", role))
            if name in rest
        ]
        calls = rest.pop("tool_calls", [])
        of_message += [Part(index, "calls", _call(call)) for call in (calls if isinstance(calls, list) else [calls])]
        of_message += [Part(index, "also", _plain(rest))] if rest else []
        if all(part.label != role for part in of_message):  # the role of a message is always shown
            of_message.insert(0, Part(index, role, ""))
        texts += of_message
    return texts


def tool_names(tools: Any) -> str:
    """Return the names of a row's tools; tools of another form as they are."""
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
    """Return the ranges of a text that the patterns find, in order; those that touch are joined.

    >>> marks("a bb a", [re.compile("a"), re.compile(" b")])
    [(0, 3), (5, 6)]
    """
    return joined(match.span() for pattern in patterns for match in pattern.finditer(text))


def shown_ranges(length: int, spans: Sequence[Span]) -> list[Span]:
    """Return the ranges to show of a text: all of a short one, else its ends and around its first marks."""
    if length <= WHOLE_CHARS:
        return [(0, length)]
    ends = [(0, AROUND_CHARS), (length - AROUND_CHARS, length)]
    return joined(ends + [(max(0, a - AROUND_CHARS), min(length, b + AROUND_CHARS)) for a, b in spans[:MAX_MARKS]])


def find_examples(names: Sequence[str], reason: str, total: int, start: int, number: int) -> dict[str, Any]:
    """Return what --json prints of a reason: the number of its rows, and some of them with stage and source."""
    rows = [
        {"stage": stage, "source": source, "location": row_location(row)}
        | {name: (json.loads(value) if value else None) if name in NESTED else value for name, value in row.items()}
        for stage, source, row in examples(names, reason, start, number)
    ]
    return {"reason": reason, "total": total, "from": start, "examples": rows}


def example(row: dict[str, Any], plain: bool) -> Table:
    """Return one rejected row: its location, the evidence, the conversation shortened."""
    laid = Table.grid(padding=(0, 1))
    laid.add_column(justify="right", no_wrap=True)
    laid.add_column(overflow="fold")
    source, location = row["source"], row["location"]
    evidence = row["evidence"].removeprefix(f"{location}: ")
    named = {int(match[1]) for match in MESSAGE_INDEX.finditer(evidence)}
    patterns = quote_patterns(evidence)

    def add(label: str, text: str, spans: Sequence[Span] = (), style: str = "bright_black") -> None:
        laid.add_row(_text(label, style), _marked(text, spans, plain))

    add("location", f"data/raw/{source}/{location}" if location else f"not found in {FILTERED / source}")
    add("id", row["id"])
    laid.add_row(_text("evidence", "red"), _text(evidence))
    if row.get("tools"):
        names = tool_names(row["tools"])
        add("tools", names, [] if named else marks(names, patterns))
    conversation = parts(row["messages"]) if row.get("messages") else []
    num_hidden = 0
    for number, part in enumerate(conversation):
        spans = marks(part.text, patterns) if part.message in named or not named else []
        is_edge = min(number, len(conversation) - 1 - number) < EDGE_PARTS
        if not (is_edge or spans or part.message in named):
            num_hidden += 1
            continue
        if num_hidden:
            laid.add_row("", Text(aside(f"{num_hidden} parts left out"), "bright_black"))
        num_hidden = 0
        style = "red" if part.message in named else "cyan"
        add(f"{part.message} {part.label}", part.text, spans, style)
    return laid


def _marked(text: str, spans: Sequence[Span], plain: bool) -> Text:
    """Return what to show of a text, with marks in color or in brackets."""
    marked, done = Text(), 0
    for start, end in shown_ranges(len(text), spans):
        if start > done:
            marked.append(aside(f"{start - done} characters left out"), "bright_black")
        inside = [(max(a, start), min(b, end)) for a, b in spans if a < end and start < b]
        for a, b in inside:
            marked.append(_breakable(text[start:a]))
            opening, closing = MARKED if plain else ("", "")
            marked.append(f"{opening}{_breakable(text[a:b])}{closing}", MARK)
            start = b
        marked.append(_breakable(text[start:end]))
        done = end
    return marked if text else Text(aside("nothing"), "bright_black")


def _breakable(text: str) -> str:
    return visible(text).replace("⏎", "⏎ ")


def _text(value: str, style: str = "") -> Text:
    return Text(visible(value), style)


def show_table(counted: Sequence[Counts]) -> None:
    """Print the table of reasons."""
    with paged() as screen:
        screen.print(table(counted))


def show_examples(found: dict[str, Any]) -> None:
    """Print examples, and how many follow."""
    total, start, rows = found["total"], found["from"], found["examples"]
    with paged() as screen:
        for n, row in enumerate(rows, start):
            title = f"── example {n} of {total}, from 0: {row['source']}, {row['stage']}: {found['reason']} "
            screen.print(_text(title, "bold"), soft_wrap=True)
            screen.print(example(row, screen.plain))
            screen.print()
        if (following := start + len(rows)) < total:
            screen.print(_text(f"{total - following} more: FROM={following}"), soft_wrap=True)


def main(source: str | None, reason: str | None, number: int, start: int, *, as_json: bool = False) -> None:
    """Show the table of reasons, or examples of one reason."""
    all_sources = sources()
    if not all_sources:
        raise InputError(f"{FILTERED}: no sources found. Run: make filter")
    if source is not None and source not in all_sources:
        raise InputError(f"SOURCE={source}: not found in {FILTERED}. Sources there: {', '.join(all_sources)}")
    names = all_sources if source is None else [source]
    if reason is None:
        print_facts(lambda: count(names), show_table, as_json=as_json)
        return
    counts = sum((count_reasons(stage, name) for name in names for stage in STAGES), Counter[str]())
    if reason not in counts:
        reasons = ", ".join(f"{name} ({counts[name]})" for name in sorted(counts)) or "none"
        raise InputError(f"REASON={reason}: rejects no row of {', '.join(names)}. Reasons that do: {reasons}")
    if start >= counts[reason]:
        raise InputError(f"FROM={start}: {reason} rejects {counts[reason]} rows, numbered from 0")

    print_facts(lambda: find_examples(names, reason, counts[reason], start, number), show_examples, as_json=as_json)


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--source", metavar="NAME", help="a source of the blend; default: all")
    parser.add_argument("--reason", metavar="REASON", help="show examples of this reason")
    parser.add_argument("--number", type=at_least(1), default=5, metavar="N", help="how many examples; default: 5")
    parser.add_argument(
        "--from", type=at_least(0), default=0, dest="start", metavar="N", help="the first of them; default: 0"
    )
    add_json_option(parser)
    given = parser.parse_args()
    run_or_exit(lambda: main(given.source, given.reason, given.number, given.start, as_json=given.json))
