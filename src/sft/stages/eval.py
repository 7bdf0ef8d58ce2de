"""eval: the base model and the trained one on held-out data: loss, and what they answer.

models/base, models/final, data/packed/{validation,test}, data/filtered (the same conversations' messages)
    ->  reports/eval.json      before and after: loss by domain, shares of right tool calls; counts
        reports/answers.jsonl  every prompt's answers, before and after, with the verdict
        reports/report.html    the same for people
        reports/card.md        the model card with the evaluation, ready for a hub

Both models get the same token ids: the template and the tokenizer that the final model was trained with.
What is measured is chosen by hash of seed and conversation id, so it stays the same when data is added
elsewhere; prompts left out are counted by reason. MLflow is told as well; the gate (params: eval.gate) decides
whether the model becomes `candidate` there, and `champion` if it is better on the same held-out data.
"""

import bisect
import csv
import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from sft.cli import InputError, echo, run_stage
from sft.files import project_root, publish_file, read_json, write_json
from sft.hashing import file_digest, value_digest
from sft.lineage import card
from sft.lineage.key import EVAL_RECORDS, git_state, records
from sft.pages import report
from sft.params.evaluation import Eval, Gate
from sft.params.read import load
from sft.tracking import journal

MODELS = {"before": Path("models/base"), "after": Path("models/final")}
PACKED = Path("data/packed")
FILTERED = Path("data/filtered")
SPLITS = ("validation", "test")
CURVES = (Path("reports/train_loss.csv"), Path("reports/validation_loss.csv"))
EVAL, ANSWERS, REPORT = (Path("reports", name) for name in ("eval.json", "answers.jsonl", "report.html"))
CARD = Path("reports/card.md")
DIGITS = 6
NOT_A_METRIC_NAME = re.compile(r"[^\w./ -]", re.ASCII)


@dataclass(frozen=True)
class Segment:
    """A held-out sample, cut out of its pack."""

    rank: str
    source: str
    conversation_id: str
    ids: list[int]
    marks: list[int]
    """marks[i] says whether predicting ids[i + 1] counts."""


@dataclass(frozen=True)
class Prompt:
    """A held-out conversation up to the answer that is asked for."""

    rank: str
    kind: str
    """tool: the reference calls tools; chat: the conversation has none."""
    source: str
    conversation_id: str
    question: str
    """The last message before the answer."""
    thinking: bool
    ids: list[int]
    tools: list[Any]
    reference: dict[str, Any]
    """The assistant message that was published."""


def rank(seed: int, conversation_id: str) -> str:
    """Return the place of a conversation in the order of choice: sha256 of seed and id."""
    return hashlib.sha256(f"{seed} {conversation_id}".encode()).hexdigest()


def cut_packs(packs: Iterable[Mapping[str, Any]], seed: int) -> Iterator[Segment]:
    """Cut packs into their samples."""
    for pack in packs:
        ends = [*pack["seq_start_id"][1:], len(pack["input_ids"])]
        segments = zip(pack["seq_start_id"], ends, pack["source"], pack["conversation_id"], strict=True)
        for start, end, source, identity in segments:
            ids, marks = pack["input_ids"][start:end], pack["loss_mask"][start:end]
            yield Segment(rank(seed, identity), source, identity, ids, marks)


def choose_segments(
    segments: Iterable[Segment], domains: Mapping[str, str], samples_per_domain: int
) -> dict[str, list[Segment]]:
    """Keep the first samples of each domain, in the order of rank; memory does not grow with the data."""
    chosen: dict[str, list[Segment]] = {domain: [] for domain in sorted(set(domains.values()))}
    for segment in segments:
        if any(segment.marks):
            kept = chosen[domains[segment.source]]
            bisect.insort(kept, segment, key=lambda other: (other.rank, other.ids))
            del kept[samples_per_domain:]
    return {domain: kept for domain, kept in chosen.items() if kept}


def reference_index(messages: Sequence[Mapping[str, Any]], tools: Sequence[Any]) -> tuple[str, int] | None:
    """Say of what kind a conversation's prompt is and which message answers it; None if it is of neither.

    >>> reference_index([{"role": "user"}, {"role": "assistant"}], [])
    ('chat', 1)
    """
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            if not tools:
                return "chat", index
            if message.get("tool_calls"):
                return "tool", index
    return None


