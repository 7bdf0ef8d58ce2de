"""Rows from raw files: every format, and every way a row can be broken."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sft.command import InputError
from sft.data.formats import FORMATS, read_rows
from sft.files import value_digest

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
LINE = json.dumps(CHAT).encode() + b"\n"
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    "messages tools meta conversations from value system instruction input output prompt completion id "
    "question function ground_truth responses_create_params response type content problems solution".split()
)
NEAR_MISS = st.dictionaries(KEYS, ANY_JSON | st.dictionaries(KEYS, ANY_JSON, max_size=3), max_size=5)


def write(folder: Path, name: str, content: bytes | str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def write_lines(folder: Path, name: str, *objects: Any) -> None:
    write(folder, name, "".join(json.dumps(item) + "\n" for item in objects))


def records(folder: Path, format: str) -> list[dict[str, Any]]:
    rows = list(read_rows(folder, format))
    assert [row.fault for row in rows] == [""] * len(rows)
    return [row.record for row in rows if row.record is not None]


def test_an_unknown_format_is_refused_and_the_nearest_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'openia' is unknown. Did you mean 'openai'\?.*sharegpt"):
        read_rows(tmp_path, "openia")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINE),
        ("a.ndjson", LINE),
        ("a.jsonl.gz", gzip.compress(LINE, mtime=0)),
        ("a.jsonl.zst", zstandard.compress(LINE)),
        ("a.json", json.dumps(CHAT, indent=2).encode()),
        ("a.json", json.dumps([CHAT]).encode()),
        ("a.json", b"\xef\xbb\xbf" + LINE),
        ("a.json.gz", gzip.compress(json.dumps([CHAT]).encode(), mtime=0)),
        ("deep/er/a.jsonl", b"\n" + LINE + b"\r\n"),
    ],
)
def test_every_container_gives_the_same_record(tmp_path: Path, name: str, content: bytes) -> None:
    write(tmp_path, name, content)
    assert records(tmp_path, "openai") == [CHAT]


def test_parquet_gives_its_rows_without_the_nulls_of_its_structs(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "name": "x"}
    table = pa.Table.from_pylist([CHAT, {"messages": [call]}] * 300)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    rows = list(read_rows(tmp_path, "openai"))
    assert len(rows) == 600
    assert rows[0].record == CHAT
    assert rows[599].record == {"messages": [{"role": "assistant", "name": "x"}]}
    assert rows[599].where == "a.parquet:600"


def test_json_with_an_object_on_each_line_is_read_by_lines(tmp_path: Path) -> None:
    write(tmp_path, "a.json", LINE + LINE)
    assert [row.where for row in read_rows(tmp_path, "openai")] == ["a.json:1", "a.json:2"]


def test_files_come_in_the_order_of_their_names_and_others_are_left_alone(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a/z.jsonl", "README.md", "c.csv"):
        write(tmp_path, name, LINE)
    assert [row.where for row in read_rows(tmp_path, "openai")] == ["a/z.jsonl:1", "b.jsonl:1"]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b'{"messages": [', "not valid JSON"),
        (b'{"messages": "\xff"}', "not valid UTF-8: byte 0xff at 14"),
        (b"[1, 2]", "expected an object, found list"),
        (b'{"messages": NaN}', "NaN is not JSON"),
        (b'{"messages": [], "x": "\\ud800"}', "surrogate"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"text": "no messages"}', "'messages' is missing"),
        (b'{"messages": {"role": "user"}}', "messages must be a list of objects"),
        (b'{"messages": ["Hi"]}', "messages must be a list of objects"),
        (b'{"messages": [], "tools": [1]}', "tools must be a list of objects"),
        (b'{"messages": [], "meta": 1}', "meta must be an object"),
    ],
)
def test_a_broken_row_is_a_fault_at_its_line_and_the_next_row_is_read(tmp_path: Path, line: bytes, fault: str) -> None:
    write(tmp_path, "a.jsonl", LINE + line + b"\n" + LINE)
    good, broken, next_good = read_rows(tmp_path, "openai")
    assert good.record == next_good.record == CHAT
    assert (broken.where, broken.record, next_good.where) == ("a.jsonl:2", None, "a.jsonl:3")
    assert fault in broken.fault
    assert broken.raw == line.decode("utf-8", "replace")[:2000]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_cut_off_archive_gives_its_sound_rows_then_a_fault_never_silence(tmp_path: Path, suffix: str) -> None:
    pack = gzip.compress if suffix == "gz" else zstandard.compress
    lines = "".join(json.dumps({"messages": [], "n": value_digest(n)}) + "\n" for n in range(4000))
    packed = pack(lines.encode())
    write(tmp_path, f"a.jsonl.{suffix}", packed[: len(packed) * 3 // 4])
    write(tmp_path, "b.jsonl", LINE)
    rows = list(read_rows(tmp_path, "openai"))
    faults = [row for row in rows if row.record is None]
    assert 1000 < len(rows) < 4000
    assert "damaged compressed file" in faults[-1].fault
    assert rows[-1].where == "b.jsonl:1"


def test_a_zst_file_of_several_frames_is_read_to_its_end(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl.zst", zstandard.compress(LINE) + zstandard.compress(LINE * 9_999))
    assert len(records(tmp_path, "openai")) == 10_000


def test_a_file_that_is_no_parquet_is_one_fault(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", b"PAR1 but not really")
    (row,) = read_rows(tmp_path, "openai")
    assert row.where == "a.parquet:1"
    assert "damaged Parquet file" in row.fault


@pytest.mark.parametrize("format", list(FORMATS))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=NEAR_MISS | ANY_JSON)
def test_no_object_whatever_makes_a_format_raise(tmp_path: Path, format: str, value: Any) -> None:
    write_lines(tmp_path, "a.jsonl", value)
    write_lines(tmp_path, "possible_answer/a.jsonl", value)
    write(tmp_path, "locale/fr/a.po", json.dumps(value, indent=1))
    for row in read_rows(tmp_path, format):
        assert (row.record is None) == bool(row.fault)


def test_openai_takes_messages_and_tools_as_json_text_and_keeps_other_keys(tmp_path: Path) -> None:
    write_lines(tmp_path, "a.jsonl", {"messages": json.dumps(CHAT["messages"]), "tools": "[]", "uuid": "7"})
    assert records(tmp_path, "openai") == [{**CHAT, "tools": [], "uuid": "7"}]


def test_sharegpt_turns_and_calls_become_messages(tmp_path: Path) -> None:
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Weather in Paris?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Paris"}}'},
        {"from": "observation", "value": "mild"},
        {"from": "gpt", "value": "It is mild."},
    ]
    write_lines(tmp_path, "a.jsonl", {"conversations": turns, "tools": '[{"name": "weather", "parameters": {}}]'})
    call = {
        "id": "call_2_0",
        "type": "function",
        "function": {"name": "weather", "arguments": {"city": "Paris"}},
    }
    assert records(tmp_path, "sharegpt") == [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Weather in Paris?"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "mild", "tool_call_id": "call_2_0"},
                {"role": "assistant", "content": "It is mild."},
            ],
            "tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}],
        }
    ]


@pytest.mark.parametrize(
    ("record", "question"),
    [
        ({"instruction": "Add.", "input": "2 + 3", "output": "5"}, "Add.\n\n2 + 3"),
        ({"instruction": "Add 2 and 3.", "input": "", "output": "5"}, "Add 2 and 3."),
        ({"prompt": "2 + 3 =", "completion": "5"}, "2 + 3 ="),
        (
            {
                "prompt": [{"role": "user", "content": "2+3"}],
                "completion": [{"role": "assistant", "content": "5"}],
            },
            "2+3",
        ),
    ],
)
def test_alpaca_reads_instructions_and_prompts(tmp_path: Path, record: dict[str, Any], question: str) -> None:
    write_lines(tmp_path, "a.jsonl", record)
    (found,) = records(tmp_path, "alpaca")
    assert found["messages"] == [{"role": "user", "content": question}, {"role": "assistant", "content": "5"}]


def bfcl_question(id: str, parameters: dict[str, Any]) -> dict[str, Any]:
    tool = {"name": "book", "description": "Books.", "parameters": parameters}
    return {"id": id, "question": [[{"role": "user", "content": "Book it."}]], "function": [tool]}


def test_bfcl_joins_the_first_accepted_values_and_mends_the_schema(tmp_path: Path) -> None:
    parameters = {
        "type": "dict",
        "required": ["city", "page"],
        "properties": {
            "city": {"type": "string"},
            "page": {"type": "integer"},
            "type": {"type": "any"},
            "at": {"type": "tuple", "items": {"type": "float"}},
            "guest": {"type": "dict", "properties": {"age": {"type": "integer"}}},
            "unit": {"type": "string"},
        },
    }
    values = {
        "city": ["Paris", "Paris, FR"],
        "page": ["", 100],
        "at": [[1.5, 2]],
        "guest": [{"age": [7, 8], "name": ["", "Bo"]}],
        "unit": ["", "kg"],
    }
    write_lines(tmp_path, "q.json", bfcl_question("a", parameters), bfcl_question("b", parameters))
    write_lines(tmp_path, "possible_answer/q.json", {"id": "a", "ground_truth": [{"book": values}]})
    answered, unanswered = records(tmp_path, "bfcl")
    call = answered["messages"][-1]["tool_calls"][0]
    assert answered["messages"][-1]["content"] is None
    assert call["function"]["arguments"] == {
        "city": "Paris",
        "page": 100,
        "at": [1.5, 2],
        "guest": {"age": 7},
    }
    schema = answered["tools"][0]["function"]["parameters"]
    assert schema["type"] == "object"
    assert schema["properties"]["type"] == {}
    assert schema["properties"]["at"] == {"type": "array", "items": {"type": "number"}}
    assert answered["meta"] == {"bfcl_id": "a"}
    assert unanswered["meta"] == {"bfcl_id": "b", "refuse": "no-answer"}


def rollout(model: str, reward: float | None, output: list[dict[str, Any]]) -> dict[str, Any]:
    asked = {
        "instructions": "Use tools.",
        "input": "Sum?",
        "tools": [{"type": "function", "name": "sum", "strict": True}],
    }
    return {
        "responses_create_params": asked,
        "response": {"model": model, "output": output},
        "reward": reward,
    }


SAID = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "\n\nTwelve."}]}]


def test_nemo_gym_merges_reasoning_text_and_calls_into_one_assistant_message(tmp_path: Path) -> None:
    output = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "\nI add.\n"}]},
        {"type": "function_call", "call_id": "c1", "name": "sum", "arguments": '{"a": 7}'},
        {"type": "function_call", "call_id": "c2", "name": "sum", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "12"},
        {"type": "function_call_output", "call_id": "c2", "output": {"é": 1}},
        *SAID,
        {"type": "function_call_output", "call_id": "c9", "output": "nobody reads this"},
    ]
    write_lines(tmp_path, "adding/data/r.jsonl", rollout("org/Qwen3-8B", 1.0, output))
    (record,) = records(tmp_path, "nemo-gym")
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "sum", "arguments": {"a": 7}}},
        {"id": "c2", "type": "function", "function": {"name": "sum", "arguments": {}}},
    ]
    assert record["messages"] == [
        {"role": "system", "content": "Use tools."},
        {"role": "user", "content": "Sum?"},
        {"role": "assistant", "content": None, "reasoning_content": "I add.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "12"},
        {"role": "tool", "tool_call_id": "c2", "content": '{"é": 1}'},
        {"role": "assistant", "content": "Twelve."},
    ]
    assert record["tools"] == [{"type": "function", "function": {"name": "sum"}}]
    assert record["meta"] == {"model": "org/Qwen3-8B", "reward": 1.0, "environment": "adding"}


@pytest.mark.parametrize(
    ("model", "reward", "output", "reason"),
    [
        ("Qwen/Qwen3-8B", 0.5, SAID, None),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 1, SAID, None),
        ("gpt-4.1-2025-04-14", 1.0, SAID, "closed-model"),
        ("policy_model", 1.0, SAID, "closed-model"),
        ("/checkpoints/qwen3-run/step_42/hf", 1.0, SAID, "closed-model"),
        ("", 1.0, SAID, "closed-model"),
        ("Qwen/Qwen3-8B", 0.0, SAID, "failed-rollout"),
        ("Qwen/Qwen3-8B", None, SAID, "failed-rollout"),
        ("Qwen/Qwen3-8B", 1.0, [], "no-answer"),
    ],
)
def test_nemo_gym_marks_rollouts_that_must_not_be_trained_on(
    tmp_path: Path, model: str, reward: float | None, output: list[dict[str, Any]], reason: str | None
) -> None:
    write_lines(tmp_path, "r.jsonl", rollout(model, reward, output))
    (record,) = records(tmp_path, "nemo-gym")
    assert record["meta"].get("refuse") == reason


def test_a_thought_that_the_prompt_opened_becomes_reasoning(tmp_path: Path) -> None:
    said = [{"type": "message", "role": "assistant", "content": "I add.\n</think>\nTwelve."}]
    write_lines(tmp_path, "r.jsonl", rollout("Qwen/Qwen3-8B", 1.0, said))
    (record,) = records(tmp_path, "nemo-gym")
    assert record["messages"][-1] == {
        "role": "assistant",
        "content": "Twelve.",
        "reasoning_content": "I add.",
    }


def test_an_image_in_a_rollout_is_a_fault(tmp_path: Path) -> None:
    shown = [{"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]
    write_lines(tmp_path, "r.jsonl", rollout("Qwen/Qwen3-8B", 1.0, shown))
    (row,) = read_rows(tmp_path, "nemo-gym")
    assert row.fault == "not of this format: a part of type 'input_image' is not text"


def test_champ_joins_the_steps_and_the_answer(tmp_path: Path) -> None:
    steps = [{"_text": "7 + 5 = 12."}, {"_text": "12 is even."}]
    problem = {"identifier": "P_1", "_text": "Is 7 + 5 even?", "solution": {"steps": steps}, "_answer": "yes"}
    write(
        tmp_path,
        "v0.json",
        json.dumps({"problems": {"P_1": problem, "P_2": {"identifier": "P_2"}}, "hints": {}}),
    )
    whole, broken = read_rows(tmp_path, "champ")
    assert whole.record is not None
    assert whole.record["messages"][1]["content"] == "7 + 5 = 12.\n12 is even.\n\nAnswer: yes"
    assert (broken.where, broken.fault) == ("v0.json:2", "not of this format: 'solution' is missing")


def test_human_eval_answers_with_the_whole_function(tmp_path: Path) -> None:
    task = {
        "task_id": "T/0",
        "prompt": "\n\ndef one():\n",
        "canonical_solution": "    return 1\n\n",
        "test": "...",
    }
    write(tmp_path, "h.jsonl.gz", gzip.compress(json.dumps(task).encode()))
    (record,) = records(tmp_path, "human-eval")
    assert record["messages"][0]["content"].endswith("```python\ndef one():\n```")
    assert record["messages"][1]["content"] == "```python\ndef one():\n    return 1\n```"


PO = """# A comment
msgid ""
msgstr "Language: xx"

