"""champ: competition problems of the package champ-dataset, each with a person's solution in steps and the answer."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from sft.formats.raw_files import Json, Row, object_row, read_objects
from sft.formats.records import convert_rows, question_and_answer


def champ(folder: Path) -> Iterator[Row]:
    """Yield a row for each problem."""

    def to_record(problem: Json, location: str) -> Json:
        steps = [step["_text"] for step in problem["solution"]["steps"]]
        answer = "\n".join([*steps, "", f"Answer: {problem['_answer']}"])
        return {"messages": question_and_answer(problem["_text"], answer), "meta": {"champ_id": problem["identifier"]}}

    for row in read_objects(folder):
        problems = (row.record or {}).get("problems")
        if not isinstance(problems, dict):
            yield (row if row.record is None else replace(row, record=None, fault="not of this format: no problems"))
            continue
        name = row.location.rpartition(":")[0]
        items = (object_row(item, f"{name}:{n}") for n, item in enumerate(problems.values(), 1))
        yield from convert_rows(items, to_record)
