"""summary: the same model twice shows no difference; shuffled answers are worse."""

from collections import Counter

from sft.evaluation.held_out import HeldOut
from sft.evaluation.measure import Measured
from sft.evaluation.prompts import Segment
from sft.evaluation.summary import compare_models
from tests.evaluation.test_answers import NOW, STOP, TOOLS, Letters, Prompt
from tests.support.held_out_project import PARAMS

NAMES = [chr(ord("a") + number) for number in range(12)]


def call(name):
    return NOW.replace("=now>", f"={name}>")


def tools(name):
    return [{**TOOLS[0], "function": {**TOOLS[0]["function"], "name": name}}]


def held_out():
    """Twelve samples of one domain, and a prompt for each, whose only function has a name of its own."""
    segments = [Segment(name, "s", name, [1, 2], [1, 0]) for name in NAMES]
    reference = [{"content": "", "tool_calls": [{"function": {"name": name, "arguments": {}}}]} for name in NAMES]
    prompts = [
        Prompt(name, "tool", "s", name, "?", False, [63], tools(name), wanted)
        for name, wanted in zip(NAMES, reference, strict=True)
    ]
    groups = {("s", name): number for number, name in enumerate(NAMES)}
    return HeldOut({"s": set(NAMES)}, {"tool-use": segments}, groups, prompts, Counter())


def model(calls, loss=1.0):
    return Measured([(loss, 1)] * len(NAMES), [[*map(ord, call(name)), STOP] for name in calls])


def compare(before, after):
    return compare_models(held_out(), (before, after), Letters(), PARAMS)[0]


def test_the_same_model_before_and_after_shows_no_difference_and_does_not_pass():
    found = compare(model(NAMES), model(NAMES))
    assert found["before"] == found["after"]
    assert found["change"]["loss"] == {"change": 0.0, "low": 0.0, "high": 0.0, "conversations": 12}
    assert found["change"]["tool_call_exact"] == {"better": 0, "worse": 0, "p": 1.0}
    assert found["gate"]["failures"] == ["loss: 1 after, not below 1.0 x 1 with 95 % confidence"]


def test_answers_to_other_prompts_are_worse_although_the_loss_is_better():
    found = compare(model(NAMES), model([*NAMES[1:], NAMES[0]], loss=0.5))
    assert found["change"]["tool_call_exact"] == {"better": 0, "worse": 12, "p": 0.000488}
    assert found["after"]["tool_call_well_formed"] == 1.0
    assert found["gate"]["failures"] == ["arguments fit: 0.0, at least 0.5"]
