"""filter: raw rows -> conversations that are fit to train on, and the refused ones with their reasons.

data/raw/<source>/, filters/, data/benchmarks/
    ->  data/filtered/<source>/kept-*.parquet        id, messages, tools, meta (JSON text)
        data/filtered/<source>/rejected-*.parquet    the same, reason, evidence
        data/filtered/<source>/signatures-*.parquet  id, signature: by which pack finds near-duplicates
        reports/filter/<source>.json                 the ledger

A row is brought into normal form, then asked in this order: its structure, loops, narrative, consistency, items
of evaluation sets (sft.filters.pipeline: by workers, part by part of the files), duplicates in the source, and last,
where one is named, a language model (sft.filters.examined). The first "no" is its reason.
Rows in = rows kept + rows rejected by reason. Rows in are all rows found, or as many as `rows` of the source
or `filter.sample` say, drawn by hash. Above `filter.max_rejected` the stage stops and writes nothing.
"""

import contextlib
import dataclasses
import functools
import heapq
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from sft.cli import InputError, echo, run_source_stage
from sft.files import project_root, publish_folder, resolve_repo_file, scratch_folder
from sft.filters.examined import Examined, Result, refuse_by_judge, valid_text, write_final_shards
from sft.filters.pipeline import ROWS_AT_ONCE, Checks, Kept, Outcome
from sft.formats.chat_forms import PACKAGES, FieldCounts, check_read, convert_chats, read_rows
from sft.formats.raw_files import KINDS, Part, Row, plan_parts, read_part
from sft.hashing import file_digest, keyed_hash, value_digest
from sft.ledger import Ledger, read_report
from sft.params.data import Filter, Read
from sft.params.read import load, load_source
from sft.workers import map_shards, relax_gc, report_position

RAW, FILTERED = Path("data/raw"), Path("data/filtered")
BENCHMARKS = Path("data/benchmarks/items.jsonl")
TOP_REASONS = 5


# --- What a worker does: rows by themselves ----------------------------------------------------------------


def load_benchmarks() -> list[tuple[str, str, str]]:
    """Return (benchmark, item, text) of everything that the evaluation sets ask.

    Raises:  InputError: the fetch stage has not run.
    """
    if not BENCHMARKS.exists():
        raise InputError(f"{BENCHMARKS}: not found. Run the fetch stage first: dvc repro fetch-benchmarks")
    items = [json.loads(line) for line in BENCHMARKS.read_text(encoding="utf-8").splitlines()]
    return [(item["benchmark"], item["item"], item["text"]) for item in items]


@functools.lru_cache(maxsize=1)
def load_checks(params: str, read: str) -> Checks:
    """Return the checks of this process: `params` is filter of params.yaml, as JSON, `read` a digest of their files."""
    relax_gc()
    filters = Filter.model_validate_json(params)
    return Checks(filters, load_benchmarks() if filters.contamination is not None else [])


def examine_part(task: dict[str, Any]) -> dict[str, Any]:
    """Examine a part of the raw files. Writes examined rows into a new folder in task["scratch"]; returns its name."""
    raw, part = Path(task["raw"]), Part(*task["part"])
    counts = FieldCounts(unseen_select=set(task["select"]))
    rows = convert_chats(whole(read_part(raw, part), raw), task["format"], task["fields"], task["select"], counts)
    folder, number = write_examined(rows, task)
    fields = {**dataclasses.asdict(counts), "unseen_select": sorted(counts.unseen_select)}
    return {"folder": folder, "rows": number, "fields": fields}


def write_examined(rows: Iterable[Row], task: dict[str, Any]) -> tuple[str, int]:
    """Write each row with what its own checks say into a new folder; return its name and the number of rows."""
    from sft.parquet import EXAMINED, ShardWriter

    checks = load_checks(task["params"], task["read"])
    folder, number = Path(tempfile.mkdtemp(dir=task["scratch"])), 0
    with ShardWriter(folder, "examined", EXAMINED) as shards:
        for batch in itertools.batched(rows, ROWS_AT_ONCE):
            report_position(f"{task['raw']}: {batch[0].location} to {batch[-1].location}")
            for row, outcome in zip(batch, checks.examine(batch), strict=True):
                shards.write(stored(row, outcome, task["meta"]))
            number += len(batch)
    return folder.name, number


def stored(row: Row, outcome: Outcome, source: dict[str, str]) -> dict[str, Any]:
    """Return the Parquet row of an outcome: what is kept so far, or what is refused, as it came, and why."""
    meta = _json({**source, "location": row.location})
    if isinstance(outcome, Kept):
        said: dict[str, Any] = {"messages": outcome.conversation.messages, "tools": outcome.conversation.tools}
        told = {"id": outcome.id, "signature": outcome.signature, "control_tokens": outcome.control_tokens}
    else:
        said = row.record if row.record is not None else {"raw": row.raw}
        evidence = valid_text(f"{row.location}: {outcome.evidence}")
        told = {"id": value_digest(said)[:32], "reason": outcome.reason, "evidence": evidence}
    tools = None if said.get("tools") is None else _json(said["tools"])
    return {**told, "messages": _json(said.get("messages", said)), "tools": tools, "meta": meta, "where": row.location}


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


