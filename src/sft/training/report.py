"""The reports of a complete run: losses by step as CSV, and reports/train.json with the ledger of packs.

The entries `step` and `validation` of the run's journal  ->  reports/{train.json,train_loss.csv,validation_loss.csv}
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sft.cli import echo
from sft.ledger import Ledger
from sft.params.training import TrainParams
from sft.training.steps import read_steps, write_csv


def write_reports(
    entries: Iterable[dict[str, Any]], lineage_key: str, params: TrainParams, packs: int
) -> dict[str, Any]:
    """Publish the reports; return reports/train.json. Says so if the run was validated at other steps than params say.

    `params`: with a number of steps. `packs`: of the training split. Raises InputError: a step is missing.
    """
    iterations, batch, interval = params.train.steps, params.train.global_batch_size, params.validation.eval_interval
    steps, validations = read_steps(entries, iterations)
    validated = {entry["iteration"] for entry in validations}
    if params.validation.eval_iters and validated not in (set(), {*range(interval, iterations, interval), iterations}):
        echo(
            f"[yellow]validation.eval_interval is {interval}, but parts of this run were trained with another: "
            f"validated after step {', '.join(map(str, sorted(validated)))}[/]"
        )
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
