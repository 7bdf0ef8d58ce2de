"""The reports of a complete run: losses by step as CSV, and reports/train.json with the ledger of packs.

The entries `step` and `validation` of the run's journal  ->  reports/{train.json,train_loss.csv,validation_loss.csv}
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sft.ledger import Ledger
from sft.training.steps import read_steps, write_csv


def write_reports(
    entries: Iterable[dict[str, Any]], lineage_key: str, iterations: int, batch: int, packs: int
) -> dict[str, Any]:
    """Publish the reports; return reports/train.json.

    `batch`: packs of one step. `packs`: of the training split. Raises InputError: a step is missing.
    """
    steps, validations = read_steps(entries, iterations)
    write_csv(Path("reports/train_loss.csv"), steps, ("iteration", "loss", "lr"))
    write_csv(Path("reports/validation_loss.csv"), validations, ("iteration", "validation_loss"))
    seen = min(packs, iterations * batch)
    ledger = Ledger(packs, seen, Counter({"not-reached": packs - seen} if packs > seen else {}))
    last = steps[-max(1, iterations // 10) :]
    return ledger.write(
        Path("reports/train.json"),
        train_loss=round(sum(entry["loss"] for entry in last) / len(last), 6),
        validation_loss=round(validations[-1]["validation_loss"], 6) if validations else None,
        iterations=iterations,
        epochs=round(iterations * batch / packs, 4),
        tokens=sum(entry["tokens"] for entry in steps),
        trained_tokens=sum(entry["trained_tokens"] for entry in steps),
        lineage_key=lineage_key,
    )
