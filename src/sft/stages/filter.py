"""filter: raw rows -> conversations that are fit to train on, and the refused ones with their reasons.

data/raw/<source>/  ->  data/filtered/<source>/kept-*.parquet      id, messages, tools, meta (JSON text)
                        data/filtered/<source>/rejected-*.parquet  the same, reason, evidence
                        reports/filter/<source>.json               the ledger

Rows are brought into normal form and checked (sft.data.conversation). Rows in = rows kept + rows rejected
by reason. Rows in are all rows found, or as many as `rows` of the source or `filter.sample` say, drawn by
hash. Above `filter.max_rejected` the stage stops and writes nothing.
"""

import heapq
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.command import InputError, run_source_stage, say
from sft.data.conversation import Conversation, Rejection, check_structure, normalise
from sft.data.splits import keyed_hash
from sft.files import publish_folder, value_digest
from sft.ledger import Ledger, check_handover
from sft.params import Filter, load

if TYPE_CHECKING:
    from sft.data.formats import Row

TOP_REASONS = 5


def draw(rows: Iterable["Row"], number: int, seed: int) -> Iterator["Row"]:
    """Draw `number` rows by a keyed hash of their position, in their order; memory holds only those."""

    def key(item: tuple[int, "Row"]) -> str:
        return keyed_hash(seed, str(item[0]))

    for _, row in sorted(heapq.nsmallest(number, enumerate(rows), key=key), key=lambda item: item[0]):
        yield row


def judge(row: "Row", seen: set[str], max_chars: int) -> Conversation | Rejection:
    """Turn a raw row into a conversation that is kept, or say why it is refused."""
    if row.record is None:
        return Rejection("malformed-row", row.fault)
    meta = row.record.get("meta") or {}
    if refuse := meta.get("refuse"):
        return Rejection(refuse, _json(meta))
    conversation = normalise(row.record)
    if isinstance(conversation, Rejection):
        return conversation
    if rejection := check_structure(conversation, max_chars):
        return rejection
    if conversation.id in seen:
        return Rejection("duplicate", "the same conversation came before")
    seen.add(conversation.id)
    return conversation


def stored(row: "Row", outcome: Conversation | Rejection, source: dict[str, str]) -> dict[str, str | None]:
    """Return the Parquet row of an outcome: what was kept, or what was refused, as it came, and why."""
    meta = {**source, "where": row.where}
    if isinstance(outcome, Conversation):
        tools = None if outcome.tools is None else _json(outcome.tools)
        return {"id": outcome.id, "messages": _json(outcome.messages), "tools": tools, "meta": _json(meta)}
    record = row.record if row.record is not None else {"raw": row.raw}
    messages, tools = record.get("messages", record), record.get("tools")
    return {
        "id": value_digest(record)[:32],
        "messages": _json(messages),
        "tools": None if tools is None else _json(tools),
        "meta": _json(meta),
        "reason": outcome.reason,
        "evidence": _valid(f"{row.where}: {outcome.evidence}"),
    }


def _json(value: Any) -> str:
    return _valid(json.dumps(value, ensure_ascii=False))


def _valid(text: str) -> str:
    """Text that UTF-8 can hold: lone surrogates of refused rows are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def check_share(source: str, ledger: Ledger, examples: dict[str, str], params: Filter) -> None:
    """Stop where nothing is left, or where more is refused than `filter.max_rejected` allows."""
    if ledger.rows_in == 0:
        raise InputError(f"data/raw/{source}: no rows. Is the uri of fetch.sources.{source} right?")
    share = sum(ledger.rejected.values()) / ledger.rows_in
    if ledger.rows_out and share <= params.max_rejected:
        return
    reasons = "\n".join(
        f"  {count:6} {reason}: {examples[reason]}" for reason, count in ledger.rejected.most_common(TOP_REASONS)
    )
    what = "all rows are" if ledger.rows_out == 0 else f"{share:.1%} of the rows are"
    raise InputError(
        f"data/raw/{source}: {what} refused, filter.max_rejected allows {params.max_rejected:.1%}. Most frequent:\n"
        f"{reasons}\nMend the data, or raise filter.max_rejected if this is as it should be."
    )


def main(source: str) -> None:
    """Filter one source."""
    from sft.data.formats import read_rows
    from sft.data.shards import CONVERSATIONS, REJECTED, ShardWriter

    params, fetch = load("filter", "fetch")
    if source not in fetch.sources:
        raise InputError(f"--source {source}: not in fetch.sources: {', '.join(fetch.sources)}")
    described = fetch.sources[source]
    meta = {"source": source, "domain": described.domain, "license": described.license}
    raw = Path("data/raw", source)
    if not raw.is_dir():
        raise InputError(f"{raw}: not found. Run the fetch stage first: dvc repro fetch@{source}")

    ledger, examples, seen = Ledger(), dict[str, str](), set[str]()
    found = 0

    def counted() -> Iterator["Row"]:
        nonlocal found
        for row in read_rows(raw, described.format):
            found += 1
            yield row

    limits = [limit for limit in (described.rows, params.sample) if limit is not None]
    rows = draw(counted(), min(limits), params.seed) if limits else counted()
    with publish_folder(Path("data/filtered", source)) as folder:
        with (
            ShardWriter(folder, "kept", CONVERSATIONS) as kept,
            ShardWriter(folder, "rejected", REJECTED) as rejected,
        ):
            for row in rows:
                outcome = judge(row, seen, params.max_chars)
                if isinstance(outcome, Conversation):
                    ledger.accept()
                    kept.write(stored(row, outcome, meta))
                else:
                    ledger.reject(outcome.reason)
                    examples.setdefault(outcome.reason, f"{row.where}: {outcome.evidence}")
                    rejected.write(stored(row, outcome, meta))
        if Path(f"reports/fetch/{source}.json").exists():
            check_handover(Path(f"reports/fetch/{source}.json"), found)
        check_share(source, ledger, examples, params)
    ledger.write(Path(f"reports/filter/{source}.json"), **meta, rows_found=found, sampled=params.sample is not None)
    reasons = ", ".join(f"{count} {reason}" for reason, count in ledger.rejected.most_common(TOP_REASONS))
    say(
        f"[bold]{source}[/]: {ledger.rows_in} rows, {ledger.rows_out} kept, {ledger.rows_in - ledger.rows_out} rejected"
        f"{' (' + reasons + ')' if reasons else ''}"
    )


if __name__ == "__main__":
    run_source_stage(main, __doc__)
