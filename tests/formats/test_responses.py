"""Logs of APIs: a request and its response become one conversation, of which the answer alone is trained."""

import json

import pytest

from sft.cli import InputError
from sft.conversation import Conversation
from sft.formats.detect import _outcome, detect
from sft.formats.raw_files import Row
from sft.formats.responses import answer_messages
from sft.params.data import Read
from tests.support.raw_rows import write_lines

ASK, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
CHOICE = {"choices": [{"index": 0, "message": ANSWER, "finish_reason": "stop"}]}
EARLIER = [ASK, {"role": "assistant", "content": "old"}, ASK]
BEDROCK_TOOL = {"toolSpec": {"name": "f", "inputSchema": {"json": {"type": "object", "properties": {"x": {}}}}}}
LOGS = {
    "openai": {"request": {"model": "m", "messages": EARLIER}, "response": CHOICE},
    "batch": {"request": {"messages": EARLIER}, "response": {"status_code": 200, "body": CHOICE}},
    "helicone": {"request_body": {"messages": EARLIER}, "response_body": CHOICE},
    "responses": {"input": EARLIER, "output": [{"type": "message", "role": "assistant", "content": "b"}]},
    "anthropic": {"request": {"messages": EARLIER, "system": "s"}, "response": {**ANSWER, "stop_reason": "end_turn"}},
    "langfuse": {"type": "GENERATION", "input": EARLIER, "output": ANSWER},
    "langsmith": {"inputs": {"messages": EARLIER}, "outputs": {"message": ANSWER}},
    "bedrock": {"input": {"messages": EARLIER}, "output": {"output": {"message": ANSWER}, "stopReason": "end_turn"}},
    "gemini": {
        "request": {"contents": [{"role": "user", "parts": [{"text": "a"}]}]},
        "response": {"candidates": [{"content": {"role": "model", "parts": [{"text": "b"}]}, "finishReason": "STOP"}]},
    },
    "opentelemetry": {
        "attributes": {
            "gen_ai.input.messages": json.dumps([{"role": "user", "parts": [{"type": "text", "content": "a"}]}]),
            "gen_ai.output.messages": json.dumps([{"role": "assistant", "parts": [{"type": "text", "content": "b"}]}]),
        }
    },
    "messages and response": {"messages": EARLIER, "response": "b"},
    "preferences of openai": {
        "input": {"messages": EARLIER, "parallel_tool_calls": True},
        "preferred_output": [ANSWER],
        "non_preferred_output": [{**ANSWER, "content": "WRONG"}],
    },
}


@pytest.mark.parametrize("name", LOGS)
def test_of_a_log_the_answer_alone_is_trained(tmp_path, name):
    write_lines(tmp_path, "a.jsonl", LOGS[name])
    suggestion, _ = detect(tmp_path, Read(format="auto"))
    outcome = _outcome(suggestion, Row("a:1", LOGS[name]))
    assert isinstance(outcome, Conversation), outcome
    trained = [turn["content"] for turn in outcome.messages if turn["role"] == "assistant" and turn.get("loss", True)]
    assert trained == ["b"]
    assert (outcome.messages[0]["role"] == "system") == (name == "anthropic")


@pytest.mark.parametrize(
    "value",
    [None, "b", [], {}, {"choices": []}, {"choices": [CHOICE["choices"][0]] * 2}, {"error": "x"}, {"role": "user"}],
    ids=str,
)
def test_what_is_no_single_answer_has_no_messages(value):
    assert answer_messages(value) == []


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ({"choices": [{"message": ANSWER, "finish_reason": "length"}]}, "length"),
        ({"candidates": [{"content": ANSWER, "finishReason": "MAX_TOKENS"}]}, "MAX_TOKENS"),
        ({"output": [ANSWER], "status": "incomplete"}, "incomplete"),
    ],
)
def test_why_a_model_stopped_goes_with_its_answer(response, reason):
    assert answer_messages(response)[-1]["finish_reason"] == reason


def test_questions_without_answers_are_an_error(tmp_path):
    write_lines(tmp_path, "a.jsonl", {"messages": EARLIER}, {"messages": EARLIER})
    with pytest.raises(InputError, match="the last message of 2 of the first 2 rows is the user's"):
        detect(tmp_path, Read(format="auto"))


def test_messages_of_bedrock_and_langchain_are_read(tmp_path):
    bedrock = {
        "messages": [
            {"role": "user", "content": [{"text": "a"}]},
            {"role": "assistant", "content": [{"toolUse": {"toolUseId": "1", "name": "f", "input": {"x": 1}}}]},
            {"role": "user", "content": [{"toolResult": {"toolUseId": "1", "content": [{"json": {"y": 2}}]}}]},
            {"role": "assistant", "content": [{"reasoningContent": {"reasoningText": {"text": "t"}}}, {"text": "b"}]},
        ],
        "toolConfig": {"tools": [BEDROCK_TOOL]},
    }
    langchain = {
        "messages": [
            {"lc": 1, "type": "constructor", "id": ["langchain", "HumanMessage"], "kwargs": {"content": "a"}},
            {"type": "ai", "data": {"content": "", "tool_calls": [{"name": "f", "args": {"x": 1}, "id": "1"}]}},
            {"type": "tool", "data": {"content": '{"y": 2}', "tool_call_id": "1"}},
            {"type": "ai", "data": {"content": "b", "additional_kwargs": {"reasoning_content": "t"}}},
        ],
        "tools": [{"name": "f", "parameters": {"type": "object", "properties": {"x": {}}}}],
    }
    write_lines(tmp_path, "a.jsonl", bedrock, langchain)
    suggestion, _ = detect(tmp_path, Read(format="auto"))
    first, second = (_outcome(suggestion, Row("a:1", row)) for row in (bedrock, langchain))
    assert isinstance(first, Conversation), first
    assert first == second
    assert first.messages[2:] == [
        {"role": "tool", "content": '{"y": 2}', "tool_call_id": "1"},
        {"role": "assistant", "content": "b", "reasoning_content": "t"},
    ]


def test_calls_of_a_uimessage_are_rejected_with_what_to_write(tmp_path):
    parts = [{"type": "tool-f", "toolCallId": "1", "input": {}, "output": {}}]
    row = {"messages": [ASK, {"role": "assistant", "parts": parts}]}
    write_lines(tmp_path, "a.jsonl", row)
    outcome = _outcome(detect(tmp_path, Read(format="auto"))[0], Row("a:1", row))
    assert outcome.reason == "unread-call"
    assert "convertToModelMessages" in outcome.evidence
