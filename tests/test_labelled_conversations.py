"""Every labelled conversation, read from a file as a source would be, gets the verdict it must get.

tests/labelled/conversations.jsonl: id, why, format; the row as `record`, `line` (text, perhaps in another
`encoding`) or `parts` ([text, times] joined); perhaps `fields`, `select`; `expect`, a reason or
"kept"; perhaps `kept_as`, the normal form; `near`, the reason that a kept row almost deserves.
"""

import ast
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from bench.filters import read_fixture

from sft.conversation import Conversation, Rejection
from sft.filters import control_tokens, structure
from sft.formats import answers, columns, flags, messages, parts, tools, unread
from sft.formats.messages import normalize
from sft.formats.records import REJECT_REASONS

LABELLED = Path(__file__).parent / "labelled/conversations.jsonl"
FIXTURES = [json.loads(line) for line in LABELLED.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("fixture", FIXTURES, ids=[fixture["id"] for fixture in FIXTURES])
def test_a_labelled_conversation_gets_its_verdict(fixture: dict[str, Any], tmp_path: Path) -> None:
    outcome = read_fixture(fixture, tmp_path)
    if isinstance(outcome, Rejection):
        assert (outcome.reason, outcome.evidence != "") == (fixture["expect"], True), outcome.evidence
        return
    assert fixture["expect"] == "kept", fixture["why"]
    normal = {"messages": outcome.messages, "tools": outcome.tools}
    if "kept_as" in fixture:
        assert normal == {"tools": None, **fixture["kept_as"]}
    assert normalize(normal) == outcome, "normalizing twice changes nothing"


def test_what_is_kept_can_be_written_as_json_and_utf8(tmp_path: Path) -> None:
    kept = [outcome for fixture in FIXTURES if isinstance(outcome := read_fixture(fixture, tmp_path), Conversation)]
    for outcome in kept:
        text = json.dumps([outcome.messages, outcome.tools], ensure_ascii=False, allow_nan=False)
        assert json.loads(text.encode().decode()) == [outcome.messages, outcome.tools]
        assert len(outcome.id) == 32
    assert len(kept) > 60


def reasons() -> set[str]:
    """Every reason that normalizing or a check may give, read from their source."""
    found = set(REJECT_REASONS)
    for module in (
        answers,
        columns,
        control_tokens,
        flags,
        messages,
        parts,
        structure,
        tools,
        unread,
    ):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and re.fullmatch(r"[a-z]+(-[a-z]+)+", str(node.value)):
                found.add(str(node.value))
    return found | {"malformed-row"}


def test_every_reason_has_two_fixtures_and_a_near_miss_that_is_kept() -> None:
    expected = Counter(fixture["expect"] for fixture in FIXTURES)
    near = Counter(fixture["near"] for fixture in FIXTURES if "near" in fixture)
    assert len(FIXTURES) >= 120
    assert len({fixture["id"] for fixture in FIXTURES}) == len(FIXTURES)
    assert all(fixture["why"] for fixture in FIXTURES)
    assert all(fixture["expect"] == "kept" for fixture in FIXTURES if "near" in fixture or "kept_as" in fixture)
    assert len(reasons()) > 25
    assert set(expected) - {"kept"} == reasons()
    assert {reason: expected[reason] for reason in reasons() if expected[reason] < 2} == {}
    assert reasons() - set(near) == set()


def test_the_nine_ways_in_which_the_published_code_errs_each_have_a_fixture() -> None:
    named = {match[1] for fixture in FIXTURES if (match := re.match(r"published-([a-i])\b", fixture["id"]))}
    assert named == set("abcdefghi")
