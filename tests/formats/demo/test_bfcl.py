"""bfcl: questions joined with accepted calls."""

from pathlib import Path
from typing import Any

from sft.formats.demo.bfcl import bfcl
from tests.support.raw_rows import records, write_lines


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
