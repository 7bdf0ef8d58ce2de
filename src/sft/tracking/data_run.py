"""The run of the packed data: what its stages counted, and the data sets that went in and came out.

reports/{fetch,filter,prep}/*.json, reports/pack.json  ->  counts by name, data sets

Does not import MLflow: training adds both to its journal (`sft.tracking.journal.add_data`). Nothing large is read:
digests are those in the reports.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from sft.files import flatten, read_json
from sft.hashing import value_digest
from sft.lineage.record import DATA_RECORDS, ORIGIN
from sft.tracking.journal import Dataset

STAGES = ("fetch", "filter", "prep")
# The files to attach. params.yaml is that of the training; the params of each stage are in dvc.lock.
RECORDS = (*DATA_RECORDS, "dvc.lock", "reports/mixture.csv")
# Numbers that stay in the reports: by file, and the quantiles of lengths.
LEFT_OUT = ("files.", "length_quantiles.", "lost.", "benchmarks.")


def counts(folder: Path) -> dict[str, float]:
    """Return the counts of the reports: by <stage>/<source>/<name>, and summed over all sources by <stage>/<name>.

    A name is dotted, as in rejected.over-length. `lost` of pack (by domain and source) stays in its report.
    """
    counted: dict[str, float] = {}
    for stage in STAGES:
        total: Counter[str] = Counter()
        for source in _sources(folder):
            numbers = _numbers(folder / "reports" / stage / f"{source}.json")
            total.update(numbers)
            counted |= {f"{stage}/{source}/{name}": value for name, value in numbers.items()}
        counted |= {f"{stage}/{name}": value for name, value in total.items()}
    counted |= {f"pack/{name}": value for name, value in _numbers(folder / "reports/pack.json").items()}
    packed = read_json(folder / "data/packed/metadata.json")["sources"]
    for source, totals in packed.items():
        counted |= {f"pack/{source}/{name}": value for name, value in totals.items() if _is_number(value)}
    return {name: float(value) for name, value in counted.items()}


def data_sets(folder: Path, packed: Dataset) -> list[Dataset]:
    """Return the data sets of the data stages: each source as it was fetched, the evaluation sets that training data
    must not hold, and the packed data that came out."""
    sets = []
    for name in (*_sources(folder), "benchmarks"):
        path = folder / f"reports/fetch/{name}.json"
        if not path.exists():
            continue
        fetched, filtered = read_json(path), folder / f"reports/filter/{name}.json"
        rows = read_json(filtered)["rows_found"] if filtered.exists() else fetched["rows_out"]
        tags = {key: str(fetched[key]) for key in ORIGIN if fetched.get(key)} | {"rows": str(rows)}
        if name == "benchmarks":
            tags |= {"sets": ", ".join(fetched["benchmarks"]) or "none"}
            digests, place, context = fetched.get("digests", {}), "data/benchmarks", "decontamination"
        else:
            digests = {file["path"]: file["sha256"] for file in fetched["files"]}
            place, context = f"data/raw/{name}", "source"
        sets.append(Dataset(name, value_digest(digests), (folder / place).as_uri(), context, tags))
    return [*sets, Dataset(packed.name, packed.digest, packed.source, "output", packed.tags)]


def _sources(folder: Path) -> list[str]:
    return list(read_json(folder / "data/packed/metadata.json")["sources"])


def _numbers(report: Path) -> dict[str, Any]:
    """Return the numbers of a report by dotted name; none where it is missing."""
    flat = flatten(read_json(report)) if report.exists() else {}
    return {name: value for name, value in flat.items() if _is_number(value) and not name.startswith(LEFT_OUT)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
