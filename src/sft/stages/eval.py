"""eval: loss and answers of the base model and of the trained model on held-out data.

models/base, models/final, data/packed/{validation,test}, data/filtered (the messages of the same conversations)
    ->  reports/eval.json      before and after: loss by domain, shares of correct tool calls, intervals; counts
        reports/answers.jsonl  every prompt with the answers of both models, and the verdict on them
        reports/report.html    the same as a page
        reports/card.md        the model card with the evaluation, ready for a hub

Both models get the same token ids: the template and the tokenizer are those that the final model was trained with.
Prompts of rows that are your own (`file://`) and their answers are not logged to MLflow unless SFT_LOG_OWN_ROWS=1.
The gate (params: eval.gate) decides whether the model becomes `candidate` in MLflow, and `champion` if it is better
than the champion on the same held-out data.
"""

import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from sft.cli import InputError, echo
from sft.evaluation import tasks
from sft.evaluation.answers import answer_rows, own_sources
from sft.evaluation.held_out import FILTERED, PACKED, HeldOut
from sft.evaluation.summary import measure_and_compare
from sft.files import project_root, read_json, write_json, write_text
from sft.hashing import file_digest, value_digest
from sft.lineage import card, locked_params
from sft.lineage.record import EVAL_RECORDS, git_state, records
from sft.pages import report
from sft.params.evaluation import Eval
from sft.params.read import load
from sft.run_stage import run_stage
from sft.tracking import journal

MODELS = {"before": Path("models/base"), "after": Path("models/final")}
CURVES = (Path("reports/train_loss.csv"), Path("reports/validation_loss.csv"))
EVAL, ANSWERS, REPORT = (Path("reports", name) for name in ("eval.json", "answers.jsonl", "report.html"))
CARD = Path("reports/card.md")
NOT_IN_DIGEST = {"gate", "batch_size", "tasks", "reasoning_budget"}
"""Params that do not change what is measured; the ids of the prompts have the budget of reasoning."""
NOT_IN_METRIC_NAME = re.compile(r"[^\w./ -]", re.ASCII)


def find_inputs() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return data/packed/metadata.json and the final model's lineage.json.

    Raises:  InputError: a model or the packed data is missing, or they do not belong together.
    """
    locked_params.refuse_differing(Path.cwd())
    final = MODELS["after"]
    inputs = {
        MODELS["before"] / "config.json": "fetch-model",
        PACKED / "metadata.json": "pack",
        **{final / name: "train" for name in ("config.json", "tokenizer.json", "chat_template.jinja", "lineage.json")},
    }
    for path, stage in inputs.items():
        if not path.is_file():
            raise InputError(f"{path}: not found. Run the {stage} stage first: dvc repro {stage}")
    metadata = read_json(PACKED / "metadata.json")
    if metadata["tokenizer_sha256"] != (digest := file_digest(final / "tokenizer.json")):
        raise InputError(
            f"{final}/tokenizer.json: sha256 is {digest}, but data/packed was made with "
            f"{metadata['tokenizer_sha256']}. Train on the packed data again: dvc repro train"
        )
    return metadata, read_json(final / "lineage.json")


def flat_metrics(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of eval.json by names that MLflow takes: `eval/after/loss_by_domain/chat`."""
    flat: dict[str, float] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{name}/{NOT_IN_METRIC_NAME.sub('_', key)}", item)
        elif isinstance(value, int | float):
            flat[name] = float(value)

    walk("eval", dict(evaluation))
    return flat


def held_out_dataset(held_out: HeldOut, params: Eval) -> journal.Dataset:
    """Return what was measured as a data set of MLflow; only numbers of equal digests can be compared."""
    measured = {
        "segments": {domain: [segment.ids for segment in kept] for domain, kept in held_out.segments.items()},
        "prompts": [prompt.ids for prompt in held_out.prompts],
        "params": params.model_dump(exclude=NOT_IN_DIGEST),
    }
    counts = {domain: str(len(kept)) for domain, kept in held_out.segments.items()}
    counts["prompts"] = str(len(held_out.prompts))
    return journal.Dataset("held-out", value_digest(measured), PACKED.absolute().as_uri(), "evaluation", counts)


