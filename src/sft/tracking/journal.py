"""outbox: what MLflow is to be told of a run, on disk until every store that is asked for has been told.

Training writes here and never waits for a server; `sft.tracking.delivery` tells a store, in order, each thing
once. The folder of a run, runs/<lineage key>/mlflow/:

    outbox.jsonl    one line for each thing, with its time; only ever appended to
    delivered.json  of each store, how many bytes of it the store has, and the ids that it gave
    files/          copies of the texts to attach

One run for each packed data set, one for each lineage key, and one child run for each attempt at that. An attempt
that ended without a word (a kill, a machine that went down) is ended as KILLED by the attempt that follows. No
address of a store with a password in it is written down.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from sft.files import file_lock, flatten, read_json, write_json
from sft.hashing import file_digest

MOST_PARAM_CHARS = 6000
DIGEST_DIGITS = 12
RECORDS = "records"  # the folder of a run's artifacts that holds the texts that tell of it
KILLED, FAILED, FINISHED = "KILLED", "FAILED", "FINISHED"


@dataclass(frozen=True)
class Dataset:
    """A data set as an input of a run: name, digest, where it is, and what is told of it as tags."""

    name: str
    digest: str
    source: str
    """A location, as in file:///place/data/packed."""
    context: str
    """training, source or evaluation."""
    tags: dict[str, str]


