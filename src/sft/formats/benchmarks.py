"""Evaluation sets: what the items of a benchmark ask, read from its files as they are published.

A folder of .jsonl, .json or .parquet files  ->  (place, text) of every question, problem, prompt or user turn.
sft.filters.contamination looks for them in conversations. Answers are not read.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sft.cli import InputError
from sft.formats.fields import rename
from sft.formats.raw_files import KINDS, read_objects

__all__ = ["KINDS", "read_items"]

# The fields, in small letters, in which known benchmarks have what a model is asked: the first line all of whose
# fields a record has.
QUESTION_FIELDS = (
    ("passage", "question"),  # BoolQ, DROP
    ("context", "question"),  # SQuAD
    ("question",),  # GSM8K, MMLU, GPQA, ARC, TruthfulQA, BFCL
    ("problem",),  # MATH, AIME
    ("problem_statement",),  # SWE-bench
    ("problem_text",),  # CHAMP
    ("question_content",),  # LiveCodeBench
    ("instruction", "input"),  # Alpaca
    ("instruction",),
    ("prompt",),  # HumanEval, IFEval
    ("query",),
    ("goal",),  # PIQA
    ("ctx",),  # HellaSwag
    ("sentence",),  # WinoGrande
    ("turns",),  # MT-Bench, LiveBench
    ("messages",),  # OpenAI chat
    ("conversations",),  # ShareGPT
    ("responses_create_params",),  # NeMo Gym
    ("input",),
    ("text",),  # MBPP
)
SPEAKERS = ("role", "from")
ASKING = {"user", "human"}
SHOWN_FIELDS = 12


def read_items(folder: Path, fields: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield place and text of all that the items in a folder ask; `fields` names theirs: {question: theirs}.

    Raises:  InputError: a row that cannot be read or asks nothing: an item that is left out is not looked for.
    """
    for row in read_objects(folder):
        if row.record is None:
            raise InputError(f"{row.location}: {row.fault}")
        try:
            texts = item_texts(rename(row.record, fields))
        except InputError as error:
            raise InputError(f"{row.location}: {error}") from None
        for text in texts:
            yield row.location, text


def item_texts(record: dict[str, Any]) -> list[str]:
    """Return what a raw benchmark record asks: its question, problem, prompt, or the turns of its user.

    Raises:  InputError: no known field; names those found.

    >>> item_texts({"question": "How many?", "answer": "72"})
    ['How many?']
    >>> item_texts({"turns": ["Write a poem.", "Now a shorter one."], "category": "writing"})
    ['Write a poem.', 'Now a shorter one.']
    """
    named = {str(field).lower(): value for field, value in record.items()}
    for fields in QUESTION_FIELDS:
        if all(field in named for field in fields):
            texts = [text for field in fields for text in _asked(named[field]) if text.strip()]
            if texts:
                return texts
    found = ", ".join(list(map(str, record))[:SHOWN_FIELDS]) + (", ..." if len(record) > SHOWN_FIELDS else "")
    known = ", ".join(dict.fromkeys(field for fields in QUESTION_FIELDS for field in fields))
    raise InputError(
        f"a record without a question; its fields: {found or 'none'}. Expected text in one of: {known}. "
        "In params.yaml, under this set, name the one that holds what the model is asked: fields: {question: theirs}."
    )


def _asked(value: Any) -> list[str]:
    """Return the texts of a field: text, a list of texts, or messages, of which the user's count."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for part in value for text in _asked(part)]
    if isinstance(value, dict):
        speaker = next((value[key] for key in SPEAKERS if key in value), "user")
        if speaker in ASKING:
            return [text for key in ("content", "value", "text", "input") for text in _asked(value.get(key))]
    return []
