"""Bring one source of the blend, the base model, or the evaluation sets, from where they are published.

fetch.sources.<name>  ->  data/raw/<name>/ as published, never edited    reports/fetch/<name>.json
fetch.model           ->  models/base/     in Hugging Face's layout      reports/fetch/model.json
fetch.benchmarks      ->  data/benchmarks/items.jsonl, what they ask     reports/fetch/benchmarks.json

Everything is pinned: by sha256 or, on the hub, by commit. The report names every file with its size, digest
and number of rows. An output appears whole or not at all; a rerun after an interruption goes on.

    python -m sft.stages.fetch --source NAME|model|benchmarks
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sft.cli import InputError, echo, run_source_stage
from sft.files import publish_folder
from sft.hashing import folder_digest, folder_digests
from sft.ledger import Ledger
from sft.params.data import Benchmark, Download
from sft.params.read import load, load_source
from sft.sources.download import FetchedFile, fetch_files, redact

RAW = Path("data/raw")
BASE = Path("models/base")
BENCHMARKS = Path("data/benchmarks")
REPORTS = Path("reports/fetch")


def describe(source: Download) -> dict[str, Any]:
    """Return what a report says about where data comes from; nothing secret."""
    pins = {"revision": source.revision, "sha256": source.sha256}
    return {"uri": redact(source.address), **{name: pin for name, pin in pins.items() if pin is not None}}


def fetch_source(name: str, source: Download) -> None:
    """Publish data/raw/<name>/ and its report. Raises InputError: what fetch_files raises."""
    with publish_folder(RAW / name) as folder, _naming(f"fetch.sources.{name}"):
        files = fetch_files(source, folder)
    ledger = Ledger(rows_in=len(files), rows_out=len(files))
    ledger.write(REPORTS / f"{name}.json", unit="files", files=[asdict(file) for file in files], **describe(source))
    echo(f"{name}: {_size(files)} -> {RAW / name}")


def fetch_model(source: Download) -> None:
    """Publish models/base/ and its report. Raises InputError."""
    from sft.sources.base_model import count_parameters, make_base

    with publish_folder(BASE) as folder, _naming("fetch.model"):
        fetched = folder / "fetched"  # inside, so that a killed run leaves nothing that the next one keeps
        fetched.mkdir()
        files = fetch_files(source, fetched, is_model=True)
        make_base(fetched, folder)
        shutil.rmtree(fetched)
        parameters = count_parameters(folder)
    listed = [asdict(file) for file in files]
    digest = folder_digest(BASE)
    ledger = Ledger(rows_in=len(files), rows_out=len(files))
    ledger.write(
        REPORTS / "model.json", unit="files", files=listed, digest=digest, parameters=parameters, **describe(source)
    )
    echo(f"model: {parameters:,} parameters from {_size(files)} -> {BASE}")


def fetch_benchmarks(benchmarks: Mapping[str, Benchmark]) -> None:
    """Publish data/benchmarks/: benchmark, item and text of all that the evaluation sets ask; and its report.

    Raises:  InputError: what fetch_files raises; a set that asks nothing, or a record of it that cannot be read.
    """
    from sft.formats.benchmarks import KINDS, read_items

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
                        f"{redact(benchmark.address)}: not one item in {len(own)} files ({named}). Read are {KINDS}. "
                        "Check the path."
                    )
            sets[name] = {"files": [asdict(file) for file in own], "texts": texts, **describe(benchmark)}
            shutil.rmtree(fetched)
    total, digests = sum(told["texts"] for told in sets.values()), folder_digests(BENCHMARKS)
    Ledger(rows_in=total, rows_out=total).write(REPORTS / "benchmarks.json", benchmarks=sets, digests=digests)
    echo(f"benchmarks: {total:,} texts of {len(sets)} evaluation sets from {_size(files)} -> {BENCHMARKS}")


def main(name: str) -> None:
    """Fetch what `name` stands for in params.yaml."""
    if name == "model":
        fetch_model(Download(uri=load("fetch.model.uri")))
    elif name == "benchmarks":
        fetch_benchmarks(load("fetch.benchmarks"))
    else:
        fetch_source(name, Download(uri=load_source(name, "uri")))


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
