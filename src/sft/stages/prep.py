"""prep: conversations -> samples: token ids and the loss mask that belongs to them.

data/filtered/<source>/kept-*.parquet, models/base (tokenizer), the chat template
    ->  data/prepared/<source>/*.parquet       conversation_id, sample, ids, mask (1 = trained; not shifted)
        data/prepared/<source>/rejected.jsonl  conversations that cannot be rendered, with reason and evidence
        data/prepared/<source>/chat_template.jinja  the template they were rendered with
        reports/prep/<source>.json             the ledger, tokens, trained tokens, lengths

The template is checked before a token is written (sft.data.chat): a template without an exact mask stops
the stage.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft.command import InputError, run_source_stage, say
from sft.files import file_digest, publish_folder
from sft.ledger import Ledger, check_handover
from sft.params import load

BASE = Path("models/base")
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


def prepare(chat: Any, batch: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield (conversation id, its samples or the rejection) for a batch of filtered rows, in order."""
    from sft.data.conversation import Rejection

    rendered = [
        chat.samples(json.loads(row["messages"]), json.loads(row["tools"]) if row["tools"] else None) for row in batch
    ]
    texts = [text for texts in rendered if not isinstance(texts, Rejection) for text in texts]
    encoded = iter(chat.encode(texts))
    for row, outcome in zip(batch, rendered, strict=True):
        if not isinstance(outcome, Rejection):
            samples = [next(encoded) for _ in outcome]
            outcome = next((sample for sample in samples if isinstance(sample, Rejection)), samples)
        yield row["id"], outcome


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
    from sft.data.shards import SAMPLES, ShardWriter, read_batches

    params = load("prep")
    filtered = Path("data/filtered", source)
    if not filtered.is_dir():
        raise InputError(f"{filtered}: not found. Run the filter stage first: dvc repro filter@{source}")
    if not BASE.is_dir():
        raise InputError(f"{BASE}: not found. Run the fetch stage first: dvc repro fetch-model")
    chat = ChatTemplate.load(params.template, BASE)

    ledger, lengths, trained = Ledger(), list[int](), 0
    with publish_folder(Path("data/prepared", source)) as folder:
        (folder / "chat_template.jinja").write_text(chat.source, encoding="utf-8")
        with (
            ShardWriter(folder, "samples", SAMPLES) as shards,
            (folder / "rejected.jsonl").open("w", encoding="utf-8") as rejected,
        ):
            for batch in read_batches(filtered, "kept"):
                for conversation, outcome in prepare(chat, batch):
                    if isinstance(outcome, Rejection):
                        ledger.reject(outcome.reason)
                        line = {"id": conversation, "reason": outcome.reason, "evidence": outcome.evidence}
                        rejected.write(json.dumps(line, ensure_ascii=False) + "\n")
                        continue
                    ledger.accept()
                    for number, sample in enumerate(outcome):
                        lengths.append(len(sample.ids))
                        trained += sum(sample.mask)
                        shards.write(
                            {
                                "conversation_id": conversation,
                                "sample": number,
                                "ids": sample.ids,
                                "mask": sample.mask,
                            }
                        )
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
