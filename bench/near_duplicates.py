"""Measure how time, memory and recall of the near-duplicate search grow on templated conversations.

    make bench BENCH=near_duplicates
    PYTHONPATH=src:. python -m bench.near_duplicates [--sizes 20000 100000 200000] [--layout end mixed]

Both sides of a conversation have 60 words that all share and 20 free words from a vocabulary of 20,000: at their end,
or every fourth word. Hardly any are near-duplicates, but all look alike. One in a hundred is a planted pair: the
same conversation twice, with this many other words at its end that the similarity is exactly the threshold.

Each size runs in a process of its own: CPU seconds of signatures and of the search per conversation, with those of
workers, peak memory of the search (of this process and of each worker), and the share of planted pairs that is found.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sft.conversation import Conversation
from sft.filters.dedup.search import Search
from sft.filters.dedup.signatures import signatures
from sft.filters.dedup.words import hash_words

THRESHOLD = 0.8
VOCABULARY, SHARED, FREE = 20_000, 60, 20
# A side of 83 words has 81 shingles; with its last 9 words replaced, 72 of 90 are common.
PLANTED_FREE, REPLACED, PLANT_EVERY = 23, 9, 100
AT_ONCE, SEED = 256, 7


class Conversations:
    """Templated conversations and planted pairs."""

    def __init__(self, layout: str) -> None:
        self._draw, self._mixed = random.Random(SEED), layout == "mixed"
        letters = "abcdefghijklmnop"
        self._words = ["".join(self._draw.choices(letters, k=6)) for _ in range(VOCABULARY)]
        self._templates = [self._draw.choices(self._words, k=SHARED) for _ in range(2)]

    def make(self, number: int) -> Iterator[Conversation]:
        """Yield conversations; those numbered PLANT_EVERY * n and PLANT_EVERY * n + 1 are a planted pair."""
        while number > 0:
            sides = [self._draw.choices(self._words, k=PLANTED_FREE) for _ in range(2)]
            yield self._conversation(sides, mixed=False)
            yield self._conversation(
                [s[:-REPLACED] + self._draw.choices(self._words, k=REPLACED) for s in sides], False
            )
            for _ in range(min(number, PLANT_EVERY) - 2):
                sides = [self._draw.choices(self._words, k=FREE) for _ in range(2)]
                yield self._conversation(sides, self._mixed)
            number -= PLANT_EVERY

    def _conversation(self, sides: list[list[str]], mixed: bool) -> Conversation:
        texts = []
        for template, free in zip(self._templates, sides, strict=True):
            step = SHARED // FREE
            parts = [[*template[step * n : step * n + step], free[n]] for n in range(FREE)] if mixed else []
            texts.append(" ".join([word for part in parts for word in part] or template + free))
        turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=True)]
        return Conversation(turns, None)


def measure(number: int, layout: str) -> dict[str, float]:
    """Return the figures of one size, and what the search found as a digest of its evidence."""
    conversations = Conversations(layout).make(number)
    with tempfile.TemporaryDirectory() as folder:
        search, seconds = Search(Path(folder) / "search", THRESHOLD), 0.0
        while batch := [each for _, each in zip(range(AT_ONCE), conversations, strict=False)]:
            parts = [list(each.parts()) for each in batch]
            before = _cpu_seconds()
            signed = signatures(batch, parts, hash_words([text for of_one in parts for _, text in of_one]))
            search.add(signed)
            seconds += _cpu_seconds() - before
        before = _cpu_seconds()
        duplicates, _ = search.find()
        searching = _cpu_seconds() - before
    planted = {place + 1: place for place in range(0, number, PLANT_EVERY)}
    found = dict(zip(duplicates.number.tolist(), duplicates.kept.tolist(), strict=True))
    kilobytes = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "signature_us": round(seconds / number * 1e6, 1),
        "search_us": round(searching / number * 1e6, 1),
        "recall": sum(found.get(place) == kept for place, kept in planted.items()) / len(planted),
        "others": len(found.keys() - planted.keys()),
        "memory_mb": round(kilobytes[0] / 1e3),
        "worker_mb": round(kilobytes[1] / 1e3),
    }


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 100_000, 200_000], metavar="ROWS")
    parser.add_argument("--layout", nargs="+", choices=("end", "mixed"), default=["end", "mixed"])
    parser.add_argument("--json", action="store_true", help="measure the first size in this process, print JSON")
    args = parser.parse_args()
    if args.json:
        print(json.dumps(measure(args.sizes[0], args.layout[0])))
        return
    for layout in args.layout:
        for size in args.sizes:
            command = [
                sys.executable,
                "-m",
                "bench.near_duplicates",
                "--json",
                "--sizes",
                f"{size}",
                "--layout",
                layout,
            ]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            print(f"{layout:5} {size:>9,} {json.loads(printed)}", flush=True)


if __name__ == "__main__":
    main()
