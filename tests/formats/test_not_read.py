"""What is not read: every key that nobody reads is counted once, and changes nothing that is kept."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.conversation import Conversation, Rejection
from sft.filters.pipeline import RowCounts, _normalize
from sft.formats.chat_forms import FieldCounts, convert_chats
from sft.formats.messages import normalize
from sft.formats.not_read import MAX_NAMES, OTHERS, NotRead
from sft.formats.raw_files import Row
from sft.formats.records import ChatRow

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {}}}}}
ROWS = {
    "openai": {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "b"}],
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}],
            },
            {"role": "tool", "content": "c", "tool_call_id": "1"},
            {"role": "assistant", "content": "d", "loss": False},
            {"role": "user", "content": "e"},
            {"role": "assistant", "content": "f", "reasoning_details": [{"type": "reasoning.text", "text": "r"}]},
        ],
        "tools": [TOOL],
        "loss_mask": [0, 0, 1, 0, 0, 0, 1],
    },
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "c"},
            {"from": "gpt", "value": "<think>t</think>d"},
        ],
        "system": "Be kind.",
        "tools": [TOOL["function"]],
    },
    "alpaca": {
        "input": [{"role": "user", "content": "a"}],
        "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "t"}]},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"x": 1}'},
            {"type": "function_call_output", "call_id": "1", "output": "c"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "d"}]},
        ],
        "tools": [{"type": "function", **TOOL["function"]}],
    },
}
# Objects whose keys are data: the arguments of a call, the schema of a tool.
DATA = ("arguments", "parameters")
KEYS = st.from_regex(r"zz[a-z_]{1,6}", fullmatch=True)
VALUES = st.integers() | st.booleans() | st.text(min_size=1, max_size=3) | st.lists(st.none(), min_size=1, max_size=2)


def objects(value, path=()):
    """Paths of all objects in a value whose keys are not data."""
    if isinstance(value, dict):
        yield path
        for key, item in value.items():
            if key not in DATA:
                yield from objects(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from objects(item, (*path, index))


def at(value, path):
    for key in path:
        value = value[key]
    return value


def read(form, row):
    """Read a row; return the outcome and what was not read."""
    not_read = NotRead()
    (converted,) = convert_chats([Row("a.jsonl:1", row)], form, {}, {}, FieldCounts())
    assert isinstance(converted, ChatRow)
    outcome = normalize(converted.record, converted.columns, converted.columns_read, not_read)
    not_read.end_row("a.jsonl:1", isinstance(outcome, Conversation))
    return outcome, not_read


@pytest.mark.parametrize("form", ROWS)
def test_a_row_of_known_keys_is_read_to_the_last(form):
    outcome, not_read = read(form, ROWS[form])
    assert isinstance(outcome, Conversation), outcome
    assert not_read.counts == {}


@pytest.mark.parametrize("form", ROWS)
@settings(max_examples=150)
@given(data=st.data())
def test_a_key_that_nobody_reads_is_counted_wherever_it_is_and_changes_no_byte(form, data):
    row = copy.deepcopy(ROWS[form])
    paths = data.draw(st.lists(st.sampled_from(list(objects(row))), min_size=1, max_size=4))
    added = 0
    for path in paths:
        key, value = data.draw(KEYS), data.draw(VALUES)
        added += key not in at(row, path)
        at(row, path)[key] = value
    outcome, not_read = read(form, row)
    assert isinstance(outcome, Conversation), outcome
    assert outcome.canonical == read(form, ROWS[form])[0].canonical
    assert sum(count for count, _ in not_read.counts.values()) == added
    assert all(".zz" in f".{name}" for name in not_read.counts)


@pytest.mark.parametrize("nothing", [None, "", [], {}])
@pytest.mark.parametrize("form", ROWS)
def test_an_empty_field_says_nothing(form, nothing):
    for path in objects(ROWS[form]):
        row = copy.deepcopy(ROWS[form])
        at(row, path)["more"] = nothing
        assert read(form, row)[1].counts == {}


def test_places_are_named_and_the_first_row_is_the_example():
    counts = RowCounts()
    messages = [{"role": "user", "content": "a", "name": "Ann"}, {"role": "assistant", "content": "b"}]
    rows = [Row(f"a:{n}", {"messages": messages, "id": n}) for n in (1, 2)]
    for row in convert_chats(rows, "openai", {}, {}, FieldCounts()):
        _normalize(row, counts.not_read)
    assert counts.not_read.report() == {
        "id": {"values": 2, "first": "a:1"},
        "messages[].name": {"values": 2, "first": "a:1"},
    }
    assert counts.not_read.line() == "id (2, first a:1), messages[].name (2, first a:1)"


def test_what_a_rejected_row_says_is_in_the_rejected_rows_and_not_counted():
    outcome, not_read = read("openai", {"messages": [{"role": "critic", "content": "a", "name": "Ann"}], "id": 1})
    assert isinstance(outcome, Rejection)
    assert not_read.counts == {}


def test_names_without_end_are_counted_together_and_control_characters_do_not_reach_a_terminal():
    not_read = NotRead()
    for number in range(MAX_NAMES + 50):
        not_read.add(f"k{number}\x1b[2J")
        not_read.end_row(f"a:{number}", True)
    assert len(not_read.counts) == MAX_NAMES + 1
    assert not_read.counts[OTHERS] == (50, f"a:{MAX_NAMES}")
    assert "\x1b" not in not_read.line()


def test_counts_of_later_rows_are_added_and_the_first_example_stays():
    not_read = NotRead({"id": (2, "a:1")})
    not_read.merge({"id": (1, "b:1"), "name": (1, "b:2")})
    assert not_read.counts == {"id": (3, "a:1"), "name": (1, "b:2")}
