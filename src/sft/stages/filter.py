"""filter: raw rows -> conversations that are fit to train on, and the refused ones with their reasons.

data/raw/<source>/, filters/, data/benchmarks/
    ->  data/filtered/<source>/kept-*.parquet        id, messages, tools, meta (JSON text)
        data/filtered/<source>/rejected-*.parquet    the same, reason, evidence
        data/filtered/<source>/signatures-*.parquet  id, signature: by which pack finds near-duplicates
        reports/filter/<source>.json                 the ledger

A row is brought into normal form, then asked in this order: its structure, loops, narrative, consistency, items
of evaluation sets, duplicates within the source, and last, where one is named, a language model. The first "no"
is its reason.
Rows in = rows kept + rows rejected by reason. Rows in are all rows found, or as many as `rows` of the source
or `filter.sample` say, drawn by hash. Above `filter.max_rejected` the stage stops and writes nothing.
"""

import contextlib
import heapq
import itertools
import json
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.command import InputError, run_source_stage, say
from sft.data.checks import ROWS_AT_ONCE, Checks, Kept, Outcome
from sft.data.contamination import CONTAMINATED
from sft.data.conversation import Conversation, Rejection
from sft.data.duplicates import NearDuplicates, check_near_duplicate
from sft.data.splits import keyed_hash
from sft.files import project_root, publish_folder, value_digest
from sft.ledger import Ledger, check_handover
from sft.params import Filter, load

if TYPE_CHECKING:
    from sft.data.formats import Row
    from sft.data.judge import Judge

BENCHMARKS = Path("data/benchmarks/items.jsonl")
TOP_REASONS = 5


def draw(rows: Iterable["Row"], number: int, seed: int) -> Iterator["Row"]:
    """Draw `number` rows by a keyed hash of their position, in their order; memory holds only those."""

    def key(item: tuple[int, "Row"]) -> str:
        return keyed_hash(seed, str(item[0]))

    for _, row in sorted(heapq.nsmallest(number, enumerate(rows), key=key), key=lambda item: item[0]):
        yield row


def load_benchmarks(declared: Iterable[str]) -> list[tuple[str, str, str]]:
    """Return (benchmark, item, text) of all that the evaluation sets of these names ask.

    Raises:  InputError: the fetch stage has not brought exactly these.
    """
    names = set(declared)
    if not names:
        return []
    found: list[dict[str, str]] = []
    if BENCHMARKS.exists():
        found = [json.loads(line) for line in BENCHMARKS.read_text(encoding="utf-8").splitlines()]
    if (there := {item["benchmark"] for item in found}) != names:
        raise InputError(
            f"{BENCHMARKS}: has {', '.join(sorted(there)) or 'no evaluation sets'}, but fetch.benchmarks names "
            f"{', '.join(sorted(names))}. Run the fetch stage first: dvc repro fetch-benchmarks"
        )
    return [(item["benchmark"], item["item"], item["text"]) for item in found]


class Duplicates:
    """What was kept of a source so far: a conversation that is equal or similar to it is refused."""

    def __init__(self, near: float | None) -> None:
        self._ids: set[str] = set()
        self._near = None if near is None else NearDuplicates(near)

    def check(self, kept: Kept) -> Rejection | None:
        """Return why the conversation is a duplicate, or remember it."""
        if kept.id in self._ids:
            return Rejection("duplicate", f"the same conversation came before: {kept.id}")
        if self._near is not None and (rejection := check_near_duplicate(self._near, kept.id, kept.signature)):
            return rejection
        self._ids.add(kept.id)
        return None


def examined(rows: Iterable["Row"], checks: Checks) -> Iterator[tuple["Row", Outcome]]:
    """Yield every row with what its own checks say."""
    for batch in itertools.batched(rows, ROWS_AT_ONCE):
        yield from zip(batch, checks.examine(batch), strict=True)


def settled(outcomes: Iterable[tuple["Row", Outcome]], duplicates: Duplicates) -> Iterator[tuple["Row", Outcome]]:
    """Yield every row with what the rows before it say as well."""
    for row, outcome in outcomes:
        yield row, (duplicates.check(outcome) if isinstance(outcome, Kept) else None) or outcome


def judged(
    outcomes: Iterable[tuple["Row", Outcome]], judge: "Judge", params: Filter
) -> Iterator[tuple["Row", Outcome]]:
    """Let the judge look at what was kept so far; everything stays in its order."""
    from sft.data.verdicts import rejection_of

    waiting = deque[tuple["Row", Outcome]]()

    def kept() -> Iterator[Conversation]:
        for row, outcome in outcomes:
            waiting.append((row, outcome))
            if isinstance(outcome, Kept):
                yield outcome.conversation

    for verdict in judge.verdicts(kept()):
        while isinstance(waiting[0][1], Rejection):
            yield waiting.popleft()
        row, outcome = waiting.popleft()
        yield row, rejection_of(verdict, params.judge) or outcome
    yield from waiting


