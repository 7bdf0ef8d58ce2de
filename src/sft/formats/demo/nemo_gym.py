"""nemo-gym: example rollouts of the package nemo-gym, in the form of OpenAI's Responses API.

A rollout is a request (instructions, input, tools), the items of the response (reasoning, messages, calls and their
outputs), the model's name and a reward. Rollouts of models with unpublished weights, and rollouts without a reward,
have their reason in `meta["refuse"]`: they must not be trained on.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from sft import strict_json
from sft.formats.raw_files import Json, Row, read_objects
from sft.formats.records import CLOSED_MODEL, FAILED_ROLLOUT, NO_ANSWER, convert_rows, openai_call, openai_tool

# How the last part of a model's name starts if its weights are published. Any other model counts as closed.
OPEN_MODELS = re.compile(
    r"(qwen[23]|nvidia-nemotron|nemotron-(3|nano|super|ultra)|gpt-oss|kimi-k|glm-4|deepseek-[rv]|ether0|mixtral)",
    re.IGNORECASE,
)


def nemo_gym(folder: Path) -> Iterator[Row]:
    """Yield a row for each rollout."""
    return convert_rows(read_objects(folder), _to_record)


def _to_record(record: Json, location: str) -> Json:
    request, response = record["responses_create_params"], record.get("response") or {}
    model, reward = response.get("model"), record.get("reward")
    meta: Json = {"model": model, "reward": reward, "environment": location.split("/")[0]}
    messages: list[Json] = []
    if request.get("instructions"):
        messages.append({"role": "system", "content": request["instructions"]})
    items = request.get("input") or []
    _append_items(messages, [{"role": "user", "content": items}] if isinstance(items, str) else items)
    num_input = len(messages)
    _append_items(messages, response.get("output") or [])
    # A conversation does not end with tool results that the model did not read.
    while messages and messages[-1]["role"] == "tool":
        messages.pop()
    if not any(message["role"] == "assistant" for message in messages[num_input:]):
        meta["refuse"] = NO_ANSWER
    elif OPEN_MODELS.match(str(model).rpartition("/")[2]) is None:
        meta["refuse"] = CLOSED_MODEL
    elif not isinstance(reward, int | float) or reward <= 0:
        meta["refuse"] = FAILED_ROLLOUT
    return {
        "messages": messages,
        "tools": [openai_tool(tool) for tool in request.get("tools") or []] or None,
        "meta": meta,
    }


def _append_items(messages: list[Json], items: list[Json]) -> None:
    """Append items of the Responses API to chat messages.

    Reasoning, text and calls in a row become one assistant message, as chat templates expect.
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
            # Reasoning or text after a call starts a new message: the calls of a message come last.
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
        # Without a reasoning parser, the answer starts inside the <think> that the prompt opened.
        if text.count("</think>") == 1 and "<think>" not in text:
            thought, _, text = text.partition("</think>")
            _extend(turn, "reasoning_content", thought)
        _extend(turn, "content", text)
    elif kind == "function_call":
        arguments = item.get("arguments") or {}
        arguments = strict_json.parse(arguments) if isinstance(arguments, str) else arguments
        calls = turn.setdefault("tool_calls", [])
        calls.append(openai_call(item["call_id"], {"name": item["name"], "arguments": arguments}))
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
