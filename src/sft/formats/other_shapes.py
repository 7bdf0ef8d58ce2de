"""Rows that are no conversation each, known by their fields: what they are, and what to do with them.

A conversation that spans rows (a tree, a session of an agent), text without roles, and questions of evaluations cannot
be read row by row. Their rows are rejected as malformed-row with the text of this module.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

WRITE = 'one row for each, {"messages": [{"role": "user", "content": "..."}, ...]}'


class Shape(NamedTuple):
    """A row with these fields, of which one is an object, or a list whose items have a type and perhaps keys."""

    names: frozenset[str]
    field: str
    type: type
    """Of the field, or of the items of its list."""
    keys: frozenset[str]
    text: str
    """What a row is, and what to do."""


def _shape(names: str, field: str, type: type, text: str, keys: str = "") -> Shape:
    return Shape(frozenset(names.split()), field, type, frozenset(keys.split()), text)


SHAPES = (
    _shape(
        "message_id parent_id text role",
        "text",
        str,
        "a single message of a tree (OpenAssistant). Join the messages from a root to a leaf by parent_id, and write "
        f"{WRITE}",
    ),
    _shape(
        "message_tree_id prompt",
        "prompt",
        dict,
        f"a tree of messages (OpenAssistant). Follow the best replies from the prompt to a leaf, and write {WRITE}",
    ),
    _shape(
        "segments",
        "segments",
        dict,
        "segments of text without roles (axolotl's input_output), with the tokens of one template in it. Write the "
        'turns as messages, with "loss": false where label is false',
        keys="label text",
    ),
    _shape(
        "sessionId uuid message",
        "message",
        dict,
        f"an event of a session of Claude Code. Join the messages of each sessionId in order, and write {WRITE}",
    ),
    _shape(
        "timestamp type payload",
        "payload",
        dict,
        "an event of a session of Codex. Join the payloads of type response_item of each file in order, and write one "
        'row for each session, {"messages": [payload, ...]}',
    ),
    _shape(
        "question_id turns",
        "turns",
        str,
        "a question of an evaluation (MT-bench). Name its file under fetch.benchmarks, and nothing like it is trained",
    ),
    _shape(
        "question function",
        "question",
        list,
        "a question of the Berkeley Function Calling Leaderboard, whose answers are in other files. Fetch the package "
        "with both, and write read: bfcl",
    ),
)


def other_shape(record: Mapping[str, Any]) -> str:
    """Return what a row is that is no conversation, and what to do; empty text if it may be one.

    >>> other_shape({"segments": [{"label": True, "text": "a"}]})[:16], other_shape({"segments": []})
    ('segments of text', '')
    """
    if type(record.get("messages")) is list and record["messages"]:
        return ""
    for shape in SHAPES:
        if shape.names <= record.keys():
            value = record[shape.field]
            items: list[Any] = value if type(value) is list else [value]
            if items and all(isinstance(item, shape.type) for item in items):
                if all(key in item for item in items for key in shape.keys):
                    return shape.text
    return ""
