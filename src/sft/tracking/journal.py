"""The journal of a run: one file of all that training, export and evaluation did.

Training appends here and never waits for a server; `sft.tracking.sync` sends the entries to a store. The files of a
run, in runs/<lineage key>:

    journal.jsonl        one entry a line, with its time; append-only
    mlflow/files/        copies of the texts to attach
    mlflow/synced.json   for each store: the bytes of the journal that it has, and the ids it returned

Entries by kind: `data`, `run`, `attempt`, `step`, `validation`, `system`, `files`, `model`, `evaluation`, `end`. A line
that a kill or a full disk cut is no entry; the next entry starts on a line of its own. Passwords in addresses are never
written.
"""

import contextlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sft.files import file_lock, flatten, read_json, write_json
from sft.hashing import file_digest

MAX_PARAM_CHARS = 6000
DIGEST_DIGITS = 12
RECORDS = "records"  # the artifact folder of a run that holds its params, reports and locks
LOCAL = "local"  # the tag `cluster` of an attempt on this machine
KILLED, FAILED, FINISHED = "KILLED", "FAILED", "FINISHED"


@dataclass(frozen=True)
class Dataset:
    """A data set as MLflow shows it as the input of a run."""

    name: str
    digest: str
    source: str
    """A location, as in file:///place/data/packed."""
    context: str
    """training, source or evaluation."""
    tags: dict[str, str]