def choose_prompts(
    rows: Iterable[tuple[str, Mapping[str, Any]]], chat: Any, params: Eval
) -> tuple[dict[str, list[Prompt]], Counter[str]]:
    """Choose prompts of each kind from held-out (source, filtered row)s by rank; count what was passed over.

    Only a row that would be among the chosen is tokenised. Left out counts the rows that rank before the last
    chosen one and could not be used.
    """
    limits = {"tool": params.tool_prompts, "chat": params.chat_prompts}
    chosen: dict[str, list[Prompt]] = {kind: [] for kind in limits}
    passed_over: dict[str, list[tuple[str, str]]] = {kind: [] for kind in limits}
    for source, row in rows:
        messages, tools = json.loads(row["messages"]), json.loads(row["tools"] or "null") or []
        found = reference_index(messages, tools)
        if found is None:
            continue
        kind, index = found
        place, kept = rank(params.seed, row["id"]), chosen[kind]
        if not limits[kind] or (len(kept) == limits[kind] and place > kept[-1].rank):
            continue
        reference = messages[index]
        thinking = bool(reference.get("reasoning_content"))
        ids = chat.prompt_ids(messages[:index], tools or None, thinking=thinking)
        if len(ids) > params.max_prompt_tokens:
            passed_over[kind].append((place, "over-length"))
            continue
        question = messages[index - 1]["content"] if index else ""
        prompt = Prompt(place, kind, source, row["id"], question, thinking, ids, tools, reference)
        bisect.insort(kept, prompt, key=lambda other: other.rank)
        del kept[limits[kind] :]
    left_out: Counter[str] = Counter()
    for kind, kept in chosen.items():
        full = len(kept) == limits[kind]
        left_out.update(reason for place, reason in passed_over[kind] if not full or place < kept[-1].rank)
    return chosen, left_out


def assess(prompt: Prompt, ids: list[int], chat: Any) -> dict[str, Any]:
    """Judge one answer, as it stands in answers.jsonl."""
    from sft.evaluation.tool_calls import judge, opening, think_balanced

    stopped = ids[-1:] == [chat.stop_id]
    text = chat.decode(ids[:-1] if stopped else ids)
    turn = opening(chat.decode(prompt.ids)) + text
    answer = {"text": text, "stopped": stopped, "think_balanced": think_balanced(turn)}
    if prompt.kind == "tool":
        answer["verdict"] = dataclasses.asdict(judge(turn, prompt.tools, prompt.reference["tool_calls"]))
    return answer


def loss_metrics(losses: Mapping[str, Sequence[tuple[float, int]]]) -> dict[str, Any]:
    """Turn (summed loss, tokens) of each sample, by domain, into loss per token.

    >>> loss_metrics({"a": [(2.0, 1), (4.0, 2)], "b": [(0.0, 3)]})
    {'loss': 1.0, 'perplexity': 2.718282, 'loss_by_domain': {'a': 2.0, 'b': 0.0}}
    """
    loss = _mean([pair for pairs in losses.values() for pair in pairs])
    by_domain = {domain: round(_mean(pairs), DIGITS) for domain, pairs in losses.items()}
    return {
        "loss": round(loss, DIGITS),
        "perplexity": round(math.exp(loss), DIGITS),
        "loss_by_domain": by_domain,
    }


