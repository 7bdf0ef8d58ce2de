"""report: losses by step, and the packs that training reached."""

from sft.files import read_json
from sft.training.report import write_reports
from tests.training.test_bridge import train_params
from tests.training.test_steps import step, validation


def test_the_report_counts_packs_and_says_which_were_not_reached(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = train_params(train={"train_iters": 2, "global_batch_size": 3})
    written = write_reports([step(1, 3.0), step(2, 2.0), validation(2, 0.5)], "key", params, 10)
    assert written == read_json(tmp_path / "reports/train.json")
    assert (written["rows_in"], written["rows_out"], written["rejected"]) == (10, 6, {"not-reached": 4})
    assert (written["train_loss"], written["validation_loss"], written["tokens"]) == (2.0, 0.5, 20)
    assert (written["epochs"], written["trained_tokens"], written["lineage_key"]) == (0.6, 8, "key")
    assert (tmp_path / "reports/train_loss.csv").read_text() == "iteration,loss,lr\n1,3.0,0.1\n2,2.0,0.1\n"
    assert (tmp_path / "reports/validation_loss.csv").read_text() == "iteration,validation_loss\n2,0.5\n"


def test_a_run_that_was_validated_at_other_steps_than_params_say_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    entries = [*(step(number, 1.0) for number in range(1, 5)), validation(2, 0.5), validation(4, 0.5)]
    for interval, says in ((2, False), (1, True), (3, True)):
        params = train_params(train={"train_iters": 4}, validation={"eval_interval": interval})
        write_reports(entries, "key", params, 10)
        assert ("validated after step 2, 4" in capsys.readouterr().out) == says
