"""bfcl: single-turn tool calls of the package bfcl-eval, Berkeley Function Calling Leaderboard.

A question with its tools is joined by id with the accepted calls in possible_answer/; the answer is the first of the
accepted values. A question without an accepted call has the reason no-answer.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft.formats.raw_files import Json, Row, read_objects
from sft.formats.records import NO_ANSWER, convert_rows, openai_call, openai_tool

JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array"}


def bfcl(folder: Path) -> Iterator[Row]:
    """Yield a row for each question, with a call as its answer."""
    accepted: dict[str, Any] = {}
    questions: list[Row] = []
    for row in read_objects(folder):
        if "possible_answer/" not in row.location:
            questions.append(row)
        elif row.record is not None and isinstance(row.record.get("id"), str):
            accepted[row.record["id"]] = row.record.get("ground_truth")

    def to_record(record: Json, location: str) -> Json:
        (messages,) = record["question"]
        meta: Json = {"bfcl_id": record["id"]}
        tools = [openai_tool({**tool, "parameters": _json_schema(tool["parameters"])}) for tool in record["function"]]
        calls = accepted.get(record["id"])
        if not calls:
            meta["refuse"] = NO_ANSWER
        else:
            schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
            calls = [_first_accepted_call(f"call_{n}", call, schemas) for n, call in enumerate(calls)]
            messages = [*messages, {"role": "assistant", "content": None, "tool_calls": calls}]
        return {"messages": messages, "tools": tools, "meta": meta}

    return convert_rows(questions, to_record)


def _json_schema(schema: Json) -> Json:
    """Return a schema with the type names of JSON schema instead of BFCL's; `any` means no type."""
    fixed = {key: value for key, value in schema.items() if (key, value) != ("type", "any")}
    if "type" in fixed:
        fixed["type"] = JSON_TYPES.get(fixed["type"], fixed["type"])
    if "properties" in fixed:
        fixed["properties"] = {name: _json_schema(value) for name, value in fixed["properties"].items()}
    if "items" in fixed:
        fixed["items"] = _json_schema(fixed["items"])
    return fixed


def _first_accepted_call(id: str, call: Json, schemas: dict[str, Json]) -> Json:
    ((name, values),) = call.items()
    required = schemas[name].get("required", [])
    arguments = {}
    for argument, accepted in values.items():
        value = _first_accepted(accepted, argument in required)
        if value is not None:
            arguments[argument] = value
    return openai_call(id, {"name": name, "arguments": arguments})


def _first_accepted(accepted: list[Any], required: bool) -> Any:
    """Return the first accepted value; None to leave the argument out, which BFCL writes as '' in first place.

    Each value of an object is a list of accepted values too. As in BFCL's own checker this holds for one level, also
    within the objects of a list.
    """
    if required:
        accepted = [value for value in accepted if value != ""] or accepted
    if not accepted:
        raise ValueError("an argument without an accepted value")
    first = accepted[0]
    if first == "" and not required:
        return None
    if isinstance(first, dict):
        return _first_accepted_object(first)
    if isinstance(first, list):
        return [_first_accepted_object(item) if isinstance(item, dict) else item for item in first]
    return first


def _first_accepted_object(value: Json) -> Json:
    chosen = {
        key: accepted[0] if isinstance(accepted, list) else accepted for key, accepted in value.items() if accepted
    }
    return {key: item for key, item in chosen.items() if item != ""}
