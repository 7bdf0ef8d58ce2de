"""Messages in any published form -> a conversation in normal form (sft.conversation), or why that is not possible.

One reader for all data sets; sft.formats.spellings has the names of keys, roles, parts and flags. It reads OpenAI's
chat messages and Responses items, Anthropic's blocks, ShareGPT's turns, calls as JSON text or as `<tool_call>` in text
(Hermes), reasoning by key, as a part, or inline. A message becomes one turn, or several (an Anthropic user message with
results), or a part of one (a call that follows a call).

Exact or not at all: a message that says two different things, or something that cannot be trained, rejects the row.
Keys that no table names are counted (sft.formats.not_read) and change nothing.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from sft import strict_json
from sft.conversation import THINK_TAGS, Conversation, Message, Rejection, excerpt
from sft.formats.bracket_calls import begins_as_calls, split_bracket_calls
from sft.formats.columns import (
    NO_ROW,
    RowFacts,
    add_reasoning,
    check_media_columns,
    check_template_kwargs,
    read_columns,
)
from sft.formats.flags import UNCLEAR, UnfitRowError, is_statistic, is_trained, read_flag
from sft.formats.hermes import split_calls, split_results, split_tools
from sft.formats.json_text import parse_text, parsed_or_same
from sft.formats.not_read import NotRead, holds_something, says_something
from sft.formats.spellings import (
    ATTACHED,
    CALL_KEYS,
    CHANNEL,
    FILE_KEYS,
    FLAG_LISTS,
    ID,
    MEDIA,
    MEDIA_WORD,
    MESSAGE_KEYS,
    META_OBJECTS,
    PART_KEYS,
    PARTS,
    PLAIN_CALL_KEYS,
    PLAIN_FUNCTION_KEYS,
    PLAIN_KEYS,
    REASONING_KEYS,
    RECIPIENT,
    ROLES,
    TYPED_BY_KEY,
    UNFIT_FLAGS,
    role_of,
    snake_case,
    speaker_of,
)
from sft.formats.tools import parse_or_reject, read_tools

# What some models write before calls in text, and after them; the keys of a call in text.
CALL_MARK = re.compile(r"(?:\[TOOL_CALLS\]|<function_?calls?>|<\|python_tag\|>)(?=\s*[\[{])")
CALL_END = re.compile(r"</function_?calls?>\s*$")
ARGUMENT_KEYS = {"arguments", "parameters"}
BARE_KEYS = {"name", "id", "type"} | ARGUMENT_KEYS
INLINE_REASONING = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)
# Other tags around a thought at the start of an answer, in small letters -> what ends it.
THOUGHT_ENDS = {
    "<thinking>": "</thinking>",
    "<think>": "</think>",
    "<seed:think>": "</seed:think>",
    "[think]": "[/think]",
    "<|begin_of_thought|>": "<|end_of_thought|>",
}
THOUGHT_TAG = re.compile(r"(?!<think>)((?i:<thinking>|<think>|<seed:think>)|\[THINK\]|<\|begin_of_thought\|>)")
THOUGHT_START = re.compile(r"\s*" + THOUGHT_TAG.pattern)
SOLUTION = re.compile(r"\s*<\|begin_of_solution\|>(.*)<\|end_of_solution\|>\s*", re.DOTALL)
Json = dict[str, Any]


def normalize(
    record: Mapping[str, Any],
    row: Mapping[str, Any] = NO_ROW,
    read: Set[str] = frozenset(),
    not_read: NotRead | None = None,
) -> Conversation | Rejection:
    """Return a record in normal form, or why that is not possible. Normalizing twice changes nothing.

    Args:  record: messages, perhaps tools; num_context, how many of the first messages are never trained; num_added,
    how many of the first are not in the row's list. row: the columns of the row, of which those in `read` (names or
    dotted paths) became the record. not_read: counts what is not read.
    """
    not_read = not_read if not_read is not None else NotRead()
    try:
        messages = record.get("messages")
        if type(messages) is not list:
            return Rejection("malformed-row", f"messages: expected a list, found {excerpt(messages)}")
        if not messages:
            return Rejection("no-messages", "messages: an empty list")
        if str in map(type, messages):
            messages = [_object_of_text(message, index) for index, message in enumerate(messages)]
        facts = read_columns(row, read, messages[record.get("num_added", 0) :], not_read)
        return _conversation(record, messages, facts, not_read)
    except UnfitRowError as unfit:
        return unfit.rejection


def _conversation(record: Mapping[str, Any], messages: list[Any], facts: RowFacts, not_read: NotRead) -> Conversation:
    tools = read_tools(record["tools"], not_read) if record.get("tools") else None
    num_context, num_added, has_thoughts = record.get("num_context", 0), record.get("num_added", 0), False
    flags = [*[None] * num_added, *facts.flags] if facts.flags else None
    masks_answers = facts.masks_answers
    turns: list[Message] = []
    for index, message in enumerate(messages):
        flag = flags[index] if flags else None
        try:
            read_turns = _read_message(message, flag, not_read)
        except UnfitRowError as unfit:
            raise UnfitRowError(unfit.rejection.reason, f"messages[{index}]: {unfit.rejection.evidence}") from None
        for turn in read_turns:
            if turn["role"] == "assistant":
                has_thoughts = has_thoughts or "is_thought" in turn
                if index < num_context or masks_answers:
                    turn["loss"] = False
                if turns and turns[-1]["role"] == "assistant" and _join(turns[-1], turn):
                    continue
            turns.append(turn)
    if tools is None:
        tools = split_tools(turns, not_read)
    if tools:
        turns = _hermes_turns(turns, not_read)
        _read_bare_calls(turns, {tool["function"]["name"] for tool in tools}, not_read)
    if has_thoughts and any(["is_thought" in turn for turn in turns]):
        raise UnfitRowError("empty-answer", "a reasoning item without an answer after it")
    if facts.reasoning:
        add_reasoning(*facts.reasoning, turns)
    if facts.template_kwargs:
        check_template_kwargs(facts.template_kwargs, turns)
    if facts.media_columns:
        check_media_columns(facts.media_columns, turns)
    return Conversation(turns, tools)


def _object_of_text(message: Any, index: int) -> Any:
    """Return a message that may be given as JSON text."""
    if type(message) is str and message.lstrip().startswith("{"):
        return parse_or_reject(message, f"messages[{index}]: a message")
    return message


# --- One message -----------------------------------------------------------------------------------------------


def _read_message(message: Any, flag: bool | None, not_read: NotRead) -> Sequence[Message]:
    """Return the turns of a message. `flag`: whether the row says that it is trained."""
    if type(message) is not dict:
        raise UnfitRowError("malformed-row", f"expected an object with a role, found {excerpt(message)}")
    speaker = speaker_of(message)
    if type(speaker) is not str:
        raise UnfitRowError("malformed-row", f"expected an object with a role, found {excerpt(message)}")
    role = role_of(speaker)
    if role is None:
        raise UnfitRowError("unknown-role", f"found {excerpt(speaker)}, expected one of {', '.join(ROLES)}")
    if role not in PLAIN_KEYS or not message.keys() <= PLAIN_KEYS[role]:
        message = respell(message, MESSAGE_KEYS[role], "messages[].", not_read)
        message_flag = is_trained(message)
        if message_flag is not None and flag is not None and message_flag != flag:
            raise UnfitRowError(UNCLEAR, f"trained is {message_flag} in the message, {flag} in the row")
        flag = message_flag if flag is None else flag
    content = message.get("content")
    if role == "assistant" and (CHANNEL in message or RECIPIENT in message):
        turns = _channel_turns(message, not_read)
    elif role == "assistant":
        turns = _assistant_turns(message, content, not_read)
    elif role == "user" or role == "system":
        if type(content) is not list:
            return ({"role": role, "content": _text(content, "content", not_read)},)
        return _user_turns(role, content, not_read)
    elif role == "tool":
        if type(content) is list and any([type(part) is dict and _gemini_part(part) for part in content]):
            return _user_turns(role, content, not_read)
        return (_result(message.get("tool_call_id"), content, not_read),)
    elif role == "call":
        turns = (_call_turn(message, content, not_read),)
    else:
        turns = (_thought_turn(message, content, not_read),)
    if flag is False:
        for turn in turns:
            turn["loss"] = False
    return turns


def respell(value: Json, names: Mapping[str, str], path: str, not_read: NotRead) -> Json:
    """Return the keys that are read, under our names, and count the others.

    Raises:  UnfitRowError: two keys of the same meaning differ; a picture, sound or film; a part that is not trained.
    """
    result: Json = {}
    for key, item in _with_meta_flags(value):
        name = names.get(key) or names.get(snake_case(key))
        if name is None:
            if holds_something(item) and _is_media(key, item):
                raise UnfitRowError("non-text-content", f"{key}: text alone can be trained, found {excerpt(item)}")
            if says_something(item) and _is_unfit_flag(snake_case(key), item):
                raise UnfitRowError(UNCLEAR, f"{key} of a part of a message: a message is trained as a whole")
            if says_something(item):
                not_read.add(path + key)
        elif item is not None and (name not in result or not says_something(result[name])):
            result[name] = item
        elif says_something(item) and result[name] != item:
            if name in ("id", "tool_call_id"):  # an item has an id, beside that of its call
                not_read.add(path + ("id" if key != "id" else key))
                result[name] = item if key != "id" else result[name]
            else:
                raise UnfitRowError("malformed-row", f"{key} and another name of {name} differ: {excerpt(item)}")
    return result


def _with_meta_flags(value: Json) -> Iterator[tuple[str, Any]]:
    """Yield keys and values of an object, and after `metadata` the flags and media in it."""
    for key, item in value.items():
        yield key, item
        if snake_case(key) in META_OBJECTS:
            inner = parsed_or_same(item, "{")
            for name, flag in inner.items() if type(inner) is dict else ():
                spelled = snake_case(name)
                if spelled in FLAG_LISTS and not is_statistic(spelled, flag):
                    yield name, flag
                elif spelled in UNFIT_FLAGS or _is_media(name, flag):
                    yield name, flag


def _is_media(key: str, value: Any) -> bool:
    key = snake_case(key)
    return MEDIA.fullmatch(key) is not None or (key in ATTACHED and type(value) in (list, dict))


def _is_unfit_flag(key: str, value: Any) -> bool:
    return key in UNFIT_FLAGS or (key in FLAG_LISTS and read_flag(key, value) is False)


def _text(content: Any, name: str, not_read: NotRead) -> str:
    """Return the text of a content: a string, text parts, or null."""
    if type(content) is str:
        return content
    if content is None:
        return ""
    if type(content) is dict and "type" in content:
        content = [content]
    if type(content) is not list:
        raise UnfitRowError("malformed-row", f"{name}: expected text, text parts or null, found {excerpt(content)}")
    texts = []
    for part in content:
        kind, text, _ = _part(part, not_read)
        if kind != "text":
            raise UnfitRowError("non-text-content", f"content part {excerpt(part)}")
        texts.append(text)
    return "".join(texts)


def _part(part: Any, not_read: NotRead) -> tuple[str, str, Json]:
    """Return a part of a content: what it is, its text, and its keys under our names."""
    if type(part) is str:
        return "text", part, {}
    if type(part) is dict and not part.get("type") and (keyed := _gemini_part(part)) is not None:
        kind, part = keyed
    else:
        kind = PARTS.get(str(part.get("type") or "text")) if type(part) is dict else None
    if kind == "text" and part.get("thought") is True:  # Gemini's form
        kind, part = "reasoning", {key: item for key, item in part.items() if key != "thought"}
    if kind == "hidden":
        raise UnfitRowError("unreadable-reasoning", f"content part {excerpt(part)}: its reasoning is encrypted")
    if kind is None:
        raise UnfitRowError("non-text-content", f"content part {excerpt(part)}")
    keys = respell(part, PART_KEYS[kind], "messages[].content[].", not_read)
    text = keys.get("text")
    if kind == "reasoning" and type(text) is list:
        text = "\n\n".join(_part(inner, not_read)[1] for inner in text)
    if kind in ("text", "reasoning") and type(text) is not str:
        raise UnfitRowError("non-text-content", f"content part {excerpt(part)}")
    return kind, text or "", keys


def _gemini_part(part: Json) -> tuple[str | None, Json] | None:
    """Return what a part is that has no type but a key that says it, and its value; None for another part."""
    found = [key for key, item in part.items() if snake_case(key) in TYPED_BY_KEY and item is not None]
    if not found:
        return None
    kind, value = TYPED_BY_KEY[snake_case(found[0])], part[found[0]]
    if len(found) > 1 or says_something(part.get("text")) or type(value) is not dict:
        raise UnfitRowError("malformed-row", f"expected one of text and {found[0]} in a part: {excerpt(part)}")
    return (None, part) if kind == "media" else (kind, value)


def _user_turns(role: str, content: list[Any], not_read: NotRead) -> Sequence[Message]:
    """Return the turns of a list of parts: the results of tools that it answers with, and then its text."""
    turns: list[Message] = []
    results: list[Message] = []
    for part in content:
        kind, text, keys = _part(part, not_read)
        if kind == "result" and role != "system":
            results.append(_result(keys.get("id"), keys.get("content"), not_read))
        elif kind != "text":
            raise UnfitRowError("non-text-content", f"content part {excerpt(part)}")
        elif turns and turns[-1]["role"] == role:
            before = turns[-1]["content"]
            is_apart = role != "system" or not before or not text or before[-1].isspace() or text[0].isspace()
            turns[-1]["content"] = before + ("" if is_apart else "\n\n") + text
        else:
            turns.append({"role": role, "content": text})
    if results and all(not turn["content"].strip() for turn in turns):
        return results
    return [*results, *turns] or ({"role": role, "content": ""},)


def _result(call_id: Any, content: Any, not_read: NotRead) -> Message:
    """Return the turn of a tool's result. A result that is no text is written as JSON."""
    is_parts = type(content) is list and all(
        type(part) is str or (type(part) is dict and type(part.get("type")) is str) for part in content
    )
    is_parts = is_parts and (not content or any(_is_content_part(part) for part in content))
    if content is None or type(content) is str or is_parts:
        text = _text(content, "content", not_read)
    else:
        text = json.dumps(content, ensure_ascii=False)
    turn: Message = {"role": "tool", "content": text}
    if call_id is not None and call_id != "":
        turn["tool_call_id"] = _id(call_id, "tool_call_id")
    return turn


