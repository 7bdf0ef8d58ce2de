"""Workers: the same results from every executor, and every way in which a worker can fail, with real processes."""

import os
import signal
import socket
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor as ThreadPool
from pathlib import Path

import pytest

from sft import workers
from sft.cli import InputError
from sft.workers import WorkerError, cores, map_shards, worker_count
from tests.support.dask_cluster import Cluster, alive, wait_until
from tests.support.project import ROOT
from tests.support.tokenizers import write_tokenizer

WORK = '''
import os, pathlib, signal, time
from sft.cli import InputError
from sft.workers import report_position

def double(shard):
    report_position(f"row {shard}")
    return {"twice": 2 * shard, "process": os.getpid()}

def environment(shard):
    return {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM")}

def tokenise(shard):
    import fastokens
    fast = fastokens.Tokenizer.from_file(shard)
    fast.encode_batch_flat(["the sum of seven and five "] * 10_000)
    return {"ids": len(fast.encode("the sum")), "threads": len(os.listdir("/proc/self/task"))}

def late(shard):
    time.sleep(0.4 if shard == 0 else 0)
    return shard

def slow(shard):
    pathlib.Path(f"begun-{shard}-{os.getpid()}").touch()
    time.sleep(0.3)
    return shard

def once(shard):
    """The first process that gets shard 1 kills itself."""
    report_position(f"rows of {shard}")
    if shard == 1 and not pathlib.Path("killed").exists():
        pathlib.Path("killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return shard

def always(shard):
    report_position(f"rows of {shard}")
    if shard == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return shard

def hangs(shard):
    """The first process that gets shard 1 does not come back."""
    if shard == 1 and not pathlib.Path("hanging").exists():
        pathlib.Path("hanging").write_text(str(os.getpid()))
        time.sleep(900)
    return shard

def chatty(shard):
    print("hello")
    return shard

def fails(shard):
    report_position(f"rows of {shard}")
    if shard == 1:
        {"input": lambda: _raise(InputError("row 7: bad")), "disk": lambda: _raise(OSError(28, "No space", "data/x")),
         "memory": lambda: _raise(MemoryError()), "fault": lambda: [][0]}[pathlib.Path("how").read_text()]()
    return shard

def _raise(error):
    raise error
'''


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A module of work functions in the current folder."""
    (tmp_path / "shard_work.py").write_text(WORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("SFT_EXECUTOR", raising=False)
    monkeypatch.setenv("SFT_WORKERS", "2")
    sys.modules.pop("shard_work", None)
    import shard_work

    yield shard_work
    sys.modules.pop("shard_work", None)


@pytest.mark.parametrize("workers", ["1", "3"])
def test_results_are_in_the_order_of_the_tasks_with_any_number_of_workers(work, monkeypatch, workers):
    monkeypatch.setenv("SFT_WORKERS", workers)
    results = map_shards(work.double, list(range(7)), "numbers")
    assert [result["twice"] for result in results] == [0, 2, 4, 6, 8, 10, 12]
    processes = {result["process"] for result in results}
    assert (processes == {os.getpid()}) == (workers == "1")
    assert len(processes) <= int(workers)
    assert not any(alive(pid) for pid in processes - {os.getpid()})


def test_no_tasks_have_no_results_and_a_single_one_needs_no_process(work):
    assert map_shards(work.double, [], "numbers") == []
    assert map_shards(work.double, [4], "numbers") == [{"twice": 8, "process": os.getpid()}]


@pytest.mark.parametrize("workers", [1, 2])
def test_on_result_gets_each_result_in_order_while_others_run(work, monkeypatch, workers):
    monkeypatch.setenv("SFT_WORKERS", str(workers))
    received = list[int]()
    assert map_shards(work.late, [*range(6)], "work", received.append) == received == [*range(6)]

    def fail(result: int) -> None:
        if result == 2:
            raise InputError("row 2: bad")

    begun = len(list(Path().glob("begun-*")))
    with pytest.raises(InputError, match="row 2: bad"):
        map_shards(work.slow, [*range(40)], "work", fail)
    assert 3 <= len(list(Path().glob("begun-*"))) - begun < 40, "the rest is left undone"


def test_threads_times_processes_are_at_most_the_cores(work, monkeypatch):
    for number in ("2", "64"):
        monkeypatch.setenv("SFT_WORKERS", number)
        (settings, *_) = map_shards(work.environment, list(range(4)), "numbers")
        threads = max(1, cores() // min(int(number), 4))
        assert (settings["OMP_NUM_THREADS"], settings["RAYON_NUM_THREADS"]) == (str(threads), str(threads))
        assert settings["TOKENIZERS_PARALLELISM"] == ("true" if threads > 1 else "false")


def test_the_faster_tokenizer_has_no_threads_of_its_own_where_each_core_has_a_process(work, monkeypatch, tmp_path):
    monkeypatch.setenv("SFT_WORKERS", str(max(2, cores())))
    shards = [str(write_tokenizer(tmp_path / "tokenizer") / "tokenizer.json")] * max(2, cores())
    results = map_shards(work.tokenise, shards, "texts")
    assert {each["threads"] for each in results} == {1}
    assert results[0]["ids"] > 0


def test_prints_of_the_work_do_not_mix_with_its_results(work):
    assert map_shards(work.chatty, [1, 2, 3], "numbers") == [1, 2, 3]


def test_the_task_of_a_killed_process_runs_again(work, tmp_path):
    assert map_shards(work.once, [0, 1, 2, 3], "numbers") == [0, 1, 2, 3]
    assert (tmp_path / "killed").exists()


def test_a_task_that_kills_every_process_is_an_error_that_names_its_rows(work):
    with pytest.raises(InputError, match=r"^numbers: shard 1 was .*SIGKILL at rows of 1\."):
        map_shards(work.always, [0, 1, 2], "numbers")


def test_a_task_that_hangs_runs_in_another_process_and_the_hanging_one_is_killed(work, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "STRAGGLER_SECONDS", 0.5)
    monkeypatch.setattr(workers, "STRAGGLER_FACTOR", 0.0)
    assert map_shards(work.hangs, [0, 1, 2], "numbers") == [0, 1, 2]
    assert not alive((tmp_path / "hanging").read_text())


@pytest.mark.parametrize("workers", ["1", "2"])
def test_errors_of_the_input_or_the_disk_are_raised_unchanged(work, tmp_path, monkeypatch, workers):
    monkeypatch.setenv("SFT_WORKERS", workers)
    (tmp_path / "how").write_text("input")
    with pytest.raises(InputError, match="row 7: bad"):
        map_shards(work.fails, [0, 1, 2], "numbers")
    (tmp_path / "how").write_text("disk")
    with pytest.raises(OSError, match="No space") as disk:
        map_shards(work.fails, [0, 1, 2], "numbers")
    assert (disk.value.errno, disk.value.filename) == (28, "data/x")
    (tmp_path / "how").write_text("memory")
    with pytest.raises(MemoryError if workers == "1" else InputError, match="at rows of 1"):
        map_shards(work.fails, [0, 1, 2], "numbers")


def test_any_other_exception_comes_with_its_traceback_and_its_rows(work, tmp_path, monkeypatch):
    (tmp_path / "how").write_text("fault")
    with pytest.raises(WorkerError, match=r"(?s)in fails.*IndexError: list index out of range\nat rows of 1"):
        map_shards(work.fails, [0, 1, 2], "numbers")
    monkeypatch.setenv("SFT_WORKERS", "1")
    with pytest.raises(IndexError) as here:
        map_shards(work.fails, [0, 1, 2], "numbers")
    assert here.value.__notes__ == ["at rows of 1"]


def test_a_killed_driver_leaves_no_process_behind(work, tmp_path):
    script = "import shard_work; from sft.workers import map_shards; map_shards(shard_work.slow, list(range(99)), 'x')"
    driver = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": f"{ROOT}/src"})
    try:
        wait_until(lambda: len(list(tmp_path.glob("begun-*"))) >= 4)
    finally:
        driver.kill()
        driver.wait()
    processes = {path.name.rpartition("-")[2] for path in tmp_path.glob("begun-*")}
    assert len(processes) == 2
    wait_until(lambda: not any(alive(pid) for pid in processes))


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_a_number_of_workers_that_is_not_positive_is_an_error(monkeypatch, value):
    monkeypatch.setenv("SFT_WORKERS", value)
    with pytest.raises(InputError, match=rf"^SFT_WORKERS={value}: "):
        worker_count()


def test_by_default_there_are_as_many_workers_as_cores(monkeypatch):
    monkeypatch.delenv("SFT_WORKERS", raising=False)
    assert worker_count() == cores() <= len(os.sched_getaffinity(0))


# --- Dask -------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("dask")) as cluster:
        yield cluster


def test_a_cluster_gives_the_same_results_and_a_killed_worker_costs_its_shards(
    work, cluster, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("SFT_EXECUTOR", cluster.address)
    first, _ = cluster.add_worker("--no-nanny"), cluster.add_worker()
    cluster.wait_for_workers()
    assert [each["twice"] for each in map_shards(work.double, list(range(5)), "numbers")] == [0, 2, 4, 6, 8]
    assert "Dask: " in capsys.readouterr().out

    def kill_when_begun():
        wait_until(lambda: len(list(tmp_path.glob("begun-*"))) >= 3)
        os.killpg(first.pid, signal.SIGKILL)

    with ThreadPool(1) as other:
        killed = other.submit(kill_when_begun)
        assert map_shards(work.slow, list(range(12)), "numbers") == list(range(12))
        killed.result()
    assert first.wait() == -signal.SIGKILL


def test_a_cluster_is_found_by_its_scheduler_file_and_raises_what_the_work_raises(work, cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("SFT_EXECUTOR", str(cluster.file))
    cluster.add_worker()
    (tmp_path / "how").write_text("input")
    with pytest.raises(InputError, match="row 7: bad"):
        map_shards(work.fails, [0, 1, 2], "numbers")
    with pytest.raises(InputError, match=r"shard 1 was .*SIGKILL at rows of 1\."):
        map_shards(work.always, [0, 1], "numbers")
    (tmp_path / "how").write_text("")
    before = {each["process"] for each in map_shards(work.double, [0, 1], "numbers")}
    (tmp_path / "shard_work.py").write_text(WORK.replace("2 * shard", "3 * shard"))
    after = map_shards(work.double, [1, 2], "numbers")
    assert [each["twice"] for each in after] == [3, 6], "code and files may change between runs"
    assert not before & {each["process"] for each in after}
    monkeypatch.setattr(workers, "_versions", lambda: {"pyarrow": "1.0"})
    with pytest.raises(InputError, match=r"Dask worker on .*pyarrow .* 1\.0"):
        map_shards(work.double, [0, 1], "numbers")


def test_a_cluster_without_scheduler_or_workers_is_an_error(work, cluster, monkeypatch):
    monkeypatch.setattr(workers, "CLUSTER_SECONDS", 5.0)
    monkeypatch.setenv("SFT_EXECUTOR", cluster.address)
    with pytest.raises(InputError, match=rf"^SFT_EXECUTOR={cluster.address}: .*dask worker$"):
        map_shards(work.double, [0, 1], "numbers")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"dask://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("SFT_EXECUTOR", address)
    with pytest.raises(InputError, match=rf"^SFT_EXECUTOR={address}: .*dask scheduler$"):
        map_shards(work.double, [0, 1], "numbers")
    monkeypatch.setenv("SFT_EXECUTOR", "ray://x")
    with pytest.raises(InputError, match=r"^SFT_EXECUTOR=ray://x: .*dask://host:port"):
        map_shards(work.double, [0, 1], "numbers")


def test_dask_is_imported_for_a_cluster_only(work):
    map_shards(work.double, [0, 1], "numbers")
    script = "import sys, sft.workers; sys.exit(any(name in sys.modules for name in ('dask', 'distributed')))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_extra_is_what_the_tests_run_with():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["cluster"]
    assert len(extra) == 2
    assert set(extra) <= set((ROOT / "requirements/dev.txt").read_text().splitlines())


@pytest.mark.parametrize("module", ["sft.workers", "sft.stages.filter", "sft.stages.prep", "sft.stages.pack"])
def test_arrow_uses_the_heap_of_the_c_library_in_workers_and_their_drivers(module):
    call = [sys.executable, "-c", f"import {module}, pyarrow; print(pyarrow.default_memory_pool().backend_name)"]
    environment = {name: value for name, value in os.environ.items() if name != "ARROW_DEFAULT_MEMORY_POOL"}
    output = subprocess.run(call, env=environment, check=True, capture_output=True, text=True).stdout
    assert output == "system\n"
