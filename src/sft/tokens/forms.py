"""Forms: messages as a chat template wants them.

Templates agree on roles and content, not on the rest: some take the arguments of a call as an object, some as JSON
text; reasoning has several names, or is in the content, between tags. Data is in one normal form
(sft.conversation), so each template gets it in the first of FORMS that it renders in full (sft.tokens.checks).

Some templates cut the reasoning out of every answer, because a prompt never has that of earlier turns (DeepSeek R1,
QwQ). For these, the tags and the reasoning are written into the rendered text of the turn that is trained.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from sft.conversation import Message, Tools

Shield = Callable[[Any], Any]
INLINE = "inline"
SPLICED = "spliced"
TAGS = ("<think>\n", "\n</think>\n\n")


class Form(NamedTuple):
    """How a template gets reasoning and arguments."""

    arguments: str = "object"
    """object, or text: JSON."""
    reasoning: str = "reasoning_content"
    """The key of a message; INLINE: `<think>` in front of the content; SPLICED: the same, and the template does not see
    the tags of the last answer, nor any reasoning of the others."""


USUAL = Form()
ARGUMENTS = ("object", "text")
REASONING = ("reasoning_content", "reasoning", "thinking", INLINE, SPLICED)


class Turns(NamedTuple):
    """A conversation as a template gets it, its texts shielded."""

    messages: list[Message]
    """In the form of the template."""
    plain: list[Message]
    """In normal form: what the rendered text has to contain."""
    tools: Tools
    guard: str
    mark: str = ""
    """SPLICED: the character that stands for a tag in the last message; no part of any text."""

    def first(self, number: int, generation_prompt: bool) -> list[Message]:
        """Return the first messages as a template gets them."""
        shown, last = self.messages[:number], self.plain[number - 1] if number else {}
        if self.mark and not generation_prompt and "reasoning_content" in last:
            content = f"{self.mark}{last['reasoning_content'].strip()}{self.mark}{last['content']}"
            shown = [*shown[:-1], {**shown[-1], "content": content}]
        return shown

    def with_tags(self, text: str) -> str:
        """Return a rendered text with the tags of its last answer; marks are left if there are not two."""
        parts = text.split(self.mark)
        return parts[0] + parts[1].join(TAGS) + parts[2] if len(parts) == 3 else text


def make_turns(messages: list[Message], tools: Tools, form: Form, shield: Shield, guard: str, mark: str = "") -> Turns:
    """Return a conversation in a form, its messages shielded (tools are already); a template does not see `loss`.

    `mark`: see Turns.
    """
    plain = [
        {key: value if key == "role" else shield(value) for key, value in message.items() if key != "loss"}
        for message in messages
    ]
    shown = plain
    if form != USUAL:
        shown = [_in_form(turn, message, form, shield) for turn, message in zip(plain, messages, strict=True)]
    return Turns(shown, plain, tools, guard, mark)


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
            turn["content"] = f"{reasoning.strip().join(TAGS)}{turn['content']}"
        elif form.reasoning != SPLICED:
            turn[form.reasoning] = reasoning
    return turn
