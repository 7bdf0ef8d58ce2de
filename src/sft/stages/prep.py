"""prep: conversations -> samples: token ids and the loss mask that belongs to them.

data/filtered/<source>/kept-*.parquet, models/base (tokenizer), the chat template
    ->  data/prepared/<source>/*.parquet       conversation_id, sample, ids, mask (1 = trained; not shifted),
                                               turn_ends (index behind the stop token of each trained turn)
        data/prepared/<source>/rejected.jsonl  conversations that cannot be rendered, with reason and evidence
        data/prepared/<source>/chat_template.jinja  the template they were rendered with
        reports/prep/<source>.json             the ledger, tokens, trained tokens, lengths, reasoning removed

The template is checked before a token is written (sft.data.chat): a template without an exact mask stops
the stage. A share of the conversations loses its reasoning, or some of it (sft.data.reasoning).
"""

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sft.command import InputError, run_source_stage, say
from sft.files import file_digest, publish_folder, shipped
from sft.ledger import Ledger, check_handover
from sft.params import Reasoning, load

BASE = Path("models/base")
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
# Conversations rendered under one limit of memory, and tokenised in one call.
CONVERSATIONS_PER_BATCH = 64


class Prepared(NamedTuple):
    """What became of one filtered row."""

    conversation: str
    """Its id."""
    outcome: Any
    """Its samples (sft.data.tokenizer.Sample), or the Rejection."""
    controlled: Any
    """Its messages as trained (sft.data.reasoning.Controlled)."""


def prepare(chat: Any, rows: list[dict[str, Any]], reasoning: Reasoning) -> Iterator[Prepared]:
    """Prepare filtered rows, in order; `chat` is a ChatTemplate."""
    from sft.data.conversation import Rejection
    from sft.data.reasoning import control

    controlled = [control(row["id"], json.loads(row["messages"]), reasoning, chat.tokenizer.ranges) for row in rows]
    tools = [json.loads(row["tools"]) if row["tools"] else None for row in rows]
    rendered = chat.samples_of_batch(
        [(each.messages, these, each.budget) for each, these in zip(controlled, tools, strict=True)]
    )
    encoded = iter(chat.encode([text for texts in rendered if not isinstance(texts, Rejection) for text in texts]))
    for row, outcome, each in zip(rows, rendered, controlled, strict=True):
        if not isinstance(outcome, Rejection):
            samples = [next(encoded) for _ in outcome]
            outcome = next((sample for sample in samples if isinstance(sample, Rejection)), samples)
        yield Prepared(row["id"], outcome, each)


def quantiles(lengths: list[int]) -> dict[str, int]:
    """Return quantiles of sample lengths in tokens, by the nearest rank.

    >>> quantiles([1, 2, 3])["p50"]
    2
    """
    ordered = sorted(lengths)
    return {f"p{round(q * 100)}": ordered[round(q * (len(ordered) - 1))] for q in QUANTILES} if ordered else {}


def main(source: str) -> None:
    """Prepare one source."""
    from sft.data.chat import ChatTemplate
    from sft.data.conversation import Rejection
    from sft.data.reasoning import ReasoningCounts
    from sft.data.shards import SAMPLES, ShardWriter, read_rows

    params = load("prep")
    filtered = Path("data/filtered", source)
    if not filtered.is_dir():
        raise InputError(f"{filtered}: not found. Run the filter stage first: dvc repro filter@{source}")
    if not BASE.is_dir():
        raise InputError(f"{BASE}: not found. Run the fetch stage first: dvc repro fetch-model")
    chat = ChatTemplate.load(str(shipped(params.template)), BASE)

    ledger, lengths, trained, silent = Ledger(), list[int](), 0, 0
    reasoning = ReasoningCounts()
    with publish_folder(Path("data/prepared", source)) as folder:
        (folder / "chat_template.jinja").write_text(chat.source, encoding="utf-8")
        with (
            ShardWriter(folder, "samples", SAMPLES) as shards,
            (folder / "rejected.jsonl").open("w", encoding="utf-8") as rejected,
        ):
            for rows in itertools.batched(read_rows(filtered, "kept"), CONVERSATIONS_PER_BATCH):
                for conversation, outcome, controlled in prepare(chat, list(rows), params.reasoning):
                    if isinstance(outcome, Rejection):
                        ledger.reject(outcome.reason)
                        line = {"id": conversation, "reason": outcome.reason, "evidence": outcome.evidence}
                        rejected.write(json.dumps(line, ensure_ascii=False) + "\n")
                        continue
                    ledger.accept()
                    reasoning.add(controlled)
                    silent += sum(message.get("loss") is False for message in controlled.messages)
                    for number, sample in enumerate(outcome):
                        lengths.append(len(sample.ids))
                        trained += sum(sample.mask)
                        shards.write({"conversation_id": conversation, "sample": number, **sample._asdict()})
        check_handover(Path(f"reports/filter/{source}.json"), ledger.rows_in)
        if not ledger.rows_out:
            raise InputError(
                f"{filtered}: no conversation of {ledger.rows_in} can be rendered with {params.template}: "
                f"{dict(ledger.rejected)}. Choose another prep.template."
            )
    report = ledger.write(
        Path(f"reports/prep/{source}.json"),
        samples=len(lengths),
        tokens=sum(lengths),
        trained_tokens=trained,
        untrained_turns=silent,
        reasoning=reasoning.report(),
        length_quantiles=quantiles(lengths),
        template=params.template,
        template_sha256=hashlib.sha256(chat.source.encode()).hexdigest(),
        tokenizer_sha256=file_digest(BASE / "tokenizer.json"),
    )
    say(
        f"[bold]{source}[/]: {report['rows_out']} conversations, {report['samples']} samples, "
        f"{report['tokens']:,} tokens, "
        f"{trained / max(1, sum(lengths)):.1%} trained, median length {report['length_quantiles']['p50']}"
        f"{', rejected ' + str(report['rejected']) if report['rejected'] else ''}"
    )


if __name__ == "__main__":
    run_source_stage(main, __doc__)
