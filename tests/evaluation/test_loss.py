"""loss: per token, over all samples and for each domain."""

import math

import pytest

from sft.evaluation.loss import loss_metrics


def test_long_samples_weigh_more_than_short_ones_within_a_domain_and_over_all():
    metrics = loss_metrics({"code": [(9.0, 3), (1.0, 7)], "chat": [(10.0, 10)]})
    assert metrics["loss_by_domain"] == {"code": 1.0, "chat": 1.0}
    assert metrics["loss"] == 1.0
    assert metrics["perplexity"] == pytest.approx(math.e, abs=1e-6)


def test_numbers_have_six_decimals():
    metrics = loss_metrics({"a": [(1.0, 3)]})
    assert metrics == {"loss": 0.333333, "perplexity": 1.395612, "loss_by_domain": {"a": 0.333333}}
