"""contaminated: items of benchmarks that trained conversations contain."""

import json

from sft.evaluation.contaminated import find_contaminated
from sft.parquet import CONVERSATIONS, ShardWriter


def test_items_that_a_trained_conversation_contains_are_found_and_held_out_ones_are_not(tmp_path, monkeypatch):
    monkeypatch.setenv("SFT_WORKERS", "1")
    long = "Natalia sold clips to forty eight of her friends in April and then half as many in May"
    trained = [f"Homework: {long}. Help!", "Name the capital of Peru"]
    for source, texts in {"chats": trained, "more": ["one two three four five six seven eight nine"]}.items():
        with ShardWriter(tmp_path / "data/filtered" / source, "kept", CONVERSATIONS) as kept:
            for number, text in enumerate([*texts, "held out: five six seven eight nine ten eleven twelve words"]):
                messages = json.dumps([{"role": "user", "content": text}, {"role": "assistant", "content": "Lima."}])
                kept.write({"id": f"{source}-{number}", "messages": messages, "tools": None, "meta": None})
    asked = {
        "math": [long.upper(), "Another question that nobody has asked in these conversations before today"],
        "held": ["five six seven eight nine ten eleven twelve words", "name the capital of PERU?"],
        "same": [long, long + "!"],
        "none": [],
    }
    held_out = {"chats": {"chats-2"}, "more": {"more-1"}}
    found = find_contaminated(asked, tmp_path / "data/filtered", held_out)
    assert found == {"math": {0}, "held": {1}, "same": {0, 1}, "none": set()}
    held_out["more"].clear()
    assert find_contaminated(asked, tmp_path / "data/filtered", held_out)["held"] == {0, 1}
