"""prep: conversations -> samples: token ids and the loss mask that belongs to them.

data/filtered/<source>/kept-*.parquet, models/base (tokenizer), the chat template
    ->  data/prepared/<source>/*.parquet       conversation_id, sample, ids, mask (1 = trained; not shifted),
                                               turn_ends (index behind the stop token of each trained turn),
                                               group (hash: conversations with the same one are in one split)
        data/prepared/<source>/rejected.jsonl  conversations that cannot be rendered, with reason and evidence
        data/prepared/<source>/chat_template.jinja  the template they were rendered with
        reports/prep/<source>.json             the ledger, tokens, trained tokens, lengths, removed reasoning,
                                               arguments of the template by value

The template is checked before a token is written (sft.tokens.render): the stage fails if the template has no exact
loss mask. A share of the conversations loses its reasoning, or part of it (sft.tokens.reasoning).
"""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape

from sft.chat_files import read_template
from sft.cli import InputError, echo
from sft.files import publish_folder, resolve_repo_file, scratch_folder
from sft.hashing import file_digest, files_below
from sft.ledger import Ledger, check_handover
from sft.run_stage import run_source_stage
from sft.workers import map_shards, report_position

BASE = Path("models/base")
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
# Conversations tokenized in one call.
CONVERSATIONS_PER_BATCH = 250
# Characters compared with the reference tokenizer: of the first row range, and of each other one.
COMPARED_FIRST, COMPARED = 1 << 14, 1 << 10
# Row ranges at least this long return memory at their end; for shorter ones, getting it back takes as long.
MIN_ROWS_TO_RELEASE = 10_000
TOP_REASONS = 5


def prepare_range(task: dict[str, Any]) -> dict[str, Any]:
    """Prepare a range of filtered rows (a task of sft.workers).

    Writes samples and rejected rows to a new folder in task["scratch"]; returns its name, and counts.
    """
    from sft.parquet import SAMPLES, RowRange, ShardWriter, read_row_range, release_memory
    from sft.tokens.prepare import load_template, prepare_rows
    from sft.tokens.reasoning import Shares
    from sft.tokens.render import Settings

    row_range, reasoning = RowRange(*task["row_range"]), Shares(**task["reasoning"])
    chat = load_template(task["template"], BASE, task["fast"], Settings.of_task(task["settings"]))
    compared = COMPARED
    if task["number"] == 0:  # once per source is enough
        chat.check_whole()
        release_memory()  # the second tokenizer
        compared = COMPARED_FIRST
    folder, row = Path(tempfile.mkdtemp(dir=task["scratch"])), row_range.first_row
    counts: dict[str, Counter[Any]] = {}
    with (
        ShardWriter(folder, f"samples-{task['number']:05d}", SAMPLES) as shards,
        (folder / "rejected.jsonl").open("w", encoding="utf-8") as rejected,
    ):
        for rows in read_row_range(row_range, CONVERSATIONS_PER_BATCH, ["id", "messages", "tools", "meta"]):
            report_position(f"{row_range.path}, rows {row} to {row + len(rows) - 1}")
            prepared = prepare_rows(
                chat, rows, reasoning, task["max_tokens"], compared if row == row_range.first_row else 0
            )
            shards.write_table(prepared.samples)
            rejected.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in prepared.rejected)
            for name, counter in prepared.counts.items():
                counts.setdefault(name, Counter()).update(counter)
            row += len(rows)
    if row_range.rows >= MIN_ROWS_TO_RELEASE:
        release_memory()
    facts = {
        "form": chat.form._asdict(),
        "stop_ids": list(chat.stop_ids),
        "cannot_render": chat.modes,
        "date": chat.settings.date,
        "stop_id": chat.stop_id,
        "pad_id": chat.tokenizer.control.get(chat.tokenizer.special.get("pad_token", ""), chat.stop_id),
    }
    return {"folder": folder.name, "rows": row - row_range.first_row, "counts": counts, "facts": facts}


def collect_results(results: list[dict[str, Any]], scratch: Path, folder: Path) -> dict[str, Counter[Any]]:
    """Move the files of all row ranges to one folder, in order; return the sum of their counts."""
    counts: dict[str, Counter[Any]] = {
        name: Counter() for name in ("rows", "rejected", "reasoning", "lengths", "kwargs")
    }
    with (folder / "rejected.jsonl").open("wb") as rejected:
        for result in results:
            counts["rows"]["in"] += result["rows"]
            for name, counter in result["counts"].items():
                counts[name].update(counter)
            for path in files_below(scratch / result["folder"]):  # glob would leave out what cannot be read
                if path.suffix == ".parquet":
                    path.rename(folder / path.name)
            rejected.write((scratch / result["folder"] / "rejected.jsonl").read_bytes())
    return counts


def quantiles(lengths: Mapping[int, int]) -> dict[str, int]:
    """Return quantiles of sample lengths, by the nearest rank; `lengths` maps a length in tokens to its count.

    >>> quantiles({1: 1, 2: 1, 3: 1})["p50"]
    2
    """
    total, reached, by_name = sum(lengths.values()), 0, dict[str, int]()
    for length in sorted(lengths):
        reached += lengths[length]
        for share in QUANTILES:
            if round(share * (total - 1)) < reached:
                by_name.setdefault(f"p{round(share * 100)}", length)
    return by_name


