"""report: losses by step, and the packs that training reached."""

from sft.files import read_json
from sft.training.report import write_reports
from tests.training.test_steps import step, validation


def test_the_report_counts_packs_and_says_which_were_not_reached(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = write_reports([step(1, 3.0), step(2, 2.0), validation(2, 0.5)], "key", 2, 3, 10)
    assert written == read_json(tmp_path / "reports/train.json")
    assert (written["rows_in"], written["rows_out"], written["rejected"]) == (10, 6, {"not-reached": 4})
    assert (written["train_loss"], written["validation_loss"], written["tokens"]) == (2.0, 0.5, 20)
    assert (written["epochs"], written["trained_tokens"], written["lineage_key"]) == (0.6, 8, "key")
    assert (tmp_path / "reports/train_loss.csv").read_text() == "iteration,loss,lr\n1,3.0,0.1\n2,2.0,0.1\n"
    assert (tmp_path / "reports/validation_loss.csv").read_text() == "iteration,validation_loss\n2,0.5\n"
