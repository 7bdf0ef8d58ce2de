"""human-eval: heads of functions and whole functions."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sft.formats.demo.human_eval import human_eval
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
