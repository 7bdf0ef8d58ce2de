"""Items of benchmarks that the training data contains.

What each item asks, and the conversations that prep may train  ->  the numbers of the items that one of them contains,
by the rule of the filter stage (sft.filters.contamination) with its default limits.

Workers search the conversations; memory grows with the items, not with the conversations.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sft.conversation import Conversation
from sft.files import read_json, write_json
from sft.filters.contamination import BenchmarkItems, contained_items
from sft.filters.dedup.words import hash_words, words
from sft.parquet import RowRange, plan_row_ranges, read_row_range
from sft.workers import map_shards

# The defaults of filter.contamination.
N, RATIO = 13, 0.5
ROWS_AT_ONCE = 256
COLUMNS = ("id", "messages", "tools")


def find_contaminated(
    asked: Mapping[str, Sequence[str]], filtered: Path, held_out: Mapping[str, set[str]]
) -> dict[str, set[int]]:
    """Return the numbers of the items of each task that are in the training data.

    Args:
        asked: What each item of a task asks.
        filtered: data/filtered.
        held_out: Source -> ids of its conversations that are not trained.
    """
    numbers: dict[str, int] = {}  # of texts with different words
    texts: list[str] = []
    by_task: dict[str, list[int]] = {}
    for task, questions in asked.items():
        by_task[task] = []
        for question in questions:
            number = numbers.setdefault(" ".join(words(question)), len(texts))
            if number == len(texts):
                texts.append(question)
            by_task[task].append(number)
    if not any(numbers):
        return {task: set() for task in asked}
    with tempfile.TemporaryDirectory() as folder:
        known = Path(folder, "items.json")
        write_json(known, {"texts": texts, "held_out": {source: sorted(ids) for source, ids in held_out.items()}})
        ranges = [
            {"known": str(known), "source": source, "range": row_range._asdict()}
            for source in sorted(held_out)
            for row_range in plan_row_ranges(filtered / source, "kept-")
        ]
        found = set().union(*map_shards(search, ranges, "contamination of eval.tasks"))
    return {task: {place for place, number in enumerate(each) if number in found} for task, each in by_task.items()}


def search(task: dict[str, Any]) -> list[int]:
    """Return the numbers of the items that conversations of a range of rows contain, in a worker."""
    known = read_json(Path(task["known"]))
    items = BenchmarkItems((("", str(number), text) for number, text in enumerate(known["texts"])), N)
    held_out, found = set(known["held_out"][task["source"]]), set[int]()
    for batch in read_row_range(RowRange(**task["range"]), ROWS_AT_ONCE, COLUMNS):
        for row in batch.to_pylist():
            if row["id"] not in held_out:
                conversation = Conversation.of_row(row)
                parts = list(conversation.parts())
                matches = items.matches(hash_words([text for _, text in parts]))
                contained = contained_items(conversation, parts, matches, RATIO)
                found.update(int(items.names[match.item][1]) for match, _ in contained)
    return sorted(found)
