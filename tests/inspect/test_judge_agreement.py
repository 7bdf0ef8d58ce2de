"""judge-agreement: a scripted judge whose kappa is known, line by line."""

import json
import re
from dataclasses import asdict

import numpy as np
import pytest

from sft.cli import InputError
from sft.inspect import judge_agreement
from tests.support.params_files import DEFAULT, changed
from tests.support.scripted_endpoint import scripted_endpoint


def labelled(number, rules):
    messages = [{"role": "user", "content": f"What is {number} + 1?"}, {"role": "assistant", "content": "2"}]
    return {"messages": messages, "tools": None, "rules": rules}


def write_labels(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def verdict(rules):
    faults = [{"message": 1, "rule": rule, "what": "wrong"} for rule in rules]
    return json.dumps({"faults": faults, "consistent": not rules, "score": 2 if rules else 5})


# The example of the literature: 20 times both yes, 5 and 10 times one of them, 15 times none: kappa is 0.4.
PERSON = [[4]] * 25 + [[]] * 25
JUDGE = [[4]] * 20 + [[]] * 5 + [[4]] * 10 + [[]] * 15


@pytest.fixture
def project(tmp_path, monkeypatch):
    params = changed(tmp_path, r"model: null\n    rubric", "model: judge\n    rubric")
    monkeypatch.chdir(params.parent)
    monkeypatch.setenv("DVC_ROOT", str(params.parent))
    (params.parent / "filters").mkdir()
    (params.parent / "filters/rubric.md").write_text((DEFAULT.parent / "filters/rubric.md").read_text())
    return params.parent


def test_kappa_by_line_is_that_of_the_literature_and_a_second_call_asks_nothing(project, monkeypatch):
    write_labels(project / "labels.jsonl", [labelled(number, rules) for number, rules in enumerate(PERSON)])

    def answer(_, body):
        number = int(re.search(r"What is (\d+)", body["messages"][1]["content"])[1])
        choice = {"message": {"content": verdict(JUDGE[number])}, "finish_reason": "stop"}
        return 200, {"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}

    with scripted_endpoint(answer) as endpoint:
        monkeypatch.setenv("SFT_JUDGE_URL", endpoint.url)
        findings = judge_agreement.main(project / "labels.jsonl")
        assert judge_agreement.main(project / "labels.jsonl") == findings
        assert len(endpoint.requests) == 50
    assert (findings.conversations, findings.without_verdict) == (50, {})
    by_line = {each.line: asdict(each) for each in findings.lines}
    assert list(by_line) == ["consistent", "rule 4"]
    rule = by_line["rule 4"]
    assert (rule["person"], rule["judge"], rule["both"], rule["agreement"]) == (25, 30, 20, 0.7)
    assert rule["kappa"] == pytest.approx(0.4)
    # Fleiss, Cohen and Everitt 1969: standard error 0.1275, so about 0.15 to 0.65.
    assert (rule["low"], rule["high"]) == pytest.approx((0.15, 0.65), abs=0.04)
    assert by_line["consistent"]["kappa"] == pytest.approx(0.4)


def test_agreement_without_a_single_no_shows_nothing_and_few_have_no_interval():
    same = judge_agreement.agreement("x", [(False, False)] * 20)
    assert (same.agreement, same.kappa, same.low) == (1.0, None, None)
    few = judge_agreement.agreement("x", [(True, True), (False, False)])
    assert (few.kappa, few.low, few.high) == (1.0, None, None)
    assert np.isnan(judge_agreement.kappa(np.zeros((1, 4), int)))


def test_agreement_without_exception_is_as_uncertain_as_its_counts():
    one = judge_agreement.agreement("x", [(True, True)] + [(False, False)] * 99)
    many = judge_agreement.agreement("x", [(True, True), (False, False)] * 100)
    assert (one.kappa, one.high, many.kappa, many.high) == (1.0, 1.0, 1.0, 1.0)
    assert one.low < 0.5 < 0.9 < many.low


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", r"labels\.jsonl:1: not valid JSON"),
        ('{"messages": [], "rules": []}', r"labels\.jsonl:1: no-messages"),
        ('{"messages": []}', r"labels\.jsonl:1: rules: found None"),
        ('{"messages": [], "rules": [true]}', r"labels\.jsonl:1: rules: found \[True\]"),
        ("", "no labelled conversations"),
    ],
)
def test_a_label_that_cannot_be_read_is_named_with_its_line(tmp_path, line, expected):
    (tmp_path / "labels.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=expected):
        judge_agreement.read_labels(tmp_path / "labels.jsonl")


def test_a_line_that_the_rubric_does_not_have_is_an_error(project):
    write_labels(project / "labels.jsonl", [labelled(1, [8]), labelled(2, [4, 9])])
    with pytest.raises(InputError, match=r"rules: found 9, but .*rubric\.md numbers its lines 1 to 8"):
        judge_agreement.main(project / "labels.jsonl")


def test_without_a_judge_in_params_the_command_says_so(project):
    write_labels(project / "labels.jsonl", [labelled(1, [])])
    (project / "params.yaml").write_text(DEFAULT.read_text())
    with pytest.raises(InputError, match=r"^filter\.judge\.model: null"):
        judge_agreement.main(project / "labels.jsonl")
