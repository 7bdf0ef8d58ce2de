"""docs/developers/promises.md names files and tests that exist, and its table of filters says what is measured."""

import re

import pytest
from bench import filters
from ruamel.yaml import YAML

from sft.params.data import Benchmark
from tests.support.project import ROOT

PAGE = (ROOT / "docs/developers/promises.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")]
PROMISES = [row for row in ROWS if len(row) == 4 and row[0] != "promise"]
FILTERS = [row for row in ROWS if len(row) == 6 and row[0] != "filter"]
QUOTED = re.compile(r"`([^`]+)`")


@pytest.mark.parametrize("row", PROMISES, ids=[row[0] for row in PROMISES])
def test_what_keeps_and_what_proves_a_promise_exists(row):
    _, where, test, measured = row
    for name in QUOTED.findall(where):
        assert (ROOT / name).is_file(), name
    file, function = QUOTED.findall(test)
    assert f"\ndef {function}(" in (ROOT / file).read_text(encoding="utf-8")
    assert measured


def test_there_is_a_promise_for_every_part():
    assert len(PROMISES) >= 30
    assert len({row[0] for row in PROMISES}) == len(PROMISES)


def test_precision_and_recall_are_what_is_measured():
    measured = [
        [
            name,
            half,
            str(found.rows),
            str(found.right + len(found.missed)),
            f"{found.precision:.3f}",
            f"{found.recall:.3f}",
        ]
        for name in filters.NAMES
        for half, found in filters.measure(name).items()
    ]
    assert measured == FILTERS


def test_the_example_of_evaluation_sets_is_what_params_take_and_pinned():
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    sets = YAML(typ="safe").load(example)["fetch"]["benchmarks"]
    assert set(sets) == {"bfcl-rest", "human-eval"}
    for given in sets.values():
        assert re.search(r"#sha256=[0-9a-f]{64}$", Benchmark(**given).uri)
