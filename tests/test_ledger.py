from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.cli import InputError
from sft.files import read_json
from sft.ledger import Ledger, check_handover, read_report


def test_rows_are_counted_in_out_and_by_reason(tmp_path):
    ledger = Ledger(4, 1, Counter(["too-long", "duplicate", "too-long"]))
    written = ledger.write(tmp_path / "report.json", tokens=7)
    assert written == {"rows_in": 4, "rows_out": 1, "rejected": {"duplicate": 1, "too-long": 2}, "tokens": 7}
    assert read_json(tmp_path / "report.json") == written


def test_reasons_stand_in_the_same_order_whatever_came_first(tmp_path):
    for name, reasons in [("one", ["b", "a"]), ("two", ["a", "b"])]:
        Ledger(2, 0, Counter(reasons)).write(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    "ledger",
    [Ledger(rows_in=2, rows_out=1), Ledger(rows_in=1, rows_out=2), Ledger(rows_in=0, rows_out=0 - 1)],
)
def test_a_ledger_that_does_not_balance_is_not_written(ledger, tmp_path):
    with pytest.raises(AssertionError, match="does not balance"):
        ledger.write(tmp_path / "report.json")
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.lists(st.sampled_from(["accept", "too-long", "duplicate"])), max_size=5))
def test_ledgers_that_balance_add_up_to_one_that_balances(sources):
    total = Ledger()
    for rows in sources:
        rejected = Counter(row for row in rows if row != "accept")
        total.add(Ledger(len(rows), rows.count("accept"), rejected))
    total.check("the blend")
    assert total.rows_in == sum(map(len, sources))
    assert total.rows_out == sum(rows.count("accept") for rows in sources)


def test_a_stage_must_read_as_many_rows_as_the_one_before_it_passed_on(tmp_path):
    report = tmp_path / "filter.json"
    Ledger(rows_in=3, rows_out=3).write(report)
    check_handover(report, 3)
    with pytest.raises(InputError, match=r"filter\.json: .*\b3\b.*\b2\b"):
        check_handover(report, 2)


@pytest.mark.parametrize(
    "text", ["", '{"rows_out": 3', "[]", "3", "{}", '{"rows_out": null}', '{"rows_out": "3"}', "[" * 9999]
)
def test_a_report_that_was_damaged_or_edited_is_an_error_that_names_it(tmp_path, text):
    report = tmp_path / "filter.json"
    report.write_text(text)
    with pytest.raises(InputError, match=r"filter\.json: "):
        check_handover(report, 3)


def test_a_report_has_the_values_that_are_asked_for(tmp_path):
    report = tmp_path / "filter.json"
    Ledger(rows_in=3, rows_out=3).write(report, sampled=False)
    assert read_report(report, rows_in=int, sampled=bool)["sampled"] is False
    with pytest.raises(InputError, match=r"filter\.json: sampled: .*str.*False"):
        read_report(report, sampled=str)
