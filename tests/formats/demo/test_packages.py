"""Published packages: what each of their shapes becomes, and what is no row of theirs."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sft.formats.demo.packages import bfcl, champ, django_po, human_eval
from sft.formats.raw_files import Row


def write(folder: Path, name: str, content: bytes | str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def write_lines(folder: Path, name: str, *objects: Any) -> None:
    write(folder, name, "".join(json.dumps(item) + "\n" for item in objects))


def records(rows: Iterable[Row]) -> list[dict[str, Any]]:
    rows = list(rows)
    assert [row.fault for row in rows] == [""] * len(rows)
    return [row.record for row in rows if row.record is not None]


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
    answered, unanswered = records(bfcl(tmp_path))
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


def test_champ_joins_the_steps_and_the_answer(tmp_path: Path) -> None:
    steps = [{"_text": "7 + 5 = 12."}, {"_text": "12 is even."}]
    problem = {"identifier": "P_1", "_text": "Is 7 + 5 even?", "solution": {"steps": steps}, "_answer": "yes"}
    write(
        tmp_path,
        "v0.json",
        json.dumps({"problems": {"P_1": problem, "P_2": {"identifier": "P_2"}}, "hints": {}}),
    )
    whole, broken = champ(tmp_path)
    assert whole.record is not None
    assert whole.record["messages"][1]["content"] == "7 + 5 = 12.\n12 is even.\n\nAnswer: yes"
    assert (broken.location, broken.fault) == ("v0.json:2", "not of this format: 'solution' is missing")


def test_human_eval_answers_with_the_whole_function(tmp_path: Path) -> None:
    task = {
        "task_id": "T/0",
        "prompt": "\n\ndef one():\n",
        "canonical_solution": "    return 1\n\n",
        "test": "...",
    }
    write(tmp_path, "h.jsonl.gz", gzip.compress(json.dumps(task).encode()))
    (record,) = records(human_eval(tmp_path))
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
    rows = list(django_po(tmp_path))
    assert len(rows) == 10
    assert rows[0].location == "app/locale/de/LC_MESSAGES/django.po:12"
    texts = [[message["content"] for message in row.record["messages"]] for row in rows if row.record]
    assert texts[2] == ["Translate into French (month):\n\nMay", "fr May"]
    assert texts[9] == ['Translate into Japanese:\n\nSay "hi"\ntwice\\', 'ja "hi"\ntwice\\']


def test_a_broken_po_line_is_a_fault_at_its_line(tmp_path: Path) -> None:
    write(tmp_path, "locale/fr/a.po", 'msgid "A"\nmsgstr "unclosed\n')
    (row,) = django_po(tmp_path)
    assert (row.location, row.raw) == ("locale/fr/a.po:2", 'msgstr "unclosed')
