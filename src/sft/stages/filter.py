"""Filter a source: keep the conversations that are fit to train on, and the rejected rows with reason and evidence.

data/raw/<source>/, filters/, data/benchmarks/
    ->  data/filtered/<source>/kept-*.parquet      id, messages, tools, meta (JSON text)
        data/filtered/<source>/rejected-*.parquet  the same columns, reason, evidence
        reports/filter/<source>.json               the ledger

The first filter that rejects a row gives its reason, in this order: format, structure, repetition, narrative,
consistency, contamination (sft.filters.pipeline), duplicates within the source, and the judge, if params name one
(sft.filters.publish).

Rows in = rows kept + rows rejected by reason. Rows in are the rows that `read.select` takes, or as many of them as
`read.max_rows` of the source or `filter.max_rows` allow: those with the smallest hashes of their content. If more of
them than `filter.max_rejected` are rejected, the stage stops and writes nothing.

    python -m sft.stages.filter --source NAME
"""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from sft.cli import InputError, echo
from sft.files import project_root, publish_folder, resolve_repo_file, scratch_folder
from sft.filters.contamination import MIN_WORDS, count_short_items, read_benchmark_items
from sft.filters.examine import Examined, examine_source
from sft.filters.pipeline import RowCounts
from sft.filters.publish import ExaminedFiles, FinalShards, reject_by_judge, write_final_shards
from sft.formats.chat_forms import PACKAGES
from sft.formats.detect import decide_read, read_line
from sft.hashing import file_digest, files_below, value_digest
from sft.ledger import Ledger, read_report
from sft.params.data import Filter, Read
from sft.params.read import load, load_source
from sft.raw_folders import KINDS, WORDS, select_files
from sft.run_stage import run_source_stage
from sft.workers import map_shards

if TYPE_CHECKING:
    from sft.filters.judge.judge import Judge

RAW, FILTERED = Path("data/raw"), Path("data/filtered")
BENCHMARK_ITEMS = Path("data/benchmarks/items.jsonl")
TOP_REASONS = 5


def main(source: str) -> None:
    """Filter one source."""
    params, read = load("filter"), load_source(source, "read")
    check_inputs(source, params)
    read, decision = decide_read(RAW / source, read)
    if decision is not None:
        fit = f"fits {decision['rows_that_fit']} of the first {decision['rows']} rows"
        echo(f"[bold]{source}[/]: {escape(read_line(read))} {fit}")
    task = worker_task(source, read, params)
    limits = [limit for limit in (read.max_rows, params.max_rows) if limit is not None]
    target = FILTERED / source
    with publish_folder(target) as folder, scratch_folder(target) as scratch, contextlib.ExitStack() as stack:
        judge = load_judge(params, stack)
        examined = ExaminedFiles(scratch, params.near_duplicates)
        task["scratch"] = str(scratch)
        max_rows = min(limits, default=None)
        rows = examine_source(task, max_rows, lambda name: examined.add(scratch / name))
        examined.reject_duplicates()
        if judge is not None:
            reject_by_judge([path for path, _ in examined.files], judge, params.judge)
        final = FinalShards(folder)
        shards = [{"scratch": str(scratch), "examined": files} for files in examined.plan_shards()]
        map_shards(write_final_shards, shards, f"write {source}", final.add)
        check_rows(source, rows, read)
        check_rejected(source, final, params)
    counts: dict[str, Any] = {"rows_found": rows.found, "not_selected": rows.not_selected, "not_drawn": rows.not_drawn}
    counts["sampled"] = params.max_rows is not None
    if decision is not None:
        counts["read"] = decision
    counts |= file_report(source, read) | row_report(source, rows.rows, params)
    write_report(source, final, params, judge, counts)


def check_inputs(source: str, params: Filter) -> None:
    """Raise InputError unless the fetch stage has run and its files are as it left them."""
    raw, report = RAW / source, Path(f"reports/fetch/{source}.json")
    if not raw.is_dir():
        raise InputError(f"{raw}: not found. Run the fetch stage first: dvc repro fetch@{source}")
    if params.contamination is not None and not BENCHMARK_ITEMS.exists():
        raise InputError(f"{BENCHMARK_ITEMS}: not found. Run the fetch stage first: dvc repro fetch-benchmarks")
    if not report.exists():
        return
    expected = {file["path"]: file["bytes"] for file in read_report(report, files=list)["files"]}
    found = {path.relative_to(raw).as_posix(): path.stat().st_size for path in files_below(raw)}
    if changed := sorted(dict(expected.items() ^ found.items())):
        name = changed[0]
        raise InputError(
            f"{raw / name}: {_size(found, name)}, but {report} has {_size(expected, name)}. The data was changed "
            f"between stages. Fetch it again: dvc repro --force fetch@{source}"
        )


def _size(sizes: dict[str, int], name: str) -> str:
    return f"{sizes[name]} bytes" if name in sizes else "no such file"


