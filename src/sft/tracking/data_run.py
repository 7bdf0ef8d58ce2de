"""provenance: what the data stages did to make the packed data, from their reports, as MLflow is told of it.

reports/{fetch,filter,prep}/*.json, reports/pack.json  ->  counts by name, and the data sets that went in and came out

Pure of MLflow: who begins a training puts it into the outbox (`sft.tracking.journal.add_data`), one run for each packed
data set. Nothing large is read: digests are those that the stages wrote down.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from sft.files import flatten, read_json
from sft.hashing import value_digest
from sft.lineage.key import DATA_RECORDS, ORIGIN
from sft.tracking.journal import Dataset

STAGES = ("fetch", "filter", "prep")
# What is attached: all that tells of the data. params.yaml is that of the training; dvc.lock has those of the stages.
RECORDS = (*DATA_RECORDS, "dvc.lock", "reports/mixture.csv")
# Numbers of a report that are read there: by file, and the spread of lengths.
LEFT_OUT = ("files.", "length_quantiles.", "lost.", "benchmarks.")


def counts(folder: Path) -> dict[str, float]:
    """Return what the reports count: <stage>/<source>/<name>, the sums over all sources as <stage>/<name>.

    A name is dotted, as in rejected.over-length. `lost` of pack (by domain and source) is in its report.
    """
    found: dict[str, float] = {}
    for stage in STAGES:
        total: Counter[str] = Counter()
        for source in _sources(folder):
            numbers = _numbers(folder / "reports" / stage / f"{source}.json")
            total.update(numbers)
            found |= {f"{stage}/{source}/{name}": value for name, value in numbers.items()}
        found |= {f"{stage}/{name}": value for name, value in total.items()}
    found |= {f"pack/{name}": value for name, value in _numbers(folder / "reports/pack.json").items()}
    packed = read_json(folder / "data/packed/metadata.json")["sources"]
    for source, told in packed.items():
        found |= {f"pack/{source}/{name}": value for name, value in told.items() if _is_number(value)}
    return {name: float(value) for name, value in found.items()}


def data_sets(folder: Path, packed: Dataset) -> list[Dataset]:
    """Return the data sets of the data stages: each source as it was fetched, the evaluation sets that training data
    must not hold, and the packed data that came out."""
    sets = []
    for name in (*_sources(folder), "benchmarks"):
        path = folder / f"reports/fetch/{name}.json"
        if not path.exists():
            continue
        report = read_json(path)
        counted = folder / f"reports/filter/{name}.json"
        rows = read_json(counted)["rows_found"] if counted.exists() else report["rows_out"]
        told = {key: str(report[key]) for key in ORIGIN if report.get(key)} | {"rows": str(rows)}
        if name == "benchmarks":
            told |= {"sets": ", ".join(report["benchmarks"]) or "none"}
            digests, place, context = report.get("digests", {}), "data/benchmarks", "decontamination"
        else:
            digests, place, context = (
                {file["path"]: file["sha256"] for file in report["files"]},
                f"data/raw/{name}",
                "source",
            )
        sets.append(Dataset(name, value_digest(digests), (folder / place).as_uri(), context, told))
    return [*sets, Dataset(packed.name, packed.digest, packed.source, "output", packed.tags)]


def _sources(folder: Path) -> list[str]:
    return list(read_json(folder / "data/packed/metadata.json")["sources"])


def _numbers(report: Path) -> dict[str, Any]:
    """Return the numbers of a report by dotted name; none where it is missing."""
    flat = flatten(read_json(report)) if report.exists() else {}
    return {name: value for name, value in flat.items() if _is_number(value) and not name.startswith(LEFT_OUT)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
