"""Rollouts in the form of OpenAI's Responses API, as NeMo Gym writes them, to conversations.

A rollout is a request (instructions, input, tools), the items of the answer (reasoning, messages, calls and
their outputs), the model's name and a reward. Answers of models whose weights are not published, and rollouts
without a reward, get their reason in `meta["refuse"]`: they must not be trained on.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from sft import strict_json
from sft.formats.raw_files import (
    CLOSED_MODEL,
    FAILED_ROLLOUT,
    NO_ANSWER,
    Json,
    Row,
    call_of,
    convert,
    read_objects,
    tool_of,
)

# Models whose weights are published: the last part of a name starts so. Anything else counts as closed.
OPEN_MODELS = re.compile(
    r"(qwen[23]|nvidia-nemotron|nemotron-(3|nano|super|ultra)|gpt-oss|kimi-k|glm-4|deepseek-[rv]|ether0|mixtral)",
    re.IGNORECASE,
)


def nemo_gym(folder: Path) -> Iterator[Row]:
    """nemo-gym: example rollouts in the form of the Responses API, with the model's name and the reward."""
    return convert(read_objects(folder), _nemo_gym_record)


def _nemo_gym_record(record: Json, where: str) -> Json:
    asked, response = record["responses_create_params"], record.get("response") or {}
    model, reward = response.get("model"), record.get("reward")
    meta: Json = {"model": model, "reward": reward, "environment": where.split("/")[0]}
    messages: list[Json] = []
    if asked.get("instructions"):
        messages.append({"role": "system", "content": asked["instructions"]})
    given = asked.get("input") or []
    _append_items(messages, [{"role": "user", "content": given}] if isinstance(given, str) else given)
    num_given = len(messages)
    _append_items(messages, response.get("output") or [])
    # Tool results after the model's last word teach nothing and end no conversation.
    while messages and messages[-1]["role"] == "tool":
        messages.pop()
    if not any(message["role"] == "assistant" for message in messages[num_given:]):
        meta["refuse"] = NO_ANSWER
    elif OPEN_MODELS.match(str(model).rpartition("/")[2]) is None:
        meta["refuse"] = CLOSED_MODEL
    elif not isinstance(reward, int | float) or reward <= 0:
        meta["refuse"] = FAILED_ROLLOUT
    return {
        "messages": messages,
        "tools": [tool_of(tool) for tool in asked.get("tools") or []] or None,
        "meta": meta,
    }


def _append_items(messages: list[Json], items: list[Json]) -> None:
    """Append items of the Responses API as chat messages.

    Reasoning, text and calls that follow each other are one assistant message, as chat templates have it.
    """
    turn: Json | None = None
    for item in items:
        kind, role = item.get("type", "message"), item.get("role")
        if kind == "function_call_output":
            output = item["output"]
            content = output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": content})
            turn = None
        elif kind == "message" and role != "assistant":
            name = "system" if role == "developer" else role
            messages.append({"role": name, "content": _text_of(item["content"])})
            turn = None
        else:
            # A thought or a text after a call opens a new message: a message has its calls last.
            if turn is None or ("tool_calls" in turn and kind != "function_call"):
                turn = {"role": "assistant", "content": ""}
                messages.append(turn)
            _add_to_turn(turn, kind, item)
    for message in messages:
        if message.get("tool_calls") and not message["content"]:
            message["content"] = None


def _add_to_turn(turn: Json, kind: str, item: Json) -> None:
    if kind == "reasoning":
        _extend(turn, "reasoning_content", _text_of([*(item.get("summary") or []), *(item.get("content") or [])]))
    elif kind == "message":
        text = _text_of(item["content"])
        # Served without a reasoning parser, an answer begins inside the thought that the prompt has opened.
        if text.count("</think>") == 1 and "<think>" not in text:
            thought, _, text = text.partition("</think>")
            _extend(turn, "reasoning_content", thought)
        _extend(turn, "content", text)
    elif kind == "function_call":
        arguments = item.get("arguments") or {}
        arguments = strict_json.parse(arguments) if isinstance(arguments, str) else arguments
        calls = turn.setdefault("tool_calls", [])
        calls.append(call_of(item["call_id"], {"name": item["name"], "arguments": arguments}))
    else:
        raise ValueError(f"an item of type {kind!r} is no part of a chat")


def _extend(turn: Json, key: str, text: str) -> None:
    turn[key] = "\n\n".join(filter(None, [turn.get(key, ""), text.strip()]))


def _text_of(content: str | list[Json] | None) -> str:
    if isinstance(content, str):
        return content
    for part in content or []:
        if not isinstance(part.get("text"), str):
            raise ValueError(f"a part of type {part.get('type')!r} is not text")
    return "\n".join(part["text"] for part in content or [])