class Journal:
    """The outbox of the run in a folder, runs/<lineage key>."""

    def __init__(self, run: Path) -> None:
        self.key = run.name
        self.folder = run / "mlflow"
        self.file = self.folder / "outbox.jsonl"
        self._writing = threading.Lock()

    def add(self, kind: str, **values: Any) -> None:
        """Append a thing to be told, with the time at which it was so."""
        line = json.dumps({"kind": kind, "time": time.time_ns() // 1_000_000, **values}, sort_keys=True) + "\n"
        with self._writing:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                size = os.fstat(descriptor).st_size
                cut = size and os.pread(descriptor, 1, size - 1) != b"\n"  # by a kill: it ends here
                os.write(descriptor, (b"\n" if cut else b"") + line.encode("utf-8"))
            finally:
                os.close(descriptor)

    def read(self, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (bytes up to its end, thing) from a place on; a line that a kill cut is passed over."""
        if not self.file.exists():
            return
        with self.file.open("rb") as file:
            file.seek(start)
            for line in file:
                start += len(line)
                if line.endswith(b"}\n"):
                    yield start, json.loads(line)

    def attach(self, folder: str, files: Mapping[str, Path]) -> None:
        """Have files attached at their places below a folder of the run's artifacts, as they are now."""
        if files:
            self.add("files", folder=folder, files=self.keep(files))

    def keep(self, files: Mapping[str, Path]) -> str:
        """Copy files to their places below a new folder of the outbox; return which."""
        number = sum(1 for _ in self.folder.glob("files/*"))
        kept = self.folder / "files" / str(number)
        kept.mkdir(parents=True)
        for place, file in files.items():
            (kept / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, kept / place)
        return kept.relative_to(self.folder).as_posix()

    def delivered(self, store: str) -> dict[str, Any]:
        """Return what is known of a store: `bytes` that it has, and ids (run_id, version)."""
        return dict(self._delivered().get(store, {}))

    def note(self, store: str, state: dict[str, Any]) -> None:
        """Note what a store has now."""
        write_json(self.folder / "delivered.json", {**self._delivered(), store: state})

    def waiting(self, store: str) -> int:
        """How many things a store has not been told."""
        return sum(1 for _ in self.read(self.delivered(store).get("bytes", 0)))

    def _delivered(self) -> dict[str, dict[str, Any]]:
        path = self.folder / "delivered.json"
        return dict(read_json(path)) if path.exists() else {}

    def delivering(self, patience: float) -> AbstractContextManager[bool]:
        """Be the only one that delivers, waiting some seconds for another; yields whether one is."""
        return file_lock(self.folder / "lock", patience)

    def attempts(self) -> dict[int, dict[str, Any] | None]:
        """Return the attempts by number: of each that has not ended how it began, None of those that have."""
        found: dict[int, dict[str, Any] | None] = {}
        for _, thing in self.read():
            if thing["kind"] == "attempt":
                found[thing["attempt"]] = thing
            elif thing["kind"] == "end":
                found[thing["attempt"]] = None
        return found


def open_run(
    run: Path, params: dict[str, Any], tags: dict[str, str], datasets: list[Dataset], *, sampled: bool = False
) -> Journal:
    """Begin an attempt at a run: what determines the model as params, what describes the attempt as tags.

    A sampled run goes to an experiment and a registered model of its own.
    """
    box = Journal(run)
    attempts = box.attempts()
    for number in (number for number, began in attempts.items() if began):
        box.add("end", attempt=number, status=KILLED)
    box.add("run", params=as_params(params), tags=tags, datasets=[asdict(one) for one in datasets], sampled=sampled)
    process = {"host": socket.gethostname(), "pid": os.getpid()}
    box.add("attempt", attempt=max(attempts, default=0) + 1, tags=tags, process=process)
    return box


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
    """Tell of the packed data that a run trains on, before the run is: how its stages made it. Once for each outbox.

    A store has one run for each packed data set, known by its digest, and every training on it links to that.
    """
    box = Journal(run)
    if not any(thing["kind"] == "data" and thing["digest"] == digest for _, thing in box.read()):
        told = {"params": as_params(params), "counts": counts, "datasets": [asdict(one) for one in datasets]}
        box.add("data", digest=digest, files=box.keep(files), sampled=sampled, **told)


def end_dead_attempts(box: Journal) -> list[int]:
    """End the attempts of processes of this machine that are gone; return their numbers."""
    ended = []
    for number, began in box.attempts().items():
        process = began["process"] if began else {}
        if process.get("host") == socket.gethostname() and not Path("/proc", str(process["pid"])).exists():
            box.add("end", attempt=number, status=KILLED)
            ended.append(number)
    return ended


@contextlib.contextmanager
def record_status(box: Journal) -> Iterator[None]:
    """End the attempt as it ended: FINISHED, FAILED on an error, KILLED on an interrupt or SIGTERM."""
    status = FAILED
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _interrupt) if main else None
    try:
        yield
        status = FINISHED
    except KeyboardInterrupt:
        status = KILLED
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
        box.add("end", attempt=max(box.attempts()), status=status)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def open_model(run: Path, model: Path) -> Journal:
    """Return the outbox of a model's run; told of run and model by its lineage.json where training was elsewhere."""
    box, told = Journal(run), read_json(model / "lineage.json")
    kinds = {thing["kind"] for _, thing in box.read()}
    if "run" not in kinds:
        tags = {"git.commit": str(told["git_commit"]), "trained": "elsewhere"}
        params = {**told["params"], **{name: told[name] for name in ("data", "base_model", "code")}}
        datasets = [asdict(Dataset("packed", told["data"], model.absolute().as_uri(), "training", {}))]
        box.add("run", params=as_params(params), tags=tags, datasets=datasets, sampled=told.get("sampled", False))
    if file_digest(model / "lineage.json") not in {thing.get("digest") for _, thing in box.read()}:
        add_model(box, model, {})
    return box


def add_model(box: Journal, model: Path, metrics: Mapping[str, float | None]) -> None:
    """Have an exported model registered, with what was measured at the end of its training."""
    told = read_json(model / "lineage.json")
    tags = {name: str(told[name]) for name in ("lineage_key", "data", "base_model", "code", "git_commit")}
    if uri := told.get("base_model_from", {}).get("uri"):
        tags["base_model_uri"] = str(uri)
    box.add(
        "model",
        tags=tags,
        params=as_params(told["params"]),
        path=model.as_posix(),
        digest=file_digest(model / "lineage.json"),
        parent=told.get("parent"),
        metrics={name: value for name, value in metrics.items() if value is not None},
    )


class Metrics:
    """Metrics of a run over its steps; a step that a resumed training does again is not told again."""

    def __init__(self, box: Journal) -> None:
        self._box = box
        self._last: dict[str, int] = {}
        for _, thing in box.read():
            if thing["kind"] == "metrics":
                self._last |= dict.fromkeys(thing["values"], thing["step"])

    def log(self, step: int, **values: float) -> None:
        """Tell the values of one step."""
        new = {name: value for name, value in values.items() if step > self._last.get(name, -1)}
        if new:
            self._box.add("metrics", step=step, values=new)
            self._last |= dict.fromkeys(new, step)


def as_params(params: dict[str, Any]) -> dict[str, str]:
    """Return params as MLflow takes them: flat names, short texts."""
    return {name: str(value)[:MOST_PARAM_CHARS] for name, value in flatten(params).items()}


def without_secret(text: str) -> str:
    """Remove user:password@ from every URI in a text, and the value of every parameter of a query.

    >>> without_secret("http://me:secret@host:5000/x?signature=abc")
    'http://***@host:5000/x?signature=***'
    """
    text = re.sub(r"://(?:[^\s/?#]*|[^\s/?#@]*:\S*)@", "://***@", text)  # the second: a password with a slash in it
    return re.sub(r"([?&][\w.~-]+=)[^&\s#'\"]+", r"\1***", text)
