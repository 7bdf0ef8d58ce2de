"""What the filters say of their labelled sets, measured as bench/filters.py prints it, has a floor."""

import json

import pytest
from bench import filters

from sft.data.conversation import normalise
from sft.data.duplicates import NearDuplicates, signature
from tests.project import ROOT

PRECISION, RECALL = 0.95, 0.9


@pytest.mark.parametrize("name", filters.FILTERS)
def test_a_filter_is_as_precise_and_complete_as_the_documentation_says(name):
    for half, found in filters.measure(name).items():
        assert found.rows >= 20, half
        assert found.precision >= PRECISION, found.too_much
        assert found.recall >= RECALL, found.missed


def test_near_duplicates_are_told_from_what_only_looks_alike():
    found = {True: [0, 0], False: [0, 0]}  # expected -> [told so, not told so]
    for line in (ROOT / "tests/labelled/duplicates.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        one, other = normalise(row["a"]), normalise(row["b"])
        index = NearDuplicates(0.8)
        index.add(one.id, signature(one))
        expected = row["expect"] is not None
        found[expected][(index.find(signature(other)) is not None) != expected] += 1
    assert sum(map(sum, found.values())) >= 40
    right, missed = found[True]
    wrong = found[False][1]
    assert right / (right + wrong) >= 0.9, found
    assert right / (right + missed) >= 0.8, found  # paraphrases are missed
