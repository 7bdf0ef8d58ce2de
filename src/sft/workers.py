"""Workers: one function mapped over tasks, by processes of this machine or by a Dask cluster.

    map_shards(work, tasks, label, on_result) -> the result of each task, in order

`work` is a module-level function from one JSON-like value to another: it reads the files that the task names, writes
files, and returns names and counts, never data. The executor does not change a byte of what it writes:

    SFT_EXECUTOR unset            SFT_WORKERS processes of this machine, by default one for each core
    SFT_EXECUTOR=dask://host:port the workers of a Dask scheduler (dask+tls:// with certificates from Dask's
    SFT_EXECUTOR=scheduler.json   configuration); or of the scheduler that wrote this file

Both are a `concurrent.futures.Executor` whose threads each keep a child process and give it one task at a time. If a
child crashes, its task runs again, at most ATTEMPTS times. A task that takes far longer than the others is also given
to an idle worker, and the first result counts; so `work` writes to paths of its own (`tempfile.mkdtemp`). A single
task, or a single worker, needs no child.
"""

import contextlib
import gc
import importlib
import importlib.metadata
import itertools
import json
import operator
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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sft.cli import OUT_OF_MEMORY, InputError, echo, end_with_parent

Work = Callable[[Any], Any]
OnResult = Callable[[Any], None]

ATTEMPTS = 3
# A task that takes longer than both is given to a second worker too.
STRAGGLER_SECONDS, STRAGGLER_FACTOR = 60.0, 4.0
TICK_SECONDS = 1.0
IDLE_SECONDS = 60.0  # an idle child ends after this time
CLUSTER_SECONDS = 60.0  # a cluster without workers for this long is an error
ALLOCATIONS_PER_COLLECTION = 100_000
SOURCES = Path(__file__).parents[1]
# Variables that set the number of threads of libraries.
THREADS = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS", "ARROW_NUM_THREADS"),
    "FASTOKENS_BPE_THREADS",
)
# Set before Arrow is loaded: it then shares the heap of the C library. Its own heap keeps memory that another thread
# freed (30 MB in the filter stage on a million rows), and clearing its pages takes an eighth of the time of prep
# (bench/peers/prep.py).
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
# Packages that determine the bytes that a worker writes.
PINNED_FOR_BYTES = ("jinja2", "numpy", "orjson", "pyarrow", "tokenizers")


class LostWorkerError(Exception):
    """A process ended before it gave its result."""


class WorkerError(Exception):
    """A bug in the work of a worker; the message is its traceback."""


class Pool(NamedTuple):
    """An executor of tasks."""

    executor: Executor
    capacity: Callable[[], int]
    """Returns how many tasks it can run at once, now."""
    lost_errors: tuple[type[Exception], ...]
    """What a future raises if the process of its task is gone."""