def _is_content_part(part: Any) -> bool:
    """Return whether an item of a result is text or another part of a content, and no object of a tool's own."""
    if type(part) is str:
        return True
    kind = PARTS.get(part["type"])
    if kind is None or kind == "hidden":
        return kind is not None or MEDIA_WORD.search(part["type"]) is not None or not FILE_KEYS.isdisjoint(part)
    return any(key in part for key in PART_KEYS[kind] if key != "type")


# --- Answers ---------------------------------------------------------------------------------------------------


def _assistant_turns(message: Json, content: Any, not_read: NotRead) -> Sequence[Message]:
    texts, thoughts, calls = "", [], []
    if type(content) is str:
        texts = content
    elif type(content) is list:
        for part in content:
            kind, text, keys = _part(part, not_read)
            if kind == "call":
                calls.append(_call({key: item for key, item in keys.items() if key != "type"}, not_read))
            elif kind == "result":
                raise UnfitRowError("malformed-row", f"a tool result in an answer: {excerpt(part)}")
            elif calls and text.strip():
                raise UnfitRowError("malformed-row", f"{kind} after a call in one answer: {excerpt(part)}")
            elif kind == "text":
                texts += text
            elif texts.strip():
                raise UnfitRowError("malformed-row", f"reasoning after the text of its answer: {excerpt(part)}")
            else:
                thoughts.append(text)
    else:
        texts = _text(content, "content", not_read)
    if says_something(refusal := message.get("refusal")):
        if texts or type(refusal) is not str:
            not_read.add("messages[].refusal")
        else:
            texts = refusal
    texts = _with_think_tags(texts)
    turn: Message = {"role": "assistant", "content": texts}
    if len(message) > 2 or content is None or thoughts or "</think>" in texts:
        _add_reasoning(turn, _reasoning(message, thoughts, not_read))
    if len(message) > 2 or content is None:
        calls += _calls(message, not_read)
    if calls:
        turn["tool_calls"] = calls
    return (turn,)


