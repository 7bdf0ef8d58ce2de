"""Keys and parts of messages under our names: text, parts of a content, results of tools.

`respell` reads the keys of a message, a part or a call by the tables of sft.formats.spellings; what no table names is
counted, and a picture, sound or film rejects the row.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sft.conversation import Message, excerpt
from sft.formats.flags import UNCLEAR, UnfitRowError, is_statistic, read_flag
from sft.formats.json_text import parsed_or_same
from sft.formats.not_read import NotRead, holds_something, says_something
from sft.formats.spellings import (
    ATTACHED,
    FILE_KEYS,
    FLAG_LISTS,
    MEDIA,
    MEDIA_WORD,
    META_OBJECTS,
    PART_KEYS,
    PARTS,
    REASONING_KEYS,
    TYPED_BY_KEY,
    UI_PART,
    UNFIT_FLAGS,
    snake_case,
)
from sft.formats.unread import says_whether

Json = dict[str, Any]
MESSAGE_PATH = "messages[]."


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
            is_apart = path != MESSAGE_PATH and says_whether(key, item)
            if says_something(item) and (is_apart or _is_unfit_flag(snake_case(key), item)):
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


def unread_keys(message: Json, names: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Yield the keys of a message that no table names, those of `metadata` after it, and their values."""
    for key, item in message.items():
        if key not in names and (name := snake_case(key)) not in names and says_something(item):
            yield key, item
            yield from ((k, v) for k, v in _in_meta(name, item) if k not in message and snake_case(k) not in names)


def _with_meta_flags(value: Json) -> Iterator[tuple[str, Any]]:
    """Yield keys and values of an object, and after `metadata` the flags, reasoning and media in it."""
    for key, item in value.items():
        yield key, item
        for name, flag in _in_meta(snake_case(key), item):
            spelled = snake_case(name)
            if spelled in FLAG_LISTS and not is_statistic(spelled, flag):
                yield name, flag
            elif spelled in UNFIT_FLAGS or spelled in REASONING_KEYS or _is_media(name, flag):
                yield name, flag


def _in_meta(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    """Return the keys and values of `metadata` or the like, perhaps in JSON; none of what has another name."""
    inner = parsed_or_same(value, "{") if name in META_OBJECTS else None
    return inner.items() if type(inner) is dict else ()


def _is_media(key: str, value: Any) -> bool:
    key = snake_case(key)
    return MEDIA.fullmatch(key) is not None or (key in ATTACHED and type(value) in (list, dict))


def _is_unfit_flag(key: str, value: Any) -> bool:
    return key in UNFIT_FLAGS or (key in FLAG_LISTS and read_flag(key, value) is False)


def text_of(content: Any, name: str, not_read: NotRead) -> str:
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
        kind, text, _ = read_part(part, not_read)
        if kind != "text":
            raise UnfitRowError("non-text-content", f"content part {excerpt(part)}")
        texts.append(text)
    return "".join(texts)


def read_part(part: Any, not_read: NotRead) -> tuple[str, str, Json]:
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
    if kind is None and type(part) is dict and UI_PART.match(str(part.get("type"))):
        advice = "write what convertToModelMessages of the AI SDK makes of the messages"
        raise UnfitRowError("unread-call", f"content part {excerpt(part)}: {advice}")
    if kind is None:
        raise UnfitRowError("non-text-content", f"content part {excerpt(part)}")
    keys = respell(part, PART_KEYS[kind], "messages[].content[].", not_read)
    text = keys.get("text")
    if kind == "reasoning" and type(text) is dict:
        text = read_part({"type": "reasoning", **text}, not_read)[1]
    if kind == "reasoning" and type(text) is list:
        text = "\n\n".join(read_part(inner, not_read)[1] for inner in text)
    if kind in ("text", "reasoning") and type(text) is not str:
        raise UnfitRowError("non-text-content", f"content part {excerpt(part)}")
    return kind, text or "", keys


def is_result_part(part: Any) -> bool:
    """Return whether a part says that it is the result of a tool, by its type or as Gemini's do by a key."""
    if type(part) is not dict:
        return False
    return PARTS.get(str(part.get("type"))) == "result" or (not part.get("type") and _gemini_part(part) is not None)


def _gemini_part(part: Json) -> tuple[str | None, Json] | None:
    """Return what a part is that has no type but a key that says it, and its value; None for another part."""
    found = [key for key, item in part.items() if snake_case(key) in TYPED_BY_KEY and item is not None]
    if not found:
        return None
    kind, value = TYPED_BY_KEY[snake_case(found[0])], part[found[0]]
    if len(found) > 1 or says_something(part.get("text")) or type(value) is not dict:
        raise UnfitRowError("malformed-row", f"expected one of text and {found[0]} in a part: {excerpt(part)}")
    return (None, part) if kind == "media" else (kind, value)


def user_turns(role: str, content: list[Any], not_read: NotRead) -> Sequence[Message]:
    """Return the turns of a list of parts: the results of tools that it answers with, and then its text."""
    turns: list[Message] = []
    results: list[Message] = []
    for part in content:
        kind, text, keys = read_part(part, not_read)
        if kind == "result" and role != "system":
            results.append(result_turn(keys.get("id"), keys.get("content"), not_read))
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


def result_turn(call_id: Any, content: Any, not_read: NotRead) -> Message:
    """Return the turn of a tool's result. A result that is no text is written as JSON."""
    if type(content) is dict and content.keys() == {"type", "value"}:  # of the AI SDK
        content = content["value"]
    elif type(content) is list and all(type(part) is dict and len(part) == 1 for part in content):  # of Bedrock
        if all(key in ("text", "json") for part in content for key in part):
            inner = [next(iter(part.values())) for part in content]
            content = (
                inner[0] if len(inner) == 1 else "\n".join(text if type(text) is str else _json(text) for text in inner)
            )
    is_parts = type(content) is list and all(
        type(part) is str or (type(part) is dict and type(part.get("type")) is str) for part in content
    )
    is_parts = is_parts and (not content or any(_is_content_part(part) for part in content))
    if content is None or type(content) is str or is_parts:
        text = text_of(content, "content", not_read)
    else:
        text = _json(content)
    turn: Message = {"role": "tool", "content": text}
    if call_id is not None and call_id != "":
        turn["tool_call_id"] = read_id(call_id, "tool_call_id")
    return turn


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _is_content_part(part: Any) -> bool:
    """Return whether an item of a result is text or another part of a content, and no object of a tool's own."""
    if type(part) is str:
        return True
    kind = PARTS.get(part["type"])
    if kind is None or kind == "hidden":
        return kind is not None or MEDIA_WORD.search(part["type"]) is not None or not FILE_KEYS.isdisjoint(part)
    return any(key in part for key in PART_KEYS[kind] if key != "type")


def read_id(value: Any, name: str) -> str:
    """Return an id as text. Raises UnfitRowError: it is neither text nor a whole number."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise UnfitRowError("malformed-row", f"{name}: expected text, found {excerpt(value)}")
    return str(value)
