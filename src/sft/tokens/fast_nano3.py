"""Fast nano3: templates/nano3.jinja in Python, about thirty times faster: conversations -> segments.

Used for the template with the digest SHA256 only. If you change the template, change this file too; otherwise Jinja
renders it, like any other template. It leaves values of an unexpected type to the template.

Why the mask is exact without rendering prompts: turns behind an assistant turn change it in two ways only. Reasoning
before the last user message is dropped, and a thinking budget is written in the last user message.
"""

import itertools
import json
from collections.abc import Collection
from typing import Any

from sft.conversation import Message, Tools, trained_turns
from sft.tokens.partition import partition
from sft.tokens.segments import UNTRAINED, Segments
from sft.tokens.tokenizer import SafeTokenizer, TemplateText

SHA256 = "176fe6bc9925693b42def0d93e8730100f6f7c09490803a875cef7d1460aa0e7"
STOP = "<|im_end|>"
# Longer conversations are left to the template, which has limits.
MAX_CHARS = 1 << 22
MAX_CACHED_TOOLS = 256


START, CLOSE = "<|im_start|>", "<|im_end|>\n"
OPENS, CLOSED = "<|im_start|>assistant\n<think>\n", "<|im_start|>assistant\n<think></think>"
THOUGHT = "\n</think>"
CALL, PARAMETER, CALLED = "<tool_call>\n<function=", "<parameter=", "</function>\n</tool_call>\n"
RESULT, RESULT_END = "<tool_response>\n", "\n</tool_response>\n"
TOOLS_HEAD = "# Tools\n\nYou have access to the following functions:\n\n<tools>"
TOOLS_TAIL = (
    "\n</tools>\n\nTo call a function, answer with nothing but:\n\n<tool_call>\n<function=FUNCTION_NAME>\n"
    "<parameter=PARAMETER_NAME>\nvalue\n</parameter>\n</function>\n</tool_call>\n\n"
    "Give every required parameter, lists and objects written as JSON; one block for each call."
)


# Template text between values, which is not searched for control tokens.
PLAIN = (
    f"{PARAMETER}\n</parameter>\n\n<function>\n<name></name>\n<description></description>\n<parameters>\n<parameter>"
    "\n<type></type>\n<enum></enum>\n<required></required>\n</parameters>\n</function>"
)
BORDERS = frozenset("<>=\n{}\"'")
JSON_LETTERS = frozenset("truefalsnE")


class UnsupportedError(Exception):
    """A conversation that the template has to render."""


