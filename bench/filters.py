"""Filters: precision, recall and speed of each on its labelled set, with the thresholds of params.yaml.

tests/labelled/<filter>.jsonl has one conversation a line with the reason for which it must be refused, or
null. Thresholds are chosen on the rows of one half (`choose`) and proven on the other (`prove`). A refusal
counts as right only when its reason is the expected one. Speed is measured over a corpus made here, seeded:
prose, code, tables, tool calls, Chinese, and one loop in a hundred.

    PYTHONPATH=src python bench/filters.py [NAME ...] [--rounds 5]
"""

import argparse
import functools
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sft.data.consistency import check_consistency
from sft.data.conversation import Conversation, Rejection, normalise
from sft.data.narrative import NarrativePatterns, check_narrative
from sft.data.repetition import RepetitionLimits, check_repetition
from sft.params import load

ROOT = Path(__file__).parents[1]
HALVES = ("choose", "prove")
CONVERSATIONS, CHARS, SEED = 500, 4096, 1234

Check = Callable[[Conversation], Rejection | None]


@functools.cache
def _repetition_limits() -> RepetitionLimits:
    return RepetitionLimits(**load("filter", path=ROOT / "params.yaml").repetition.model_dump())


@functools.cache
def _narrative_patterns() -> NarrativePatterns:
    return NarrativePatterns.load(ROOT / load("filter", path=ROOT / "params.yaml").narrative)


FILTERS: dict[str, Check] = {
    "repetition": lambda conversation: check_repetition(conversation, _repetition_limits()),
    "narrative": lambda conversation: check_narrative(conversation, _narrative_patterns()),
    "consistency": check_consistency,
}


@dataclass
class Measure:
    """Verdicts of one filter on one half of its labelled set."""

    rows: int = 0
    right: int = 0
    """Refused for the expected reason."""
    too_much: list[str] = field(default_factory=list)
    """Ids of rows refused that should be kept, or for another reason than the expected one."""
    missed: list[str] = field(default_factory=list)
    """Ids of rows that should be refused for a reason and were not."""

    @property
    def precision(self) -> float:
        """Share of the refusals that are right."""
        return self.right / (self.right + len(self.too_much)) if self.right or self.too_much else 1.0

    @property
    def recall(self) -> float:
        """Share of the rows to refuse that are refused."""
        return self.right / (self.right + len(self.missed)) if self.right or self.missed else 1.0


def labelled(name: str) -> Iterator[tuple[dict[str, Any], Conversation]]:
    """Yield the rows of a labelled set, each with its conversation in normal form."""
    for line in (ROOT / f"tests/labelled/{name}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        conversation = normalise(row["conversation"])
        if isinstance(conversation, Rejection):
            raise ValueError(f"{name}: {row['id']}: no conversation: {conversation}")
        yield row, conversation


def measure(name: str) -> dict[str, Measure]:
    """Measure a filter on the halves of its labelled set."""
    measures = {half: Measure() for half in HALVES}
    for row, conversation in labelled(name):
        rejection = FILTERS[name](conversation)
        reason, expected, found = rejection and rejection.reason, row["expect"], measures[row["half"]]
        found.rows += 1
        found.right += reason == expected is not None
        if reason != expected:
            if reason is not None:
                found.too_much.append(row["id"])
            if expected is not None:
                found.missed.append(row["id"])
    return measures


def corpus() -> list[Conversation]:
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

    conversations = []
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
        conversations.append(Conversation(messages, tools))
    return conversations


def conversations_per_second(check: Check, conversations: list[Conversation], rounds: int) -> float:
    """Return the median over rounds of conversations per second of one CPU."""
    speeds = []
    for _ in range(rounds):
        begin = time.process_time()
        for conversation in conversations:
            check(conversation)
        speeds.append(len(conversations) / (time.process_time() - begin))
    return statistics.median(speeds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"filters, of {', '.join(FILTERS)}; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(FILTERS):
        parser.error(f"no filter {', '.join(sorted(unknown))}; there are {', '.join(FILTERS)}")
    conversations = corpus()
    chars = sum(len(text) for conversation in conversations for text in conversation.texts()) / len(conversations)
    print(f"{'filter':12} {'half':7} {'rows':>4}  precision  recall   not as labelled")
    for name in arguments.names or FILTERS:
        for half, found in measure(name).items():
            faults = [f"+{one}" for one in found.too_much] + [f"-{one}" for one in found.missed]
            print(
                f"{name:12} {half:7} {found.rows:4}  {found.precision:9.3f}  {found.recall:6.3f}"
                f"   {' '.join(faults) or 'none'}"
            )
    print("+ refused but should not be, or for another reason; - not refused for the reason that it should be\n")
    for name in arguments.names or FILTERS:
        speed = conversations_per_second(FILTERS[name], conversations, arguments.rounds)
        print(f"{name:12} {speed:8,.0f} conversations of {chars:,.0f} characters per CPU-second")
    limits = asdict(_repetition_limits())
    print(f"thresholds of repetition: {', '.join(f'{key} {value}' for key, value in limits.items())}")


if __name__ == "__main__":
    main()
