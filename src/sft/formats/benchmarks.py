"""Evaluation sets: the questions of a benchmark, read from its files as published.

The files of a folder  ->  (location, text) of every question, problem, prompt or user turn.
sft.filters.contamination looks for them in conversations. Answers are not read.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sft.cli import InputError
from sft.formats.fields import rename
from sft.formats.raw_files import read_objects

# The fields, in lower case, that hold the question in known benchmarks. The first line all of whose fields a record
# has is used.
QUESTION_FIELDS = (
    ("passage", "question"),  # BoolQ, DROP
    ("context", "question"),  # SQuAD
    ("question",),  # GSM8K, MMLU, GPQA, ARC, TruthfulQA, BFCL
    ("problem",),  # MATH, AIME
    ("problem_statement",),  # SWE-bench
    ("problem_text",),
    ("_text",),  # CHAMP, under fields: {question: problems}
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
ASKING_SPEAKERS = {"user", "human"}
SHOWN_FIELDS = 12


def read_items(folder: Path, fields: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield location and text of every question in a folder; `fields`: our field -> theirs, {question: theirs}.

    Raises:  InputError: a row that cannot be read or has no question, because a skipped item would not be searched.
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
    """Return the texts that a raw benchmark record asks: its question, problem, prompt, or user turns.

    Raises:  InputError: no known field; lists the fields found.

    >>> item_texts({"question": "How many?", "answer": "72"})
    ['How many?']
    >>> item_texts({"turns": ["Write a poem.", "Now a shorter one."], "category": "writing"})
    ['Write a poem.', 'Now a shorter one.']
    """
    values = {str(field).lower(): value for field, value in record.items()}
    for fields in QUESTION_FIELDS:
        if all(field in values for field in fields):
            texts = [text for field in fields for text in _question_texts(values[field]) if text.strip()]
            if texts:
                return texts
    names = ", ".join(list(map(str, record))[:SHOWN_FIELDS]) + (", ..." if len(record) > SHOWN_FIELDS else "")
    known = ", ".join(dict.fromkeys(field for fields in QUESTION_FIELDS for field in fields))
    raise InputError(
        f"no question in the fields {names or '(none)'}; expected text in one of: {known}. "
        "In params.yaml, under this set, name the field that holds the question: fields: {question: theirs}."
    )


def _question_texts(value: Any) -> list[str]:
    """Return the texts of a field: a text, a list of texts, the user's messages, or what rows by id ask."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for part in value for text in _question_texts(part)]
    if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
        return [text for row in value.values() for text in item_texts(row)]
    if isinstance(value, dict):
        speaker = next((value[key] for key in SPEAKERS if key in value), "user")
        if speaker in ASKING_SPEAKERS:
            return [text for key in ("content", "value", "text", "input") for text in _question_texts(value.get(key))]
    return []
