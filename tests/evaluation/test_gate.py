"""gate: a model passes if its loss is shown to be lower; too few conversations tell nothing."""

import pytest

from sft.evaluation.gate import decide
from sft.evaluation.intervals import Pair
from sft.params.evaluation import Gate

GATE = Gate(max_loss_ratio=1.0, max_domain_loss_ratio=1.25, min_tool_call_fits=0.5)


def losses(after, number=20, before=1.0):
    """Conversations of ten tokens, every one with the same loss per token."""
    return [Pair(before * 10, after * 10, 10)] * number


@pytest.mark.parametrize(
    ("pairs", "fits", "failures"),
    [
        ({"a": losses(0.9)}, 0.5, []),
        ({"a": losses(1.0)}, 0.5, ["loss: 1 after, not below 1.0 x 1 with 95 % confidence"]),
        ({"a": losses(0.2), "b": losses(1.3)}, None, ["loss, b: 1.3 after, above 1.25 x 1 with 95 % confidence"]),
        ({"a": losses(0.2), "b": losses(1.25)}, None, []),
        ({"a": losses(0.9)}, 0.4, ["arguments fit: 0.4, at least 0.5"]),
    ],
)
def test_every_limit_that_is_missed_is_a_failure(pairs, fits, failures):
    decision = decide(pairs, fits, GATE)
    assert (decision["failures"], decision["passed"]) == (failures, not failures)


def test_a_gain_within_the_noise_does_not_pass():
    mixed = [Pair(10.0, 10.0 + change, 10) for change in (5, -5, 4, -6, 3, -3, 2, -2, 6, -6)]
    (failure,) = decide({"a": mixed}, None, GATE)["failures"]
    assert failure.startswith("loss: 0.98 after, not below")
    lenient = GATE.model_copy(update={"max_loss_ratio": 2.0})
    assert decide({"a": mixed}, None, lenient)["passed"]


def test_a_loss_that_is_no_number_fails_over_all_and_in_its_domain():
    broken = [*losses(0.5), Pair(10.0, float("nan"), 10)]
    failures = decide({"a": broken, "b": losses(0.5)}, None, GATE)["failures"]
    assert [failure.split(":")[0] for failure in failures] == ["loss", "loss, a"]


def test_too_few_conversations_are_said_and_do_not_fail():
    decision = decide({"a": losses(0.5, 12), "b": losses(9.0, 2)}, None, GATE.model_copy(update={"max_loss_ratio": 3}))
    assert decision["undecided"] == ["loss, b: 2 held-out conversations, at least 10 to tell"]
    assert decision["passed"]
    few = decide({"a": losses(9.0, 9)}, None, GATE)
    assert (few["passed"], [line.split(":")[0] for line in few["undecided"]]) == (True, ["loss", "loss, a"])


def test_a_limit_can_be_off():
    gate = Gate(max_loss_ratio=1.0, max_domain_loss_ratio=None, min_tool_call_fits=None)
    assert decide({"a": losses(0.1), "b": losses(2.0)}, 0.0, gate)["failures"] == [
        "loss: 1.05 after, not below 1.0 x 1 with 95 % confidence"
    ]
