"""Forms: messages as a chat template wants them.

Templates agree on roles and content, not on the rest: some take the arguments of a call as an object, some as JSON
text; reasoning has several names, or is in the content, between tags. Data is in one normal form
(sft.conversation), so each template gets it in the first of FORMS that it renders in full (sft.tokens.checks).
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from sft.conversation import Message

Shield = Callable[[Any], Any]
INLINE = "inline"


class Form(NamedTuple):
    """How a template gets reasoning and arguments."""

    arguments: str = "object"
    """object, or text: JSON."""
    reasoning: str = "reasoning_content"
    """The key of a message, or INLINE: `<think>` in front of the content."""


USUAL = Form()
ARGUMENTS = ("object", "text")
REASONING = ("reasoning_content", "reasoning", "thinking", INLINE)


class Turns(NamedTuple):
    """A conversation as a template gets it, its texts shielded."""

    messages: list[Message]
    """In the form of the template."""
    plain: list[Message]
    """In normal form: what the rendered text has to contain."""
    tools: list[dict[str, Any]] | None
    guard: str


def make_turns(
    messages: list[Message], tools: list[dict[str, Any]] | None, form: Form, shield: Shield, guard: str
) -> Turns:
    """Return a conversation in a form, its messages shielded (tools are already); a template does not see `loss`."""
    plain = [
        {key: value if key == "role" else shield(value) for key, value in message.items() if key != "loss"}
        for message in messages
    ]
    shown = plain
    if form != USUAL:
        shown = [_in_form(turn, message, form, shield) for turn, message in zip(plain, messages, strict=True)]
    return Turns(shown, plain, tools, guard)


def _in_form(turn: Message, message: Message, form: Form, shield: Shield) -> Message:
    """Return a shielded message in a form; `message` is the same one, not shielded."""
    if form.arguments == "text" and "tool_calls" in turn:
        calls = [
            call
            | {
                "function": call["function"]
                | {"arguments": shield(json.dumps(original["function"]["arguments"], ensure_ascii=False))}
            }
            for call, original in zip(turn["tool_calls"], message["tool_calls"], strict=True)
        ]
        turn = turn | {"tool_calls": calls}
    if form.reasoning != "reasoning_content" and "reasoning_content" in turn:
        reasoning = turn["reasoning_content"]
        turn = {key: value for key, value in turn.items() if key != "reasoning_content"}
        if form.reasoning == INLINE:
            turn["content"] = f"<think>\n{reasoning.strip()}\n</think>\n\n{turn['content']}"
        else:
            turn[form.reasoning] = reasoning
    return turn
