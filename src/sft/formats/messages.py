"""Messages in any published form -> a conversation in normal form (sft.conversation), or why that is not possible.

One reader for all data sets; sft.formats.spellings has the names of keys, roles, parts and flags. It reads OpenAI's
chat messages and Responses items, Anthropic's blocks, ShareGPT's turns, calls as JSON text or as `<tool_call>` in text
(Hermes), reasoning by key, as a part, or inline. A message becomes one turn, or several (an Anthropic user message with
results), or a part of one (a call that follows a call). One module each: parts, answers; text_calls and text_tools
for what is in text; columns for what is said beside the messages.

Exact or not at all: a message that says two different things, or something that cannot be trained, rejects the row.
Keys that no table names are counted (sft.formats.not_read) and change nothing.
"""

import itertools
import json
from collections.abc import Mapping, Sequence, Set
from typing import Any

from sft.conversation import Conversation, Message, Rejection, excerpt
from sft.formats.answers import assistant_turns, call_turn, channel_turns, read_call, thought_turn
from sft.formats.columns import (
    NO_ROW,
    RowFacts,
    add_reasoning,
    check_template_kwargs,
    read_columns,
)
from sft.formats.flags import UNCLEAR, UnfitRowError, is_trained
from sft.formats.json_text import parsed_or_same
from sft.formats.not_read import NotRead
from sft.formats.parts import MESSAGE_PATH, is_result_part, respell, result_turn, text_of, unread_keys, user_turns
from sft.formats.spellings import CHANNEL, MESSAGE_KEYS, PLAIN_KEYS, RECIPIENT, ROLES, role_of, speaker_of, unwrapped
from sft.formats.text_calls import (
    CALL_END,
    CALL_MARK,
    MARKUP,
    bare_calls,
    begins_as_calls,
    find_markup,
    split_bracket_calls,
    split_calls,
    split_results,
)
from sft.formats.text_tools import split_tools
from sft.formats.tools import parse_or_reject, read_tools
from sft.formats.unread import check_columns, check_keys

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
    elif any("</tools>" in turn["content"] for turn in turns if turn["role"] == "system"):
        _remove_listed(turns, tools, not_read)
    if tools:
        schemas = {tool["function"]["name"]: tool["function"].get("parameters") for tool in tools}
        turns = _read_tagged_turns(turns, schemas, not_read)
        _read_bare_calls(turns, schemas.keys(), not_read)
        turns = _split_joint_results(turns)
    else:
        _check_results(turns)
    if has_thoughts and any(["is_thought" in turn for turn in turns]):
        raise UnfitRowError("empty-answer", "a reasoning item without an answer after it")
    if facts.reasoning:
        add_reasoning(*facts.reasoning, turns)
    kwargs = check_template_kwargs(facts.template_kwargs, turns) if facts.template_kwargs else {}
    if facts.unread:
        check_columns(facts.unread, turns)
    return Conversation(turns, tools, kwargs)


def _remove_listed(turns: list[Message], tools: list[Json], not_read: NotRead) -> None:
    """Remove tools from the system message that the row has in a column, too: the template writes them once."""
    others, names = [dict(turn) for turn in turns], {tool["function"]["name"] for tool in tools}
    listed = split_tools(others, not_read)
    if listed and {tool["function"]["name"] for tool in listed} == names:
        turns[:] = others


def _object_of_text(message: Any, index: int) -> Any:
    """Return a message that may be given as JSON text."""
    if type(message) is str and message.lstrip().startswith("{"):
        return parse_or_reject(message, f"messages[{index}]: a message")
    return message


def _read_message(message: Any, flag: bool | None, not_read: NotRead) -> Sequence[Message]:
    """Return the turns of a message. `flag`: whether the row says that it is trained."""
    if type(message) is not dict:
        raise UnfitRowError("malformed-row", f"expected an object with a role, found {excerpt(message)}")
    message = unwrapped(message)
    speaker = speaker_of(message)
    if type(speaker) is not str:
        raise UnfitRowError("malformed-row", f"expected an object with a role, found {excerpt(message)}")
    role = role_of(speaker)
    if role is None:
        raise UnfitRowError("unknown-role", f"found {excerpt(speaker)}, expected one of {', '.join(ROLES)}")
    original = message
    if role not in PLAIN_KEYS or not message.keys() <= PLAIN_KEYS[role]:
        message = respell(message, MESSAGE_KEYS[role], MESSAGE_PATH, not_read)
        check_keys(role, unread_keys(original, MESSAGE_KEYS[role]), message)
        message_flag = is_trained(message)
        if message_flag is not None and flag is not None and message_flag != flag:
            raise UnfitRowError(UNCLEAR, f"trained is {message_flag} in the message, {flag} in the row")
        flag = message_flag if flag is None else flag
    content = message.get("content")
    if content is None and role in ("user", "tool") and (others := _unread_texts(original, MESSAGE_KEYS[role])):
        raise UnfitRowError("malformed-row", f"a message of {role} without content, but with {', '.join(others)}")
    if role == "assistant" and (CHANNEL in message or RECIPIENT in message):
        turns = channel_turns(message, not_read)
    elif role == "assistant":
        turns = assistant_turns(message, content, not_read)
    elif role == "user" or role == "system":
        if type(content) is not list:
            return ({"role": role, "content": text_of(content, "content", not_read)},)
        return user_turns(role, content, not_read)
    elif role == "tool":
        if type(content) is list and any(map(is_result_part, content)):
            return user_turns(role, content, not_read)
        return (result_turn(message.get("tool_call_id"), content, not_read),)
    elif role == "call":
        turns = (call_turn(message, content, not_read),)
    else:
        turns = (thought_turn(message, content, not_read),)
    if flag is False:
        for turn in turns:
            turn["loss"] = False
    return turns


