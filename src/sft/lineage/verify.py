"""Verify that files, reports and lineage.json are those that a model was made with.

Records of one training  ->  the state of every output of the pipeline, and the faults: path, expected, actual

Checks lineage.json against its own key, its version in MLflow and the params in dvc.lock, the reports against
lineage.json, and data and models against lineage.json, dvc.lock and the reports of fetch. Reads every file once. On
request also checks the objects in DVC's cache against their names, and the checkpoints of the run against their
manifests.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sft.hashing import BLOCK_BYTES, files_below, value_digest
from sft.lineage import locked_params
from sft.lineage.key import NUMERIC_PACKAGES, Lineage
from sft.lineage.resolve import FINAL, LINEAGE, Records, cached, listing, outs
from sft.training.checkpoints import fault_of, manifest_of

PACKED, BASE, RAW, BENCHMARKS = "data/packed", "models/base", "data/raw/", "data/benchmarks"
INTACT, DIFFERS, ABSENT = "intact", "differs", "absent"
NO_FILE = "no such file"


@dataclass(frozen=True)
class Fault:
    """A file, a folder or a report that differs."""

    path: str
    expected: str
    actual: str

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, found {self.actual}"


@dataclass(frozen=True)
class Digests:
    """Two digests of one file, which was read once."""

    sha256: str
    md5: str


def verify(records: Records, with_cache: bool = False) -> tuple[dict[str, str], list[Fault]]:
    """Return the state of every output by path, and the faults; `with_cache`: also of DVC's cache and checkpoints.

    Files of another training count as absent, except those that are the same.
    """
    faults = [*check_lineage(records), *check_reports(records)]
    states = {}
    folder = records.folder or records.root
    for path, md5 in {PACKED: None, BASE: None, FINAL: None, **outs(records.lock)}.items():
        copy = records.model if path == FINAL else None
        place, is_own = copy or folder / path, records.folder or copy
        if not place.exists():
            states[path] = ABSENT
            continue
        differing = list(check_output(records, path, md5, digests(place)))
        if is_own:
            faults += differing
        states[path] = INTACT if not differing else DIFFERS if is_own else ABSENT
    if with_cache:
        faults += [fault for path, md5 in outs(records.lock).items() for fault in check_cache(records.root, path, md5)]
        faults += check_checkpoints(records)
    if records.model:
        faults = [replace(fault, path=fault.path.replace(FINAL, records.name, 1)) for fault in faults]
    return states, list(dict.fromkeys(faults))  # a report may be in dvc.lock and in lineage.json


def digests(place: Path) -> dict[str, Digests]:
    """Return the digests of a file (by the name "") or of all files below a folder, by relative path."""
    if place.is_file():
        return {"": _digests(place)}
    files = files_below(place)
    return {path.relative_to(place).as_posix(): _digests(path) for path in files}


def dvc_digest(files: dict[str, Digests]) -> str:
    """Return the digest that DVC gives a file or a folder.

    Source:  dvc-data 3.18, hashfile/tree.py: a folder is the JSON list of its files in order of path.
    """
    if list(files) == [""]:
        return files[""].md5
    listed = [{"md5": files[name].md5, "relpath": name} for name in sorted(files)]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def check_lineage(records: Records) -> Iterator[Fault]:
    """Check lineage.json against its own key, and against the version in MLflow."""
    recorded = records.lineage
    if not recorded:
        return
    packages = {name: recorded["packages"].get(name) for name in NUMERIC_PACKAGES}
    lineage = Lineage(recorded["data"], recorded["base_model"], recorded["params"], recorded["code"], packages)
    if not lineage.has_key(recorded["lineage_key"]):
        key = f"key {lineage.key} of the data, model, params, code and packages in it"
        yield Fault(LINEAGE, key, recorded["lineage_key"])
    for name, (trained, locked) in locked_params.differing(records).items():
        yield Fault(f"dvc.lock: {name}", f"{trained!r}, as the model was trained", repr(locked))
    tagged = (records.version or {}).get("lineage_json")
    if tagged and tagged != (digest := hashlib.sha256(records.read(LINEAGE) or b"").hexdigest()):
        yield Fault(LINEAGE, f"sha256 {tagged} of the version in MLflow", f"sha256 {digest}")


def check_reports(records: Records) -> Iterator[Fault]:
    """Check the reports on the data against lineage.json."""
    for path, expected in records.lineage.get("records", {}).items():
        content = records.read(path)
        if content is not None and (digest := hashlib.sha256(content).hexdigest()) != expected:
            yield Fault(path, f"sha256 {expected}", f"sha256 {digest}")


def check_output(records: Records, path: str, md5: str | None, files: dict[str, Digests]) -> Iterator[Fault]:
    """Check an output on disk against dvc.lock and lineage.json; name the files if their digests are known."""
    faults = []
    if md5 and (digest := dvc_digest(files)) != md5:
        faults.append(Fault(path, f"md5 {md5} (dvc.lock)", f"md5 {digest}"))
    lineage = records.lineage
    in_key = {PACKED: lineage.get("data"), BASE: None if _other_start(lineage) else lineage.get("base_model")}
    if expected := in_key.get(path):
        digest = value_digest({name: file.sha256 for name, file in files.items()})
        if digest != expected:
            faults.append(Fault(path, f"sha256 {expected} (lineage.json)", f"sha256 {digest}"))
    yield from list(_files(records, path, md5, files)) or faults


def _files(records: Records, path: str, md5: str | None, files: dict[str, Digests]) -> Iterator[Fault]:
    """The files of a folder that differ from lineage.json, the report of fetch or DVC's cache."""
    named = set()
    for kind, known in _known(records, path, md5):
        on_disk = files.keys() - ({"lineage.json"} if kind == "sha256" else set())  # no file holds its own digest
        for name in sorted(known.keys() | on_disk):
            expected = f"{kind} {known[name]}" if name in known else NO_FILE
            actual = f"{kind} {getattr(files[name], kind)}" if name in files else NO_FILE
            if actual != expected and name not in named:
                named.add(name)
                yield Fault(f"{path}/{name}", expected, actual)


def _known(records: Records, path: str, md5: str | None) -> Iterator[tuple[str, dict[str, str]]]:
    """The known digests of the files of a folder: (kind of digest, digest by name)."""
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
    """Check the objects of an output in DVC's cache against the digests in their names."""
    inside = listing(root, md5) if md5.endswith(".dir") else {}
    for name, expected in {"": md5, **{f"/{rel}": digest for rel, digest in (inside or {}).items()}}.items():
        place = cached(root, expected)
        if place.is_file() and (digest := _digests(place).md5) != expected.removesuffix(".dir"):
            yield Fault(f"{place} (DVC's cache of {path}{name})", f"md5 {expected}", f"md5 {digest}")


def check_checkpoints(records: Records) -> Iterator[Fault]:
    """Check the checkpoints of the run against their manifests; one without, left by a kill, is never loaded."""
    run = records.root / "runs" / records.lineage.get("lineage_key", "")
    for checkpoint in sorted((run / "checkpoints").glob("iter_*")):
        if manifest_of(checkpoint).exists() and (fault := fault_of(checkpoint)):
            place = checkpoint.relative_to(records.root).as_posix()
            yield Fault(place, "the files of its manifest", fault)


def _other_start(lineage: dict[str, Any]) -> bool:
    """Whether training started from a checkpoint instead of models/base."""
    return bool(lineage.get("params", {}).get("checkpoint", {}).get("pretrained_checkpoint"))


def _digests(path: Path) -> Digests:
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            sha256.update(block)
            md5.update(block)
    return Digests(sha256.hexdigest(), md5.hexdigest())
