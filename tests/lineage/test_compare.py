"""compare: of two trainings, what differs, and metrics, curves and answers side by side."""

import re

import pytest

from sft.cli import InputError
from sft.lineage.compare import compare, main, page
from sft.lineage.resolve import find, of_folder
from tests.support.finished_project import make_recorded
from tests.support.printed_json import printed_json


@pytest.fixture
def two(tmp_path, monkeypatch, local_store):
    monkeypatch.chdir(tmp_path)
    return make_recorded(tmp_path / "one"), make_recorded(tmp_path / "two", lr=2e-3)


def test_of_the_params_only_those_that_differ_are_shown(two):
    tables = compare(*map(of_folder, two)).tables
    assert tables["params"] == {"optimizer.lr": (0.001, 0.002)}
    one, other = tables["identity"]["lineage_key"]
    assert one != other
    assert tables["identity"]["data"][0] == tables["identity"]["data"][1]


def test_a_training_compared_with_itself_differs_in_nothing(two):
    tables = compare(of_folder(two[0]), of_folder(two[0])).tables
    assert tables["params"] == tables["code"] == {}
    pairs = [pair for rows in tables.values() for pair in rows.values()]
    assert len(pairs) > 10
    assert all(a == b for a, b in pairs)


def test_metrics_curves_and_answers_are_side_by_side(two):
    found = compare(*map(of_folder, two))
    assert found.tables["metrics"]["after.loss"] == (0.501, 0.502)
    assert found.tables["metrics"]["after.loss_by_domain.chat"] == (0.5, 0.5)
    assert found.tables["metrics"]["iterations"] == (2, 2)
    assert found.curves["loss"] == ([(1, 0.9), (2, 0.501)], [(1, 0.9), (2, 0.502)])
    assert found.answers == [
        {"question": "2+2?", "kind": "chat", "source": "chats", "a": "<b>0.001", "b": "<b>0.002"},
    ]


def test_the_program_prints_and_writes_all_of_it(two, tmp_path, capsys):
    main("one/models/final", "two/models/final", tmp_path / "page.html", as_json=False)
    output = capsys.readouterr().out
    for text in ("optimizer.lr", "0.001", "0.002", "after.loss_by_domain.chat", "2+2?", "0.9000 to 0.5020"):
        assert text in output
    text = (tmp_path / "page.html").read_text()
    assert text.count("<path") == 4
    assert "&lt;b&gt;0.001" in text
    assert "<b>0.001" not in text


def test_a_comparison_is_printed_as_json_with_its_curves_and_answers(two, tmp_path):
    program, sides = "sft.lineage.compare", ("--a", "one/models/final", "--b", "two/models/final")
    found = printed_json(tmp_path, program, *sides)
    assert found["a"] == "one/models/final"
    assert found["params"] == {"optimizer.lr": {"a": 0.001, "b": 0.002}}
    assert found["code"] == {}
    assert found["metrics"]["after.loss"] == {"a": 0.501, "b": 0.502}
    assert found["identity"]["data"]["a"] == found["identity"]["data"]["b"]
    assert found["curves"]["loss"]["b"] == [[1, 0.9], [2, 0.502]]
    assert [answer["b"] for answer in found["answers"]] == ["<b>0.002"]
    assert (
        printed_json(tmp_path, program, "--a", "one/models/final", "--b", "x", message="error: 'x': found no") is None
    )


def test_the_page_loads_nothing_and_is_the_same_again(two):
    text = page(compare(*map(of_folder, two)))
    assert text == page(compare(*map(of_folder, two)))
    assert not re.search(r"<script|<link|<img|src=|@import|url\(|https?://", text)


def test_a_training_of_which_nothing_is_recorded_is_an_error(two, tmp_path):
    (tmp_path / "empty/models/final").mkdir(parents=True)
    (tmp_path / "empty/models/final/lineage.json").write_text("{}")
    with pytest.raises(InputError, match=r"empty/models/final.*dvc\.lock.*lineage\.json"):
        compare(of_folder(two[0]), find("empty/models/final", tmp_path, tmp_path))


@pytest.mark.parametrize(("a", "b"), [("", ""), ("HEAD", "")])
def test_a_missing_side_is_an_error_with_an_example(a, b):
    with pytest.raises(InputError, match=r"A=HEAD B=my-experiment"):
        main(a, b, None, as_json=False)
