"""champ: problems with solutions in steps."""

import json
from pathlib import Path

from sft.formats.demo.champ import champ
from tests.support.raw_rows import write


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
