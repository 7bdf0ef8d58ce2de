"""`read: auto`: one form fits nearly all of the first rows, or the counts are shown."""

import json
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.formats import detect as module
from sft.formats.detect import detect
from sft.params.data import Read
from tests.support.raw_rows import write_lines

AUTO = Read(format="auto")

MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
TURNS = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
PART = {"role": "user", "parts": [{"text": "a"}]}
PAIR = {"instruction": "a", "input": "", "output": "b"}


@pytest.mark.parametrize(
    ("rows", "format", "fields"),
    [
        ([{"messages": MESSAGES}], "openai", {}),
        ([{"messages": json.dumps(MESSAGES)}], "openai", {}),
        ([{"messages": TURNS}], "openai", {}),
        ([{"chat": {"turns": MESSAGES}, "id": 1}], "openai", {"messages": "chat.turns"}),
        ([{"messages": [json.dumps(message) for message in MESSAGES]}], "openai", {}),
        ([{"contents": [{"role": "user", "parts": [{"text": "a"}]}]}], "openai", {"messages": "contents"}),
        (
            [{"systemInstruction": {"role": "system", "parts": [{"text": "S"}]}, "contents": [PART]}],
            "openai",
            {"messages": "contents", "system": "systemInstruction"},
        ),
        ([{"prompt": MESSAGES[:1], "completion": MESSAGES[1]}], "alpaca", {}),
        ([{"conversations": TURNS, "system": "S"}], "sharegpt", {}),
        ([{"conversations": MESSAGES}], "openai", {"messages": "conversations"}),
        (
            [{"conversations": [*TURNS, TURNS[0]], "chosen": TURNS[1], "rejected": TURNS[1]}],
            "alpaca",
            {"prompt": "conversations", "completion": "chosen"},
        ),
        ([{"messages": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES}], "openai", {}),
        ([PAIR], "alpaca", {}),
        ([{"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}], "alpaca", {}),
        (
            [{"question": "a", "response": "b"}, {"question": "a", "response": "b", "system_prompt": "S"}],
            "alpaca",
            {"prompt": "question", "completion": "response", "system": "system_prompt"},
        ),
    ],
)
def test_the_form_of_the_rows_is_found(tmp_path: Path, rows, format, fields) -> None:
    write_lines(tmp_path, "a.jsonl", *rows)
    suggestion, decision = detect(tmp_path, AUTO)
    assert (suggestion.format, dict(suggestion.fields)) == (format, fields)
    assert decision == {"format": format, "fields": fields, "rows": len(rows), "rows_that_fit": len(rows)}


def test_one_row_in_a_hundred_may_have_another_form(tmp_path: Path) -> None:
    write_lines(tmp_path, "a.jsonl", *[{"messages": MESSAGES}] * 99, PAIR)
    assert detect(tmp_path, AUTO)[1]["rows_that_fit"] == 99


def test_one_row_that_ends_with_a_question_does_not_make_a_column_the_answer_of_all(tmp_path: Path) -> None:
    open_row = {"messages": [*MESSAGES, MESSAGES[0]], "answer": "c"}
    write_lines(tmp_path, "a.jsonl", open_row, *[{"messages": MESSAGES, "answer": "c"}] * 9)
    assert detect(tmp_path, AUTO)[0].format == "openai"


def test_a_mixture_is_an_error_with_the_counts(tmp_path: Path) -> None:
    write_lines(tmp_path, "a.jsonl", *[{"messages": MESSAGES}] * 90, *[PAIR] * 10)
    with pytest.raises(InputError) as error:
        detect(tmp_path, AUTO)
    assert "no form fits 99% of the first 100 rows" in str(error.value)
    assert "90 fit read: openai" in str(error.value)
    assert "10 fit read: alpaca" in str(error.value)


def test_rows_of_speakers_that_nobody_knows_do_not_fit(tmp_path: Path) -> None:
    write_lines(tmp_path, "a.jsonl", {"messages": [{"role": "critic", "content": "a"}]})
    with pytest.raises(InputError, match="0 fit read: openai"):
        detect(tmp_path, AUTO)


def test_the_first_rows_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 3)
    write_lines(tmp_path, "a.jsonl", *[{"messages": MESSAGES}] * 3, *[PAIR] * 10)
    assert detect(tmp_path, AUTO)[1] == {"format": "openai", "fields": {}, "rows": 3, "rows_that_fit": 3}


def test_without_rows_or_with_fields_there_is_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no row"):
        detect(tmp_path, AUTO)
    with pytest.raises(InputError, match=r"Remove read\.fields"):
        detect(tmp_path, Read(format="auto", fields={"messages": "chat"}))


def test_the_message_says_why_rows_do_not_fit(tmp_path):
    write_lines(tmp_path, "a.jsonl", {"messages": [MESSAGES[0], {"role": "narrator", "content": "b"}]})
    with pytest.raises(InputError, match=r"a\.jsonl:1: unknown-role: messages\[1\]: found 'narrator'"):
        detect(tmp_path, AUTO)
    (tmp_path / "a.jsonl").rename(tmp_path / "a.txt")
    with pytest.raises(InputError, match=r"a\.txt\)\. Rows are read from \.jsonl"):
        detect(tmp_path, AUTO)