def _channel_turns(message: Json, not_read: NotRead) -> Sequence[Message]:
    """Return the turns of an answer in Harmony's form: a thought, a call for a recipient, or the answer.

    Raises:  UnfitRowError: an unknown channel or recipient.
    """
    rest = {key: item for key, item in message.items() if key not in (CHANNEL, RECIPIENT)}
    content, channel, recipient = rest.get("content"), message.get(CHANNEL), message.get(RECIPIENT)
    if says_something(recipient) and recipient not in ("all", "assistant"):
        name = str(recipient).removeprefix("functions.")
        if channel not in (None, "", "analysis", "commentary") or not name or _has_calls(rest):
            raise UnfitRowError("unknown-channel", f"recipient {excerpt(recipient)} in the channel {excerpt(channel)}")
        call = _call({"name": name, "arguments": _text(content, "content", not_read)}, not_read)
        turn: Message = {"role": "assistant", "content": "", "tool_calls": [call]}
        _add_reasoning(turn, _reasoning(rest, [], not_read))
        not_read.add_keys("messages[].", {"refusal": rest.get("refusal")}, ())
        return (turn,)
    if channel == "analysis":
        if _has_calls(rest):
            raise UnfitRowError("unknown-channel", f"calls in the channel analysis: {excerpt(message)}")
        return (_thought_turn(rest, content, not_read),)
    if channel in (None, "", "final", "commentary"):  # in commentary: calls, or words for the user before them
        return _assistant_turns(rest, content, not_read)
    raise UnfitRowError("unknown-channel", f"{CHANNEL} is {excerpt(channel)}; known: analysis, commentary, final")


