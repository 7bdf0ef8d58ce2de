"""Measure precision, recall and speed of each filter on its labeled set, with the thresholds of params.yaml.

    make bench BENCH=filters
    PYTHONPATH=src:. python -m bench.filters [NAME ...] [--rounds 5] [--corpus runs/bench/corpus.jsonl] [--rows 2000]

tests/labelled/<filter>.jsonl has one conversation per line with the reason for which it must be rejected, or null;
`structure` is measured on rows of raw files, `duplicates` on pairs. Thresholds were chosen on one half of a set
(`choose`) and are tested on the other (`prove`); structure has no halves. A rejection counts as right only with the
expected reason. Speed is measured on a generated corpus (prose, code, tables, tool calls, Chinese, and 1 % loops), or
on one of bench/corpus.py.
"""

import argparse
import functools
import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sft.conversation import Conversation, Rejection
from sft.filters.contamination import BenchmarkItems
from sft.filters.dedup.within_source import SourceDuplicates
from sft.filters.narrative import NarrativePatterns, check_narrative
from sft.filters.pipeline import ROWS_AT_ONCE, Kept, Pipeline
from sft.filters.repetition import check_repetitions
from sft.filters.rules.consistency import check_consistency
from sft.filters.structure import check_structure
from sft.formats.messages import normalize
from sft.formats.raw_files import Row
from sft.formats.records import ChatRow
from sft.params.data import Filter
from sft.params.read import load
from tests.support.contamination import check_contamination
from tests.support.raw_rows import read_rows
from tests.support.similarity import signature, similarity

ROOT = Path(__file__).parents[1]
LABELLED = ROOT / "tests/labelled"
HALVES = ("choose", "prove")
CONVERSATIONS, CHARS, ITEMS, CUT_CHARS, SEED = 500, 4096, 2_000, 260, 1234
# A valid row in front of the tested one, so that the file as a whole has the fields of its format.
SOUND = {
    "openai": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    "alpaca": {"prompt": "a", "completion": "b"},
}

Json = dict[str, Any]
Check = Callable[[Conversation], Rejection | None]


@functools.cache
def params() -> Filter:
    """Return the thresholds of params.yaml."""
    section: Filter = load("filter", path=ROOT / "params.yaml")
    return section


@functools.cache
def _narrative_patterns() -> NarrativePatterns:
    return NarrativePatterns.load(ROOT / params().narrative)


@functools.cache
def _labelled_items() -> BenchmarkItems:
    items = [
        ("labelled", f"{row['id']}/{n}", text) for row in rows("contamination") for n, text in enumerate(row["items"])
    ]
    return BenchmarkItems(items, params().contamination.n)


FILTERS: dict[str, Check] = {
    "repetition": lambda conversation: check_repetitions([conversation], params().repetition)[0],
    "narrative": lambda conversation: check_narrative(conversation, _narrative_patterns()),
    "consistency": check_consistency,
    "contamination": lambda conversation: check_contamination(
        conversation, _labelled_items(), params().contamination.ratio
    ),
}
NAMES = ("structure", *FILTERS, "duplicates")


@dataclass
class Measure:
    """Verdicts of one filter on one half of its labelled set."""

    rows: int = 0
    right: int = 0
    """Rejected for the expected reason."""
    false_rejections: list[str] = field(default_factory=list)
    """Ids of rows that are rejected but should not be, or for another reason."""
    missed: list[str] = field(default_factory=list)
    """Ids of rows that are not rejected for the expected reason."""

    @property
    def precision(self) -> float:
        """Share of the rejections that are right."""
        return self.right / (self.right + len(self.false_rejections)) if self.right or self.false_rejections else 1.0

    @property
    def recall(self) -> float:
        """Share of the rows to reject that are rejected for the expected reason."""
        return self.right / (self.right + len(self.missed)) if self.right or self.missed else 1.0


