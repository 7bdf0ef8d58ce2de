"""eval: from two models and held-out data to the reports."""

import json
import re
from collections import Counter

import pytest

from sft.cli import InputError
from sft.evaluation.held_out import HeldOut
from sft.files import write_json
from sft.hashing import folder_digests
from sft.params.evaluation import Task
from sft.stages import eval as stage
from tests.support.held_out_project import CALLS, CHATS, PARAMS, use_small_params, write_project


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def test_eval_measures_both_models_and_reports_the_same_bytes_twice(project):
    write_project(project, {"sums": ("mathematics", CHATS), "calls": ("tools", CALLS)})
    use_small_params(project)
    (project / "reports").mkdir()
    (project / "reports" / "train_loss.csv").write_text("iteration,loss,lr\n1,2.0,0.1\n2,1.0,0.1\n")
    (project / "reports" / "validation_loss.csv").write_text("iteration,validation_loss\n2,1.5\n")
    stage.main()
    first = folder_digests(project / "reports")

    result = json.loads((project / "reports" / "eval.json").read_text())
    assert result["before"] == result["after"], "the same weights must measure the same"
    assert set(result["after"]["loss_by_domain"]) == {"mathematics", "tools"}
    assert result["samples_by_domain"] == {"mathematics": 2, "tools": 2}
    assert (result["tool_prompts"], result["chat_prompts"], result["prompts_left_out"]) == (2, 2, {})
    assert result["tokens"] > 0
    assert 4 < result["after"]["loss"] < 8, "an untrained model knows nothing of 400 tokens: about log 400 = 6"
    assert result["after"]["tool_call_well_formed"] == 0.0

    answers = [json.loads(line) for line in (project / "reports" / "answers.jsonl").read_text().splitlines()]
    assert [answer["kind"] for answer in answers] == ["tool", "tool", "chat", "chat"]
    assert all("verdict" in answer["after"] for answer in answers[:2])
    assert "Loss while training" in (project / "reports" / "report.html").read_text()

    assert (result["gate"]["passed"], result["gate"]["failures"]) == (False, ["arguments fit: 0.0, at least 0.5"])
    assert result["change"]["loss"] == {"change": 0.0, "low": None, "high": None, "conversations": 4}
    assert len(result["gate"]["undecided"]) == 3, "over all and two domains"
    card = (project / "reports" / "card.md").read_text()
    assert card.startswith("---\n")
    assert "\nlicense: " in card
    assert "| held-out loss: tools |" in card

    from sft.tracking import store

    found = store.look_up("0123456789abcdef")  # trained elsewhere: its lineage.json says what it is
    metrics = found.facts["metrics"]
    assert metrics["eval/after/loss_by_domain/tools"] == result["after"]["loss_by_domain"]["tools"]
    assert (found.version["eval.gate"], found.version["eval.loss"]) == ("failed", str(result["after"]["loss"]))
    stage.main()
    assert folder_digests(project / "reports") == first
    assert {"answers.jsonl", "card.md", "eval.json", "report.html"} <= set(first)


@pytest.mark.parametrize("asked", ["", "1"])
def test_rows_of_your_own_are_not_logged_unless_asked_for(project, monkeypatch, capsys, asked):
    """`calls` is fetched from a hub, `sums` is a file of the user."""
    monkeypatch.setenv("SFT_LOG_OWN_ROWS", asked)
    write_project(project, {"sums": ("mathematics", CHATS), "calls": ("tools", CALLS)})
    use_small_params(project)
    path = project / "models/final/lineage.json"
    known = {"sums": {"uri": "hf://o/n@1/a.jsonl, file://mine.jsonl"}, "calls": {"uri": "hf://o/n@1/b.jsonl"}}
    write_json(path, {**json.loads(path.read_text()), "sources": known})
    stage.main()
    whole = (project / "reports/answers.jsonl").read_text()
    assert whole.count("What is") == 2
    assert whole.count("Weather in") == 2
    logged = list((project / "runs").rglob("eval/answers.jsonl"))
    texts = [file.read_text(errors="replace") for file in (project / "runs").rglob("*") if file.is_file()]
    assert logged
    assert any("Weather in" in text for text in texts)
    assert any(re.search(r"What is \d and 0", text) for text in texts) == bool(asked)
    said = "2 of 4 prompts are of rows of your own" in capsys.readouterr().out
    assert said != bool(asked)
    records = [file.read_text() for file in (project / "runs").rglob("reports/answers.jsonl")]
    assert records == [whole] * len(records), "a record is what dvc.lock names"
    assert bool(records) == bool(asked)


def test_a_switch_that_is_none_is_refused_before_the_work(project, monkeypatch):
    monkeypatch.setenv("SFT_LOG_OWN_ROWS", "yes")
    write_project(project, {"sums": ("mathematics", CHATS)})
    use_small_params(project)
    with pytest.raises(InputError, match=r"^SFT_LOG_OWN_ROWS=yes: .*1"):
        stage.main()


def test_an_unreachable_store_does_not_stop_an_evaluation(project, monkeypatch, capsys):
    from sft.tracking import sync

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(sync, "PATIENCE", 0)
    write_project(project, {"sums": ("mathematics", CHATS)})
    use_small_params(project)
    stage.main()
    assert "127.0.0.1:9" in capsys.readouterr().out
    assert (project / "reports/eval.json").exists()


def test_without_tool_prompts_their_shares_are_null(project, capsys):
    write_project(project, {"sums": ("mathematics", CHATS)})
    use_small_params(project)
    stage.main()
    result = json.loads((project / "reports" / "eval.json").read_text())
    assert result["after"]["tool_call_exact"] is None
    assert result["after"]["stopped"] is not None
    assert "no prompts" in capsys.readouterr().out


def test_faults_of_the_inputs_are_named(project):
    write_project(project, {"sums": ("mathematics", CHATS)})
    final = project / "models" / "final"
    (final / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json: sha256"):
        stage.find_inputs()
    (final / "lineage.json").unlink()
    with pytest.raises(InputError, match=r"models/final/lineage\.json: not found\. Run the train stage"):
        stage.find_inputs()


def test_metric_names_are_ones_that_mlflow_takes_and_nulls_are_left_out():
    measured = {"loss": 1.0, "fits": None, "loss_by_domain": {"math & code": 2}}
    flat = stage.flat_metrics({"after": measured, "tokens": 3, "gate": {"failures": ["text"]}})
    assert flat == {"eval/after/loss": 1.0, "eval/after/loss_by_domain/math _ code": 2.0, "eval/tokens": 3.0}


def test_models_measured_with_other_benchmarks_or_before_there_was_a_budget_are_compared():
    held_out = HeldOut({}, {}, {}, [], Counter())
    digest = stage.held_out_dataset(held_out, PARAMS).digest
    other = PARAMS.model_copy(update={"reasoning_budget": 64, "tasks": [Task(name="gsm8k")]})
    assert stage.held_out_dataset(held_out, other).digest == digest
    assert stage.held_out_dataset(held_out, PARAMS.model_copy(update={"seed": 9})).digest != digest
