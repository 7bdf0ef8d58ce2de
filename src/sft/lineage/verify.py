"""integrity: whether the files on disk, the records and lineage.json are those that the model was made with.

Records of one training  ->  the state of every out of the pipeline, and what is wrong: which file, what was
                             expected, what was found

Held against each other: lineage.json and its own key, its version in MLflow, the reports by lineage.json, the
data and the models by lineage.json, dvc.lock and the reports of fetch. Every file is read once. Where asked for, also
the objects in DVC's cache by their names, and the checkpoints of the run by their manifests.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sft.hashing import BLOCK_BYTES, value_digest
from sft.lineage.key import NUMERIC_PACKAGES, Lineage
from sft.lineage.resolve import FINAL, LINEAGE, Records, cached, listing, outs
from sft.training.checkpoints import fault_of, manifest_of

PACKED, BASE, RAW, BENCHMARKS = "data/packed", "models/base", "data/raw/", "data/benchmarks"
INTACT, DIFFERS, ABSENT = "intact", "differs", "not here"
NOTHING = "no such file"


@dataclass(frozen=True)
class Fault:
    """Something that is not what it was."""

    where: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True)
class Digests:
    """Two digests of one file, from one reading."""

    sha256: str
    md5: str


def verify(records: Records, with_cache: bool = False) -> tuple[dict[str, str], list[Fault]]:
    """Return the state of every out by path, and the faults; where asked for, also of DVC's cache and of checkpoints.

    What lies here of another training is not here; of the same one it is intact.
    """
    faults = [*check_lineage(records), *check_reports(records)]
    states = {}
    folder = records.folder or records.root
    for path, md5 in {PACKED: None, BASE: None, FINAL: None, **outs(records.lock)}.items():
        copy = records.model if path == FINAL else None
        place, belongs = copy or folder / path, records.folder or copy
        if not place.exists():
            states[path] = ABSENT
            continue
        wrong = list(check_out(records, path, md5, digests(place)))
        if belongs:
            faults += wrong
        states[path] = INTACT if not wrong else DIFFERS if belongs else ABSENT
    if with_cache:
        faults += [fault for path, md5 in outs(records.lock).items() for fault in check_cache(records.root, path, md5)]
        faults += check_checkpoints(records)
    if records.model:
        faults = [replace(fault, where=fault.where.replace(FINAL, records.name, 1)) for fault in faults]
    return states, list(dict.fromkeys(faults))  # a report may be known to dvc.lock and to lineage.json


def digests(place: Path) -> dict[str, Digests]:
    """Return the digests of a file (by the name "") or of all files below a folder, by relative path."""
    if place.is_file():
        return {"": _digests(place)}
    files = sorted(path for path in place.rglob("*") if path.is_file())
    return {path.relative_to(place).as_posix(): _digests(path) for path in files}


def dvc_digest(found: dict[str, Digests]) -> str:
    """Return the digest by which DVC knows a file or a folder.

    Source:  dvc-data 3.18, hashfile/tree.py: a folder is the JSON list of its files in order of path.
    """
    if list(found) == [""]:
        return found[""].md5
    listed = [{"md5": found[name].md5, "relpath": name} for name in sorted(found)]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def check_lineage(records: Records) -> Iterator[Fault]:
    """Hold lineage.json against its own key, and against the version in MLflow."""
    told = records.lineage
    if not told:
        return
    decisive = {name: told["packages"].get(name) for name in NUMERIC_PACKAGES}
    lineage = Lineage(told["data"], told["base_model"], told["params"], told["code"], decisive)
    if lineage.key != told["lineage_key"]:
        yield Fault(
            LINEAGE, f"key {lineage.key} of the data, model, params, code and packages in it", told["lineage_key"]
        )
    tagged = (records.version or {}).get("lineage_json")
    if tagged and tagged != (found := hashlib.sha256(records.read(LINEAGE) or b"").hexdigest()):
        yield Fault(LINEAGE, f"sha256 {tagged} of the version in MLflow", f"sha256 {found}")


def check_reports(records: Records) -> Iterator[Fault]:
    """Hold the reports that tell of the data against lineage.json."""
    for path, expected in records.lineage.get("records", {}).items():
        content = records.read(path)
        if content is not None and (found := hashlib.sha256(content).hexdigest()) != expected:
            yield Fault(path, f"sha256 {expected}", f"sha256 {found}")


def check_out(records: Records, path: str, md5: str | None, found: dict[str, Digests]) -> Iterator[Fault]:
    """Hold an out on disk against dvc.lock and lineage.json; name the files where somebody knows them."""
    wrong = []
    if md5 and (now := dvc_digest(found)) != md5:
        wrong.append(Fault(path, f"md5 {md5} (dvc.lock)", f"md5 {now}"))
    told = records.lineage
    by_key = {PACKED: told.get("data"), BASE: None if _other_start(told) else told.get("base_model")}
    if expected := by_key.get(path):
        now = value_digest({name: one.sha256 for name, one in found.items()})
        if now != expected:
            wrong.append(Fault(path, f"sha256 {expected} (lineage.json)", f"sha256 {now}"))
    by_file = list(_files(records, path, md5, found))
    yield from by_file or wrong


def _files(records: Records, path: str, md5: str | None, found: dict[str, Digests]) -> Iterator[Fault]:
    """Name the files of a folder that differ from what lineage.json, the report of fetch or DVC's cache know."""
    named = set()
    for kind, known in _known(records, path, md5):
        ours = found.keys() - ({"lineage.json"} if kind == "sha256" else set())  # no file holds its own digest
        for name in sorted(known.keys() | ours):
            expected = f"{kind} {known[name]}" if name in known else NOTHING
            now = f"{kind} {getattr(found[name], kind)}" if name in found else NOTHING
            if now != expected and name not in named:
                named.add(name)
                yield Fault(f"{path}/{name}", expected, now)