def _has_calls(message: Json) -> bool:
    return says_something(message.get("tool_calls")) or says_something(message.get("function_call"))


def _reasoning(message: Json, thoughts: list[str], not_read: NotRead) -> str:
    """Return the reasoning that the keys and parts of a message give. Raises UnfitRowError: they differ."""
    found: dict[str, str] = {"thinking parts": "\n\n".join(thoughts).strip()} if thoughts else {}
    for key in REASONING_KEYS:
        if (value := message.get(key)) is None:
            continue
        if type(value) is not str:
            value = _thoughts(value, key, not_read)
        if value.strip():
            found[key] = value.strip()
    if len(found) > 1 and len(set(found.values())) > 1:
        raise UnfitRowError("malformed-row", f"{' and '.join(found)} differ")
    return next(iter(found.values()), "")


def _thoughts(value: Any, key: str, not_read: NotRead) -> str:
    """Return the text of reasoning that is a list of texts, or of parts of reasoning."""
    parts = _as_list(value)
    if not all(type(part) is str or (type(part) is dict and says_something(part)) for part in parts):
        raise UnfitRowError("malformed-row", f"{key}: expected text or parts of reasoning, found {excerpt(value)}")
    return "\n\n".join(
        part if type(part) is str else _part({"type": "reasoning", **part}, not_read)[1] for part in parts
    )