def rows(name: str) -> list[Json]:
    """Return the rows of a labelled set."""
    return [json.loads(line) for line in (LABELLED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def labelled(name: str) -> Iterator[tuple[Json, Conversation]]:
    """Yield (row, normalized conversation) for a labelled set of conversations."""
    for row in rows(name):
        conversation = normalize(row["conversation"])
        if isinstance(conversation, Rejection):
            raise ValueError(f"{name}: {row['id']}: no conversation: {conversation}")
        yield row, conversation


def read_fixture(fixture: Json, folder: Path) -> Conversation | Rejection:
    """Read a row of tests/labelled/conversations.jsonl through a file, like a source, and check its structure."""
    mapped = {key: fixture[key] for key in ("fields", "select") if key in fixture}
    sound = [SOUND[fixture["format"]]] if not mapped and fixture["format"] in SOUND else []
    lines = [*(json.dumps(record).encode() for record in sound), _line(fixture)]
    (folder / "a.jsonl").write_bytes(b"".join(line.replace(b"\n", b" ") + b"\n" for line in lines))
    read = list(read_rows(folder, fixture["format"], **mapped))
    if len(read) != len(lines):
        raise ValueError(f"{fixture['id']}: {len(read)} rows of {len(lines)} lines")
    row = read[-1]
    if row.record is None:
        return Rejection("malformed-row", row.fault)
    if refusal := (row.record.get("meta") or {}).get("refuse"):
        return Rejection(refusal, json.dumps(row.record["meta"]))
    read_columns = (row.columns, row.columns_read) if isinstance(row, ChatRow) else ()
    outcome = normalize(row.record, *read_columns)
    if isinstance(outcome, Rejection):
        return outcome
    return check_structure(outcome) or outcome


def _line(fixture: Json) -> bytes:
    if "parts" in fixture:
        return "".join(text * times for text, times in fixture["parts"]).encode()
    if "line" in fixture:
        return str(fixture["line"]).encode(fixture.get("encoding", "utf-8"))
    return json.dumps(fixture["record"]).encode()


def verdicts(name: str) -> Iterator[tuple[Json, str | None, str | None]]:
    """Yield (row, expected reason, actual reason) for a filter's labelled set."""
    if name == "structure":
        with tempfile.TemporaryDirectory() as folder:
            for row in rows("conversations"):
                outcome = read_fixture(row, Path(folder))
                expected = None if row["expect"] == "kept" else row["expect"]
                yield row, expected, outcome.reason if isinstance(outcome, Rejection) else None
    elif name == "duplicates":
        for row in rows("duplicates"):
            similar = similarity(*(signature(normalize(row[name])) for name in "ab")) >= params().near_duplicates
            yield row, row["expect"], "near-duplicate" if similar else None  # or equal, but for the order of keys
    else:
        for row, conversation in labelled(name):
            rejection = FILTERS[name](conversation)
            yield row, row["expect"], rejection and rejection.reason


def measure(name: str) -> dict[str, Measure]:
    """Measure a filter on each half of its labelled set."""
    measures: dict[str, Measure] = {}
    for row, expected, reason in verdicts(name):
        result = measures.setdefault(row.get("half", "all"), Measure())
        result.rows += 1
        result.right += reason == expected is not None
        if reason != expected:
            if reason is not None:
                result.false_rejections.append(row["id"])
            if expected is not None:
                result.missed.append(row["id"])
    return measures


def made_corpus() -> list[Json]:
    """Make conversations of about CHARS characters, the same ones every time."""
    draw = random.Random(SEED)
    syllables = [a + b for a in "b d f g k l m n p r s t v".split() for b in ("a", "e", "i", "o", "u", "an", "er")]
    vocabulary = ["".join(draw.choices(syllables, k=draw.choice((1, 2, 2, 3, 3, 4)))) for _ in range(8_000)]
    characters = [chr(0x4E00 + rank) for rank in range(3_000)]
    weights = list(itertools.accumulate(1 / (rank + 20) for rank in range(len(vocabulary))))

    def words(number: int) -> list[str]:
        return draw.choices(vocabulary, cum_weights=weights, k=number)

    def prose() -> str:
        return " ".join(words(draw.randrange(6, 22))).capitalize() + draw.choice((". ", ". ", "? ", ".\n\n"))

    def code() -> str:
        name, one, two = words(3)
        return f"    {name} = {one}({two}, {draw.randrange(100)})\n    if {name} is None:\n        return {two}\n"

    def table() -> str:
        return f"| {words(1)[0]} | {draw.choice(('yes', 'no'))} | {draw.randrange(10_000)} |\n"

    def chinese() -> str:
        return "".join(draw.choices(characters, cum_weights=weights[: len(characters)], k=18)) + "。"

    def text(kind: Callable[[], str], chars: int) -> str:
        made = ""
        while len(made) < chars:
            made += kind()
        return made

    records: list[Json] = []
    for number in range(CONVERSATIONS):
        kind = (prose, prose, code, table, chinese)[number % 5]
        answer = text(kind, CHARS // 2 if kind is not chinese else CHARS // 4)
        if number % 100 == 99:
            answer += prose() * 40
        messages = [
            {"role": "user", "content": text(prose, CHARS // 8)},
            {"role": "assistant", "content": answer, "reasoning_content": text(prose, 3 * CHARS // 8)},
        ]
        tools = None
        if number % 4 == 0:
            messages[1]["tool_calls"] = [
                {"type": "function", "function": {"name": "find", "arguments": {"what": prose()}}}
            ]
            messages += [{"role": "tool", "content": text(prose, 200)}, {"role": "assistant", "content": prose()}]
            tools = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]
        records.append({"messages": messages, **({"tools": tools} if tools else {})})
    return records


def items_of(records: list[Json]) -> list[tuple[str, str, str]]:
    """Return ITEMS benchmark texts, 1 % of them cut from the corpus."""
    texts = [message["content"] for record in records for message in record["messages"] if message["content"]]
    cut = [text[:CUT_CHARS] for text in texts if len(text) > CUT_CHARS] or texts
    made = (
        text if number % 100 == 0 else " ".join(reversed(text.split()))
        for number, text in enumerate(itertools.cycle(cut))
    )
    return [("made", f"{number}", f"{text} {number}") for number, text in zip(range(ITEMS), made, strict=False)]


def seconds_each(records: list[Json], rounds: int) -> dict[str, float]:
    """Return CPU seconds per conversation, the minimum over the rounds: of what is always done, and per filter.

    A filter's seconds are those of a run with this filter alone, minus those of a run without any: every conversation
    reaches it, while in the pipeline a rejected one does not reach the later filters. Consistency may reject many
    generated conversations, so it is timed by itself.
    """
    off = {"repetition": None, "narrative": None, "consistency": False, "contamination": None}
    rows = [Row(f"corpus:{number}", record) for number, record in enumerate(records, 1)]
    kept: list[Kept] = []

    def examine(pipeline: Pipeline) -> None:
        for batch in itertools.batched(rows, ROWS_AT_ONCE):
            kept.extend(outcome for outcome in pipeline.apply(batch) if isinstance(outcome, Kept))

    def index() -> None:
        ids = (f"{number:032x}" for number in range(len(kept)))
        with tempfile.TemporaryDirectory() as folder:
            duplicates = SourceDuplicates(Path(folder) / "duplicates", params().near_duplicates)
            signatures = pa.array([outcome.signature for outcome in kept], pa.binary())
            duplicates.add(np.arange(len(kept)), pa.array(ids), signatures)
            list(duplicates.find())

    def least(work: Callable[[], None]) -> float:
        seconds = []
        for _ in range(rounds):
            kept.clear() if work is not index else None
            start = time.process_time()
            work()
            seconds.append(time.process_time() - start)
        return min(seconds) / len(rows)

    items = items_of(records)
    seconds = {}
    for name in ("structure", *off):
        chosen = {} if name == "structure" else {name: getattr(params(), name)}
        pipeline = Pipeline(params().model_copy(update={**off, **chosen}), items)
        pipeline.apply(rows[:8])  # imports and caches
        seconds[name] = least(functools.partial(examine, pipeline)) - (seconds["structure"] if chosen else 0)
    kept.clear()
    examine(Pipeline(params().model_copy(update=off), []))
    conversations = [row.conversation for row in kept]
    seconds["consistency"] = least(lambda: [check_consistency(conversation) for conversation in conversations] and None)
    examine(Pipeline(params().model_copy(update=off), []))
    return {**seconds, "duplicates": least(index)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"filters, of {', '.join(NAMES)}; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--corpus", type=Path, metavar="FILE", help="conversations to measure speed on, by bench/corpus.py"
    )
    parser.add_argument("--rows", type=int, default=2_000, help="how many of them")
    args = parser.parse_args()
    if unknown := set(args.names) - set(NAMES):
        parser.error(f"no filter {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    print(f"{'filter':13} {'half':7} {'rows':>4} {'rejected':>8}  precision  recall   not as labelled")
    for name in args.names or NAMES:
        for half, result in measure(name).items():
            faults = [f"+{row_id}" for row_id in result.false_rejections] + [f"-{row_id}" for row_id in result.missed]
            print(
                f"{name:13} {half:7} {result.rows:4} {result.right:8}  {result.precision:9.3f}  {result.recall:6.3f}"
                f"   {' '.join(faults) or 'none'}"
            )
    print("rejected: for the expected reason; + rejected but should not be, or for another reason; - not rejected\n")
    records = made_corpus()
    if args.corpus is not None:
        with args.corpus.open(encoding="utf-8") as lines:
            records = [json.loads(line) for line in itertools.islice(lines, args.rows)]
    size = sum(len(json.dumps(record)) for record in records) / len(records)
    seconds = seconds_each(records, args.rounds)
    print(f"{len(records)} conversations of {size:,.0f} bytes, every filter on each; {args.rounds} rounds")
    for name, each in [*seconds.items(), ("together", sum(seconds.values()))]:
        print(f"{name:13} {each * 1e6:7.1f} us of CPU, {1 / each:8,.0f} conversations per CPU-second")
    print("structure: includes normalization and the signature; duplicates: the search")


if __name__ == "__main__":
    main()
