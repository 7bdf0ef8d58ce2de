"""Rows that are no conversation each, known by their fields: what they are, and what to do with them.

A conversation that spans rows (a tree, a session of an agent), text without roles, and questions of evaluations cannot
be read row by row. Their rows are rejected as malformed-row with the text of this module.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from sft.formats.json_text import parsed_or_same
from sft.formats.not_read import says_something
from sft.formats.spellings import ANSWERS, CHAT_COLUMNS

WRITE = 'one row for each, {"messages": [{"role": "user", "content": "..."}, ...]}'
EVENT = f"an event of a session of OpenHands. Join the events of each session in order, and write {WRITE}"
CHOICE = f"a question with options. Write the options into the question and the right one as answer: {WRITE}"
SEVERAL = f"several answers to one question. Take the best one, and write {WRITE}"
# Text that a chat template made: its columns, if no other one has the answer, and what is before a turn.
RENDERED = ("text", "chat", "chosen", "conversation", "input")
MARKUP = re.compile(
    r"<\|im_start\|>|<\|start\|>user"
    r"|<\|start_header_id\|>|<start_of_turn>|\[INST\]|\[\|Human\|\]|### ?(?:Human|Instruction|User)\b"
    r"|(?:^|\n)(?:Human|USER|User): "
)


# Columns with a field of a message each, as OpenLLMetry and OpenInference flatten spans.
FLAT = re.compile(r"(?:.*\.)?(?:gen_ai\.(?:prompt|completion)|llm\.(?:input|output)_messages)\.\d+\..+")
SPAN = (
    "a span of a trace, with a column for each field of its messages (gen_ai.prompt.0.role). Join them, and write "
    f"{WRITE}"
)


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
        "mapping current_node",
        "mapping",
        dict,
        f"an export of ChatGPT, a tree of messages. Follow parent from current_node to the root, and write {WRITE}",
    ),
    _shape("chat_messages", "chat_messages", dict, f"an export of Claude. Write {WRITE}", keys="sender"),
    _shape(
        "schema_version steps",
        "steps",
        dict,
        "a trajectory of ATIF. Write each step as a message of its source, its calls under tool_calls, and each result "
        f"of its observation as a message of role tool: {WRITE}",
        keys="source",
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
        "conversation_a conversation_b",
        "conversation_a",
        dict,
        f"two conversations that are compared. Only one can be trained: take that of the winner, and write {WRITE}",
    ),
    _shape(
        "custom_id body",
        "body",
        dict,
        "a request of a batch, whose answers are in another file. Join both files by custom_id, and write "
        '{"request": body, "response": response}',
    ),
    _shape(
        "custom_id response",
        "response",
        dict,
        "an answer of a batch, whose questions are in another file. Join both files by custom_id, and write "
        '{"request": body, "response": response}',
    ),
    _shape(
        "chat_history message",
        "message",
        str,
        f"a request of Cohere's chat. Join chat_history, message and the answer, and write {WRITE}",
    ),
    _shape("run_type inputs", "inputs", dict, f"a run of LangSmith. Join inputs and outputs, and write {WRITE}"),
    _shape("source action args", "args", dict, EVENT),
    _shape("source observation content", "content", str, EVENT),
    _shape("history", "history", dict, EVENT.replace("an event", "a list of events"), keys="source"),
    _shape("input_ids labels", "labels", int, f"tokens of one tokenizer. Start from the text, and write {WRITE}"),
    _shape("question choices answer", "answer", int, CHOICE),
    _shape("question choices answerKey", "answerKey", str, CHOICE),
    _shape("question opa opb cop", "cop", int, CHOICE),
    _shape("goal sol1 sol2 label", "label", int, CHOICE),
    _shape("question distractor1 correct_answer", "correct_answer", str, CHOICE),
    _shape("instruction completions", "completions", dict, SEVERAL, keys="response"),
    _shape("prompt responses", "responses", str, SEVERAL),
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
    chats = (parsed_or_same(record.get(name), "[") for name in CHAT_COLUMNS)
    if any(type(chat) is list and chat for chat in chats):
        return ""
    attributes = record.get("attributes")
    if any(map(FLAT.fullmatch, (*record, *(attributes if type(attributes) is dict else ())))):
        return SPAN
    for shape in SHAPES:
        if shape.names <= record.keys():
            value = record[shape.field]
            items: list[Any] = value if type(value) is list else [value]
            if items and all(isinstance(item, shape.type) for item in items):
                if all(key in item for item in items for key in shape.keys):
                    return shape.text
    if any(says_something(record.get(name)) for name in ANSWERS if name not in RENDERED):
        return ""
    for name in RENDERED:
        if isinstance(text := record.get(name), str) and (match := MARKUP.search(text)):
            return (
                f"text with the markup of a chat template ({name}: {match[0].strip()!r}). Split it, and write {WRITE}"
            )
    return ""
