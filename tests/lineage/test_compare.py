"""compare: of two trainings, what differs and what came of it, side by side."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.cli import InputError
from sft.files import read_json
from sft.lineage.compare import SPARKS, compare, main, page, sparkline
from sft.lineage.resolve import find, of_folder
from tests.support.finished_project import make_recorded, report


@pytest.fixture
def two(tmp_path, monkeypatch, local_store):
    monkeypatch.chdir(tmp_path)
    return make_recorded(tmp_path / "one"), make_recorded(tmp_path / "two", lr=2e-3)


def test_of_the_params_only_those_that_differ_are_shown(two):
    tables = compare(*map(of_folder, two)).tables
    assert tables["Params that differ"] == {"optimizer.lr": (0.001, 0.002)}
    one, other = tables["Identity"]["lineage key"]
    assert one != other
    assert tables["Identity"]["packed data"][0] == tables["Identity"]["packed data"][1]


def test_a_training_compared_with_itself_differs_in_nothing(two):
    tables = compare(of_folder(two[0]), of_folder(two[0])).tables
    assert tables["Params that differ"] == tables["Code and packages that differ"] == {}
    pairs = [pair for rows in tables.values() for pair in rows.values()]
    assert len(pairs) > 20
    assert all(a == b for a, b in pairs)


def test_counts_metrics_domains_curves_and_answers_stand_side_by_side(two):
    report(two[1], "filter/calls", 10, {"no-answer": 1, "over-length": 2})
    found = compare(*map(of_folder, two))
    data = found.tables["Data"]
    assert data["calls: rows out of filter"] == (9, 7)
    assert data["calls: filter refused, over-length"] == (None, 2)
    assert data["training: packs"] == (3, 3)
    assert found.tables["Metrics"]["after: loss"] == (0.501, 0.502)
    assert found.tables["Held-out loss by domain"]["chat, after"] == (0.5, 0.5)
    assert found.curves["loss"] == ([(1, 0.9), (2, 0.501)], [(1, 0.9), (2, 0.502)])
    assert found.answers == [
        {"question": "2+2?", "kind": "chat", "source": "chats", "a": "<b>0.001", "b": "<b>0.002"},
    ]


def test_the_program_prints_and_writes_all_of_it(two, tmp_path, capsys):
    main("one/models/final", "two/models/final", tmp_path / "page.html", tmp_path / "both.json")
    said = capsys.readouterr().out
    for text in ("optimizer.lr", "0.001", "0.002", "Held-out loss by domain", "2+2?", "0.9000 to 0.5020"):
        assert text in said
    assert read_json(tmp_path / "both.json")["tables"]["Params that differ"] == {"optimizer.lr": [0.001, 0.002]}
    text = (tmp_path / "page.html").read_text()
    assert text.count("<path") == 4
    assert "&lt;b&gt;0.001" in text
    assert "<b>0.001" not in text


def test_the_page_fetches_nothing_and_is_the_same_again(two):
    text = page(compare(*map(of_folder, two)))
    assert text == page(compare(*map(of_folder, two)))
    assert not re.search(r"<script|<link|<img|src=|@import|url\(|https?://", text)


def test_a_training_of_which_nothing_is_recorded_is_an_error(two, tmp_path):
    (tmp_path / "empty/models/final").mkdir(parents=True)
    (tmp_path / "empty/models/final/lineage.json").write_text("{}")
    with pytest.raises(InputError, match=r"no dvc\.lock and no lineage"):
        compare(of_folder(two[0]), find("empty/models/final", tmp_path, tmp_path))


@pytest.mark.parametrize(("a", "b"), [("", ""), ("HEAD", "")])
def test_a_side_that_is_not_named_is_asked_for(a, b):
    with pytest.raises(InputError, match=r"two trainings have to be named, as in A=HEAD B=my-experiment"):
        main(a, b, None, None)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=200), st.integers(1, 60))
def test_a_sparkline_has_at_most_its_cells_and_rises_where_values_rise(values, cells):
    line = sparkline(sorted(values), 0, 10, cells)
    assert len(line) == min(cells, len(values))
    assert all(SPARKS.index(a) <= SPARKS.index(b) for a, b in itertools.pairwise(line))
