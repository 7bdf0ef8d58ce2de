"""Executor: one function mapped over shards, by processes of this machine or by a Dask cluster.

    map_shards(work, shards, what, then) -> one result for each shard, in their order; `then` is told each

`work` is a function of a module, from one JSON-like value to another: it reads what the shard names, writes files
and returns names and counts, never data. Which executor runs it changes no byte of what it writes:

    SFT_EXECUTOR unset            SFT_WORKERS processes of this machine, by default one for each core
    SFT_EXECUTOR=dask://host:port the workers of a Dask scheduler (dask+tls:// with certificates from Dask's
    SFT_EXECUTOR=scheduler.json   configuration); or of the scheduler that wrote this file

Both are a `concurrent.futures.Executor` whose threads each keep a child process and hand it one shard at a time: a
crash of a child costs its shard, which is done again, at most ATTEMPTS times. A shard that takes far longer than
the others is given to an idle worker too, and the first result counts: so `work` writes under names of its own
(`tempfile.mkdtemp`). One shard, or one worker, needs no child.
"""

import contextlib
import gc
import importlib
import importlib.metadata
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sft.cli import InputError, echo, end_with_parent

Work = Callable[[Any], Any]
Then = Callable[[Any], None]

ATTEMPTS = 3
# A shard is given to a second worker when it takes longer than both.
STRAGGLER_SECONDS, STRAGGLER_FACTOR = 60.0, 4.0
TICK_SECONDS = 1.0
IDLE_SECONDS = 60.0  # a child that is not asked for so long ends
CLUSTER_SECONDS = 60.0  # a cluster without any worker for so long is given up
ALLOCATIONS_PER_COLLECTION = 100_000
SOURCES = Path(__file__).parents[1]
# What tells libraries how many threads to use.
THREADS = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS", "ARROW_NUM_THREADS"),
    "FASTOKENS_BPE_THREADS",
)
# Read when Arrow is loaded, which is after this: one heap for it and the C library. Its own keeps what another thread
# freed (30 MB in the filter of a million rows), and costs prep an eighth of its time in pages that are cleared again
# and again (bench/prep.py).
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
# Packages that decide what bytes a worker writes.
PINNED_FOR_BYTES = ("jinja2", "numpy", "orjson", "pyarrow", "tokenizers")


class LostWorkerError(Exception):
    """A process ended before it gave its result."""


class WorkerError(Exception):
    """A fault of this program in a worker: its traceback."""


class Pool(NamedTuple):
    """What does the work."""

    executor: Executor
    capacity: Callable[[], int]
    """How many shards it can work on at once, now."""
    lost: tuple[type[Exception], ...]
    """What a future raises when the process that had the shard is gone."""


