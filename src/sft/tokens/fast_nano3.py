"""nano3: templates/nano3.jinja in Python, some thirty times faster: conversations -> pieces.

Which template this is, is said by its sha256; whoever changes the template changes this file with it, or does
without (the template itself is then rendered, as any other is). Before it is used it has to give the ids, masks and
turn ends of the template itself on PROBES (sft.tokens.render). It takes no part in what is unusual: a conversation in
which reasoning of an earlier turn is trained, or a value of an unexpected type, is left to the template.

Why the mask is exact without rendering prompts: what an assistant turn writes depends on the turns behind it only in
that reasoning before the last user message is left out. Where all that is trained stands behind that message, or
nothing reasons, a conversation that ends earlier is a beginning of the whole.
"""

import json
from typing import Any

from sft.conversation import Message
from sft.tokens.segments import UNTRAINED, Pieces
from sft.tokens.tokenizer import Literal, SafeTokenizer

SHA256 = "af3205763004a5d658426b396cd5d577743123ab1f82a7563dba6a851015daa2"
STOP = "<|im_end|>"
# Longer conversations are left to the template and its limits.
MOST_CHARS = 1 << 22
MOST_WRITTEN = 256

Tools = list[dict[str, Any]] | None

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


# What stands between values, in texts that are not looked at for control tokens.
PLAIN = (
    f"{PARAMETER}\n</parameter>\n\n<function>\n<name></name>\n<description></description>\n<parameters>\n<parameter>"
    "\n<type></type>\n<enum></enum>\n<required></required>\n</parameters>\n</function>"
)
BORDERS = frozenset("<>=\n{}\"'")
JSON_LETTERS = frozenset("truefalsnE")


class UnusualError(Exception):
    """What the template itself has to render."""


class Nano3:
    """Adds samples to pieces, for one tokenizer."""

    def __init__(self, tokenizer: SafeTokenizer) -> None:
        self._tokenizer = tokenizer
        self._literals = _Literals(tokenizer)
        self._written: dict[int, tuple[list[dict[str, Any]], str]] = {}
        """Lists of tools that were written, by identity, and what was written: many conversations have the same."""

    def fits(self) -> bool:
        """Say whether the control tokens can be told from text in the way that is done here.

        None may come about where a text of the template and a value meet: each is of the form <...>, or has
        a letter that JSON has in strings only, and none of the characters that stand at the borders of values.
        """
        return (
            STOP in self._tokenizer.control
            and not self._tokenizer.pattern.search(PLAIN)
            and all(
                (token[0] == "<" and token[-1] == ">" and not BORDERS & set(token[1:-1]))
                or (any(map(str.isalpha, set(token) - JSON_LETTERS)) and not BORDERS & set(token))
                for token in self._tokenizer.control
            )
        )

    def add(
        self, pieces: Pieces, messages: list[Message], trained: list[int], tools: Tools, budget: int | None
    ) -> None:
        """Add the sample of `messages` in which the assistant turns `trained` (indices, ascending) are trained.

        Raises:  UnusualError: it has to be rendered; `pieces` then holds a sample that is not finished.
        """
        last_user = len(messages) - 1
        while last_user >= 0 and messages[last_user]["role"] != "user":
            last_user -= 1
        reasoning = [index for index, turn in enumerate(messages) if "reasoning_content" in turn]
        if reasoning and trained[0] < last_user:
            raise UnusualError
        wanted = set(trained)
        if budget is not None and wanted.isdisjoint(reasoning):
            budget = None
        writer = _Writer(pieces, self._literals)
        first = messages[0] if messages[0]["role"] == "system" else None
        system = "" if first is None else _text(first)
        writer.text = ""
        writer.literal(START + "system\n")
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
                writer.literal(RESULT_END + RESULT if follows else end + START + "user\n" + RESULT)
                writer.text += content
                more = index + 1 < len(messages) and messages[index + 1]["role"] == "tool"
                end = "" if more else RESULT_END + CLOSE
            elif role in ("user", "system"):
                writer.literal(end + START + role + "\n")
                writer.text += content
                if index == last_user and budget is not None:
                    told = f"\n\n{{thinking token budget: {budget}}}"
                    if self._tokenizer.pattern.search(told):
                        raise UnusualError
                    writer.text += told
                end = CLOSE
            else:
                raise UnusualError
        writer.literal(end)
        writer.flush()
        pieces.finish()

    def _add_answer(self, writer: "_Writer", turn: Message, content: str, end: str, recent: bool, trained: bool) -> str:
        """Write one answer; return what closes it."""
        calls, reasoning = turn.get("tool_calls"), turn.get("reasoning_content")
        if reasoning is not None and not (isinstance(reasoning, str) and reasoning.strip()):
            raise UnusualError
        said = content.strip() if calls else content.rstrip()
        if reasoning is not None and recent:
            writer.literal(end + OPENS, opens=trained)
            writer.text += reasoning.strip()
            writer.literal(THOUGHT + ("\n" if said else ""))
        else:
            writer.literal(end + CLOSED, opens=trained)
            if reasoning is not None and not calls and said:
                writer.text += "\n"
        writer.text += said
        if calls:
            lead = "\n"
            for call in calls:
                function = call.get("function", call)
                name, arguments = function["name"], function["arguments"]
                if not isinstance(arguments, dict) or not isinstance(name, str):
                    raise UnusualError
                writer.literal(lead + CALL)
                writer.text += name + ">\n"
                for key, value in arguments.items():
                    writer.text += f"{PARAMETER}{key}>\n{_value(value)}\n</parameter>\n"
                writer.literal(CALLED)
                lead = ""
        return CLOSE

    def _add_tools(self, writer: "_Writer", tools: list[dict[str, Any]]) -> None:
        writer.literal(TOOLS_HEAD)
        known, text = self._written.get(id(tools), (None, ""))
        if known is not tools:
            text = _describe(tools)
            if len(self._written) >= MOST_WRITTEN:
                self._written.clear()
            self._written[id(tools)] = tools, text
        writer.text += text
        writer.literal(TOOLS_TAIL)