def top_reasons(ledger: Ledger, rejected: Path) -> str:
    """Return the most frequent reasons of rejected conversations, a line with an example for each."""
    examples: dict[str, str] = {}
    with rejected.open(encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            examples.setdefault(line["reason"], f"{line['id']}: {line['evidence']}")
            if len(examples) == len(ledger.rejected):
                break
    most = ledger.rejected.most_common(TOP_REASONS)
    return "\n".join(f"  {count:6} {reason}: {examples[reason]}" for reason, count in most)


def main(source: str) -> None:
    """Prepare one source."""
    from sft.params.read import load
    from sft.parquet import plan_row_ranges
    from sft.tokens.prepare import MIN_ROWS_FOR_FASTOKENS
    from sft.tokens.reasoning import MODES
    from sft.tokens.render import Settings
    from sft.tokens.row_kwargs import by_name

    params = load("prep")
    filtered, target = Path("data/filtered", source), Path("data/prepared", source)
    if not filtered.is_dir():
        raise InputError(f"{filtered}: not found. Run the filter stage first: dvc repro filter@{source}")
    if not BASE.is_dir():
        raise InputError(f"{BASE}: not found. Run the fetch stage first: dvc repro fetch-model")
    template = resolve_repo_file(params.template)
    ranges = plan_row_ranges(filtered, "kept")
    with publish_folder(target) as folder, scratch_folder(target) as scratch:
        fixed = {
            "template": str(template),
            "settings": Settings.of(params),
            "reasoning": params.reasoning.model_dump(),
            "max_tokens": params.max_tokens,
            "fast": sum(row_range.rows for row_range in ranges) >= MIN_ROWS_FOR_FASTOKENS,
            "scratch": str(scratch),
        }
        tasks = [{**fixed, "number": number, "row_range": row_range} for number, row_range in enumerate(ranges)]
        results = map_shards(prepare_range, tasks, f"prep {source}")
        counts = collect_results(results, scratch, folder)
        rows, lengths = counts["rows"], {int(length): number for length, number in counts["lengths"].items()}
        ledger = Ledger(rows["in"], rows["out"], counts["rejected"])
        check_handover(Path(f"reports/filter/{source}.json"), ledger.rows_in)
        ledger.check(f"prep {source}")
        reasons = top_reasons(ledger, folder / "rejected.jsonl")
        if too_many := not ledger.rows_out or ledger.rejected.total() > params.max_rejected * ledger.rows_in:
            for path in folder.glob("*.parquet"):
                path.unlink()
        text = read_template(template)
        (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    if too_many:
        Path(f"reports/prep/{source}.json").unlink(missing_ok=True)
        allowed = f"prep.max_rejected allows {params.max_rejected:.1%}" if ledger.rows_out else "none is left"
        raise InputError(
            f"{filtered}: {params.template} rejects {ledger.rejected.total() / ledger.rows_in:.1%} of "
            f"{ledger.rows_in} conversations, {allowed}. Most frequent:\n{reasons}\n"
            f"All are in {target}/rejected.jsonl. Choose another prep.template, or leave such rows out."
        )
    untrained: dict[str, Any] = {}
    if params.train_answers != "all":
        untrained |= {"train_answers": params.train_answers, "earlier_answers": rows["earlier_answers"]}
    if params.train_reasoning != "all":
        untrained |= {"train_reasoning": params.train_reasoning, "reasoning_tokens": rows["masked"]}
    tokens = sum(length * number for length, number in lengths.items())
    report = ledger.write(
        Path(f"reports/prep/{source}.json"),
        samples=sum(lengths.values()),
        tokens=tokens,
        trained_tokens=rows["trained"],
        untrained_turns=rows["untrained_turns"],
        reasoning={**{mode: counts["reasoning"][mode] for mode in MODES}, "tokens_removed": rows["reasoning_removed"]},
        **({"untrained": untrained} if untrained else {}),
        **({"template_kwargs": by_name(counts["kwargs"])} if counts["kwargs"] else {}),
        length_quantiles=quantiles(lengths),
        template=params.template,
        template_sha256=hashlib.sha256(text.encode()).hexdigest(),
        tokenizer_sha256=file_digest(BASE / "tokenizer.json"),
        **results[0]["facts"],
    )
    echo(
        f"[bold]{source}[/]: {report['rows_out']} conversations, {report['samples']} samples, "
        f"{report['tokens']:,} tokens, "
        f"{rows['trained'] / max(1, tokens):.1%} trained, median length {report['length_quantiles']['p50']}"
        f"{', rejected ' + str(report['rejected']) if report['rejected'] else ''}"
        f"{', untrained ' + str(untrained) if untrained else ''}"
    )
    if ledger.rejected:
        echo(escape(reasons))


if __name__ == "__main__":
    run_source_stage(main, __doc__, remote=True)
