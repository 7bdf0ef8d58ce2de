"""Checks: what is asked of a chat template before a token is written.

Which form of messages it renders in full, which token ends its answers, how it opens an assistant turn, and which kinds
of conversations it cannot render with an exact mask. A template that cannot render any is an error; one that fails for
tools, say, still serves plain conversations, and rows with tools are rejected by name.
"""

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2

from sft.cli import InputError
from sft.conversation import Message, Rejection, Tools
from sft.tokens.forms import ARGUMENTS, REASONING, Form
from sft.tokens.spans import Header, first_difference
from sft.tokens.tokenizer import Rendered

if TYPE_CHECKING:
    from sft.tokens.render import ChatTemplate

ASK: Message = {"role": "user", "content": "What is 1 + 1?"}
ANSWER: Message = {"role": "assistant", "content": "It is 2."}
THOUGHT: Message = {"role": "assistant", "content": "It is 2.", "reasoning_content": "Count: 1, 2."}
MARKED: Message = {"role": "assistant", "content": 'It is "2".\nSo is 3 - 1.'}
"""An answer that is another text in JSON."""
SYSTEM: Message = {"role": "system", "content": "Be brief."}
ARGUMENTS_OF_CALL: dict[str, Any] = {"city": "Paris", "days": [1, 2], "exact": True}


def _call(number: int) -> dict[str, Any]:
    function = {"name": f"forecast_{number}", "arguments": ARGUMENTS_OF_CALL}
    return {"id": f"call0000{number}", "type": "function", "function": function}


def _result(number: int) -> Message:
    return {"role": "tool", "content": f"Rain {number}.", "tool_call_id": f"call0000{number}"}


CALL: Message = {"role": "assistant", "content": "", "tool_calls": [_call(1)]}
CALLS: Message = {"role": "assistant", "content": "", "tool_calls": [_call(1), _call(2)]}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": f"forecast_{number}",
            "description": "The weather.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Where"},
                    "days": {"type": "array", "items": {"type": "integer"}, "description": "When"},
                    "exact": {"type": "boolean", "description": "To the degree"},
                },
                "required": ["city"],
            },
        },
    }
    for number in (1, 2)
]

PLAIN: list[Message] = [ASK, ANSWER, ASK, ANSWER]
REASONED: list[Message] = [ASK, THOUGHT]
CALLING: list[Message] = [ASK, CALL, _result(1), ANSWER]
REOPENED = re.compile(r"<think>\s*</think>\s*<think>")
KINDS: dict[str, tuple[list[Message], Tools]] = {
    "plain": (PLAIN, None),
    "system": ([SYSTEM, ASK, ANSWER], None),
    "system-in-the-middle": ([ASK, ANSWER, SYSTEM, ASK, ANSWER], None),
    "reasoning": (REASONED, None),
    "reasoning-of-several-turns": ([ASK, THOUGHT, ASK, THOUGHT], None),
    "tools": (CALLING, TOOLS[:1]),
    "parallel-calls": ([ASK, CALLS, _result(1), _result(2), ANSWER], TOOLS),
    "words-beside-a-call": ([ASK, CALL | {"content": "Let me look."}, *CALLING[2:]], TOOLS[:1]),
    "reasoning-before-a-call": ([ASK, CALL | {"reasoning_content": "Ask."}, *CALLING[2:]], TOOLS[:1]),
}
"""One conversation of each kind that templates treat differently, with its tools."""


class Ending(NamedTuple):
    """What ends an answer, beside the stop tokens of the model."""

    token: str = ""
    """A control token that the template writes behind an answer, though the model does not name it as a stop token."""
    behind_last: tuple[str, str] = ("", "")
    """What to write behind the last answer, without and with calls: the stop token that begins the next turn."""


def find_ending(chat: "ChatTemplate") -> Ending:
    """Return how a template ends answers, if no stop token follows them.

    Some models name the token that opens the next turn as the one that they stop at; a conversation that ends with an
    answer lacks it.
    """
    if (text := _ends_without_stop(chat, [ASK, ANSWER], ANSWER["content"])) is None:
        return Ending()
    _, _, behind = text.rpartition(ANSWER["content"])
    if first := chat.tokenizer.pattern.match(behind.lstrip()):
        return Ending(first[0])
    behind_calls = ""
    if _ends_without_stop(chat, [ASK, CALL], CALL["tool_calls"][0]["function"]["name"], TOOLS[:1]) is not None:
        behind_calls = _stop_of_next(chat, [ASK, CALL], _result(1), TOOLS[:1])
    return Ending("", (_stop_of_next(chat, [ASK, ANSWER], ASK), behind_calls))


def _ends_without_stop(chat: "ChatTemplate", messages: list[Message], last: str, tools: Tools = None) -> str | None:
    """Return the text of messages if no stop token follows the text `last` in it."""
    try:
        text = chat.render(messages, tools, thinking=False)
    except jinja2.TemplateError:
        return None
    _, found, behind = text.rpartition(last)
    return text if found and not (chat.stop_ids and chat.stops.pattern.search(behind)) else None


