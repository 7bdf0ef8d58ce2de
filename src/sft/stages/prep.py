"""prep: conversations -> samples: token ids and the loss mask that belongs to them.

data/filtered/<source>/kept-*.parquet, models/base (tokenizer), the chat template
    ->  data/prepared/<source>/*.parquet       conversation_id, sample, ids, mask (1 = trained; not shifted),
                                               turn_ends (index behind the stop token of each trained turn)
        data/prepared/<source>/rejected.jsonl  conversations that cannot be rendered, with reason and evidence
        data/prepared/<source>/chat_template.jinja  the template they were rendered with
        reports/prep/<source>.json             the ledger, tokens, trained tokens, lengths, reasoning removed

The template is checked before a token is written (sft.tokens.render): a template without an exact mask stops
the stage. A share of the conversations loses its reasoning, or some of it (sft.tokens.reasoning).
"""

import functools
import gc
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft.cli import InputError, echo, run_source_stage
from sft.files import publish_folder, resolve_repo_file, scratch_folder
from sft.hashing import file_digest
from sft.ledger import Ledger, check_handover
from sft.workers import map_shards, relax_gc, report_position

BASE = Path("models/base")
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
# Conversations tokenised in one call.
CONVERSATIONS_PER_BATCH = 250
# Text that is compared with the reference tokenizer, in characters: of the first stretch, of each other.
COMPARED_FIRST, COMPARED = 1 << 14, 1 << 10
# After so many rows, memory is given back; after fewer, the next ones would take as much time to get it again.
FEWEST_TO_GIVE_BACK = 10_000
# From so many conversations on, the time to load and try the faster tokenizer is won back.
FEWEST_FOR_FASTOKENS = 500


@functools.cache
def load_chat(template: str, quick: bool) -> Any:
    """Return the ChatTemplate of this process; `quick`: with the faster tokenizer, where its ids are the same."""
    from sft.parquet import release_memory
    from sft.tokens.render import ChatTemplate

    relax_gc()
    chat = ChatTemplate.load(template, BASE, whole=False, quick=quick and os.environ.get("SFT_FASTOKENS") != "0")
    release_memory()  # what loading needed beside
    gc.freeze()  # vocabularies stay: no use to look through them again and again
    return chat


def prepare_stretch(task: dict[str, Any]) -> dict[str, Any]:
    """Prepare a stretch of filtered rows: what a worker does.

    Writes samples and rejected rows into a new folder in task["scratch"]; returns its name, and counts.
    """
    from sft.parquet import SAMPLES, ShardWriter, Stretch, read_stretch, release_memory
    from sft.tokens.prepare import prepare
    from sft.tokens.reasoning import Shares

    stretch, reasoning = Stretch(*task["stretch"]), Shares(**task["reasoning"])
    chat = load_chat(task["template"], task["quick"])
    compared = COMPARED
    if task["number"] == 0:  # once is enough
        chat.check_whole()
        release_memory()  # the tokenizer that it needed
        compared = COMPARED_FIRST
    folder, row = Path(tempfile.mkdtemp(dir=task["scratch"])), stretch.first_row
    counts: dict[str, Counter[Any]] = {}
    with (
        ShardWriter(folder, f"samples-{task['number']:05d}", SAMPLES) as shards,
        (folder / "rejected.jsonl").open("w", encoding="utf-8") as rejected,
    ):
        for rows in read_stretch(stretch, CONVERSATIONS_PER_BATCH, ["id", "messages", "tools"]):
            report_position(f"{stretch.path}, rows {row} to {row + len(rows) - 1}")
            done = prepare(chat, rows, reasoning, compared if row == stretch.first_row else 0)
            shards.write_table(done.samples)
            rejected.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in done.rejected)
            for name, counter in done.counts.items():
                counts.setdefault(name, Counter()).update(counter)
            row += len(rows)
    if stretch.rows >= FEWEST_TO_GIVE_BACK:
        release_memory()
    return {"folder": folder.name, "rows": row - stretch.first_row, "counts": counts}


