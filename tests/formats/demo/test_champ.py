"""champ: problems with solutions in steps."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sft.formats.demo.champ import champ
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
