"""Rollouts: items of the Responses API become messages; those that must not be trained on have a reason."""

from pathlib import Path
from typing import Any

import pytest

from sft.formats.demo.nemo_gym import nemo_gym
from tests.support.raw_rows import records, write_lines


def rollout(model: str, reward: float | None, output: list[dict[str, Any]]) -> dict[str, Any]:
    request = {
        "instructions": "Use tools.",
        "input": "Sum?",
        "tools": [{"type": "function", "name": "sum", "strict": True}],
    }
    return {
        "responses_create_params": request,
        "response": {"model": model, "output": output},
        "reward": reward,
    }


ANSWER = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "\n\nTwelve."}]}]


def test_nemo_gym_merges_reasoning_text_and_calls_into_one_assistant_message(tmp_path: Path) -> None:
    output = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "\nI add.\n"}]},
        {"type": "function_call", "call_id": "c1", "name": "sum", "arguments": '{"a": 7}'},
        {"type": "function_call", "call_id": "c2", "name": "sum", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "12"},
        {"type": "function_call_output", "call_id": "c2", "output": {"é": 1}},
        *ANSWER,
        {"type": "function_call_output", "call_id": "c9", "output": "nobody reads this"},
    ]
    write_lines(tmp_path, "adding/data/r.jsonl", rollout("org/Qwen3-8B", 1.0, output))
    (record,) = records(nemo_gym(tmp_path))
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "sum", "arguments": {"a": 7}}},
        {"id": "c2", "type": "function", "function": {"name": "sum", "arguments": {}}},
    ]
    assert record["messages"] == [
        {"role": "system", "content": "Use tools."},
        {"role": "user", "content": "Sum?"},
        {"role": "assistant", "content": None, "reasoning_content": "I add.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "12"},
        {"role": "tool", "tool_call_id": "c2", "content": '{"é": 1}'},
        {"role": "assistant", "content": "Twelve."},
    ]
    assert record["tools"] == [{"type": "function", "function": {"name": "sum"}}]
    assert record["meta"] == {"model": "org/Qwen3-8B", "reward": 1.0, "environment": "adding"}


@pytest.mark.parametrize(
    ("model", "reward", "output", "reason"),
    [
        ("Qwen/Qwen3-8B", 0.5, ANSWER, None),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 1, ANSWER, None),
        ("gpt-4.1-2025-04-14", 1.0, ANSWER, "closed-model"),
        ("policy_model", 1.0, ANSWER, "closed-model"),
        ("/checkpoints/qwen3-run/step_42/hf", 1.0, ANSWER, "closed-model"),
        ("", 1.0, ANSWER, "closed-model"),
        ("Qwen/Qwen3-8B", 0.0, ANSWER, "failed-rollout"),
        ("Qwen/Qwen3-8B", None, ANSWER, "failed-rollout"),
        ("Qwen/Qwen3-8B", 1.0, [], "no-answer"),
    ],
)
def test_nemo_gym_marks_rollouts_that_must_not_be_trained_on(
    tmp_path: Path, model: str, reward: float | None, output: list[dict[str, Any]], reason: str | None
) -> None:
    write_lines(tmp_path, "r.jsonl", rollout(model, reward, output))
    (record,) = records(nemo_gym(tmp_path))
    assert record["meta"].get("refuse") == reason


def test_a_thought_that_the_prompt_opened_becomes_reasoning(tmp_path: Path) -> None:
    output = [{"type": "message", "role": "assistant", "content": "I add.\n</think>\nTwelve."}]
    write_lines(tmp_path, "r.jsonl", rollout("Qwen/Qwen3-8B", 1.0, output))
    (record,) = records(nemo_gym(tmp_path))
    assert record["messages"][-1] == {
        "role": "assistant",
        "content": "Twelve.",
        "reasoning_content": "I add.",
    }


def test_an_image_in_a_rollout_is_a_fault(tmp_path: Path) -> None:
    output = [{"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]
    write_lines(tmp_path, "r.jsonl", rollout("Qwen/Qwen3-8B", 1.0, output))
    (row,) = nemo_gym(tmp_path)
    assert "input_image" in row.fault