class FastNano3:
    """Adds samples to segments, for one tokenizer."""

    def __init__(self, tokenizer: SafeTokenizer) -> None:
        self._tokenizer = tokenizer
        self._texts = _TemplateTexts(tokenizer)
        self._tool_texts: dict[int, tuple[list[dict[str, Any]], str]] = {}
        """Cache by identity: a list of tools and its text. Many conversations share one."""

    def supports(self, stops: Collection[str], source: str) -> bool:
        """Return whether STOP alone ends turns of the template, whose text is `source`, and values stay values.

        No control token may arise where a text of the template meets a value. So each must be of the form <...>, or
        have a letter that JSON has in strings only, and none of the characters next to values.
        """
        return (
            STOP in stops
            and not any(stop in source for stop in stops if stop != STOP)
            and not self._tokenizer.pattern.search(PLAIN)
            and all(
                (token[0] == "<" and token[-1] == ">" and not BORDERS & set(token[1:-1]))
                or (any(map(str.isalpha, set(token) - JSON_LETTERS)) and not BORDERS & set(token))
                for token in self._tokenizer.control
            )
        )

    def add_samples(self, segments: Segments, messages: list[Message], tools: Tools, budget: int | None) -> bool:
        """Add the samples of a conversation; return False, and add none, if the template has to render it."""
        before = len(segments.sizes)
        trained = trained_turns(messages)
        try:
            if sum([len(message["content"]) for message in messages]) > MAX_CHARS:
                return False
            parts = _partition(messages, trained, budget)
            for end, turns in parts:
                self._add(segments, messages[:end], turns, tools, budget)
        except (UnsupportedError, AttributeError, LookupError, TypeError):
            segments.truncate(before)
            return False
        return bool(parts)

    def _add(
        self, segments: Segments, messages: list[Message], trained: list[int], tools: Tools, budget: int | None
    ) -> None:
        """Add the sample of `messages` in which the assistant turns `trained` (indices, ascending) are trained.

        Raises:  UnsupportedError: the template has to render it; `segments` then holds an unfinished sample.
        """
        last_user = len(messages) - 1
        while last_user >= 0 and messages[last_user]["role"] != "user":
            last_user -= 1
        reasoning = [index for index, turn in enumerate(messages) if "reasoning_content" in turn]
        wanted = set(trained)
        if budget is not None and wanted.isdisjoint(reasoning):
            budget = None
        writer = _Writer(segments, self._texts)
        first = messages[0] if messages[0]["role"] == "system" else None
        system = "" if first is None else _text(first)
        writer.text = ""
        writer.write(START + "system\n")
        writer.text += system
        if tools:
            writer.text += "\n\n" if system else ""
            self._add_tools(writer, tools)
        end = CLOSE
        for index in range(first is not None, len(messages)):
            turn = messages[index]
            role, content = turn["role"], _text(turn)
            if role == "assistant":
                end = self._add_answer(writer, turn, content, end, index >= last_user, index in wanted)
            elif role == "tool":
                follows = index > (first is not None) and messages[index - 1]["role"] == "tool"
                writer.write(RESULT_END + RESULT if follows else end + START + "user\n" + RESULT)
                writer.text += content
                more = index + 1 < len(messages) and messages[index + 1]["role"] == "tool"
                end = "" if more else RESULT_END + CLOSE
            elif role in ("user", "system"):
                writer.write(end + START + role + "\n")
                writer.text += content
                if index == last_user and budget is not None:
                    note = f"\n\n{{thinking token budget: {budget}}}"
                    if self._tokenizer.pattern.search(note):
                        raise UnsupportedError
                    writer.text += note
                end = CLOSE
            else:
                raise UnsupportedError
        writer.write(end)
        writer.flush()
        segments.end_sample()

    def _add_answer(self, writer: "_Writer", turn: Message, content: str, end: str, recent: bool, trained: bool) -> str:
        """Write one answer; return the text that closes it."""
        calls, reasoning = turn.get("tool_calls"), turn.get("reasoning_content")
        if reasoning is not None and not (isinstance(reasoning, str) and reasoning.strip()):
            raise UnsupportedError
        answer = content.strip() if calls else content.rstrip()
        if reasoning is not None and recent:
            writer.write(end + OPENS, opens=trained)
            writer.text += reasoning.strip()
            writer.write(THOUGHT + ("\n" if answer else ""))
        else:
            writer.write(end + CLOSED, opens=trained)
            if reasoning is not None and not calls and answer:
                writer.text += "\n"
        writer.text += answer
        if calls:
            lead = "\n"
            for call in calls:
                function = call.get("function", call)
                name, arguments = function["name"], function["arguments"]
                if not isinstance(arguments, dict) or not isinstance(name, str):
                    raise UnsupportedError
                writer.write(lead + CALL)
                writer.text += name + ">\n"
                for key, value in arguments.items():
                    writer.text += f"{PARAMETER}{key}>\n{_value(value)}\n</parameter>\n"
                writer.write(CALLED)
                lead = ""
        return CLOSE

    def _add_tools(self, writer: "_Writer", tools: list[dict[str, Any]]) -> None:
        writer.write(TOOLS_HEAD)
        cached, text = self._tool_texts.get(id(tools), (None, ""))
        if cached is not tools:
            text = _tools_text(tools)
            if len(self._tool_texts) >= MAX_CACHED_TOOLS:
                self._tool_texts.clear()
            self._tool_texts[id(tools)] = tools, text
        writer.text += text
        writer.write(TOOLS_TAIL)


