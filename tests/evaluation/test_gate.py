"""gate: every limit that a model misses is named."""

import pytest

from sft.evaluation.gate import gate_failures
from sft.params.evaluation import Gate


def measured(loss, domain, fits):
    return {"loss": loss, "loss_by_domain": {"a": domain}, "tool_call_fits": fits}


@pytest.mark.parametrize(
    ("after", "gate", "failures"),
    [
        (measured(1.0, 1.0, 0.5), (1.0, 1.0, 0.5), []),
        (measured(1.1, 1.0, 0.5), (1.0, 1.0, 0.5), ["loss: 1.1 after, at most 1.0 x 1.0"]),
        (measured(1.0, 1.3, 0.5), (1.0, 1.25, 0.5), ["loss, a: 1.3 after, at most 1.25 x 1.0"]),
        (measured(1.0, 9.0, 0.5), (1.0, None, 0.5), []),
        (measured(1.0, 1.0, 0.4), (1.0, 1.0, 0.5), ["arguments fit: 0.4, at least 0.5"]),
        (measured(1.0, 1.0, None), (1.0, 1.0, 0.5), []),
        (measured(1.0, 1.0, 0.0), (1.0, 1.0, None), []),
        (measured(2.0, 2.0, 0.0), (1.5, 1.5, 0.5), [
            "loss: 2.0 after, at most 1.5 x 1.0", "loss, a: 2.0 after, at most 1.5 x 1.0",
            "arguments fit: 0.0, at least 0.5",
        ]),
    ],
)  # fmt: skip
def test_every_limit_that_is_missed_is_a_failure(after, gate, failures):
    names = ("max_loss_ratio", "max_domain_loss_ratio", "min_tool_call_fits")
    assert gate_failures(measured(1.0, 1.0, 0.0), after, Gate(**dict(zip(names, gate, strict=True)))) == failures
