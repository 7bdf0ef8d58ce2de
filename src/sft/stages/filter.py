"""filter: raw rows -> conversations that are fit to train on, and the refused ones with their reasons.

data/raw/<source>/, filters/, data/benchmarks/
    ->  data/filtered/<source>/kept-*.parquet        id, messages, tools, meta (JSON text)
        data/filtered/<source>/rejected-*.parquet    the same, reason, evidence
        data/filtered/<source>/signatures-*.parquet  id, signature: by which pack finds near-duplicates
        reports/filter/<source>.json                 the ledger

A row is brought into normal form, then asked in this order: its structure, loops, narrative, consistency, items
of evaluation sets (sft.filters.pipeline: by workers, part by part of the files), duplicates within the source, and last,
where one is named, a language model (sft.filters.examined). The first "no" is its reason.
Rows in = rows kept + rows rejected by reason. Rows in are all rows found, or as many as `rows` of the source
or `filter.sample` say, drawn by hash. Above `filter.max_rejected` the stage stops and writes nothing.
"""

import contextlib
import functools
import heapq
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from sft.cli import InputError, run_source_stage, say
from sft.files import file_digest, project_root, publish_folder, scratch_folder, shipped, value_digest
from sft.filters.examined import Examined, Result, refuse_by_judge, settle, valid_text
from sft.filters.pipeline import ROWS_AT_ONCE, Checks, Kept, Outcome
from sft.formats.chat_forms import PACKAGES, Fit, check_asked, read_as, read_rows
from sft.formats.raw_files import Part, Row, cut, read_part
from sft.ledger import Ledger, check_handover
from sft.packing.splits import keyed_hash
from sft.params.schema import Filter, Source, load
from sft.workers import collect_rarely, map_shards, working_on

RAW, FILTERED = Path("data/raw"), Path("data/filtered")
BENCHMARKS = Path("data/benchmarks/items.jsonl")
TOP_REASONS = 5


# --- What a worker does: rows by themselves ----------------------------------------------------------------


def load_benchmarks(names: set[str]) -> list[tuple[str, str, str]]:
    """Return (benchmark, item, text) of all that the evaluation sets of these names ask.

    Raises:  InputError: the fetch stage has not brought exactly these.
    """
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


@functools.lru_cache(maxsize=1)
def load_checks(params: str, benchmarks: tuple[str, ...], read: str) -> Checks:
    """Return the checks of this process: `params` is filter of params.yaml, as JSON, `read` a digest of their files."""
    collect_rarely()
    return Checks(Filter.model_validate_json(params), load_benchmarks(set(benchmarks)))


def examine_part(task: dict[str, Any]) -> dict[str, Any]:
    """Examine a part of the raw files. Writes examined rows into a new folder in task["scratch"]; returns its name."""
    raw, part = Path(task["raw"]), Part(*task["part"])
    fit = Fit(unseen=set(task["where"]))
    rows = read_as(read_part(raw, part), task["format"], task["fields"], task["where"], fit)
    folder, number = write_examined(rows, task)
    found = {"fitting": fit.fitting, "filtered": fit.filtered, "unseen": sorted(fit.unseen)}
    return {"folder": folder, "rows": number, "fit": {**found, "strangers": fit.strangers}}


def write_examined(rows: Iterable[Row], task: dict[str, Any]) -> tuple[str, int]:
    """Write each row with what its own checks say into a new folder; return its name and the number of rows."""
    from sft.parquet import EXAMINED, ShardWriter

    checks = load_checks(task["params"], tuple(task["benchmarks"]), task["read"])
    folder, number = Path(tempfile.mkdtemp(dir=task["scratch"])), 0
    with ShardWriter(folder, "examined", EXAMINED) as shards:
        for batch in itertools.batched(rows, ROWS_AT_ONCE):
            working_on(f"{task['raw']}: {batch[0].where} to {batch[-1].where}")
            for row, outcome in zip(batch, checks.examine(batch), strict=True):
                shards.write(stored(row, outcome, task["meta"]))
            number += len(batch)
    return folder.name, number


def stored(row: Row, outcome: Outcome, source: dict[str, str]) -> dict[str, Any]:
    """Return the Parquet row of an outcome: what is kept so far, or what is refused, as it came, and why."""
    meta = _json({**source, "where": row.where})
    if isinstance(outcome, Kept):
        said: dict[str, Any] = {"messages": outcome.conversation.messages, "tools": outcome.conversation.tools}
        told = {"id": outcome.id, "signature": outcome.signature, "control_tokens": outcome.control_tokens}
    else:
        said = row.record if row.record is not None else {"raw": row.raw}
        evidence = valid_text(f"{row.where}: {outcome.evidence}")
        told = {"id": value_digest(said)[:32], "reason": outcome.reason, "evidence": evidence}
    tools = None if said.get("tools") is None else _json(said["tools"])
    return {**told, "messages": _json(said.get("messages", said)), "tools": tools, "meta": meta, "where": row.where}


