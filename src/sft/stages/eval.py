"""eval: loss and answers of the base model and of the trained model on held-out data.

models/base, models/final, data/packed/{validation,test}, data/filtered (the messages of the same conversations)
    ->  reports/eval.json      before and after: loss by domain, shares of correct tool calls, intervals; counts
        reports/answers.jsonl  every prompt with the answers of both models, and the verdict on them
        reports/report.html    the same as a page
        reports/card.md        the model card with the evaluation, ready for a hub

Both models get the same token ids: the template and the tokenizer are those that the final model was trained with.
The gate (params: eval.gate) decides whether the model becomes `candidate` in MLflow, and `champion` if it is better
than the champion on the same held-out data.
"""

import dataclasses
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from sft.cli import InputError, echo
from sft.evaluation.answers import answer_metrics, answer_rows, compare_answers, graded_answer
from sft.evaluation.gate import decide
from sft.evaluation.intervals import measured_changes, pair_losses
from sft.evaluation.loss import loss_metrics
from sft.evaluation.measure import Measured, measure_models
from sft.evaluation.prompts import Prompt, Segment, choose_prompts, choose_segments, split_packs
from sft.files import project_root, publish_file, read_json, write_json
from sft.hashing import file_digest, value_digest
from sft.lineage import card, locked_params
from sft.lineage.record import EVAL_RECORDS, git_state, records
from sft.pages import report
from sft.params.evaluation import Eval
from sft.params.read import load
from sft.run_stage import run_stage
from sft.tracking import journal

MODELS = {"before": Path("models/base"), "after": Path("models/final")}
PACKED = Path("data/packed")
FILTERED = Path("data/filtered")
SPLITS = ("validation", "test")
CURVES = (Path("reports/train_loss.csv"), Path("reports/validation_loss.csv"))
EVAL, ANSWERS, REPORT = (Path("reports", name) for name in ("eval.json", "answers.jsonl", "report.html"))
CARD = Path("reports/card.md")
Groups = Mapping[tuple[str, str], int]
"""The split group of each held-out conversation, by source and id."""
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


def choose(
    metadata: Mapping[str, Any], params: Eval, chat: Any
) -> tuple[dict[str, list[Segment]], Groups, list[Prompt], Counter[str]]:
    """Return what is measured: held-out samples by domain, prompts, and how many prompts were left out, by reason.

    Also the split group of each held-out conversation: conversations of one group are alike, not independent.

    Raises:  InputError: nothing is held out, or data/filtered does not hold the conversations of data/packed.
    """
    from sft.parquet import read_rows
    from sft.tokens.prepare import group_number

    held_out: dict[str, set[str]] = {source: set() for source in sorted(metadata["sources"])}
    packs = itertools.chain.from_iterable(read_rows(PACKED / split) for split in SPLITS if (PACKED / split).is_dir())

    def held_out_segments() -> Iterator[Segment]:
        for segment in split_packs(packs, params.seed):
            held_out[segment.source].add(segment.conversation_id)
            yield segment

    domains = {source: entry["domain"] for source, entry in metadata["sources"].items()}
    segments = choose_segments(held_out_segments(), domains, params.samples_per_domain)
    if not segments:
        raise InputError(
            f"{PACKED}: {' and '.join(SPLITS)} hold no samples, so there is nothing to measure. "
            "Raise pack.validation or pack.test."
        )
    groups: dict[tuple[str, str], int] = {}
    unseen = {(source, identity) for source, ids in held_out.items() for identity in ids}

    def held_out_rows() -> Iterator[tuple[str, dict[str, Any]]]:
        for source, ids in held_out.items():
            for row in read_rows(FILTERED / source, "kept-") if ids else ():
                if row["id"] in ids:
                    unseen.discard((source, row["id"]))
                    groups[source, row["id"]] = group_number(row["id"], json.loads(row["messages"]), row["meta"])
                    yield source, row

    chosen, left_out = choose_prompts(held_out_rows(), chat, params)
    if unseen:
        source, identity = min(unseen)
        raise InputError(
            f"{FILTERED / source}: {len(unseen)} held-out conversations of {PACKED} are missing, such as {identity}. "
            "The data changed between stages. Rerun them: dvc repro pack"
        )
    return segments, groups, chosen["tool"] + chosen["chat"], left_out


