"""metric_labels: every share that the evaluation measures has a label, the same in the report and the card."""

from rich.console import Console

from sft.evaluation.answers import answer_metrics
from sft.lineage.card import render
from sft.metric_labels import RULES, SHARES
from sft.pages.report import table
from tests.lineage.test_card import LINEAGE
from tests.pages.test_report import evaluation


def test_every_share_has_one_label():
    assert answer_metrics([]).keys() - {"intervals"} == {*SHARES, *(f"rule_{name}" for name in RULES)}
    measured = evaluation()
    for model in (measured["before"], measured["after"]):
        model.update({f"rule_{name}": 0.5 for name in RULES})
    console = Console(width=200, record=True)
    console.print(table(measured))
    shown, card = console.export_text(), render(LINEAGE, lambda path: {}, measured)
    for label in (*SHARES.values(), *RULES.values()):
        assert f" {label} " in shown
        assert f": {label} | 0.5 | 0.5 |" in card
