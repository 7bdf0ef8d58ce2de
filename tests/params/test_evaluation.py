"""The section of the evaluation."""

import pytest

from sft.params.check import read
from sft.params.evaluation import Gate
from tests.support.params_files import DEFAULT, changed, error_of


def test_the_default_gate():
    assert read(DEFAULT).eval.gate == Gate(max_loss_ratio=1.0, max_domain_loss_ratio=1.25, min_tool_call_fits=0.5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("samples_per_domain", "0"),
        ("tool_prompts", "-1"),
        ("gate.max_loss_ratio", "0"),
        ("gate.max_loss_ratio", "null"),
        ("gate.min_tool_call_fits", "1.5"),
    ],
)
def test_a_value_out_of_range_is_an_error_at_its_key(tmp_path, key, value):
    name = key.rpartition(".")[2]
    assert f": eval.{key}: " in error_of(changed(tmp_path, rf"\b{name}: .*$", f"{name}: {value}"))


@pytest.mark.parametrize("key", ["max_domain_loss_ratio", "min_tool_call_fits"])
def test_a_part_of_the_gate_can_be_off(tmp_path, key):
    gate = read(changed(tmp_path, rf"\b{key}: .*$", f"{key}: null")).eval.gate
    assert getattr(gate, key) is None


def test_a_task_is_a_name_or_says_how_it_is_asked(tmp_path):
    asked = read(changed(tmp_path, r"tasks: \[\]$", "tasks: [gsm8k, {name: ours, chat_template: false}]")).eval.tasks
    assert [(task.name, task.chat_template) for task in asked] == [("gsm8k", True), ("ours", False)]
    assert "same task twice: gsm8k" in error_of(changed(tmp_path, r"tasks: \[\]$", "tasks: [gsm8k, gsm8k]"))