def answer_metrics(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Turn judged answers into shares; null where there was no prompt to answer."""
    verdicts = [answer["verdict"] for answer in answers if "verdict" in answer]
    shares = {
        f"tool_call_{name}": _share([verdict[name] for verdict in verdicts])
        for name in ("well_formed", "known_function", "fits", "exact")
    }
    return shares | {name: _share([answer[name] for answer in answers]) for name in ("stopped", "think_balanced")}


def flat_metrics(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Name every number of eval.json as MLflow takes it: `eval/after/loss_by_domain/chat`; nulls and texts left out."""
    flat: dict[str, float] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{name}/{NOT_A_METRIC_NAME.sub('_', key)}", item)
        elif isinstance(value, int | float):
            flat[name] = float(value)

    walk("eval", dict(evaluation))
    return flat


def gate_failures(before: Mapping[str, Any], after: Mapping[str, Any], gate: Gate) -> list[str]:
    """Say what of the gate a model does not hold; nothing: it passes."""
    failures = []
    domains = after["loss_by_domain"]
    ratios = {"loss": (after["loss"], before["loss"], gate.max_loss_ratio)} | {
        f"loss, {name}": (domains[name], before["loss_by_domain"][name], gate.max_domain_loss_ratio) for name in domains
    }
    for name, (now, was, most) in ratios.items():
        if most is not None and now > was * most:
            failures.append(f"{name}: {now} after, at most {most} x {was}")
    least, fits = gate.min_tool_call_fits, after["tool_call_fits"]
    if least is not None and fits is not None and fits < least:
        failures.append(f"arguments fit: {fits}, at least {least}")
    return failures


def comparison_table(evaluation: Mapping[str, Any]) -> Table:
    """Build the table for the terminal: metric, before, after, change."""
    before, after = evaluation["before"], evaluation["after"]
    rows = [(name, before[name], after[name]) for name in ("loss", "perplexity")]
    rows += [
        (f"loss, {domain}", before["loss_by_domain"][domain], after["loss_by_domain"][domain])
        for domain in after["loss_by_domain"]
    ]
    rows += [(label, before[name], after[name]) for name, label in report.SHARES.items()]
    table = Table("metric", "before", "after", "change")
    for label, was, now in rows:
        if was is None or now is None:
            table.add_row(escape(label), "no prompts", "no prompts", "")
        else:
            table.add_row(escape(label), report.number(was), report.number(now), f"{now - was:+.3f}")
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def read_curve(paths: Sequence[Path]) -> list[dict[str, float]]:
    """Read the losses that the train stage left, if it did, as one list of points in order of iteration."""
    points: dict[int, dict[str, float]] = {}
    for path in paths:
        if path.exists():
            with path.open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    iteration = int(row["iteration"])
                    losses = {name: float(row[name]) for name in ("loss", "validation_loss") if row.get(name)}
                    points.setdefault(iteration, {"iteration": iteration}).update(losses)
    return [points[iteration] for iteration in sorted(points)]


def _mean(pairs: Sequence[tuple[float, int]]) -> float:
    return math.fsum(total for total, _ in pairs) / sum(count for _, count in pairs)


def _share(claims: Sequence[bool]) -> float | None:
    return round(sum(claims) / len(claims), DIGITS) if claims else None


def find_inputs() -> tuple[dict[str, Any], str]:
    """Return data/packed/metadata.json and the final model's lineage key.

    Raises:  InputError: a model or the packed data is missing, or they do not belong together.
    """
    final = MODELS["after"]
    wanted = {
        MODELS["before"] / "config.json": "fetch@model",
        PACKED / "metadata.json": "pack",
        **{final / name: "train" for name in ("config.json", "tokenizer.json", "chat_template.jinja", "lineage.json")},
    }
    for path, stage in wanted.items():
        if not path.is_file():
            raise InputError(f"{path}: not found. Run the {stage} stage first (dvc repro).")
    metadata = read_json(PACKED / "metadata.json")
    if metadata["tokenizer_sha256"] != (found := file_digest(final / "tokenizer.json")):
        raise InputError(
            f"{final}/tokenizer.json: sha256 {found}, but data/packed was made with "
            f"{metadata['tokenizer_sha256']}. "
            "The model was trained on other tokens: rerun train (dvc repro)."
        )
    return metadata, read_json(final / "lineage.json")["lineage_key"]


def choose(
    metadata: Mapping[str, Any], params: Eval, chat: Any
) -> tuple[dict[str, list[Segment]], list[Prompt], Counter[str]]:
    """Choose from the held-out splits what is measured: samples by domain, prompts, and what was left out."""
    from sft.parquet import read_rows

    held_out: dict[str, set[str]] = {source: set() for source in sorted(metadata["sources"])}
    packs = itertools.chain.from_iterable(read_rows(PACKED / split) for split in SPLITS if (PACKED / split).is_dir())

    def noted() -> Iterator[Segment]:
        for segment in cut_packs(packs, params.seed):
            held_out[segment.source].add(segment.conversation_id)
            yield segment

    domains = {source: entry["domain"] for source, entry in metadata["sources"].items()}
    segments = choose_segments(noted(), domains, params.samples_per_domain)
    if not segments:
        raise InputError(
            f"{PACKED}: no conversations are held out in {' and '.join(SPLITS)}, so nothing can be measured. "
            "Raise pack.validation or pack.test."
        )
    unseen = {(source, identity) for source, ids in held_out.items() for identity in ids}

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        for source, ids in held_out.items():
            for row in read_rows(FILTERED / source, "kept-") if ids else ():
                if row["id"] in ids:
                    unseen.discard((source, row["id"]))
                    yield source, row

    chosen, left_out = choose_prompts(rows(), chat, params)
    if unseen:
        source, identity = min(unseen)
        raise InputError(
            f"{FILTERED / source}: {len(unseen)} held-out conversations of data/packed are not there, "
            f"such as {identity}. The data was changed between stages: rerun from filter on (dvc repro)."
        )
    return segments, chosen["tool"] + chosen["chat"], left_out


def measure(
    folder: Path,
    segments: Mapping[str, Sequence[Segment]],
    prompts: Sequence[Prompt],
    chat: Any,
    params: Eval,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Load one model, measure it, and let it go; return its metrics and its judged answers."""
    from sft.evaluation import generate

    model = generate.load_model(folder)
    every = [segment for kept in segments.values() for segment in kept]
    ids = itertools.chain([chat.stop_id], *(segment.ids for segment in every), *(prompt.ids for prompt in prompts))
    generate.check_ids(model, ids, str(folder))
    losses = iter(generate.held_out_loss(model, [(segment.ids, segment.marks) for segment in every]))
    by_domain = {domain: list(itertools.islice(losses, len(kept))) for domain, kept in segments.items()}
    said = generate.generate(
        model,
        [prompt.ids for prompt in prompts],
        stop_id=chat.stop_id,
        max_new_tokens=params.max_new_tokens,
        batch_size=params.batch_size,
    )
    del model
    generate.release_memory()
    answers = [assess(prompt, answer, chat) for prompt, answer in zip(prompts, said, strict=True)]
    return {**loss_metrics(by_domain), **answer_metrics(answers)}, answers


def answer_rows(
    prompts: Sequence[Prompt], before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Put prompts and answers together, as they stand in answers.jsonl."""
    return [
        {
            "kind": prompt.kind,
            "source": prompt.source,
            "conversation_id": prompt.conversation_id,
            "thinking": prompt.thinking,
            "prompt_tokens": len(prompt.ids),
            "question": prompt.question,
            "reference": prompt.reference,
            "before": was,
            "after": now,
        }
        for prompt, was, now in zip(prompts, before, after, strict=True)
    ]


def tell(evaluation: Mapping[str, Any], held_out: journal.Dataset, params: Eval) -> Path:
    """Write down for MLflow what was measured of the final model; return the folder of its run."""
    final = MODELS["after"]
    run = project_root() / "runs" / str(read_json(final / "lineage.json")["lineage_key"])
    box = journal.open_model(run, final)
    box.attach("eval", {path.name: path for path in (EVAL, ANSWERS, REPORT, CARD)})
    box.attach(journal.RECORDS, records(Path.cwd(), EVAL_RECORDS))
    box.add(
        "evaluation",
        tags={"git.commit": str(git_state(Path.cwd())[0])},
        params=journal.as_params({"eval": params.model_dump()}),
        metrics=flat_metrics(evaluation),
        dataset=dataclasses.asdict(held_out),
        passed=evaluation["gate"]["passed"],
        loss=evaluation["after"]["loss"],
    )
    return run


def main() -> None:
    """Measure both models and report."""
    from sft.tokens.render import ChatTemplate

    params = load("eval")
    metadata, lineage_key = find_inputs()
    chat = ChatTemplate.load(str(MODELS["after"] / "chat_template.jinja"), MODELS["after"])
    segments, prompts, left_out = choose(metadata, params, chat)
    measured = {name: measure(folder, segments, prompts, chat, params) for name, folder in MODELS.items()}

    failures = gate_failures(measured["before"][0], measured["after"][0], params.gate)
    evaluation = {
        **{name: metrics for name, (metrics, _) in measured.items()},
        "gate": {"passed": not failures, "failures": failures},
        "tool_prompts": sum(prompt.kind == "tool" for prompt in prompts),
        "chat_prompts": sum(prompt.kind == "chat" for prompt in prompts),
        "prompts_left_out": dict(sorted(left_out.items())),
        "samples_by_domain": {domain: len(kept) for domain, kept in segments.items()},
        "tokens": sum(sum(segment.marks) for kept in segments.values() for segment in kept),
    }
    rows = answer_rows(prompts, measured["before"][1], measured["after"][1])
    lines = [json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows]
    page = report.render(evaluation, rows, read_curve(CURVES), lineage_key, metadata["domains"])
    told = read_json(MODELS["after"] / "lineage.json")
    model_card = card.render(told, lambda path: read_json(Path(path)) if Path(path).exists() else {}, evaluation)
    for path, text in ((ANSWERS, "".join(lines)), (REPORT, page), (CARD, model_card)):
        with publish_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
    write_json(EVAL, evaluation)

    from sft.tracking import delivery

    # What is measured: the samples, the prompts, and how. Only numbers of the same can be compared.
    chosen = {
        "segments": {domain: [segment.ids for segment in kept] for domain, kept in segments.items()},
        "prompts": [prompt.ids for prompt in prompts],
        "params": {name: value for name, value in params.model_dump().items() if name not in ("gate", "batch_size")},
    }
    counts = {domain: str(len(kept)) for domain, kept in segments.items()}
    place = PACKED.absolute().as_uri()
    held_out = journal.Dataset(
        "held-out", value_digest(chosen), place, "evaluation", {**counts, "prompts": str(len(prompts))}
    )
    run = tell(evaluation, held_out, params)
    with delivery.sync_at_exit(run) as ending:
        echo(comparison_table(evaluation))
    for failure in failures:
        echo(f"gate: {escape(failure)}")
    echo(f"{len(prompts)} prompts, {evaluation['tokens']} held-out tokens; see {REPORT}. {ending.text}")


if __name__ == "__main__":
    run_stage(main, __doc__, remote=True)