def _unread_texts(message: Json, names: Mapping[str, str]) -> list[str]:
    """Return the keys that are not read and may hold what the message says: a list, an object, or several words."""
    return [
        key
        for key, item in unread_keys(message, names)
        if type(item) in (list, dict) or (type(item) is str and " " in item.strip())
    ]


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


def _read_tagged_turns(turns: list[Message], schemas: Mapping[str, Any], not_read: NotRead) -> list[Message]:
    """Read calls and results that are written as text between tags, in turns whose tools are known."""
    found: list[Message] = []
    for turn in turns:
        content, role = turn["content"], turn["role"]
        if role == "assistant" and "<" in content and "tool_calls" not in turn:
            if (marked := split_calls(content, schemas)) is not None:
                calls = [read_call(call, not_read) for call in marked.calls]
                turn = {**turn, "content": marked.before, "tool_calls": calls}
        elif role in ("tool", "user") and "</tool_response>" in content:
            if (results := split_results(content)) is not None and (role == "tool" or _is_calling(found)):
                found += [{**turn, "role": "tool", "content": result} for result in results]
                continue
        found.append(turn)
    return found


def _read_bare_calls(turns: list[Message], names: Set[str], not_read: NotRead) -> None:
    """Make calls of answers that are nothing but calls: JSON with the name of a tool (Llama 3), as Python writes
    them (ToolACE), or after a mark (Mistral, Glaive).

    Raises:  UnfitRowError: a mark, or a bracket or markup and the name of a tool, with a call that cannot be read.
    """
    for index, turn in enumerate(turns):
        if turn["role"] != "assistant" or "tool_calls" in turn:
            continue
        if (start := find_markup(turn["content"], names)) is not None and not CALL_MARK.match(turn["content"], start):
            raise UnfitRowError("call-as-text", f"messages[{index}]: {excerpt(turn['content'][start:])}")
        mark = CALL_MARK.search(turn["content"])
        if mark is None and not turn["content"].lstrip().startswith(("{", "[", "```")):
            continue
        text = turn["content"][mark.end() :] if mark else turn["content"]
        calls = bare_calls(CALL_END.sub("", text)) or split_bracket_calls(text, names)
        if calls and all(call["name"] in names for call in calls):
            turn["content"] = turn["content"][: mark.start()].rstrip() if mark else ""
            turn["tool_calls"] = [read_call(call, not_read) for call in calls]
        elif mark or begins_as_calls(text, names):
            start = mark.start() if mark else 0
            raise UnfitRowError("call-as-text", f"messages[{index}]: {excerpt(turn['content'][start:])}")


def _check_results(turns: Sequence[Message]) -> None:
    """Raise UnfitRowError if a result answers a call in text: without tools, calls in text are not read."""
    for before, turn in itertools.pairwise(turns):
        if turn["role"] == "tool" and before["role"] == "assistant" and "tool_calls" not in before:
            if mark := MARKUP.search(before["content"]) or CALL_MARK.search(before["content"]):
                found = excerpt(before["content"][mark.start() :])
                raise UnfitRowError("call-as-text", f"the row has no tools, so calls in text are not read: {found}")


def _split_joint_results(turns: list[Message]) -> list[Message]:
    """Make a result of each item of a list that answers several calls, if each names its call, in order (ToolACE)."""
    found: list[Message] = []
    for index, turn in enumerate(turns):
        calls = turns[index - 1].get("tool_calls", []) if index and turn["role"] == "tool" else []
        items = parsed_or_same(turn["content"], "[") if len(calls) > 1 and "tool_call_id" not in turn else None
        if type(items) is list and all(type(item) is dict for item in items):
            if [item.get("name") for item in items] == [call["function"]["name"] for call in calls]:
                found += [{**turn, "content": json.dumps(item, ensure_ascii=False)} for item in items]
                continue
        found.append(turn)
    return found


def _is_calling(turns: list[Message]) -> bool:
    return bool(turns) and "tool_calls" in turns[-1]