def examine(source: str, described: Read, params: Filter, task: dict[str, Any], take: Callable[[str], None]) -> int:
    """Examine the rows of a source; return how many were found. `take` gets the folders with them, in order."""
    raw = Path(task["raw"])
    limits = [limit for limit in (described.max_rows, params.max_rows) if limit is not None]
    if limits or described.format in PACKAGES:
        found = 0

        def counted() -> Iterator[Row]:
            nonlocal found
            for row in whole(read_rows(raw, described.format, described.fields, described.select), raw):
                found += 1
                yield row

        folder, _ = write_examined(draw(counted(), min(limits), params.seed) if limits else counted(), task)
        take(folder)
        return found
    check_read(described.format, described.fields, described.select)
    parts = [{**task, "part": part} for part in plan_parts(raw)]
    results = map_shards(examine_part, parts, f"filter {source}", lambda result: take(result["folder"]))
    counts = FieldCounts(unseen_select=set(described.select))
    for result in results:
        fields = result["fields"]
        counts.add(FieldCounts(**{**fields, "unseen_select": set(fields["unseen_select"])}))
    counts.check(described.format, described.fields)
    return sum(result["rows"] for result in results)


def check_files(raw: Path, report: Path) -> None:
    """Raise InputError unless a folder has the files that the fetch stage reports, where it left a report."""
    if not report.exists():
        return
    expected = {file["path"]: file["bytes"] for file in read_report(report, files=list)["files"]}
    found = {path.relative_to(raw).as_posix(): path.stat().st_size for path in raw.rglob("*") if path.is_file()}
    if changed := sorted(dict(expected.items() ^ found.items())):
        raise InputError(
            f"{raw / changed[0]}: {found.get(changed[0], 'no such file')} bytes, but {report} says "
            f"{expected.get(changed[0], 'nothing of it')}. The data was changed between stages: "
            f"dvc repro --force fetch@{raw.name}"
        )


def whole(rows: Iterable[Row], raw: Path) -> Iterator[Row]:
    """Yield rows. Raises InputError: a file cannot be read to its end, so nobody can count what is lost."""
    for row in rows:
        if row.is_end:
            raise InputError(
                f"{raw / row.location}: {row.fault}. How many rows are lost cannot be counted: download it again, "
                "or leave it out of the uri."
            )
        yield row


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
    params, described = load("filter"), load_source(source, "read")
    raw, target = RAW / source, FILTERED / source
    if not raw.is_dir():
        raise InputError(f"{raw}: not found. Run the fetch stage first: dvc repro fetch@{source}")
    check_files(raw, Path(f"reports/fetch/{source}.json"))
    meta = {"source": source}
    task = {
        "raw": str(raw),
        "format": described.format,
        "fields": described.fields,
        "select": described.select,
        "meta": meta,
        "params": params.model_dump_json(),
    }
    read = [BENCHMARKS] if params.contamination is not None else []
    read += [resolve_repo_file(params.narrative)] if params.narrative is not None else []
    task["read"] = value_digest([file_digest(path) for path in read if path.exists()])  # a worker may outlive an edit
    more: dict[str, Any] = {"sampled": params.max_rows is not None}
    with publish_folder(target) as folder, scratch_folder(target) as scratch, contextlib.ExitStack() as stack:
        task["scratch"] = str(scratch)
        judge = None
        if params.judge.model is not None:
            from sft.filters.judge.judge import Judge

            judge = stack.enter_context(Judge.load(params.judge, project_root() / "runs" / "judge"))
        examined = Examined(scratch, params.near_duplicates)
        found = examine(source, described, params, task, lambda name: examined.add(scratch / name))
        examined.reject_duplicates()
        if judge is not None:
            for path, _ in examined.files:
                refuse_by_judge(path, judge, params.judge)
        result = Result(folder)
        parts = [{"scratch": str(scratch), "examined": part} for part in examined.cut()]
        map_shards(write_final_shards, parts, f"write {source}", result.take)
        ledger = result.ledger
        if not found:
            raise InputError(
                f"{raw}: not one row of format {described.format!r}. Read are "
                f"{'the files of its package' if described.format in PACKAGES else KINDS}. Check uri and read."
            )
        check_share(source, ledger, result.examples, params)
        if params.control_tokens != "reject":
            names = ("conversations", "control_tokens")
            more["control_tokens"] = {"policy": params.control_tokens, **{name: result.typed[name] for name in names}}
        if result.contaminated_by:
            more["contaminated_by"] = (
                dict.fromkeys(sorted({name for name, _, _ in load_benchmarks()}), 0) | result.contaminated_by
            )
        if judge is not None:
            more["judge"] = judge.report()
            echo(f"[bold]{source}[/], judge: {judge.usage}")
    ledger.write(Path(f"reports/filter/{source}.json"), **meta, rows_found=found, **more)
    reasons = ", ".join(f"{count} {reason}" for reason, count in ledger.rejected.most_common(TOP_REASONS))
    echo(
        f"[bold]{source}[/]: {ledger.rows_in} rows, {ledger.rows_out} kept, {ledger.rows_in - ledger.rows_out} rejected"
        f"{' (' + reasons + ')' if reasons else ''}"
    )


if __name__ == "__main__":
    run_source_stage(main, __doc__)