def _known(records: Records, path: str, md5: str | None) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield what is known of the files of a folder: the kind of digest, and the digests."""
    by_sha256 = {}
    if path == FINAL:
        by_sha256 = records.lineage.get("files", {})
    elif path.startswith(RAW):
        report = records.json(f"reports/fetch/{path.removeprefix(RAW)}.json")
        by_sha256 = {file["path"]: file["sha256"] for file in report.get("files", [])}
    elif path == BENCHMARKS:
        by_sha256 = records.json("reports/fetch/benchmarks.json").get("digests", {})
    if by_sha256:
        yield "sha256", by_sha256
    if md5 and md5.endswith(".dir") and (by_md5 := listing(records.root, md5)):
        yield "md5", by_md5


def check_cache(root: Path, path: str, md5: str) -> Iterator[Fault]:
    """Hold the objects that DVC's cache has of an out against the digests that name them."""
    inside = listing(root, md5) if md5.endswith(".dir") else {}
    for name, expected in {"": md5, **({f"/{rel}": one for rel, one in (inside or {}).items()})}.items():
        place = cached(root, expected)
        if place.is_file() and (now := _digests(place).md5) != expected.removesuffix(".dir"):
            yield Fault(f"{place} (DVC's cache of {path}{name})", f"md5 {expected}", f"md5 {now}")


def check_checkpoints(records: Records) -> Iterator[Fault]:
    """Hold the checkpoints of the run against their manifests; one without, as a kill leaves it, is never loaded."""
    run = records.root / "runs" / records.lineage.get("lineage_key", "")
    for checkpoint in sorted((run / "checkpoints").glob("iter_*")):
        if manifest_of(checkpoint).exists() and (fault := fault_of(checkpoint)):
            place = checkpoint.relative_to(records.root).as_posix()
            yield Fault(place, "the files of its manifest", fault)


def _other_start(lineage: dict[str, Any]) -> bool:
    """Whether the training started from a checkpoint in place of models/base."""
    return bool(lineage.get("params", {}).get("checkpoint", {}).get("pretrained_checkpoint"))


def _digests(path: Path) -> Digests:
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            sha256.update(block)
            md5.update(block)
    return Digests(sha256.hexdigest(), md5.hexdigest())


def as_json(faults: list[Fault]) -> list[dict[str, str]]:
    """Return faults as JSON holds them."""
    return [asdict(fault) for fault in faults]