def _json(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # lone surrogates of refused rows, and numbers of more than 64 bits
        return valid_text(json.dumps(value, ensure_ascii=False))


# --- What the stage does: rows beside each other -----------------------------------------------------------


def draw(rows: Iterable[Row], number: int, seed: int) -> Iterator[Row]:
    """Draw `number` rows by a keyed hash of their position, in their order; memory holds only those."""

    def key(item: tuple[int, Row]) -> str:
        return keyed_hash(seed, str(item[0]))

    for _, row in sorted(heapq.nsmallest(number, enumerate(rows), key=key), key=lambda item: item[0]):
        yield row


def examine(source: str, described: Source, params: Filter, task: dict[str, Any], take: Callable[[str], None]) -> int:
    """Examine the rows of a source; return how many were found. `take` gets the folders with them, in order."""
    raw = Path(task["raw"])
    limits = [limit for limit in (described.rows, params.sample) if limit is not None]
    if limits or described.format in PACKAGES:
        found = 0

        def counted() -> Iterator[Row]:
            nonlocal found
            for row in read_rows(raw, described.format, described.fields, described.where):
                found += 1
                yield row

        folder, _ = write_examined(draw(counted(), min(limits), params.seed) if limits else counted(), task)
        take(folder)
        return found
    check_asked(described.format, described.fields, described.where)
    parts = [{**task, "part": part} for part in cut(raw)]
    results = map_shards(examine_part, parts, f"filter {source}", lambda result: take(result["folder"]))
    fit = Fit(unseen=set(described.where))
    for result in results:
        told = result["fit"]
        strangers = [(where, record) for where, record in told["strangers"]]
        fit.add(Fit(told["fitting"], told["filtered"], set(told["unseen"]), strangers))
    fit.check(described.format, described.fields)
    return sum(result["rows"] for result in results)


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
    params, fetch = load("filter", "fetch")
    if source not in fetch.sources:
        raise InputError(f"--source {source}: not in fetch.sources: {', '.join(fetch.sources)}")
    described, raw, target = fetch.sources[source], RAW / source, FILTERED / source
    if not raw.is_dir():
        raise InputError(f"{raw}: not found. Run the fetch stage first: dvc repro fetch@{source}")
    meta = {"source": source, "domain": described.domain, "license": described.license}
    task = {
        "raw": str(raw),
        "format": described.format,
        "fields": described.fields,
        "where": described.where,
        "meta": meta,
        "params": params.model_dump_json(),
        "benchmarks": sorted(fetch.benchmarks) if params.contamination is not None else [],
    }
    read = [BENCHMARKS] if task["benchmarks"] else []
    read += [shipped(params.narrative)] if params.narrative is not None else []
    task["read"] = value_digest([file_digest(path) for path in read if path.exists()])  # a worker may outlive an edit
    more: dict[str, Any] = {"sampled": params.sample is not None}
    with publish_folder(target) as folder, scratch_folder(target) as scratch, contextlib.ExitStack() as stack:
        task["scratch"] = str(scratch)
        judge = None
        if params.judge.model is not None:
            from sft.filters.judge.judge import Judge

            judge = stack.enter_context(Judge.load(params.judge, project_root() / "runs" / "judge"))
        examined = Examined(scratch, params.near_duplicates)
        found = examine(source, described, params, task, lambda name: examined.add(scratch / name))
        examined.refuse_repeats()
        if judge is not None:
            for path, _ in examined.files:
                refuse_by_judge(path, judge, params.judge)
        result = Result(folder)
        parts = [{"scratch": str(scratch), "examined": part} for part in examined.cut()]
        map_shards(settle, parts, f"write {source}", result.take)
        ledger = result.ledger
        if Path(f"reports/fetch/{source}.json").exists():
            check_handover(Path(f"reports/fetch/{source}.json"), found)
        check_share(source, ledger, result.examples, params)
        if params.markup != "reject":
            names = ("conversations", "control_tokens")
            more["markup"] = {"policy": params.markup, **{name: result.typed[name] for name in names}}
        if result.contaminated_by:
            more["contaminated_by"] = dict.fromkeys(task["benchmarks"], 0) | result.contaminated_by
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
