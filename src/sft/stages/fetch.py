"""Bring one source of the blend, the base model, or the evaluation sets, from where they are published.

fetch.sources.<name>  ->  data/raw/<name>/ as published, never edited    reports/fetch/<name>.json
fetch.model           ->  models/base/     in Hugging Face's layout      reports/fetch/model.json
fetch.benchmarks      ->  data/benchmarks/items.jsonl, what they ask     reports/fetch/benchmarks.json

Everything is pinned: by sha256 or, on the hub, by commit. The report names every file with its size, digest
and number of rows. An output appears whole or not at all; a rerun after an interruption goes on.

    python -m sft.stages.fetch --source NAME|model|benchmarks
"""

import contextlib
import difflib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sft.cli import InputError, run_source_stage, say
from sft.files import folder_digest, folder_digests, publish_folder
from sft.formats.benchmarks import read_items
from sft.formats.chat_forms import PACKAGES, read_rows
from sft.formats.raw_files import KINDS
from sft.ledger import Ledger
from sft.params.schema import Benchmark, Download, Fetch, Source, load
from sft.sources.download import FetchedFile, fetch_files, redact

RAW = Path("data/raw")
BASE = Path("models/base")
BENCHMARKS = Path("data/benchmarks")
REPORTS = Path("reports/fetch")


def describe(source: Download) -> dict[str, Any]:
    """Return what a report says about where data comes from; nothing secret."""
    told = source.model_dump(include={"domain", "license", "origin", "revision", "sha256"}, exclude_none=True)
    return {"uri": redact(source.uri), **told}


def count_rows(folder: Path, source: Source) -> Counter[str]:
    """Return the number of rows, sound or faulty, by the file that they stand in.

    Raises:  InputError: a file that cannot be read to its end, so that nobody could count what is lost.
    """
    rows = Counter[str]()
    for row in read_rows(folder, source.format, source.fields, source.where):
        if row.is_end:
            raise InputError(
                f"{row.where}: {row.fault}. How many rows are lost cannot be counted: bring the file anew, or leave "
                "it out of the uri."
            )
        rows[row.where.rpartition(":")[0]] += 1
    return rows


def fetch_source(name: str, source: Source) -> None:
    """Publish data/raw/<name>/ and its report.

    Raises:  InputError: what fetch_files and read_rows raise; a source without a single row.
    """
    with publish_folder(RAW / name) as folder, _naming(f"fetch.sources.{name}"):
        files = fetch_files(source, folder)
        rows = count_rows(folder, source)
        if not rows:
            named = ", ".join(file.path for file in files[:5])
            read = "the files of its package" if source.format in PACKAGES else KINDS
            raise InputError(
                f"{redact(source.uri)}: not one row of format {source.format!r} in {len(files)} files ({named}). "
                f"Read are {read}. Check the path and the format."
            )
    listed = [{**asdict(file), "rows": rows[file.path]} for file in files]
    ledger = Ledger(rows_in=rows.total(), rows_out=rows.total())
    ledger.write(REPORTS / f"{name}.json", files=listed, format=source.format, **describe(source))
    say(f"{name}: {rows.total():,} rows in {_size(files)} -> {RAW / name}")


def fetch_model(source: Download) -> None:
    """Publish models/base/ and its report. Raises InputError."""
    from sft.sources.base_model import count_parameters, make_base

    with publish_folder(BASE) as folder, _naming("fetch.model"):
        fetched = folder / "fetched"  # inside, so that a killed run leaves nothing that the next one keeps
        fetched.mkdir()
        files = fetch_files(source, fetched)
        make_base(fetched, folder)
        shutil.rmtree(fetched)
        parameters = count_parameters(folder)
    listed = [asdict(file) for file in files]
    digest = folder_digest(BASE)
    ledger = Ledger(rows_in=len(files), rows_out=len(files))
    ledger.write(REPORTS / "model.json", files=listed, digest=digest, parameters=parameters, **describe(source))
    say(f"model: {parameters:,} parameters from {_size(files)} -> {BASE}")


def fetch_benchmarks(benchmarks: Mapping[str, Benchmark]) -> None:
    """Publish data/benchmarks/: benchmark, item and text of all that the evaluation sets ask; and its report.

    Raises:  InputError: what fetch_files raises; a set that asks nothing, or a record of it that cannot be read.
    """
    sets, files = {}, list[FetchedFile]()
    with publish_folder(BENCHMARKS) as folder, (folder / "items.jsonl").open("w", encoding="utf-8") as items:
        for name, benchmark in sorted(benchmarks.items()):
            fetched = folder / "fetched"
            fetched.mkdir()
            texts = 0
            with _naming(f"fetch.benchmarks.{name}"):
                files += (own := fetch_files(benchmark, fetched))
                for item, text in read_items(fetched, benchmark.fields):
                    texts += 1
                    items.write(json.dumps({"benchmark": name, "item": item, "text": text}, ensure_ascii=False) + "\n")
                if not texts:
                    named = ", ".join(file.path for file in own[:5])
                    raise InputError(
                        f"{redact(benchmark.uri)}: not one item in {len(own)} files ({named}). Read are {KINDS}. "
                        "Check the path."
                    )
            sets[name] = {"files": [asdict(file) for file in own], "texts": texts, **describe(benchmark)}
            shutil.rmtree(fetched)
    total, digests = sum(told["texts"] for told in sets.values()), folder_digests(BENCHMARKS)
    Ledger(rows_in=total, rows_out=total).write(REPORTS / "benchmarks.json", benchmarks=sets, digests=digests)
    say(f"benchmarks: {total:,} texts of {len(sets)} evaluation sets from {_size(files)} -> {BENCHMARKS}")


def main(name: str) -> None:
    """Fetch what `name` stands for in params.yaml."""
    section: Fetch = load("fetch")
    if name == "model":
        fetch_model(section.model)
    elif name == "benchmarks":
        fetch_benchmarks(section.benchmarks)
    elif name in section.sources:
        fetch_source(name, section.sources[name])
    else:
        known = [*section.sources, "model", "benchmarks"]
        near = difflib.get_close_matches(name, known, n=1)
        meant = f"Did you mean {near[0]!r}? " if near else ""
        raise InputError(f"{name!r} is no source. {meant}Known: {', '.join(known)}.")


@contextlib.contextmanager
def _naming(place: str) -> Iterator[None]:
    """Say in what is raised which part of params.yaml it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from None


def _size(files: list[FetchedFile]) -> str:
    return f"{len(files)} files, {sum(file.bytes for file in files) / 1e6:,.1f} MB"


if __name__ == "__main__":
    run_source_stage(main, __doc__)
