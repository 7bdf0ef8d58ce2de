"""check-data: what would become of a source, from its first 1,000 rows, in seconds and without a stage.

data/raw/<source>/, the files of a file:// uri where they are, or a path; models/base, if it is there
    ->  the terminal, through your pager; or JSON (--json)

Shows which files and keys are read, how many rows are kept, why the others are rejected, lengths in tokens, and three
samples with their loss mask. Duplicates are not looked for, and no judge is asked.
"""

import contextlib
import itertools
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from sft.cli import InputError, add_json_option, make_parser, print_facts, run_or_exit
from sft.filters.examine import examine_rows, load_pipeline, read_folder
from sft.filters.pipeline import RowCounts
from sft.formats.chat_forms import AUTO, PACKAGES, FieldCounts
from sft.formats.detect import decide_read, read_line
from sft.inspect.packs import PackedSample, pieces
from sft.inspect.sample import show_sample
from sft.inspect.terminal import paged, visible
from sft.params.data import Download, Read
from sft.params.read import load, load_source
from sft.raw_folders import RawPaths, select_files
from sft.sources.download import local_files

RAW, BASE, BENCHMARK_ITEMS = Path("data/raw"), Path("models/base"), Path("data/benchmarks/items.jsonl")
ROWS = 1_000
PATTERN_SIGNS = set("*?{#")  # in a uri
SHOWN = (0.25, 0.5, 0.75)  # samples, by their place in the order of lengths


@dataclass(frozen=True)
class Lengths:
    """The samples of the kept rows."""

    samples: int
    tokens: int
    trained_tokens: int
    quantiles: dict[str, int]
    """Of the lengths in tokens: p0 to p100."""
    rejected: dict[str, dict[str, Any]]
    """By the reason for which prep rejects a row: number, example."""
    examples: list[PackedSample]


@dataclass(frozen=True)
class Findings:
    """What would become of the first rows of a source."""

    source: str
    read: str
    """Format, and names of fields, as under `read` in params.yaml."""
    files: dict[str, Any]
    """Which files are read, and not_read by kind; empty for a published package."""
    rows: int
    """How many were looked at."""
    not_selected: int
    kept: int
    rejected: dict[str, dict[str, Any]]
    """By reason, the most frequent first: number, example."""
    not_read: dict[str, dict[str, Any]]
    """Columns and keys: values, first."""
    lengths: Lengths | None
    """None without kept rows, or without a base model."""
    notes: list[str]
    lines: list[str]
    """What is not read, for people."""


def check(source: str) -> Findings:
    """Return what would become of the first ROWS rows of a source, or of the files at a path.

    Raises:  InputError: no such source, it is not fetched, it has no row, or none of this format.
    """
    is_path = is_unnamed(source)
    if is_path and (found := sorted(PATTERN_SIGNS & set(source))):
        raise InputError(
            f"{source}: found {' '.join(found)}, which a uri reads as a pattern or digest. Rename the path."
        )
    uri = f"file://{source}" if is_path else load_source(source, "uri")
    with raw_folder(source, uri) as folder:
        read, decision = decide_read(folder, Read(format=AUTO) if is_path else load_source(source, "read"))
        files = None if read.format in PACKAGES else select_files(folder, read.split, read.config)
        fields, counts = FieldCounts(unseen_select=set(read.select)), RowCounts()
        rows = list(read_folder(folder, read, fields, lambda rows: itertools.islice(rows, ROWS)))
        fields.check(read.format, read.fields)
    fit = f" ({decision['rows_that_fit']} of {decision['rows']} rows fit)" if decision else ""
    num_rows = len(rows) + fields.not_selected
    if not num_rows:
        raise InputError(f"fetch.sources.{source}: no row. Check uri and read.")
    params = load("filter")
    items = BENCHMARK_ITEMS if params.contamination is not None and BENCHMARK_ITEMS.exists() else None
    pipeline = load_pipeline(params.model_dump_json(), items and str(items), "")
    examined = list(examine_rows(rows, pipeline, source, counts, str(folder)))
    kept = [row for row in examined if "reason" not in row]
    notes = (
        [] if items or params.contamination is None else [f"{BENCHMARK_ITEMS} not found: contamination is not checked"]
    )
    lengths = None
    if not BASE.is_dir():
        notes.append(f"{BASE} not found: no lengths and no loss masks. Run: make fetch")
    elif kept:
        lengths = measure(source, kept)
    lines = [line for line in (files.line() if files else "", counts.not_read.line()) if line]
    return Findings(
        source=source,
        read=read_line(read) + fit,
        files=files.report() if files else {},
        rows=num_rows,
        not_selected=fields.not_selected,
        kept=len(kept),
        rejected=by_reason(row for row in examined if "reason" in row),
        not_read=counts.not_read.report(),
        lengths=lengths,
        notes=notes,
        lines=lines,
    )


