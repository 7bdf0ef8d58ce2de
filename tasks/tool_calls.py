"""Prompts and grades of nano3_tool_calls, by the template of the trained model and the rules of the evaluation."""

import functools
import json
import os
from typing import Any

from transformers import AutoTokenizer

from sft.evaluation.tool_calls import grade, opening

GRADES = ("well_formed", "fits", "exact")


@functools.cache
def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(os.environ["SFT_TASK_TOKENIZER"], local_files_only=True)


def prompt(doc: dict[str, Any]) -> str:
    """Return the request as the model's chat template writes it, with its functions and without reasoning.

    `make setup-lm-eval` loads tasks before there is a model, and lm-eval then renders one prompt: it gets the question.
    """
    if not os.environ["SFT_TASK_TOKENIZER"]:
        return str(doc["question"])
    text: str = _tokenizer().apply_chat_template(
        [{"role": "user", "content": doc["question"]}],
        tools=json.loads(doc["tools"]),
        add_generation_prompt=True,
        enable_thinking=False,
        tokenize=False,
    )
    return text


def grade_call(doc: dict[str, Any], results: list[str]) -> dict[str, bool]:
    """Return what is right in the model's call."""
    reference = [{"function": {"name": doc["name"], "arguments": json.loads(doc["arguments"])}}]
    verdict = grade(opening(prompt(doc)) + results[0], json.loads(doc["tools"]), reference)
    return {name: getattr(verdict, name) for name in GRADES}