def _add_reasoning(turn: Message, reasoning: str) -> None:
    """Add reasoning and remove inline reasoning from the content. Unpaired tags stay, for sft.filters.structure."""
    if "</think>" in turn["content"]:
        thought, answer = split_reasoning(turn["content"])
        if answer is not None and (not reasoning or thought in ("", reasoning)):
            reasoning, turn["content"] = reasoning or thought, answer
    if reasoning:
        turn["reasoning_content"] = reasoning


def _with_think_tags(text: str) -> str:
    """Return an answer that begins with a thought between other tags with `<think>` around it.

    Raises:  UnfitRowError: a thought that has no end, or another one after it.
    """
    if (start := THOUGHT_START.match(text)) is None:
        return text
    end = THOUGHT_ENDS[start[1].lower()]
    thought, *answers = re.split(re.escape(end), text[start.end() :], maxsplit=1, flags=re.IGNORECASE)
    answer = answers[0] if answers else ""
    if not answers or THOUGHT_TAG.search(thought) or THOUGHT_START.match(answer):
        raise UnfitRowError("think-tags", f"{start[1]} without one {end} after it: {excerpt(text)}")
    if solution := SOLUTION.fullmatch(answer):
        answer = solution[1]
    return f"<think>{thought}</think>{answer}"


def split_reasoning(text: str) -> tuple[str, str | None]:
    """Return thought and answer of `<think>thought</think>answer`; answer None if it is not that.

    The first tag may be missing: many templates write it into the prompt.

    >>> split_reasoning("<think>Count.</think>2"), split_reasoning("Count.</think>2"), split_reasoning("2")
    (('Count.', '2'), ('Count.', '2'), ('', None))
    """
    inline = INLINE_REASONING.fullmatch(text)
    if inline is None and "<think>" not in text and (parts := text.split("</think>"))[1:]:
        thought, answer = parts[0], "</think>".join(parts[1:])
    elif inline is not None:
        thought, answer = inline[1], inline[2]
    else:
        return "", None
    if THINK_TAGS.search(thought + answer):
        return "", None
    return thought.strip(), answer.lstrip()


