"""Accounting: counts add up, whatever they are counts of."""

import numpy as np

from sft.packing.accounting import add_counts, add_losses, length_quantiles


def test_quantiles_are_lengths_that_occur():
    assert length_quantiles(np.array([10, 40, 20, 30, 50])) == {
        "p0": 10,
        "p25": 20,
        "p50": 30,
        "p75": 40,
        "p90": 50,
        "p99": 50,
        "p100": 50,
    }
    assert length_quantiles(np.array([], np.int32)) == {}


def test_counts_are_added_unit_by_unit_and_losses_reason_by_reason():
    first, second = {"samples": 1, "tokens": 5}, {"samples": 2, "tokens": 7}
    assert add_counts([first, second]) == {"samples": 3, "tokens": 12}
    assert add_losses([{"untrained": first}, {"cut": second, "untrained": second}, {}]) == {
        "cut": {"samples": 2, "tokens": 7},
        "untrained": {"samples": 3, "tokens": 12},
    }