def log_evaluation(
    evaluation: Mapping[str, Any],
    lineage_key: str,
    dataset: journal.Dataset,
    params: Eval,
    answers: Mapping[Path, str],
    not_logged: int,
) -> Path:
    """Add the evaluation to the journal of the final model's run; return the folder of the run.

    `answers` are the texts to log for ANSWERS and REPORT, without the answers to `not_logged` prompts. If there are
    some, ANSWERS is no record: its digest is not that of dvc.lock.
    """
    run = project_root() / "runs" / lineage_key
    entries = journal.open_model(run, MODELS["after"])
    number = sum(1 for _ in entries.entries("evaluation"))
    with tempfile.TemporaryDirectory() as scratch:
        logged = {path.name: path for path in (EVAL, CARD)} | {path.name: Path(scratch, path.name) for path in answers}
        for path, text in answers.items():
            logged[path.name].write_text(text, encoding="utf-8")
        entries.attach("eval", logged)
    kept = records(Path.cwd(), EVAL_RECORDS)
    entries.attach(
        journal.RECORDS, {path: file for path, file in kept.items() if path != str(ANSWERS) or not not_logged}
    )
    entries.add(
        "evaluation",
        step=number,
        tags={"git.commit": str(git_state(Path.cwd())[0]), "answers.not_logged": str(not_logged)},
        params=journal.as_params({"eval": params.model_dump()}),
        metrics=flat_metrics(evaluation),
        dataset=dataclasses.asdict(dataset),
        passed=evaluation["gate"]["passed"],
        loss=evaluation["after"]["loss"],
    )
    return run


def log_own_rows() -> bool:
    """Whether SFT_LOG_OWN_ROWS asks to log rows of file:// sources. Raises InputError: it is neither 1 nor 0."""
    asked = os.environ.get("SFT_LOG_OWN_ROWS", "") or "0"
    if asked not in {"0", "1"}:
        raise InputError(f"SFT_LOG_OWN_ROWS={asked}: expected 1, to log rows of file:// sources to MLflow, or 0")
    return asked == "1"


def main() -> None:
    """Measure both models, write the reports, log them to MLflow."""
    from sft.evaluation.contaminated import find_contaminated
    from sft.tracking import sync

    params, logs_own_rows = load("eval"), log_own_rows()
    metadata, lineage = find_inputs()
    base, final = MODELS.values()
    before, after = tasks.answer_tasks(base, final, params)
    held_out, evaluation, *graded = measure_and_compare(base, final, metadata, params)
    asked = {name: task["texts"] for name, task in after.items()}
    contaminated = find_contaminated(asked, FILTERED, held_out.ids)
    evaluation["tasks"] = tasks.compare_tasks(before, after, contaminated)
    rows = answer_rows(held_out.prompts, *graded)

    def texts(rows: Sequence[Mapping[str, Any]]) -> dict[Path, str]:
        lines = [json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows]
        counts = metadata["domains"], metadata["windows"]
        page = report.page(evaluation, rows, report.read_curve(CURVES), lineage["lineage_key"], *counts)
        return {ANSWERS: "".join(lines), REPORT: page}

    model_card = card.render(lineage, lambda path: read_json(Path(path)) if Path(path).exists() else {}, evaluation)
    answers = texts(rows)
    for path, text in {**answers, CARD: model_card}.items():
        write_text(path, text)
    write_json(EVAL, evaluation)

    dataset = held_out_dataset(held_out, params)
    private = own_sources(lineage.get("sources", {}), metadata["sources"]) if not logs_own_rows else set()
    public = [row for row in rows if row["source"] not in private]
    not_logged = len(rows) - len(public)
    logged = texts(public) if not_logged else answers
    run = log_evaluation(evaluation, lineage["lineage_key"], dataset, params, logged, not_logged)
    with sync.sync_at_exit(run) as ending:
        echo(report.table(evaluation))
    for name, task in evaluation["tasks"].items():
        if task["cut"]:
            of_items = f"{task['cut']} of {task['items']} prompts"
            echo(f"{escape(name)}: {of_items} exceed the model's context: lm-eval cut their start")
    for failure in evaluation["gate"]["failures"]:
        echo(f"gate: {escape(failure)}")
    if not_logged:
        echo(f"{not_logged} of {len(rows)} prompts are of rows of your own: MLflow gets no text of them")
    if undecided := evaluation["gate"]["undecided"]:
        echo(f"gate: too few to tell: {escape('; '.join(undecided))}")
    echo(f"{len(held_out.prompts)} prompts, {evaluation['tokens']} held-out tokens. See {REPORT}. {ending.text}")


if __name__ == "__main__":
    run_stage(main, __doc__, remote=True)