def _thought_turn(message: Json, content: Any, not_read: NotRead) -> Message:
    """Return the turn of a reasoning item, which the answer that follows completes."""
    summary, text = message.get("summary"), content
    parts = [part for value in (summary, text) if says_something(value) for part in _as_list(value)]
    thought = _reasoning(message, [_thoughts(parts, "reasoning", not_read)] if parts else [], not_read)
    if not thought and says_something(message.get("encrypted_content")):
        raise UnfitRowError("unreadable-reasoning", "a reasoning item has encrypted_content only")
    not_read.add_keys("messages[].", {key: message.get(key) for key in ("encrypted_content", "refusal")}, ())
    turn: Message = {"role": "assistant", "content": "", "is_thought": True}
    return turn | {"reasoning_content": thought} if thought else turn


def _as_list(value: Any) -> list[Any]:
    return value if type(value) is list else [value]


# --- Calls -----------------------------------------------------------------------------------------------------


def _call_turn(message: Json, content: Any, not_read: NotRead) -> Message:
    """Return the turn of a message that is a call: as its own keys, or as JSON in its text, perhaps after a thought."""
    turn: Message = {"role": "assistant", "content": ""}
    call: Json = {key: message[key] for key in ("id", "name", "arguments") if key in message}
    if "name" in message:
        value = parsed_or_same(content, "{")
        if type(value) is dict and "type" not in value:
            call.setdefault("arguments", value)
            if parsed_or_same(call["arguments"], "{") != value:
                raise UnfitRowError("malformed-row", f"content and arguments differ: {excerpt(content)}")
        else:
            turn["content"] = _text(content, "content", not_read)
        _add_reasoning(turn, _reasoning(message, [], not_read))
        return turn | {"tool_calls": [_call(call, not_read)]}
    text = _text(content, "content", not_read) if type(content) is not dict else json.dumps(content)
    thought, answer = split_reasoning(text)
    _add_reasoning(turn, _reasoning(message, [thought] if thought else [], not_read))
    text = text if answer is None else answer
    if (hermes := split_calls(text)) is not None:
        turn["content"], calls = hermes
    else:
        calls = _as_list(parse_or_reject(text, "a call as JSON, and no text before it"))
    if len(calls) == 1 and type(calls[0]) is dict and calls[0].keys().isdisjoint(ID):
        calls = [{**calls[0], **{key: call.pop(key) for key in ("id",) if key in call}}]
    not_read.add_keys("messages[].", call, ())
    return turn | {"tool_calls": [_call(call, not_read) for call in calls]}


def _calls(message: Json, not_read: NotRead) -> list[Json]:
    calls = message.get("tool_calls")
    if not calls:
        calls = [message["function_call"]] if message.get("function_call") else []
    elif says_something(message.get("function_call")):
        not_read.add("messages[].function_call")
    if type(calls) is str:
        calls = _as_list(parse_or_reject(calls, "tool_calls") or [])
    if type(calls) is not list:
        raise UnfitRowError("malformed-row", f"tool_calls: expected a list, found {excerpt(calls)}")
    return [_call(call, not_read) for call in calls]


def _call(call: Any, not_read: NotRead) -> Json:
    if type(call) is str:
        call = parse_or_reject(call, "a tool call")
    if type(call) is dict and not call.keys() <= PLAIN_CALL_KEYS:
        call = respell(call, CALL_KEYS, "messages[].tool_calls[].", not_read)
    function = call.get("function", call) if type(call) is dict else None
    if type(function) is str:
        is_object = function.lstrip().startswith("{")
        function = parse_or_reject(function, "a function") if is_object else {**call, "name": function}
    if function is not call and type(function) is dict and not function.keys() <= PLAIN_FUNCTION_KEYS:
        function = respell(function, CALL_KEYS, "messages[].tool_calls[].function.", not_read)
    if type(function) is not dict or type(function.get("name")) is not str or not function["name"]:
        raise UnfitRowError("malformed-row", f"tool call: expected a function with a name, found {excerpt(call)}")
    name, arguments = function["name"], function.get("arguments")
    if type(arguments) is str and arguments != "":
        try:
            arguments = strict_json.parse(arguments)  # in quotes of its own, only JSON is what the model wrote
        except ValueError as error:
            raise UnfitRowError("arguments-not-json", f"{name}: {error}: {excerpt(arguments)}") from None
    if arguments is None or arguments == "":
        arguments = {}
    if type(arguments) is list and len(arguments) == 1:  # some models wrap the object in a list
        arguments = arguments[0]
    if type(arguments) is not dict:
        raise UnfitRowError("arguments-not-object", f"{name}: found {excerpt(arguments)}")
    normal: Json = {"type": "function", "function": {"name": name, "arguments": arguments}}
    if (call_id := call.get("id")) is not None:
        normal["id"] = _id(call_id, f"{name}: id")
    return normal


