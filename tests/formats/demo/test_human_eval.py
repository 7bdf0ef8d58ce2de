"""human-eval: heads of functions and whole functions."""

import gzip
import json
from pathlib import Path

from sft.formats.demo.human_eval import human_eval
from tests.support.raw_rows import records, write


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
