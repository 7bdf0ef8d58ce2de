"""Shapes: what a chat template can see of a conversation besides its texts, and an example of each shape.

Whether the faster way to find spans is exact, and which messages a template leaves out, is asked once for each shape,
of an example with texts of our own. So the answer depends on the template and the shape alone, not on the data or its
order, and no text is taken for that of another message.
"""

import re
from typing import NamedTuple

import jinja2.nodes

from sft.conversation import Message, Tools

# Longer conversations are asked about with a few of their repeated turns only.
MAX_MESSAGES, MAX_BLOCK, KEPT_BLOCKS = 8, 8, 2
# The tool of examples: not called, so that its name can be in the text only if the template lists tools.
UNCALLED = {
    "type": "function",
    "function": {
        "name": "uncalled",
        "description": "What nobody needs.",
        "parameters": {
            "type": "object",
            "properties": {"nowhere": {"type": "string", "description": "A place"}},
            "required": ["nowhere"],
        },
    },
}
WORD = re.compile(r"\w*")


class Turn(NamedTuple):
    """The shape of a message."""

    role: str
    is_blank: bool
    thinks: bool
    calls: int
    has_id: bool
    is_trained: bool


class Shape(NamedTuple):
    """The shape of a conversation."""

    turns: tuple[Turn, ...]
    has_tools: bool
    is_whole: bool
    """Whether these are all turns of the conversation, not a few of its repeated ones."""


def shape_of(messages: list[Message], tools: Tools) -> Shape:
    """Return the shape of a conversation in normal form."""
    turns = []
    for message in messages:
        calls = message.get("tool_calls", ())
        has_id = "tool_call_id" in message or any(["id" in call for call in calls])
        blank, thinks = not message["content"].strip(), "reasoning_content" in message
        turns.append(Turn(message["role"], blank, thinks, len(calls), has_id, message.get("loss", True)))
    kept = turns if len(turns) <= MAX_MESSAGES else _without_repeats(turns)
    return Shape(tuple(kept), bool(tools), len(kept) == len(turns))


def _without_repeats(turns: list[Turn]) -> list[Turn]:
    """Return turns with at most KEPT_BLOCKS equal blocks in a row."""
    kept = list[Turn]()
    for turn in turns:
        kept.append(turn)
        for size in range(1, MAX_BLOCK + 1):
            block = kept[-size:]
            if len(kept) > KEPT_BLOCKS * size and kept[-(KEPT_BLOCKS + 1) * size :] == block * (KEPT_BLOCKS + 1):
                del kept[-size:]
                break
    return kept


def example_of(shape: Shape) -> tuple[list[Message], Tools]:
    """Return a conversation of a shape, whose texts are all different, and no part of each other."""
    messages, open_ids = list[Message](), list[str]()
    for index, turn in enumerate(shape.turns):
        message: Message = {"role": turn.role, "content": "" if turn.is_blank else f"text{index}end"}
        if turn.thinks:
            message["reasoning_content"] = f"thought{index}end, as in an example"
        if turn.calls:
            open_ids = [f"c{index % 1000:03d}{number % 100:02d}abc" for number in range(turn.calls)]
            message["tool_calls"] = [
                {
                    **({"id": call_id} if turn.has_id else {}),
                    "type": "function",
                    "function": {
                        "name": f"function{index}x{number}end",
                        "arguments": {f"key{index}x{number}end": f"value{index}x{number}end"},
                    },
                }
                for number, call_id in enumerate(open_ids)
            ]
        if turn.role == "tool" and turn.has_id:
            message["tool_call_id"] = open_ids.pop(0) if open_ids else "c99999abc"
        if not turn.is_trained:
            message["loss"] = False
        messages.append(message)
    return messages, [UNCALLED] if shape.has_tools else None


def texts_looked_for(template: jinja2.nodes.Template) -> tuple[str, ...]:
    """Return the texts that a template compares with or looks for, except plain words such as roles.

    A conversation with such a text may be rendered differently from others of its shape.
    """
    texts = set[str]()
    for node in template.find_all((jinja2.nodes.Compare, jinja2.nodes.Call, jinja2.nodes.Test, jinja2.nodes.Filter)):
        texts.update(const.value for const in node.find_all(jinja2.nodes.Const) if isinstance(const.value, str))
    return tuple(sorted(text for text in texts if len(text.strip()) > 1 and not WORD.fullmatch(text)))