def cores() -> int:
    """Return how many cores this process may use: of its affinity, and of its control group."""
    allowed = len(os.sched_getaffinity(0))
    limit = Path("/sys/fs/cgroup/cpu.max")
    quota, period = limit.read_text(encoding="ascii").split() if limit.exists() else ("max", "1")
    return allowed if quota == "max" else max(1, min(allowed, int(quota) // int(period)))


def worker_count() -> int:
    """Return SFT_WORKERS, or the number of cores. Raises InputError: not a positive number."""
    text = os.environ.get("SFT_WORKERS", "")
    if text and not (text.isdecimal() and int(text)):
        raise InputError(f"SFT_WORKERS={text}: expected a positive number of processes, as in SFT_WORKERS=2")
    return int(text) if text else cores()


def map_shards(work: Work, shards: Sequence[Any], what: str, then: Then | None = None) -> list[Any]:
    """Return work(shard) of every shard, in order; `what` names the work on the progress bar.

    `then` is called here with each result, one after the other in the order of shards, while others are worked on.

    Raises:  InputError, OSError: as the work raised it, or a shard that was lost ATTEMPTS times, or no cluster;
    WorkerError: any other exception of the work, with its traceback.
    """
    cluster = os.environ.get("SFT_EXECUTOR", "")
    workers = min(worker_count(), len(shards))
    if not cluster and workers < 2:
        with _NamingPlace():
            return list(_one_by_one(work, shards, then))
    threads, versions = (1, _versions()) if cluster else (max(1, cores() // workers), {})
    place = json.dumps(  # `run`: a child never serves two runs, between which code and files may have changed
        {
            "run": uuid.uuid4().hex,
            "folder": os.getcwd(),
            "sources": str(SOURCES),
            "threads": threads,
            "versions": versions,
        }
    )
    questions = [json.dumps({"work": _name(work), "shard": shard}) for shard in shards]
    with _cluster(cluster) if cluster else _processes(workers) as pool:
        return _run(pool, place, questions, what, then)


def relax_gc() -> None:
    """Let Python look for cycles after so many new objects only: JSON, of which there are many, has none."""
    gc.set_threshold(ALLOCATIONS_PER_COLLECTION)


def report_position(rows: str) -> None:
    """Say which rows the work is at, so that a process that is killed is a message that names them."""
    global _at, _row
    _at, _row = rows, ""
    if _replies is not None:
        _replies.write(json.dumps({"at": rows}) + "\n")
        _replies.flush()


def report_row(row: str) -> None:
    """Note which of them it is at: for exceptions, and cheap enough to be called for every row."""
    global _row
    _row = row


def _place() -> str:
    return f"at {_at}" + (f", {_row}" if _row else "")


# --- The driver -------------------------------------------------------------------------------------------


def _one_by_one(work: Work, shards: Sequence[Any], then: Then | None) -> Iterator[Any]:
    """Work here, without a child."""
    for shard in shards:
        result = work(shard)
        if then is not None:
            then(result)
        yield result


def _run(pool: Pool, place: str, questions: list[str], what: str, then: Then | None) -> list[Any]:
    """Keep every worker at one shard until all are done."""
    results: dict[int, Any] = {}
    lost: Counter[int] = Counter()
    waiting = deque(range(len(questions)))
    running: dict[Future[Any], tuple[int, float]] = {}
    seconds: list[float] = []
    with _bar() as bar, _InOrder(then) as following:
        task = bar.add_task(what, total=len(questions))
        while len(results) < len(questions):
            while len(running) < pool.capacity() and (index := _next(waiting, running, seconds)) is not None:
                running[pool.executor.submit(run_in_child, questions[index], place)] = index, time.monotonic()
            done, _ = wait(running, TICK_SECONDS, FIRST_COMPLETED)
            for future in done:
                index, begun = running.pop(future)
                if index in results:
                    continue
                try:
                    results[index] = _unwrap(future.result())
                except CancelledError as error:
                    raise InputError(f"{what}: the scheduler is gone; rerun. Nothing was half-written.") from error
                except pool.lost as error:
                    lost[index] += 1
                    if lost[index] == ATTEMPTS:
                        raise InputError(
                            f"{what}: shard {index} of {len(questions)} was lost {ATTEMPTS} times, last: {error}. "
                            "Where memory is short, fewer workers help (SFT_WORKERS); else look at these rows."
                        ) from error
                    waiting.appendleft(index)
                else:
                    seconds.append(time.monotonic() - begun)
                    bar.advance(task)
            following.tell(results)
        following.finish()
    return [results[index] for index in range(len(questions))]


class _InOrder:
    """Calls a function with results in the order of shards, in a thread of its own: workers need not wait for it."""

    def __init__(self, then: Then | None) -> None:
        self._then, self._told = then, 0
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="sft-then")
        self._calls: deque[Future[None]] = deque()

    def __enter__(self) -> "_InOrder":
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def tell(self, results: Mapping[int, Any]) -> None:
        """Hand on what is next in order. Raises whatever a call before raised."""
        while self._then is not None and self._told in results:
            self._calls.append(self._executor.submit(self._then, results[self._told]))
            self._told += 1
        while self._calls and self._calls[0].done():
            self._calls.popleft().result()

    def finish(self) -> None:
        """Wait for all calls. Raises whatever one of them raised."""
        while self._calls:
            self._calls.popleft().result()


def _next(waiting: deque[int], running: dict[Future[Any], tuple[int, float]], seconds: list[float]) -> int | None:
    """Choose a shard for an idle worker: one that waits, or one that a single worker has had for far too long."""
    if waiting:
        return waiting.popleft()
    if not seconds:
        return None
    bound = time.monotonic() - max(STRAGGLER_SECONDS, STRAGGLER_FACTOR * statistics.median(seconds))
    twice = Counter(index for index, _ in running.values())
    return next((index for index, begun in running.values() if begun < bound and twice[index] == 1), None)


def _bar() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def _unwrap(reply: dict[str, Any]) -> Any:
    if "input_error" in reply:
        raise InputError(reply["input_error"])
    if "os_error" in reply:
        raise OSError(*reply["os_error"])
    if "traceback" in reply:
        raise WorkerError(f"in a worker:\n{reply['traceback']}")
    return reply["result"]


def _name(work: Work) -> str:
    module = sys.modules[work.__module__]
    spec = getattr(module, "__spec__", None)  # a stage is __main__ here, and has its own name elsewhere
    return f"{spec.name if spec else work.__module__}:{work.__qualname__}"


def _versions() -> dict[str, str]:
    return {"python": sys.version.split()[0], **{name: importlib.metadata.version(name) for name in PINNED_FOR_BYTES}}


@contextlib.contextmanager
def _processes(workers: int) -> Iterator[Pool]:
    """Run on this machine: a thread for each child process."""
    with ThreadPoolExecutor(workers, thread_name_prefix="sft") as executor:
        try:
            yield Pool(executor, lambda: workers, (LostWorkerError,))
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
            for child in list(_Child.living):
                child.kill()


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[Pool]:
    """Run on the workers of a Dask scheduler, as many shards at a time as they have threads."""
    scheme, _, host = address.partition("://")
    if (scheme not in ("dask", "dask+tls") or not host) and not Path(address).is_file():
        raise InputError(
            f"SFT_EXECUTOR={address}: expected dask://host:port or the path of a scheduler file of Dask; "
            "unset it to use the processes of this machine"
        )
    try:
        import distributed
    except ImportError as error:
        raise InputError(
            f"SFT_EXECUTOR={address}: Dask is not installed ({error}). Install the extra: pip install -e '.[cluster]'"
        ) from error
    where = {"address": f"{'tls' if scheme == 'dask+tls' else 'tcp'}://{host}"} if host else {"scheduler_file": address}
    try:
        client = distributed.Client(**where, timeout=CLUSTER_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"SFT_EXECUTOR={address}: no Dask scheduler answers there ({error}). Start one: dask scheduler"
        ) from error
    with client:
        _wait_for_workers(client, address)
        echo(f"Dask: {len(client.nthreads())} workers, dashboard {client.dashboard_link}")
        executor = client.get_executor(pure=False)
        try:
            yield Pool(executor, _Capacity(client, address), (LostWorkerError, distributed.KilledWorker))
        finally:
            executor.shutdown(wait=False)


class _Capacity:
    """How many shards a cluster works on at once; workers come and go."""

    def __init__(self, client: Any, address: str) -> None:
        self._client, self._address, self._asked, self._threads = client, address, 0.0, 0

    def __call__(self) -> int:
        if time.monotonic() - self._asked > TICK_SECONDS:
            _wait_for_workers(self._client, self._address)
            self._threads = sum(self._client.nthreads().values())
            self._asked = time.monotonic()
        return self._threads


def _wait_for_workers(client: Any, address: str) -> None:
    try:
        client.wait_for_workers(1, timeout=CLUSTER_SECONDS)
    except TimeoutError as error:
        raise InputError(f"SFT_EXECUTOR={address}: the scheduler has no workers. Start some: dask worker") from error


# --- A worker: a thread that keeps a child ------------------------------------------------------------------

_own = threading.local()


def run_in_child(question: str, place: str) -> dict[str, Any]:
    """Let the child process of this thread, which runs at `place`, do one shard; return its reply.

    Raises:  LostWorkerError: it ended before that.
    """
    child: _Child | None = getattr(_own, "child", None)
    if child is None or not child.serves(place):
        if child is not None:
            child.kill()
        child = _own.child = _Child(place)
    return child.ask(question)


def worker_environment(threads: int) -> dict[str, str]:
    """Return what the environment of a worker says to libraries: to use so many threads."""
    parallel = {"TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false"}
    return {**dict.fromkeys(THREADS, str(threads)), **parallel}


class _Child:
    """A process that works on one shard at a time; asks and replies are lines of JSON."""

    living: set["_Child"] = set()  # noqa: RUF012 (all of this process)

    def __init__(self, place: str) -> None:
        self._place = place
        _, folder, sources, threads, versions = json.loads(place).values()
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from sft.workers import serve; serve()", json.dumps(versions)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": sources, **worker_environment(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self.living.add(self)

    def serves(self, place: str) -> bool:
        """Say whether it lives and runs there."""
        return self._place == place and self._process.poll() is None

    def ask(self, question: str) -> dict[str, Any]:
        """Hand over a shard and wait for the reply. Raises LostWorkerError: the process ended before."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        at = "before its first row"
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(question + "\n")
            self._process.stdin.flush()
            for line in self._process.stdout:
                reply: dict[str, Any] = json.loads(line)
                if "at" not in reply:
                    return reply
                at = f"at {reply['at']}"
        status = self._process.wait()
        self.living.discard(self)
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        raise LostWorkerError(f"its process {how} {at}")

    def kill(self) -> None:
        """End it, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self.living.discard(self)


# --- The child ------------------------------------------------------------------------------------------------

_at = _row = ""
_replies: TextIO | None = None


def serve() -> None:
    """Do the shards that come as lines on standard input; end with the process that asks, or when it asks no more."""
    global _replies
    end_with_parent()
    _replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the work says is for people, not for who asked
    sys.excepthook = _reply_traceback
    wanted = json.loads(sys.argv[1])
    found = _versions() if wanted else {}
    differing = [
        f"{name} {found[name]} instead of {version}" for name, version in wanted.items() if found[name] != version
    ]
    while select.select([sys.stdin], [], [], IDLE_SECONDS)[0] and (line := sys.stdin.readline()):
        question = json.loads(line)
        module, _, name = question["work"].partition(":")
        try:
            if differing:
                raise InputError(
                    f"{os.uname().nodename}: a Dask worker has {', '.join(differing)}: start it from one .venv"
                )
            _reply({"result": getattr(importlib.import_module(module), name)(question["shard"])})
        except InputError as error:
            _reply({"input_error": str(error)})
        except OSError as error:
            name = os.fspath(error.filename) if isinstance(error.filename, str | os.PathLike) else None
            _reply({"os_error": [error.errno, error.strerror or str(error), name]})


def _reply(value: dict[str, Any]) -> None:
    assert _replies is not None
    _replies.write(json.dumps(value) + "\n")
    _replies.flush()


def _reply_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Hand on any other exception, with the rows it came from; this process then ends."""
    error.add_note(_place())
    _reply({"traceback": "".join(traceback.format_exception(kind, error, trace))})


class _NamingPlace:
    """Adds to an exception of the work the rows it came from."""

    def __enter__(self) -> None:
        global _at, _row
        _at, _row = "the start", ""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(_place())
