"""Grades of an answer that should call tools: its calls are parsed, checked against schemas and compared.

Pure: text and schemas in, verdicts out. The text comes from a model and the schemas from published data, so neither is
trusted: nothing is evaluated or downloaded, and text that cannot be parsed is a verdict, never an exception.

A well-formed answer is, line by line, what the chat template writes:

    <think>reasoning</think>       optional; nothing in it is parsed as a call
    text for the user              optional; contains none of the tags below
    <tool_call>                    once or more, only blank lines between and after
    <function=NAME>
    <parameter=ARGUMENT>           any number, each name once
    value                          any lines; ends at the first line that is </parameter>
    </parameter>
    </function>
    </tool_call>
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft.formats.argument_text import typed_arguments
from sft.tool_schemas import ToolSchemas

TAG = re.compile(r"</?tool_call>|<function=|</function>|<parameter=|</parameter>")
NAME = re.compile(r"<(function|parameter)=([^<>\n]+)>")
OPENING = re.compile(r"<think>\s*(?:</think>\s*)?$")


@dataclass(frozen=True)
class Call:
    """One tool call as written: the form has no types, so every value is text."""

    name: str
    arguments: dict[str, str]


@dataclass(frozen=True)
class Verdict:
    """What is right in an answer that should call tools; each claim implies those before it."""

    well_formed: bool
    """One call or more, exactly in the form."""
    known_function: bool
    """Every call names one of the tools."""
    fits: bool
    """The arguments of every call are valid against the function's JSON schema."""
    exact: bool
    """The calls equal those of the reference, in the same order."""
    fault: str
    """Why not exact: a short reason in kebab case; empty if exact."""


def opening(prompt: str) -> str:
    """Return the think tags that a prompt ends with: where the template writes them, they are part of the answer.

    >>> opening("<|im_start|>assistant\\n<think></think>")
    '<think></think>'
    >>> opening("<|im_start|>assistant\\n")
    ''
    """
    found = OPENING.search(prompt)
    return found[0] if found else ""


def think_balanced(text: str) -> bool:
    """Return whether every <think> is closed before the next one opens, and nothing else is closed.

    >>> think_balanced("<think>so</think>yes"), think_balanced("yes</think>"), think_balanced("<think>so")
    (True, False, False)
    """
    tags = re.findall(r"</?think>", text)
    return tags == ["<think>", "</think>"] * (len(tags) // 2)


def parse_tool_calls(text: str) -> list[Call] | str:
    """Return the tool calls of an answer, or its fault in kebab case if it is not well-formed.

    >>> parse_tool_calls("<tool_call>\\n<function=now>\\n</function>\\n</tool_call>\\n")
    [Call(name='now', arguments={})]
    >>> parse_tool_calls("It is noon.")
    'no-call'
    """
    if text.lstrip().startswith("<think>"):
        _, closed, text = text.partition("</think>")
        if not closed:
            return "reasoning-not-closed"
    lines = text.split("\n")
    try:
        start = lines.index("<tool_call>")
    except ValueError:
        return "tag-out-of-place" if TAG.search(text) else "no-call"
    if TAG.search("\n".join(lines[:start])):
        return "tag-out-of-place"
    calls = []
    while start < len(lines):
        if not lines[start].strip():
            start += 1
            continue
        call = _parse_call(lines, start)
        if isinstance(call, str):
            return call
        start, parsed = call
        calls.append(parsed)
    return calls


def _parse_call(lines: Sequence[str], at: int) -> tuple[int, Call] | str:
    """Return the index of the line after a call, and the call that begins at line `at`; or a fault."""
    if lines[at] != "<tool_call>":
        return "text-after-call"
    function = NAME.fullmatch(lines[at + 1]) if at + 1 < len(lines) else None
    if not function or function[1] != "function":
        return "no-function-in-call"
    arguments: dict[str, str] = {}
    at += 2
    while at < len(lines) and (parameter := NAME.fullmatch(lines[at])):
        if parameter[1] != "parameter":
            return "function-in-function"
        end = next((n for n in range(at + 1, len(lines)) if lines[n] == "</parameter>"), None)
        if end is None:
            return "parameter-not-closed"
        if end == at + 1:
            return "parameter-without-value"
        if parameter[2] in arguments:
            return "parameter-twice"
        arguments[parameter[2]] = "\n".join(lines[at + 1 : end])
        at = end + 1
    if list(lines[at : at + 2]) != ["</function>", "</tool_call>"]:
        return "call-not-closed"
    return at + 2, Call(function[2], arguments)


def grade(text: str, tools: Sequence[Any], reference_calls: Sequence[Any]) -> Verdict:
    """Return the verdict on an answer, given the tools and the reference's tool_calls (OpenAI form)."""
    calls = parse_tool_calls(text)
    if isinstance(calls, str):
        return Verdict(False, False, False, False, calls)
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") for tool in tools}
    if any(call.name not in schemas for call in calls):
        return Verdict(True, False, False, False, "unknown-function")
    typed = [typed_arguments(call.arguments, schemas[call.name]) for call in calls]
    checks = ToolSchemas(schemas)  # the rule of the filter stage
    if any(checks.fault(call.name, arguments) for call, arguments in zip(calls, typed, strict=True)):
        return Verdict(True, True, False, False, "arguments-do-not-fit")
    if len(calls) != len(reference_calls):
        return Verdict(True, True, True, False, "other-number-of-calls")
    references = [call["function"] for call in reference_calls]
    if [call.name for call in calls] != [reference["name"] for reference in references]:
        return Verdict(True, True, True, False, "other-function")
    if not all(map(_same_arguments, calls, typed, references)):
        return Verdict(True, True, True, False, "other-arguments")
    return Verdict(True, True, True, True, "")


def _same_arguments(call: Call, typed: Mapping[str, Any], reference: Mapping[str, Any]) -> bool:
    """Compare values, and texts too: without a type in the schema, 5 may be a string."""
    expected = reference["arguments"]
    return set(typed) == set(expected) and all(
        typed[name] == value or call.arguments[name] == value for name, value in expected.items()
    )