def evaluate(
    segments: Mapping[str, Sequence[Segment]],
    groups: Groups,
    prompts: Sequence[Prompt],
    measured: Sequence[Measured],
    chat: Any,
    params: Eval,
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """Return reports/eval.json, and the graded answers of the model before and after training."""
    losses: list[dict[str, list[tuple[float, int]]]] = []
    graded: list[list[dict[str, Any]]] = []
    for model in measured:
        rest = iter(model.losses)
        losses.append({domain: list(itertools.islice(rest, len(kept))) for domain, kept in segments.items()})
        graded.append([graded_answer(prompt, ids, chat) for prompt, ids in zip(prompts, model.answers, strict=True)])
    pairs = {
        domain: pair_losses(
            [groups[segment.source, segment.conversation_id] for segment in kept], losses[0][domain], losses[1][domain]
        )
        for domain, kept in segments.items()
    }
    before, after = ({**loss_metrics(losses[at]), **answer_metrics(graded[at])} for at in (0, 1))
    evaluation = {
        "before": before,
        "after": after,
        "change": {**measured_changes(pairs), **compare_answers(*graded)},
        "gate": decide(pairs, after["tool_call_fits"], params.gate),
        "tool_prompts": sum(prompt.kind == "tool" for prompt in prompts),
        "chat_prompts": sum(prompt.kind == "chat" for prompt in prompts),
        "samples_by_domain": {domain: len(kept) for domain, kept in segments.items()},
        "tokens": sum(sum(segment.marks) for kept in segments.values() for segment in kept),
    }
    return evaluation, graded[0], graded[1]


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


def held_out_dataset(
    segments: Mapping[str, Sequence[Segment]], prompts: Sequence[Prompt], params: Eval
) -> journal.Dataset:
    """Return what was measured as a data set of MLflow; only numbers of equal digests can be compared."""
    measured = {
        "segments": {domain: [segment.ids for segment in kept] for domain, kept in segments.items()},
        "prompts": [prompt.ids for prompt in prompts],
        "params": {name: value for name, value in params.model_dump().items() if name not in ("gate", "batch_size")},
    }
    counts = {domain: str(len(kept)) for domain, kept in segments.items()} | {"prompts": str(len(prompts))}
    return journal.Dataset("held-out", value_digest(measured), PACKED.absolute().as_uri(), "evaluation", counts)


def log_evaluation(evaluation: Mapping[str, Any], lineage_key: str, held_out: journal.Dataset, params: Eval) -> Path:
    """Add the evaluation to the journal of the final model's run; return the folder of the run."""
    run = project_root() / "runs" / lineage_key
    entries = journal.open_model(run, MODELS["after"])
    number = sum(1 for _ in entries.entries("evaluation"))
    entries.attach("eval", {path.name: path for path in (EVAL, ANSWERS, REPORT, CARD)})
    entries.attach(journal.RECORDS, records(Path.cwd(), EVAL_RECORDS))
    entries.add(
        "evaluation",
        step=number,
        tags={"git.commit": str(git_state(Path.cwd())[0])},
        params=journal.as_params({"eval": params.model_dump()}),
        metrics=flat_metrics(evaluation),
        dataset=dataclasses.asdict(held_out),
        passed=evaluation["gate"]["passed"],
        loss=evaluation["after"]["loss"],
    )
    return run


def main() -> None:
    """Measure both models, write the reports, log them to MLflow."""
    from sft.tokens.render import ChatTemplate, Settings
    from sft.tracking import sync

    params = load("eval")
    metadata, lineage = find_inputs()
    template, settings = str(MODELS["after"] / "chat_template.jinja"), Settings(date=metadata.get("date"))
    chat = ChatTemplate.load(template, MODELS["after"], settings=settings)
    segments, groups, prompts, left_out = choose(metadata, params, chat)
    all_segments = [segment for kept in segments.values() for segment in kept]
    measured = measure_models(MODELS["before"], MODELS["after"], all_segments, prompts, chat.stop_ids, params)
    evaluation, before, after = evaluate(segments, groups, prompts, measured, chat, params)
    evaluation["prompts_left_out"] = dict(sorted(left_out.items()))
    rows = answer_rows(prompts, before, after)
    lines = [json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows]
    packed = metadata["domains"], metadata["windows"]
    page = report.page(evaluation, rows, report.read_curve(CURVES), lineage["lineage_key"], *packed)
    model_card = card.render(lineage, lambda path: read_json(Path(path)) if Path(path).exists() else {}, evaluation)
    for path, text in ((ANSWERS, "".join(lines)), (REPORT, page), (CARD, model_card)):
        with publish_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
    write_json(EVAL, evaluation)

    held_out = held_out_dataset(segments, prompts, params)
    run = log_evaluation(evaluation, lineage["lineage_key"], held_out, params)
    with sync.sync_at_exit(run) as ending:
        echo(report.table(evaluation))
    for failure in evaluation["gate"]["failures"]:
        echo(f"gate: {escape(failure)}")
    if undecided := evaluation["gate"]["undecided"]:
        echo(f"gate: too few to tell: {escape('; '.join(undecided))}")
    echo(f"{len(prompts)} prompts, {evaluation['tokens']} held-out tokens. See {REPORT}. {ending.text}")


if __name__ == "__main__":
    run_stage(main, __doc__, remote=True)