#, fuzzy
msgid "Doubtful"
msgstr "xx doubtful"

#. note
#: file.py:1
#, python-format
msgctxt "month"
msgid "May"
msgstr "xx May"
msgid "Say \\"hi\\"\\n"
"twice\\\\"
msgstr ""
"xx \\"hi\\"\\n"
"twice\\\\"

msgid "one"
msgid_plural "many"
msgstr[0] "xx one"
msgstr[1] "xx many"

#~ msgid "Old"
#~ msgstr "xx old"

msgid "Empty"
msgstr ""
"""


def test_django_po_gives_a_row_for_each_text_and_language(tmp_path: Path) -> None:
    for language in ("de", "es", "fr", "it", "ja", "nl"):
        write(tmp_path, f"app/locale/{language}/LC_MESSAGES/django.po", PO.replace("xx", language))
    only_german = 'msgid "Only"\nmsgstr "Nur"\n'
    write(tmp_path, "app/locale/de/LC_MESSAGES/django.po", PO.replace("xx", "de") + only_german)
    rows = list(read_rows(tmp_path, "django-po"))
    assert len(rows) == 10
    assert rows[0].where == "app/locale/de/LC_MESSAGES/django.po:12"
    texts = [[message["content"] for message in row.record["messages"]] for row in rows if row.record]
    assert texts[2] == ["Translate into French (month):\n\nMay", "fr May"]
    assert texts[9] == ['Translate into Japanese:\n\nSay "hi"\ntwice\\', 'ja "hi"\ntwice\\']


def test_a_broken_po_line_is_a_fault_at_its_line(tmp_path: Path) -> None:
    write(tmp_path, "locale/fr/a.po", 'msgid "A"\nmsgstr "unclosed\n')
    (row,) = read_rows(tmp_path, "django-po")
    assert (row.where, row.raw) == ("locale/fr/a.po:2", 'msgstr "unclosed')
