"""Answers of APIs as messages: what logs and batches have beside the request.

OpenAI's `choices` and `output`, Anthropic's and Cohere's message, Gemini's `candidates`, Bedrock's `output.message`,
each perhaps in a `body` or a `response`. The reason for which the model stopped goes into the last message.
"""

from typing import Any

from sft.formats.not_read import says_something
from sft.formats.spellings import STOP_REASONS, role_of, snake_case, speaker_of

Json = dict[str, Any]
# Keys that lead to the answer.
LEADING = ("body", "response", "choices", "candidates", "output", "message", "messages", "content")
SPOKEN = ("content", "value", "parts", "tool_calls", "function_call", "summary", "arguments")


def answer_messages(value: Any) -> list[Json]:
    """Return the messages of a response; none if it is none, or has several answers.

    >>> answer_messages({"choices": [{"message": {"role": "assistant", "content": "4"}, "finish_reason": "stop"}]})
    [{'role': 'assistant', 'content': '4', 'finish_reason': 'stop'}]
    """
    if type(value) is list:
        if value and all(type(item) is dict and _is_message(item) for item in value):
            return value
        return answer_messages(value[0]) if len(value) == 1 else []
    if type(value) is not dict:
        return []
    if _is_message(value):
        return [value]
    if type(value.get("text")) is str and "index" in value:  # OpenAI's completions
        return [_with_stop({"role": "assistant", "content": value["text"]}, value)]
    for key in LEADING:
        if found := answer_messages(value.get(key)):
            return [*found[:-1], _with_stop(found[-1], value)]
    return []


def _is_message(value: Json) -> bool:
    return role_of(speaker_of(value)) is not None and any(key in value for key in SPOKEN)


def _with_stop(message: Json, response: Json) -> Json:
    stops = [item for key, item in response.items() if snake_case(key) in STOP_REASONS and says_something(item)]
    is_whole = response.get("status") != "incomplete"
    stops = stops if is_whole else ["incomplete"]
    return {**message, "finish_reason": stops[0]} if stops else message