class Journal:
    """The journal of the run in a folder, runs/<lineage key>."""

    def __init__(self, run: Path) -> None:
        self.key = run.name
        self.file = run / "journal.jsonl"
        self.folder = run / "mlflow"
        self._writing = threading.Lock()

    def add(self, kind: str, **values: Any) -> None:
        """Append an entry, with the time of now. It is on disk when this returns. Raises OSError: the disk is full."""
        entry = {"kind": kind, "time": time.time_ns() // 1_000_000, **values}
        line = json.dumps(entry, sort_keys=True).encode() + b"\n"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self._writing, self.file.open("ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                line = b"\n" + line  # the line before it is cut
            while line:  # a disk that fills up takes a part first
                line = line[file.write(line) :]
            os.fsync(file.fileno())

    def read(self, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (byte offset of its end, entry) from an offset on."""
        if not self.file.exists():
            return
        with self.file.open("rb") as file:
            file.seek(start)
            for line in file:
                start += len(line)
                if line.endswith(b"}\n"):
                    with contextlib.suppress(ValueError):  # a cut line can end like a whole one
                        yield start, json.loads(line)

    def entries(self, *kinds: str) -> Iterator[dict[str, Any]]:
        """Yield the entries of some kinds, in order."""
        return (entry for _, entry in self.read() if entry["kind"] in kinds)

    def attach(self, folder: str, files: Mapping[str, Path]) -> None:
        """Attach files, as they are now, at their paths below a folder of the run's artifacts."""
        if files:
            self.add("files", folder=folder, files=self.copy(files))

    def copy(self, files: Mapping[str, Path]) -> str:
        """Copy files to their paths below a new folder of the journal; return that folder, relative."""
        number = sum(1 for _ in self.folder.glob("files/*"))
        copies = self.folder / "files" / str(number)
        copies.mkdir(parents=True)
        for path, file in files.items():
            (copies / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copies / path)
        return copies.relative_to(self.folder).as_posix()

    def synced(self, store: str) -> dict[str, Any]:
        """Return what is known of a store: the `bytes` that it has, and its ids (run_id, version)."""
        return dict(self._synced().get(store, {}))

    def set_synced(self, store: str, state: dict[str, Any]) -> None:
        """Write down what a store has now."""
        write_json(self.folder / "synced.json", {**self._synced(), store: state})

    def pending(self, store: str) -> int:
        """Return how many entries a store does not have."""
        return sum(1 for _ in self.read(self.synced(store).get("bytes", 0)))

    def _synced(self) -> dict[str, dict[str, Any]]:
        path = self.folder / "synced.json"
        return dict(read_json(path)) if path.exists() else {}

    def sync_lock(self, patience: float) -> AbstractContextManager[bool]:
        """Be the only process that syncs, waiting some seconds for another; yields whether this one is."""
        return file_lock(self.folder / "lock", patience)

    def attempts(self) -> dict[int, dict[str, Any] | None]:
        """Return the attempts by number: the entry that began it, None of those that have ended."""
        attempts: dict[int, dict[str, Any] | None] = {}
        for entry in self.entries("attempt", "end"):
            attempts[entry["attempt"]] = entry if entry["kind"] == "attempt" else None
        return attempts


def open_run(
    run: Path, params: dict[str, Any], tags: dict[str, str], datasets: list[Dataset], *, sampled: bool = False
) -> Journal:
    """Begin an attempt at a run: what determines the model as params, what describes the attempt as tags.

    A run on a sample of the data has its own experiment and registered model.
    """
    journal = Journal(run)
    attempts = journal.attempts()
    for number in (number for number, began in attempts.items() if began):
        journal.add("end", attempt=number, status=KILLED)
    inputs = [asdict(dataset) for dataset in datasets]
    journal.add("run", params=as_params(params), tags=tags, datasets=inputs, sampled=sampled)
    process = {"host": socket.gethostname(), "pid": os.getpid()}
    journal.add("attempt", attempt=max(attempts, default=0) + 1, tags=tags, process=process)
    return journal


def add_data(
    run: Path,
    digest: str,
    params: dict[str, Any],
    counts: dict[str, float],
    datasets: list[Dataset],
    files: Mapping[str, Path],
    *,
    sampled: bool = False,
) -> None:
    """Add how the packed data of a run was made, before the run itself; once for each journal.

    A store has one run for each packed data set, known by its digest; every training on it links to that run.
    """
    journal = Journal(run)
    if any(entry["digest"] == digest for entry in journal.entries("data")):
        return
    journal.add(
        "data",
        digest=digest,
        files=journal.copy(files),
        sampled=sampled,
        params=as_params(params),
        counts=counts,
        datasets=[asdict(dataset) for dataset in datasets],
    )


def end_dead_attempts(journal: Journal) -> list[int]:
    """End the attempts whose process on this machine no longer runs; return their numbers.

    The attempt of a job ends with the job, not with the process that submitted it.
    """
    ended = []
    for number, began in journal.attempts().items():
        in_job = began and began["tags"].get("cluster", LOCAL) != LOCAL
        process = began["process"] if began and not in_job else {}
        if process.get("host") == socket.gethostname() and not Path("/proc", str(process["pid"])).exists():
            journal.add("end", attempt=number, status=KILLED)
            ended.append(number)
    return ended


@contextlib.contextmanager
def record_status(journal: Journal) -> Iterator[None]:
    """End the attempt with the block: FINISHED, FAILED on an error, KILLED on a signal (sft.cli.Stopped)."""
    status = FAILED
    try:
        yield
        status = FINISHED
    except KeyboardInterrupt:
        status = KILLED
        raise
    finally:
        journal.add("end", attempt=max(journal.attempts()), status=status)


def open_model(run: Path, model: Path) -> Journal:
    """Return the journal of a model's run; a model that was trained elsewhere gets its entries from lineage.json."""
    journal, lineage = Journal(run), read_json(model / "lineage.json")
    if not any(journal.entries("run")):
        tags = {"git.commit": str(lineage["git_commit"]), "trained": "elsewhere"}
        params = {**lineage["params"], **{name: lineage[name] for name in ("data", "base_model", "code")}}
        packed = Dataset("packed", lineage["data"], model.absolute().as_uri(), "training", {})
        sampled = lineage.get("sampled", False)
        journal.add("run", params=as_params(params), tags=tags, datasets=[asdict(packed)], sampled=sampled)
    if file_digest(model / "lineage.json") not in {entry["digest"] for entry in journal.entries("model")}:
        add_model(journal, model, {})
    return journal


def add_model(journal: Journal, model: Path, metrics: Mapping[str, float | None], step: int = 0) -> None:
    """Register an exported model, with the metrics of the last step of its training."""
    lineage = read_json(model / "lineage.json")
    tags = {name: str(lineage[name]) for name in ("lineage_key", "data", "base_model", "code", "git_commit")}
    if uri := lineage.get("base_model_from", {}).get("uri"):
        tags["base_model_uri"] = str(uri)
    journal.add(
        "model",
        tags=tags,
        params=as_params(lineage["params"]),
        path=model.as_posix(),
        digest=file_digest(model / "lineage.json"),
        parent=lineage.get("parent"),
        step=step,
        metrics={name: value for name, value in metrics.items() if value is not None},
    )


def as_params(params: dict[str, Any]) -> dict[str, str]:
    """Return params as MLflow takes them: flat names, short texts."""
    return {name: str(value)[:MAX_PARAM_CHARS] for name, value in flatten(params).items()}