def _partition(messages: list[Message], trained: list[int], budget: int | None) -> list[tuple[int, list[int]]]:
    """Return (end, trained turns) of each sample of a conversation."""
    thinks = ["reasoning_content" in turn for turn in messages]
    if not any(thinks):
        return [(trained[-1] + 1, trained)] if trained else []
    users = list(
        itertools.accumulate(range(len(messages)), lambda last, i: i if _is_user(messages[i]) else last, initial=-1)
    )

    def exact(end: int, turns: list[int]) -> list[int]:
        """Return the turns whose prompt is in messages[:end]: nothing in it is dropped, and no budget moved."""
        last_user, has_budget = users[end], budget is not None and any([thinks[turn] for turn in turns])
        return [
            turn
            for turn in turns
            if turn > last_user
            or not (thinks[turn] or any(thinks[max(users[turn], 0) : turn]) or (has_budget and users[turn] >= 0))
        ]

    parts = partition(trained, thinks, exact)
    if isinstance(parts, int):
        raise UnsupportedError
    return list(parts)


def _is_user(message: Message) -> bool:
    return bool(message["role"] == "user")


class _TemplateTexts(dict[str, TemplateText]):
    """Texts of the template, split when they are first used."""

    def __init__(self, tokenizer: SafeTokenizer) -> None:
        self._tokenizer = tokenizer

    def __missing__(self, text: str) -> TemplateText:
        split = self[text] = self._tokenizer.template_text(text)
        return split


class _Writer:
    """The current segment, and from where on it is trained."""

    def __init__(self, segments: Segments, texts: _TemplateTexts) -> None:
        self._segments, self._texts = segments, texts
        self.text = ""
        self._trained_from = UNTRAINED

    def write(self, text: str, opens: bool = False) -> None:
        """Write a text of the template. CLOSE at its start ends a trained turn; `opens` begins one behind it."""
        head, control_ids, tail = self._texts[text]
        if not control_ids:
            self.text += head
        elif self._trained_from == UNTRAINED:
            self._segments.add(self.text + head, UNTRAINED, control_ids)
            self.text = tail
        elif text.startswith(CLOSE):
            self._segments.add(self.text, self._trained_from, control_ids, 1, 2)
            self.text, self._trained_from = tail, UNTRAINED
        else:
            self._segments.add(self.text + head, self._trained_from, control_ids, len(control_ids))
            self.text, self._trained_from = tail, 0
        if opens:
            self._trained_from = len(self.text)

    def flush(self) -> None:
        """Write the text behind the last control token."""
        if self.text:
            self._segments.add(self.text, UNTRAINED)


def _tools_text(tools: list[dict[str, Any]]) -> str:
    """Return the tools of a conversation as text."""
    written: list[str] = []
    for tool in tools:
        function = tool.get("function", tool)
        name, description = function["name"], function.get("description", "")
        if not isinstance(name, str) or not isinstance(description, str):
            raise UnsupportedError
        written.append(f"\n<function>\n<name>{name}</name>")
        if description:
            written.append(f"\n<description>{description.strip()}</description>")
        written.append("\n<parameters>")
        parameters = function.get("parameters")
        parameters = parameters if isinstance(parameters, dict) else {}
        properties = parameters.get("properties")
        for field, schema in (properties if isinstance(properties, dict) else {}).items():
            written.append(f"\n<parameter>\n<name>{field}</name>")
            if isinstance(schema, dict):
                if "type" in schema:
                    written.append(f"\n<type>{_value(schema['type'])}</type>")
                if "description" in schema:
                    written.append(f"\n<description>{_value(schema['description']).strip()}</description>")
                if "enum" in schema:
                    written.append(f"\n<enum>{_to_json(schema['enum'])}</enum>")
                written += _other_keys(schema, ("name", "type", "description", "enum"))
            written.append("\n</parameter>")
        written += _other_keys(parameters, ("type", "properties", "required"))
        if "required" in parameters:
            written.append(f"\n<required>{_to_json(parameters['required'])}</required>")
        written.append("\n</parameters>")
        written += _other_keys(function, ("type", "name", "description", "parameters"))
        written.append("\n</function>")
    return "".join(written)


def _text(message: Message) -> str:
    content = message["content"]
    if not isinstance(content, str):
        raise UnsupportedError
    return content


def _value(value: Any) -> str:
    return value if isinstance(value, str) else _to_json(value)


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _other_keys(mapping: dict[str, Any], known: tuple[str, ...]) -> list[str]:
    return [f"\n<{key}>{_value(value)}</{key}>" for key, value in mapping.items() if key not in known]