def _stop_of_next(chat: "ChatTemplate", messages: list[Message], following: Message, tools: Tools = None) -> str:
    """Return the stop token that begins the message behind some messages, or ""."""
    try:
        before = chat.render(messages, tools, thinking=False)
        text = chat.render([*messages, following], tools, thinking=False)
    except jinja2.TemplateError:
        return ""
    first = chat.stops.pattern.match(text, len(before)) if text.startswith(before) and chat.stop_ids else None
    return first[0] if first else ""


def check(chat: "ChatTemplate", name: str) -> dict[str, str]:
    """Return the kinds of conversations that a template cannot render, with the reason; set the form that it renders.

    Raises:  InputError: it renders neither a plain conversation nor one with reasoning; a token is part prompt, part
    answer; there are two BOS; or a stop token is not trained at the end of each answer.
    """
    chat.form = _find_form(chat)
    outcomes = {kind: chat.render_by_prompts(*conversation) for kind, conversation in KINDS.items()}
    modes = {}
    for kind, outcome in outcomes.items():
        fault = outcome if isinstance(outcome, Rejection) else chat.left_out(*KINDS[kind])
        if fault is not None:
            modes[kind] = f"{fault.reason}: {fault.evidence}"
    plain, reasoned = outcomes["plain"], outcomes["reasoning"]
    if isinstance(plain, Rejection) and isinstance(reasoned, Rejection):
        why = {
            "template-mismatch": "an answer does not start with its generation prompt, or changes when the "
            "conversation continues, so no exact loss mask exists",
            "no-stop-token": "an answer does not end with a stop token, so a trained model would never stop",
            "template-drops-text": "it drops text of an answer",
        }.get(plain.reason, "it rejects a plain conversation of two turns")
        if not _writes_content(chat):
            why = "it does not write the content of an answer, a text, as it is"
        raise InputError(f"{name}: {why} ({plain.evidence}). Choose another prep.template.")
    for rendered in (plain, reasoned):
        if not isinstance(rendered, Rejection):
            _check_tokens(chat, rendered, name)
    return modes


def _writes_content(chat: "ChatTemplate") -> bool:
    """Return whether a template writes the content of an answer as it is; also True if it rejects the conversation."""
    try:
        return MARKED["content"] in chat.render([ASK, MARKED], None, thinking=False)
    except jinja2.TemplateError:
        return True


def _find_form(chat: "ChatTemplate") -> Form:
    """Return the first form in which calls and reasoning are rendered in full; of each, the usual one if none is."""
    arguments = next((each for each in ARGUMENTS if _renders_calls(chat, Form(each))), ARGUMENTS[0])
    forms = [Form(arguments, reasoning) for reasoning in REASONING]
    return next((form for form in forms if _renders_reasoning(chat, form)), forms[0])


def _renders_reasoning(chat: "ChatTemplate", form: Form) -> bool:
    """Return whether reasoning is rendered in full, and not behind an empty one that the template writes itself."""
    rendered = _outcome(chat, form, REASONED)
    return rendered is not None and not any(REOPENED.search(sample.text) for sample in rendered)


def _renders_calls(chat: "ChatTemplate", form: Form) -> bool:
    for messages, tools in ((CALLING, TOOLS[:1]), ([ASK, CALL], None)):
        if rendered := _outcome(chat, form, messages, tools):
            text = rendered[-1].text
            # Not as Python writes it: 'city' in single quotes.
            return "'city'" not in text and all(part in text for part in ("Paris", "city"))
    return False


def _outcome(chat: "ChatTemplate", form: Form, messages: list[Message], tools: Tools = None) -> list[Rendered] | None:
    chat.form = form
    rendered = chat.render_by_prompts(messages, tools)
    return None if isinstance(rendered, Rejection) else rendered


def _check_tokens(chat: "ChatTemplate", rendered: list[Rendered], name: str) -> None:
    bos = chat.tokenizer.control.get(chat.tokenizer.special.get("bos_token", ""))
    for sample, text in zip(chat.encode(rendered), rendered, strict=True):
        if isinstance(sample, Rejection):
            raise InputError(f"{name}: {sample.evidence}: no exact loss mask exists. Choose another prep.template.")
        if sample.ids[:2] == [bos, bos]:
            raise InputError(
                f"{name}: a sample starts with two BOS tokens, expected one. Choose another prep.template."
            )
        if [sample.ids[end - 1] in chat.stop_ids for end in sample.turn_ends] != [True] * len(text.spans):
            raise InputError(
                f"{name}: {chat.stop_token} is not trained at the end of each answer. Choose another prep.template."
            )


def find_header(chat: "ChatTemplate") -> Header | None:
    """Return how a template opens an assistant turn; None if that does not start with a control token."""
    prompts = []
    for thinking in (False, True):
        try:
            asked = chat.render([ASK], None, thinking=thinking)
            prompt = chat.render([ASK], None, thinking=thinking, generation_prompt=True)
        except jinja2.TemplateError:
            return None
        behind = prompt.removeprefix(asked)
        if behind == prompt:  # it closes a conversation that ends here; then the header may be the last control token
            starts = [match.start() for match in chat.tokenizer.pattern.finditer(prompt)]
            behind = prompt[starts[-1] :] if starts else ""
        prompts.append(behind)
    text = prompts[0][: first_difference(*prompts)]
    return Header(text, (prompts[0], prompts[1])) if chat.tokenizer.pattern.match(text) else None
