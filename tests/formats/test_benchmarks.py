"""Evaluation sets: what an item asks, in the form of each published benchmark, and what is no item."""

import json

import pytest

from sft.cli import InputError
from sft.formats.benchmarks import item_texts, read_items

FORMS = [  # (as published by, record, what it asks)
    ("GSM8K", {"question": "How many?", "answer": "72"}, ["How many?"]),
    ("MMLU", {"question": "Which?", "subject": "law", "choices": ["a", "b"], "answer": 1}, ["Which?"]),
    ("GPQA", {"Question": "Why?", "Correct Answer": "So.", "Subdomain": "Optics"}, ["Why?"]),
    ("MATH", {"problem": "Find x.", "level": "5", "solution": "1"}, ["Find x."]),
    ("HumanEval", {"task_id": "0", "prompt": "def f():", "canonical_solution": "1", "test": "t"}, ["def f():"]),
    ("MBPP", {"task_id": 1, "text": "Write f.", "code": "def f(): ..."}, ["Write f."]),
    ("SQuAD", {"context": "It rained.", "question": "Did it?", "answers": {}}, ["It rained.", "Did it?"]),
    ("Alpaca", {"instruction": "Sum up.", "input": "", "output": "-"}, ["Sum up."]),
    ("MT-Bench", {"category": "writing", "turns": ["One.", "Two."]}, ["One.", "Two."]),
    ("BFCL", {"id": "0", "question": [[{"role": "user", "content": "Call."}]], "function": []}, ["Call."]),
    (
        "chat",
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": [{"type": "text", "text": "u"}]},
            ]
        },
        ["u"],
    ),
    ("ShareGPT", {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]}, ["u"]),
    ("NeMo Gym", {"responses_create_params": {"input": [{"role": "user", "content": "u"}]}, "reward": 1}, ["u"]),
]


@pytest.mark.parametrize(("published", "record", "asked"), FORMS, ids=[form[0] for form in FORMS])
def test_a_known_record_gives_what_it_asks(published, record, asked):
    assert item_texts(record) == asked


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (
            {"frage": "Was?", "antwort": "Das."},
            "fields frage, antwort; expected text in one of: passage, question,",
        ),
        ({}, "fields (none)"),
        ({"question": ""}, "fields question;"),
        ({"question": 3}, "fields question;"),
        ({f"field {n}": "?" for n in range(99)}, "field 11, ...;"),
    ],
)
def test_an_unknown_record_is_an_error_that_names_its_fields(record, found):
    with pytest.raises(InputError) as raised:
        item_texts(record)
    assert found in str(raised.value)


def test_items_are_read_with_their_place_and_under_the_name_that_the_set_gives_them(tmp_path):
    records = [{"frage": "Was?", "antwort": "Das."}, {"turns": ["Eins.", "Zwei."]}]
    for number, record in enumerate(records):
        (tmp_path / f"{number}.jsonl").write_text(json.dumps(record) + "\n")
    assert list(read_items(tmp_path, {"question": "frage"})) == [
        ("0.jsonl:1", "Was?"),
        ("1.jsonl:1", "Eins."),
        ("1.jsonl:1", "Zwei."),
    ]


@pytest.mark.parametrize(
    ("line", "fault"),
    [("{broken", "a.jsonl:2: not valid JSON"), ('{"antwort": "Das."}', "a.jsonl:2: no question")],
)
def test_an_item_that_cannot_be_read_is_an_error_because_it_would_not_be_looked_for(tmp_path, line, fault):
    (tmp_path / "a.jsonl").write_text('{"question": "What?"}\n' + line + "\n")
    with pytest.raises(InputError, match=fault):
        list(read_items(tmp_path, {}))


def test_a_set_of_one_object_has_its_questions_by_id(tmp_path):
    """As CHAMP is published: the profile says fields: {question: problems}."""
    problems = {"P1": {"_text": "Find x.", "_answer": "1"}, "P2": {"_text": "Find y."}}
    (tmp_path / "v0.json").write_text(json.dumps({"problems": problems, "concepts": {"C1": {"_text": "Even."}}}))
    assert [text for _, text in read_items(tmp_path, {"question": "problems"})] == ["Find x.", "Find y."]