def stored(row: "Row", outcome: Outcome, source: dict[str, str]) -> dict[str, str | None]:
    """Return the Parquet row of an outcome: what was kept, or what was refused, as it came, and why."""
    meta = {**source, "where": row.where}
    if isinstance(outcome, Kept):
        said = outcome.conversation
        tools = None if said.tools is None else _json(said.tools)
        return {"id": outcome.id, "messages": _json(said.messages), "tools": tools, "meta": _json(meta)}
    record = row.record if row.record is not None else {"raw": row.raw}
    given = record.get("tools")
    return {
        "id": value_digest(record)[:32],
        "messages": _json(record.get("messages", record)),
        "tools": None if given is None else _json(given),
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
    from sft.data.shards import CONVERSATIONS, REJECTED, SIGNATURES, ShardWriter

    params, fetch = load("filter", "fetch")
    if source not in fetch.sources:
        raise InputError(f"--source {source}: not in fetch.sources: {', '.join(fetch.sources)}")
    described = fetch.sources[source]
    meta = {"source": source, "domain": described.domain, "license": described.license}
    raw = Path("data/raw", source)
    if not raw.is_dir():
        raise InputError(f"{raw}: not found. Run the fetch stage first: dvc repro fetch@{source}")

    ledger, examples, found = Ledger(), dict[str, str](), 0
    checks = Checks(params, load_benchmarks(fetch.benchmarks))
    contaminated = dict.fromkeys(sorted(fetch.benchmarks), 0)
    typed = {"conversations": 0, "control_tokens": 0}

    def counted() -> Iterator["Row"]:
        nonlocal found
        for row in read_rows(raw, described.format, described.fields, described.where):
            found += 1
            yield row

    limits = [limit for limit in (described.rows, params.sample) if limit is not None]
    rows = draw(counted(), min(limits), params.seed) if limits else counted()
    outcomes = settled(examined(rows, checks), Duplicates(params.near_duplicates))
    more: dict[str, Any] = {"sampled": params.sample is not None}
    with publish_folder(Path("data/filtered", source)) as folder, contextlib.ExitStack() as stack:
        judge = None
        if params.judge.model is not None:
            from sft.data.judge import Judge

            judge = stack.enter_context(Judge.load(params.judge, project_root() / "runs" / "judge"))
            outcomes = judged(outcomes, judge, params)
        with (
            ShardWriter(folder, "kept", CONVERSATIONS) as kept,
            ShardWriter(folder, "rejected", REJECTED) as rejected,
            ShardWriter(folder, "signatures", SIGNATURES) as signatures,
        ):
            for row, outcome in outcomes:
                if isinstance(outcome, Kept):
                    ledger.accept()
                    typed["conversations"] += outcome.control_tokens > 0
                    typed["control_tokens"] += outcome.control_tokens
                    kept.write(stored(row, outcome, meta))
                    signatures.write({"id": outcome.id, "signature": outcome.signature})
                else:
                    ledger.reject(outcome.reason)
                    if outcome.reason == CONTAMINATED:
                        contaminated[outcome.evidence.partition(":")[0]] += 1
                    examples.setdefault(outcome.reason, f"{row.where}: {outcome.evidence}")
                    rejected.write(stored(row, outcome, meta))
        if Path(f"reports/fetch/{source}.json").exists():
            check_handover(Path(f"reports/fetch/{source}.json"), found)
        check_share(source, ledger, examples, params)
        if params.markup != "reject":
            more["markup"] = {"policy": params.markup, **typed}
        if contaminated:
            more["contaminated_by"] = contaminated
        if judge is not None:
            more["judge"] = judge.report()
            say(f"[bold]{source}[/], judge: {judge.usage}")
    ledger.write(Path(f"reports/filter/{source}.json"), **meta, rows_found=found, **more)
    reasons = ", ".join(f"{count} {reason}" for reason, count in ledger.rejected.most_common(TOP_REASONS))
    say(
        f"[bold]{source}[/]: {ledger.rows_in} rows, {ledger.rows_out} kept, {ledger.rows_in - ledger.rows_out} rejected"
        f"{' (' + reasons + ')' if reasons else ''}"
    )


if __name__ == "__main__":
    run_source_stage(main, __doc__)