def cores() -> int:
    """Return how many cores this process may use, by its affinity and its control group."""
    allowed = len(os.sched_getaffinity(0))
    limit = Path("/sys/fs/cgroup/cpu.max")
    quota, period = limit.read_text(encoding="ascii").split() if limit.exists() else ("max", "1")
    return allowed if quota == "max" else max(1, min(allowed, int(quota) // int(period)))


def worker_count() -> int:
    """Return SFT_WORKERS, or the number of cores. Raises InputError: not a positive number."""
    text = os.environ.get("SFT_WORKERS", "")
    if text and not (text.isdecimal() and int(text)):
        raise InputError(f"SFT_WORKERS={text}: expected a positive number, for example SFT_WORKERS=2")
    return int(text) if text else cores()


def map_shards(
    work: Work,
    tasks: Iterable[Any],
    label: str,
    on_result: OnResult | None = None,
    expected: int = 0,
    *,
    at_most: int = sys.maxsize,
) -> list[Any]:
    """Return work(task) of every task, in order; `label` names the work on the progress bar.

    A task is taken when a worker is free, so `tasks` may make files that the work reads. `on_result` is called in this
    process with each result, in the order of the tasks, while others run. `expected`: about how many tasks there are,
    for progress, if `tasks` has no length. `at_most`: processes of this machine that its memory holds.

    Raises:  InputError, OSError: raised by the work; or a task was lost ATTEMPTS times, or there is no cluster;
    WorkerError: any other exception of the work, with its traceback.
    """
    cluster, upcoming = os.environ.get("SFT_EXECUTOR", ""), iter(tasks)
    first = list(itertools.islice(upcoming, 2))
    expected = max(len(first), operator.length_hint(tasks, expected))
    workers = min(worker_count(), expected, at_most)
    upcoming = itertools.chain(first, upcoming)
    if not cluster and (workers < 2 or len(first) < 2):
        with contextlib.ExitStack() as stack:
            report_position("the start")
            stack.push(_note_position)
            return list(_run_here(work, upcoming, on_result))
    threads, versions = (1, _versions()) if cluster else (max(1, cores() // workers), {})
    setup = json.dumps(  # `run`: a child serves one call of map_shards, because code and files may change between two
        {
            "run": uuid.uuid4().hex,
            "folder": os.getcwd(),
            "sources": str(SOURCES),
            "threads": threads,
            "versions": versions,
        }
    )
    requests = (json.dumps({"work": _import_name(work), "task": task}) for task in upcoming)
    with _dask_pool(cluster) if cluster else _process_pool(workers) as pool:
        return _run_tasks(pool, setup, requests, label, on_result, expected)


def relax_gc() -> None:
    """Let the garbage collector run less often: parsed JSON is many objects and has no cycles."""
    gc.set_threshold(ALLOCATIONS_PER_COLLECTION)


def report_position(rows: str) -> None:
    """Report which rows the work is at, so that the error of a killed process names them."""
    global _position, _row
    _position, _row = rows, ""
    if _replies is not None:
        _reply({"position": rows})


def report_row(row: str) -> None:
    """Note the row that the work is at, for exceptions; cheap enough to call for every row."""
    global _row
    _row = row


def _note_position(_: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
    """Add the rows that the work was at to an exception that leaves a block."""
    if error is not None:
        error.add_note(_position_note())


def _position_note() -> str:
    return f"at {_position}" + (f", {_row}" if _row else "")


# --- The driver -------------------------------------------------------------------------------------------


def _run_here(work: Work, tasks: Iterable[Any], on_result: OnResult | None) -> Iterator[Any]:
    """Run the tasks in this process."""
    for task in tasks:
        result = work(task)
        if on_result is not None:
            on_result(result)
        yield result


def _run_tasks(
    pool: Pool, setup: str, requests: Iterator[str], label: str, on_result: OnResult | None, expected: int
) -> list[Any]:
    """Keep every worker busy until all tasks have a result."""
    results: dict[int, Any] = {}
    lost: Counter[int] = Counter()
    taken: list[str] = []
    waiting, is_last_taken = deque[int](), False  # tasks to do again
    running: dict[Future[Any], tuple[int, float]] = {}
    seconds: list[float] = []
    calls, called = deque[Future[None]](), 0  # of on_result: in a thread of its own, so that workers need not wait
    caller = ThreadPoolExecutor(1, thread_name_prefix="sft-results")

    def next_task() -> int | None:
        nonlocal is_last_taken
        if waiting:
            return waiting.popleft()
        if (request := next(requests, None)) is not None:
            taken.append(request)
            return len(taken) - 1
        is_last_taken = True
        return _straggler(running, seconds)

    with _bar() as bar, contextlib.ExitStack() as stack:
        stack.callback(caller.shutdown, cancel_futures=True)
        progress = bar.add_task(label)
        while True:
            while len(running) < pool.capacity() and (index := next_task()) is not None:
                running[pool.executor.submit(run_in_child, taken[index], setup)] = index, time.monotonic()
            total = len(taken) if is_last_taken else max(len(taken), expected)
            bar.update(progress, completed=len(results), total=total)
            if is_last_taken and len(results) == len(taken):
                break
            done, _ = wait(running, TICK_SECONDS, FIRST_COMPLETED)
            for future in done:
                index, begin = running.pop(future)
                if index in results:
                    continue
                try:
                    results[index] = _unwrap(future.result())
                except CancelledError as error:
                    raise InputError(f"{label}: the scheduler is gone. Rerun: no output is incomplete.") from error
                except pool.lost_errors as error:
                    lost[index] += 1
                    if lost[index] == ATTEMPTS:
                        raise InputError(
                            f"{label}: shard {index} was lost {ATTEMPTS} times, last: {error}. "
                            "If memory is short, set a smaller SFT_WORKERS; otherwise check these rows."
                        ) from error
                    waiting.append(index)
                else:
                    seconds.append(time.monotonic() - begin)
            while on_result is not None and called in results:
                calls.append(caller.submit(on_result, results[called]))
                called += 1
            while calls and calls[0].done():
                calls.popleft().result()
        for call in calls:
            call.result()
    return [results[index] for index in range(len(taken))]


def _straggler(running: dict[Future[Any], tuple[int, float]], seconds: list[float]) -> int | None:
    """Return a task for an idle worker that a single worker has had for too long."""
    if not seconds:
        return None
    bound = time.monotonic() - max(STRAGGLER_SECONDS, STRAGGLER_FACTOR * statistics.median(seconds))
    workers_of = Counter(index for index, _ in running.values())
    return next((index for index, begin in running.values() if begin < bound and workers_of[index] == 1), None)


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


def _import_name(work: Work) -> str:
    module = sys.modules[work.__module__]
    spec = getattr(module, "__spec__", None)  # a stage is __main__ here, but not in a child
    return f"{spec.name if spec else work.__module__}:{work.__qualname__}"


def _versions() -> dict[str, str]:
    return {"python": sys.version.split()[0], **{name: importlib.metadata.version(name) for name in PINNED_FOR_BYTES}}


@contextlib.contextmanager
def _process_pool(workers: int) -> Iterator[Pool]:
    """Yield a pool of this machine: a thread for each child process."""
    with ThreadPoolExecutor(workers, thread_name_prefix="sft") as executor:
        try:
            yield Pool(executor, lambda: workers, (LostWorkerError,))
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
            for child in list(_Child.running):
                child.kill()


@contextlib.contextmanager
def _dask_pool(address: str) -> Iterator[Pool]:
    """Yield a pool of the workers of a Dask scheduler, with a task for each of their threads."""
    scheme, _, host = address.partition("://")
    if (scheme not in ("dask", "dask+tls") or not host) and not Path(address).is_file():
        raise InputError(
            f"SFT_EXECUTOR={address}: expected dask://host:port or the path of a Dask scheduler file. "
            "Unset it to use processes of this machine."
        )
    try:
        import distributed
    except ImportError as error:
        raise InputError(
            f"SFT_EXECUTOR={address}: Dask is not installed ({error}). Run: pip install -e '.[cluster]'"
        ) from error
    protocol = "tls" if scheme == "dask+tls" else "tcp"
    scheduler = {"address": f"{protocol}://{host}"} if host else {"scheduler_file": address}
    try:
        client = distributed.Client(**scheduler, timeout=CLUSTER_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(f"SFT_EXECUTOR={address}: no Dask scheduler answers ({error}). Run: dask scheduler") from error
    with client:
        _wait_for_workers(client, address)
        echo(f"Dask: {len(client.nthreads())} workers, dashboard {client.dashboard_link}")
        executor = client.get_executor(pure=False)
        # A worker that dies just after its task: Dask unpacks the reply as if it were an exception, a ValueError
        # (distributed/cfexecutor.py, `_cascade_future`, 2026.8). run_in_child itself raises none.
        lost_errors = LostWorkerError, distributed.KilledWorker, ValueError
        try:
            yield Pool(executor, _Capacity(client, address), lost_errors)
        finally:
            executor.shutdown(wait=False)


class _Capacity:
    """Returns how many tasks a cluster can run at once; workers may join and leave."""

    def __init__(self, client: Any, address: str) -> None:
        self._client, self._address, self._counted_at, self._threads = client, address, 0.0, 0

    def __call__(self) -> int:
        if time.monotonic() - self._counted_at > TICK_SECONDS:
            _wait_for_workers(self._client, self._address)
            self._threads = sum(self._client.nthreads().values())
            self._counted_at = time.monotonic()
        return self._threads


def _wait_for_workers(client: Any, address: str) -> None:
    try:
        client.wait_for_workers(1, timeout=CLUSTER_SECONDS)
    except TimeoutError as error:
        raise InputError(f"SFT_EXECUTOR={address}: the scheduler has no workers. Run: dask worker") from error


# --- A worker: a thread that keeps a child ------------------------------------------------------------------

_local = threading.local()


def run_in_child(request: str, setup: str) -> dict[str, Any]:
    """Run one task in the child process of this thread, started with `setup`; return its reply.

    Raises:  LostWorkerError: the child ended before its reply.
    """
    child: _Child | None = getattr(_local, "child", None)
    if child is None or not child.serves(setup):
        if child is not None:
            child.kill()
        child = _local.child = _Child(setup)
    return child.ask(request)


def worker_environment(threads: int) -> dict[str, str]:
    """Return the environment variables that limit the threads of libraries in a worker."""
    parallel = {"TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false"}
    return {**dict.fromkeys(THREADS, str(threads)), **parallel}


class _Child:
    """A process that runs one task at a time; requests and replies are lines of JSON."""

    running: set["_Child"] = set()  # noqa: RUF012 (all children of this process)

    def __init__(self, setup: str) -> None:
        self._setup = setup
        _, folder, sources, threads, versions = json.loads(setup).values()
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from sft.workers import serve; serve()", json.dumps(versions)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": sources, **worker_environment(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            process_group=0,  # Ctrl-C is for the driver, which ends its children
        )
        self.running.add(self)

    def serves(self, setup: str) -> bool:
        """Return whether it is running and was started with `setup`."""
        return self._setup == setup and self._process.poll() is None

    def ask(self, request: str) -> dict[str, Any]:
        """Send a task and return the reply. Raises LostWorkerError: the process ended before its reply."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        position = "before its first row"
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
            for line in self._process.stdout:
                reply: dict[str, Any] = json.loads(line)
                if "position" not in reply:
                    return reply
                position = f"at {reply['position']}"
        status = self._process.wait()
        self.running.discard(self)
        end = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        raise LostWorkerError(f"its process {end} {position}")

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()
        self.running.discard(self)


# --- The child ------------------------------------------------------------------------------------------------

_position = _row = ""
_replies: TextIO | None = None


def serve() -> None:
    """Run the tasks on standard input, a line each, until input or the parent process ends."""
    global _replies
    end_with_parent()
    _replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # the output of the work is for people, not for the parent
    sys.excepthook = _reply_traceback
    expected = json.loads(sys.argv[1])
    installed = _versions() if expected else {}
    differing = [
        f"{name} {installed[name]} instead of {version}"
        for name, version in expected.items()
        if installed[name] != version
    ]
    while select.select([sys.stdin], [], [], IDLE_SECONDS)[0] and (line := sys.stdin.readline()):
        request = json.loads(line)
        module, _, name = request["work"].partition(":")
        try:
            if differing:
                raise InputError(
                    f"Dask worker on {os.uname().nodename}: found {', '.join(differing)}. "
                    "Start it from the .venv of the driver."
                )
            _reply({"result": getattr(importlib.import_module(module), name)(request["task"])})
        except InputError as error:
            _reply({"input_error": str(error)})
        except MemoryError:
            _reply({"input_error": f"{_position_note()}: {OUT_OF_MEMORY}"})
        except OSError as error:
            name = os.fspath(error.filename) if isinstance(error.filename, str | os.PathLike) else None
            _reply({"os_error": [error.errno, error.strerror or str(error), name]})


def _reply(value: dict[str, Any]) -> None:
    assert _replies is not None
    _replies.write(json.dumps(value) + "\n")
    _replies.flush()


def _reply_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Reply any other exception, with the rows it came from; this process then ends."""
    _note_position(kind, error, trace)
    _reply({"traceback": "".join(traceback.format_exception(kind, error, trace))})