def _id(value: Any, name: str) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise UnfitRowError("malformed-row", f"{name}: expected text, found {excerpt(value)}")
    return str(value)


# --- Several turns ---------------------------------------------------------------------------------------------


def _join(turn: Message, later: Message) -> bool:
    """Make one turn of two answers in a row, if that is exact: a thought and its answer, text and a call, two calls."""
    if turn.get("loss") != later.get("loss"):
        return False
    if turn.get("is_thought"):
        thoughts = [thought for each in (turn, later) if (thought := each.get("reasoning_content"))]
        del turn["is_thought"]
        turn.update(later)
        if thoughts:
            turn["reasoning_content"] = "\n\n".join(thoughts)
        return True
    if "tool_calls" in later and not later["content"] and "reasoning_content" not in later:
        turn["tool_calls"] = [*turn.get("tool_calls", ()), *later["tool_calls"]]
        return True
    return False


def _hermes_turns(turns: list[Message], not_read: NotRead) -> list[Message]:
    """Read calls and results that are written as text between tags, in turns whose tools are known."""
    found: list[Message] = []
    for turn in turns:
        content, role = turn["content"], turn["role"]
        if role == "assistant" and "</tool_call>" in content and "tool_calls" not in turn:
            if (hermes := split_calls(content)) is not None:
                calls = [_call(call, not_read) for call in hermes[1]]
                turn = {**turn, "content": hermes[0], "tool_calls": calls}
        elif role in ("tool", "user") and "</tool_response>" in content:
            if (results := split_results(content)) is not None and (role == "tool" or _is_calling(found)):
                found += [{**turn, "role": "tool", "content": result} for result in results]
                continue
        found.append(turn)
    return found


def _read_bare_calls(turns: list[Message], names: Set[str], not_read: NotRead) -> None:
    """Make calls of answers that are nothing but calls: JSON with the name of a tool (Llama 3), as Python writes
    them (ToolACE), or after a mark (Mistral, Glaive).

    Raises:  UnfitRowError: a mark, or a bracket and the name of a tool, with a call after it that cannot be read.
    """
    for index, turn in enumerate(turns):
        if turn["role"] != "assistant" or "tool_calls" in turn:
            continue
        mark = CALL_MARK.search(turn["content"])
        if mark is None and not turn["content"].lstrip().startswith(("{", "[")):
            continue
        text = turn["content"][mark.end() :] if mark else turn["content"]
        calls = _bare_calls(CALL_END.sub("", text)) or split_bracket_calls(text, names)
        if calls and all(call["name"] in names for call in calls):
            turn["content"] = turn["content"][: mark.start()].rstrip() if mark else ""
            turn["tool_calls"] = [_call(call, not_read) for call in calls]
        elif mark or begins_as_calls(text, names):
            start = mark.start() if mark else 0
            raise UnfitRowError("call-as-text", f"messages[{index}]: {excerpt(turn['content'][start:])}")


def _bare_calls(text: str) -> list[Json]:
    """Return the calls that a text is; none if it is another."""
    with contextlib.suppress(ValueError):
        calls = _as_list(parse_text(text))
        if all(type(call) is dict and type(call.get("name")) is str and call.keys() <= BARE_KEYS for call in calls):
            has_arguments = any(not ARGUMENT_KEYS.isdisjoint(call) for call in calls)
            return calls if has_arguments else []  # a name alone may be any object
    return []


def _is_calling(turns: list[Message]) -> bool:
    return bool(turns) and "tool_calls" in turns[-1]