def is_unnamed(source: str) -> bool:
    """Return whether a source is a path that params.yaml does not name; its files are read with `read: auto`."""
    return ("/" in source or "." in source) and Path(source).exists()


@contextlib.contextmanager
def raw_folder(source: str, uri: str) -> Iterator[Path]:
    """Yield the folder of the raw files of a source; for a file:// uri that is not fetched, a folder of links.

    Messages have the uri, not that folder.
    """
    folder, download = RAW / source, Download(uri=uri)
    if not is_unnamed(source) and folder.is_dir():
        yield folder
        return
    if not all(each.address.startswith("file://") for each in download.each):
        raise InputError(f"{folder}: not found. Run the fetch stage first: dvc repro fetch@{source}")
    with tempfile.TemporaryDirectory() as links:
        paths = RawPaths()
        for number, each in enumerate(download.each, 1):
            for file, inner in local_files(each).items():
                link = Path(links) / paths.add(inner, number, each.address)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file.resolve())
        try:
            yield Path(links)
        except InputError as error:
            raise InputError(str(error).replace(links, uri)) from error


def by_reason(rejected: Any) -> dict[str, dict[str, Any]]:
    """Return number and first evidence of rejected rows by reason, the most frequent first."""
    numbers, first = Counter[str](), dict[str, str]()
    for row in rejected:
        numbers[row["reason"]] += 1
        first.setdefault(row["reason"], row["evidence"])
    return {reason: {"number": number, "example": first[reason]} for reason, number in numbers.most_common()}


def measure(source: str, kept: list[dict[str, Any]]) -> Lengths:
    """Return the samples of kept rows, as prep makes them."""
    import numpy as np
    from tokenizers import Tokenizer

    from sft.data_plan.measure import load_chat
    from sft.packing.accounting import length_quantiles
    from sft.tokens.prepare import prepare_examined
    from sft.tokens.reasoning import Shares

    params = load("prep")
    prepared = prepare_examined(
        load_chat(params, BASE), kept, Shares(**params.reasoning.model_dump()), params.max_tokens
    )
    samples = prepared.samples.to_pylist()
    sizes = np.array([len(sample["ids"]) for sample in samples], np.int32)
    order = np.argsort(sizes, kind="stable")
    shown = sorted({int(order[round(share * (len(order) - 1))]) for share in SHOWN}) if samples else []
    tokenizer = Tokenizer.from_file(str(BASE / "tokenizer.json"))
    return Lengths(
        samples=len(samples),
        tokens=int(sizes.sum()),
        trained_tokens=int(prepared.counts["rows"]["trained"]),
        quantiles=length_quantiles(sizes),
        rejected=by_reason(prepared.rejected),
        examples=[packed(source, samples[number], tokenizer) for number in shown],
    )


def packed(source: str, sample: dict[str, Any], tokenizer: Any) -> PackedSample:
    """Return a sample of prep as `make show` shows those of packs."""
    ids, mask = sample["ids"], [bool(trained) for trained in sample["mask"]]
    name = f"{sample['conversation_id']}:{sample['sample']}"
    return PackedSample(source, name, 0, len(ids), sum(mask), list(pieces(ids, mask, tokenizer)), True)


def show(findings: Findings) -> None:
    """Print findings."""
    with paged() as screen:

        def line(name: str, text: str, style: str = "") -> None:
            screen.print(Text(f"{name:>12}  ", "bright_black").append(visible(text), style), soft_wrap=True)

        line("source", findings.source, "bold")
        line("read", findings.read.removeprefix("read: "))
        line("rows", f"the first {findings.rows:,}: {findings.kept:,} kept, {findings.not_selected:,} not selected")
        for reason, of in findings.rejected.items():
            line("rejected", f"{of['number']:,} {reason}: {of['example']}", "yellow")
        for text in findings.lines:
            line("not read", text, "yellow")
        if (lengths := findings.lengths) is not None:
            for reason, of in lengths.rejected.items():
                line("by prep", f"{of['number']:,} {reason}: {of['example']}", "yellow")
            share = lengths.trained_tokens / max(1, lengths.tokens)
            line("samples", f"{lengths.samples:,}, {lengths.tokens:,} tokens, {share:.1%} trained")
            line("lengths", ", ".join(f"{name} {size:,}" for name, size in lengths.quantiles.items()))
        for note in findings.notes:
            line("note", note, "yellow")
        for sample in findings.lengths.examples if findings.lengths else []:
            show_sample(screen, f"{sample.name}, {sample.tokens} tokens, {sample.trained} trained", sample)


def values(findings: Findings) -> dict[str, Any]:
    """Return findings as the JSON document has them."""
    return {name: value for name, value in asdict(findings).items() if name != "lines"}


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--source", required=True, help="one of fetch.sources in params.yaml, or a path")
    add_json_option(parser)
    options = parser.parse_args()
    run_or_exit(lambda: print_facts(lambda: check(options.source), show, as_json=options.json, values=values))