def file_report(source: str, read: Read) -> dict[str, Any]:
    """Return which files are not read as in the report, and print a line if there are any."""
    if read.format in PACKAGES:
        return {}
    files = select_files(RAW / source, read.split, read.config)
    if line := files.line():
        echo(f"[bold]{source}[/]: not read: {escape(line)}")
    if files.split not in (None, WORDS.get(read.split, read.split)):
        echo(f"[bold]{source}[/]: reads split {escape(files.split)}: no file is of split {escape(read.split)}")
    return {"files": files.report()}


def row_report(source: str, counts: RowCounts, params: Filter) -> dict[str, Any]:
    """Return what was counted in the rows as in the report, and print a line if something was not read."""
    if line := counts.not_read.line():
        echo(f"[bold]{source}[/]: not read: {escape(line)}")
    report: dict[str, Any] = {"not_read": counts.not_read.report()}
    if counts.ends:
        echo(f"[bold]{source}[/]: filter.ends {params.ends}: {dict(counts.ends)}")
        report["ends"] = {"policy": params.ends, **counts.ends}
    return report


def worker_task(source: str, read: Read, params: Filter) -> dict[str, Any]:
    """Return what workers need to examine rows, as JSON-like values."""
    benchmark_items = None if params.contamination is None else str(BENCHMARK_ITEMS)
    files = [] if benchmark_items is None else [BENCHMARK_ITEMS]
    files += [] if params.narrative is None else [resolve_repo_file(params.narrative)]
    return {
        "source": source,
        "raw": str(RAW / source),
        "read": read.model_dump_json(),
        "params": params.model_dump_json(),
        "benchmark_items": benchmark_items,
        "digest": value_digest([file_digest(path) for path in files if path.exists()]),
    }


def load_judge(params: Filter, stack: contextlib.ExitStack) -> "Judge | None":
    """Return the judge that params name, open until the stack closes."""
    if params.judge.model is None:
        return None
    from sft.filters.judge.judge import Judge

    return stack.enter_context(Judge.load(params.judge, project_root() / "runs" / "judge"))


def check_rows(source: str, rows: Examined, read: Read) -> None:
    """Raise InputError if a source has no row, or none is selected."""
    if rows.found and rows.not_selected == rows.found:
        raise InputError(
            f"{RAW / source}: read.select takes none of {rows.found} rows. Check its values, or remove it."
        )
    if not rows.found:
        kinds = "the files of its package" if read.format in PACKAGES else KINDS
        raise InputError(
            f"{RAW / source}: no row of format {read.format!r}, which reads {kinds}. Check uri and read of "
            f"fetch.sources.{source}."
        )


def check_rejected(source: str, final: FinalShards, params: Filter) -> None:
    """Raise InputError if no row is kept, or more are rejected than `filter.max_rejected` allows."""
    rejected = final.ledger.rejected
    share = rejected.total() / final.ledger.rows_in
    if final.ledger.rows_out and share <= params.max_rejected:
        return
    reasons = "\n".join(
        f"  {count:6} {reason}: {final.examples[reason]}" for reason, count in rejected.most_common(TOP_REASONS)
    )
    allowed = f"filter.max_rejected allows {params.max_rejected:.1%}" if final.ledger.rows_out else "none is kept"
    raise InputError(
        f"{RAW / source}: {share:.1%} of the rows are rejected, {allowed}. Most frequent:\n{reasons}\n"
        "Fix the data, or change the params of the filter if these reasons are wrong."
    )


def write_report(
    source: str, final: FinalShards, params: Filter, judge: "Judge | None", counts: dict[str, Any]
) -> None:
    """Write the ledger of a source with all other counts, and print a line."""
    more = dict(counts)
    if params.control_tokens != "reject":
        found = {name: final.control_tokens[name] for name in ("conversations", "control_tokens")}
        more["control_tokens"] = {"policy": params.control_tokens, **found}
    items = read_benchmark_items(BENCHMARK_ITEMS) if params.contamination is not None else []
    if final.contaminated_by:
        more["contaminated_by"] = dict.fromkeys(sorted({name for name, _, _ in items}), 0) | final.contaminated_by
    if short := count_short_items(items):
        more["benchmark_items"] = {"items": len(items), f"below_{MIN_WORDS}_words": short}
        echo(
            f"[bold]{source}[/]: {short} of {len(items)} benchmark items have fewer than {MIN_WORDS} words: they are "
            "found where they are all of a user's message, and not inside a longer one"
        )
    if judge is not None:
        more["judge"] = judge.report()
        echo(f"[bold]{source}[/], judge: {judge.usage}")
    ledger: Ledger = final.ledger
    ledger.write(Path(f"reports/filter/{source}.json"), source=source, **more)
    reasons = ", ".join(f"{count} {reason}" for reason, count in ledger.rejected.most_common(TOP_REASONS))
    echo(
        f"[bold]{source}[/]: {ledger.rows_in} rows, {ledger.rows_out} kept, {ledger.rows_in - ledger.rows_out} rejected"
        f"{' (' + reasons + ')' if reasons else ''}"
        f"{f', {more["not_selected"]} not selected' if more['not_selected'] else ''}"
        f"{f', {more["not_drawn"]} not drawn' if more['not_drawn'] else ''}"
    )


if __name__ == "__main__":
    run_source_stage(main, __doc__)