def gather(results: list[dict[str, Any]], scratch: Path, folder: Path) -> dict[str, Counter[Any]]:
    """Move what the workers wrote into one folder, in order; return their counts, added up."""
    counts: dict[str, Counter[Any]] = {name: Counter() for name in ("rows", "rejected", "reasoning", "lengths")}
    with (folder / "rejected.jsonl").open("wb") as rejected:
        for result in results:
            counts["rows"]["in"] += result["rows"]
            for name, counter in result["counts"].items():
                counts[name].update(counter)
            for path in sorted((scratch / result["folder"]).glob("*.parquet")):
                path.rename(folder / path.name)
            rejected.write((scratch / result["folder"] / "rejected.jsonl").read_bytes())
    return counts


def quantiles(lengths: Mapping[int, int]) -> dict[str, int]:
    """Return quantiles of sample lengths in tokens, by the nearest rank; `lengths` says how many have each.

    >>> quantiles({1: 1, 2: 1, 3: 1})["p50"]
    2
    """
    total, reached, found = sum(lengths.values()), 0, dict[str, int]()
    for length in sorted(lengths):
        reached += lengths[length]
        for share in QUANTILES:
            if round(share * (total - 1)) < reached:
                found.setdefault(f"p{round(share * 100)}", length)
    return found


def main(source: str) -> None:
    """Prepare one source."""
    from sft.params.read import load
    from sft.parquet import plan_row_ranges
    from sft.tokens.reasoning import ReasoningCounts
    from sft.tokens.tokenizer import token_id

    params = load("prep")
    filtered, target = Path("data/filtered", source), Path("data/prepared", source)
    if not filtered.is_dir():
        raise InputError(f"{filtered}: not found. Run the filter stage first: dvc repro filter@{source}")
    if not BASE.is_dir():
        raise InputError(f"{BASE}: not found. Run the fetch stage first: dvc repro fetch-model")
    template = resolve_repo_file(params.template)
    stretches = plan_row_ranges(filtered, "kept")
    quick = sum(stretch.rows for stretch in stretches) >= FEWEST_FOR_FASTOKENS
    with publish_folder(target) as folder, scratch_folder(target) as scratch:
        what = {
            "template": str(template),
            "reasoning": params.reasoning.model_dump(),
            "quick": quick,
            "scratch": str(scratch),
        }
        tasks = [{**what, "number": number, "stretch": stretch} for number, stretch in enumerate(stretches)]
        counts = gather(map_shards(prepare_stretch, tasks, f"prep {source}"), scratch, folder)
        rows, lengths = counts["rows"], {int(length): number for length, number in counts["lengths"].items()}
        ledger = Ledger(rows["in"], rows["out"], counts["rejected"])
        check_handover(Path(f"reports/filter/{source}.json"), ledger.rows_in)
        if not ledger.rows_out:
            raise InputError(
                f"{filtered}: no conversation of {ledger.rows_in} can be rendered with {params.template}: "
                f"{dict(ledger.rejected)}. Choose another prep.template."
            )
        ledger.check(f"prep {source}")
        text = template.read_text(encoding="utf-8")
        (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    tokens = sum(length * number for length, number in lengths.items())
    report = ledger.write(
        Path(f"reports/prep/{source}.json"),
        samples=sum(lengths.values()),
        tokens=tokens,
        trained_tokens=rows["trained"],
        untrained_turns=rows["untrained_turns"],
        reasoning=ReasoningCounts(counts["reasoning"], rows["reasoning_removed"]).report(),
        length_quantiles=quantiles(lengths),
        template=params.template,
        template_sha256=hashlib.sha256(text.encode()).hexdigest(),
        tokenizer_sha256=file_digest(BASE / "tokenizer.json"),
        stop_id=(stop_id := token_id(BASE, "eos_token")),
        pad_id=token_id(BASE, "pad_token", default=stop_id),
    )
    echo(
        f"[bold]{source}[/]: {report['rows_out']} conversations, {report['samples']} samples, "
        f"{report['tokens']:,} tokens, "
        f"{rows['trained'] / max(1, tokens):.1%} trained, median length {report['length_quantiles']['p50']}"
        f"{', rejected ' + str(report['rejected']) if report['rejected'] else ''}"
    )


if __name__ == "__main__":
    run_source_stage(main, __doc__, remote=True)