class _Literals(dict[str, Literal]):
    """Texts of the template, cut when they are first asked for."""

    def __init__(self, tokenizer: SafeTokenizer) -> None:
        self._tokenizer = tokenizer

    def __missing__(self, text: str) -> Literal:
        found = self[text] = self._tokenizer.literal(text)
        return found


class _Writer:
    """The piece that is being written, and whether it is trained."""

    def __init__(self, pieces: Pieces, literals: _Literals) -> None:
        self._pieces, self._literals = pieces, literals
        self.text = ""
        self._place = UNTRAINED

    def literal(self, text: str, opens: bool = False) -> None:
        """Write a text of the template: one that starts with CLOSE ends a trained turn, behind it `opens` one."""
        head, run, tail = self._literals[text]
        if not run:
            self.text += head
        elif self._place == UNTRAINED:
            self._pieces.add(self.text + head, UNTRAINED, run)
            self.text = tail
        elif text.startswith(CLOSE):
            self._pieces.add(self.text, self._place, run, 1, 2)
            self.text, self._place = tail, UNTRAINED
        else:
            self._pieces.add(self.text + head, self._place, run, len(run))
            self.text, self._place = tail, 0
        if opens:
            self._place = len(self.text)

    def flush(self) -> None:
        """Write what stands behind the last control token."""
        if self.text:
            self._pieces.add(self.text, UNTRAINED)


def _describe(tools: list[dict[str, Any]]) -> str:
    """Write the tools of a conversation."""
    written: list[str] = []
    for tool in tools:
        function = tool.get("function", tool)
        name, description = function["name"], function.get("description", "")
        if not isinstance(name, str) or not isinstance(description, str):
            raise UnusualError
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
                    written.append(f"\n<enum>{_json(schema['enum'])}</enum>")
                written += _more(schema, ("name", "type", "description", "enum"))
            written.append("\n</parameter>")
        written += _more(parameters, ("type", "properties", "required"))
        if "required" in parameters:
            written.append(f"\n<required>{_json(parameters['required'])}</required>")
        written.append("\n</parameters>")
        written += _more(function, ("type", "name", "description", "parameters"))
        written.append("\n</function>")
    return "".join(written)


def _text(message: Message) -> str:
    content = message["content"]
    if not isinstance(content, str):
        raise UnusualError
    return content


def _value(value: Any) -> str:
    return value if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _more(mapping: dict[str, Any], known: tuple[str, ...]) -> list[str]:
    return [f"\n<{key}>{_value(value)}</{key}>" for key, value in mapping.items() if key not in known]


# --- What is asked before it is used ------------------------------------------------------------------------

_ASK = {"role": "user", "content": " Ask <|im_end|> \n"}
_CALL = {
    "id": "1",
    "type": "function",
    "function": {"name": "f", "arguments": {"a": "<tool_call>", "b": [1, "é"], "c": None, "d": 0.5, "<think>": " x "}},
}
_FIELD = {"type": ["string", "null"], "description": " What ", "enum": ["a", 1], "default": {"<|im_end|>": [None]}}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "description": " Does. ",
            "parameters": {
                "type": "object",
                "properties": {"a": _FIELD, "b": True},
                "required": ["a"],
                "$defs": {"x": 1},
            },
            "strict": True,
        },
    },
    {"type": "function", "function": {"name": "g"}},
]


def _say(content: str, reasoning: str = "", *calls: dict[str, Any], **more: Any) -> Message:
    thought = {"reasoning_content": reasoning} if reasoning else {}
    return {
        "role": "assistant",
        "content": content,
        **thought,
        **({"tool_calls": list(calls)} if calls else {}),
        **more,
    }


_SYSTEM, _RESULT = {"role": "system", "content": " Be </think> brief. "}, {"role": "tool", "content": "<tool_response>"}
_DIALOGUES: list[list[Message]] = [
    [_ASK, _say("a")],
    [_ASK, _say(" a \n"), _ASK, _say("")],
    [_ASK, _say(" a ", " r\n"), _ASK, _say("", "s")],
    [_ASK, _say(" a ", "r"), _ASK, _say("b"), _SYSTEM, _ASK, _say("c", "t")],
    [_ASK, _say("", "", _CALL), _RESULT, _say("a")],
    [
        _ASK,
        _say(" look ", "r", _CALL, _CALL),
        _RESULT,
        _RESULT,
        _say("", "s", _CALL),
        _RESULT,
        _say("a", "t"),
        _ASK,
        _say("b"),
    ],
    [_say("hello"), _ASK, _ASK, _say("a", loss=False), _ASK, _say("<|im_start|>b")],
    [_ASK, _say("a", "r", loss=False), _ASK, _say("b", "s")],
    [_ASK, _say(" ", "r"), _ASK, _say("b", "", _CALL)],
]
PROBES: list[tuple[list[Message], Tools, int | None]] = [
    ([*system, *dialogue], tools, budget)
    for dialogue in _DIALOGUES
    for system, tools, budget in (
        ([], None, None),
        ([_SYSTEM], _TOOLS, 64),
        ([{"role": "system", "content": ""}], _TOOLS, None),
    )
]
