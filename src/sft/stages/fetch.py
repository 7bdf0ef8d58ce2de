"""Download one source of the blend, the base model, or the evaluation sets.

fetch.sources.<name>  ->  data/raw/<name>/               as published, never edited
                          reports/fetch/<name>.json
fetch.model           ->  models/base/                   in Hugging Face's layout
                          reports/fetch/model.json
fetch.benchmarks      ->  data/benchmarks/items.jsonl    what the evaluation sets ask
                          reports/fetch/benchmarks.json

Every download is pinned: by sha256 or, on the Hugging Face hub, by commit. The report lists each file with its size
and digest. An output appears whole or not at all; a rerun continues interrupted downloads.

    python -m sft.stages.fetch --source NAME|model|benchmarks
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sft.cli import InputError, echo
from sft.files import publish_folder, scratch_folder
from sft.hashing import folder_digest, folder_digests
from sft.ledger import Ledger
from sft.params.data import Benchmark, Download
from sft.params.read import load, load_source
from sft.raw_folders import KINDS, RawPaths, count_splits
from sft.run_stage import run_source_stage
from sft.sources.download import FetchedFile, fetch_files
from sft.sources.redact import redact

RAW = Path("data/raw")
BASE = Path("models/base")
BENCHMARKS = Path("data/benchmarks")
REPORTS = Path("reports/fetch")


def origin(source: Download) -> dict[str, Any]:
    """Return the uri and the pin of a source for its report, without secrets; of a list, joined by commas."""
    found = {
        "uri": [redact(each.address) for each in source.each],
        "revision": [each.revision for each in source.each if each.revision],
        "sha256": [each.sha256 for each in source.each if each.sha256],
    }
    return {name: ", ".join(values) for name, values in found.items() if values}


def fetch_source(name: str, source: Download) -> None:
    """Publish data/raw/<name>/ and its report. Raises InputError, as fetch_files."""
    with publish_folder(RAW / name) as folder, _prefix_errors(f"fetch.sources.{name}"):
        files = fetch_all(source, folder)
    splits = count_splits(RAW / name)
    more = {"splits": splits} if len(splits) > 1 else {}
    ledger = Ledger(rows_in=len(files), rows_out=len(files))
    listed = [asdict(file) for file in files]
    ledger.write(REPORTS / f"{name}.json", unit="files", files=listed, **more, **origin(source))
    echo(f"{name}: {_total_size(files)} -> {RAW / name}")
    if more:
        counts = ", ".join(f"{split} ({count} {'file' if count == 1 else 'files'})" for split, count in splits.items())
        echo(f"{name}: splits: {counts}. The filter stage reads train, or read.split of the source.")


def fetch_all(source: Download, folder: Path) -> list[FetchedFile]:
    """Download what each address of a source names; a file whose name is taken goes into a folder with the number of
    its address.

    Raises:  InputError: as fetch_files; that name is taken too.
    """
    if len(source.each) == 1:
        return fetch_files(source, folder)
    paths, found = RawPaths(), list[FetchedFile]()
    for number, each in enumerate(source.each, 1):
        with scratch_folder(folder) as scratch:
            for file in fetch_files(each, scratch):
                path = paths.add(file.path, number, redact(each.address))
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (scratch / file.path).rename(folder / path)
                found.append(replace(file, path=path))
    return sorted(found, key=lambda file: file.path)


def fetch_model(source: Download) -> None:
    """Publish models/base/ and its report. Raises InputError."""
    from sft.sources.base_model import make_base
    from sft.weight_files import count_parameters

    with publish_folder(BASE) as folder, _prefix_errors("fetch.model"):
        fetched = folder / "fetched"  # inside, so that the next run removes what a killed one left
        fetched.mkdir()
        files = fetch_files(source, fetched, is_model=True)
        added = make_base(fetched, folder)
        shutil.rmtree(fetched)
        parameters = count_parameters(folder)
    Ledger(rows_in=len(files), rows_out=len(files)).write(
        REPORTS / "model.json",
        unit="files",
        files=[asdict(file) for file in files],
        digest=folder_digest(BASE),
        parameters=parameters,
        **({"added": added} if added else {}),
        **origin(source),
    )
    echo(f"model: {parameters:,} parameters from {_total_size(files)} -> {BASE}")


def fetch_benchmarks(benchmarks: Mapping[str, Benchmark]) -> None:
    """Publish data/benchmarks/items.jsonl, one line per question: benchmark, item, text. Write the report.

    Raises:  InputError: as fetch_files; an evaluation set without questions, or with a row that cannot be read.
    """
    from sft.formats.benchmarks import read_items

    sets: dict[str, Any] = {}
    all_files: list[FetchedFile] = []
    with publish_folder(BENCHMARKS) as folder, (folder / "items.jsonl").open("w", encoding="utf-8") as items:
        for name, benchmark in sorted(benchmarks.items()):
            fetched = folder / "fetched"
            fetched.mkdir()
            texts = 0
            with _prefix_errors(f"fetch.benchmarks.{name}"):
                files = fetch_files(benchmark, fetched)
                for item, text in read_items(fetched, benchmark.fields):
                    texts += 1
                    items.write(json.dumps({"benchmark": name, "item": item, "text": text}, ensure_ascii=False) + "\n")
                if not texts:
                    names = ", ".join(file.path for file in files[:5])
                    raise InputError(
                        f"{redact(benchmark.address)}: no items in {len(files)} files ({names}); expected {KINDS}. "
                        "Check the path in the uri."
                    )
            all_files += files
            sets[name] = {"files": [asdict(file) for file in files], "texts": texts, **origin(benchmark)}
            shutil.rmtree(fetched)
    total = sum(report["texts"] for report in sets.values())
    digests = folder_digests(BENCHMARKS)
    Ledger(rows_in=total, rows_out=total).write(REPORTS / "benchmarks.json", benchmarks=sets, digests=digests)
    echo(f"benchmarks: {total:,} texts of {len(sets)} evaluation sets from {_total_size(all_files)} -> {BENCHMARKS}")


def main(name: str) -> None:
    """Fetch a source, or `model`, or `benchmarks`."""
    if name == "model":
        fetch_model(Download(uri=load("fetch.model.uri")))
    elif name == "benchmarks":
        fetch_benchmarks(load("fetch.benchmarks"))
    else:
        fetch_source(name, Download(uri=load_source(name, "uri")))


@contextlib.contextmanager
def _prefix_errors(key: str) -> Iterator[None]:
    """Put a key of params.yaml in front of the message of an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{key}: {error}") from None


def _total_size(files: list[FetchedFile]) -> str:
    return f"{len(files)} files, {sum(file.bytes for file in files) / 1e6:,.1f} MB"


if __name__ == "__main__":
    run_source_stage(main, __doc__)
