"""pack: whatever happens to its driver, workers or disk, data/packed is complete or absent, with the same bytes."""

import contextlib
import os
import random
import shutil
import signal
import sys
import time

import pytest

from sft import parquet
from sft.files import read_json
from sft.hashing import file_digest, folder_digest
from tests.support.dask_cluster import Cluster, children, finish, start_driver, stopped_when
from tests.support.project import ROOT, lay_out, set_params, sources_in_params, write_kept
from tests.support.tiny_model import make_tiny_base

# pack with tasks so small that each step has several, for two workers.
DRIVER = """
from sft.cli import run_or_exit
from sft.packing import external_sort, sample_table
from sft.stages import pack
sample_table.READ_TOKENS, external_sort.PART_TOKENS, external_sort.SHARD_TOKENS = 8_000, 8_000, 8_000
run_or_exit(pack.main)
"""
SOURCES = {"a": range(500), "b": range(400, 900)}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A project of two sources that share conversations, and the digests of its packs, made by one process."""
    folder = tmp_path_factory.mktemp("pack") / "project"
    (folder / "models").mkdir(parents=True)
    shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
    make_tiny_base(folder / "models/base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "ROWS_PER_GROUP", 50)
        lay_out(folder, SOURCES)
        for source, numbers in SOURCES.items():
            texts = {f"c{n}": " ".join(f"{n}x{word}" for word in range(30)) for n in numbers}
            write_kept(folder / "data/filtered" / source, texts)
    sources_in_params(folder, {source: {} for source in SOURCES})
    set_params(folder, **{"pack.pack_size": 256, "pack.near_duplicates": 0.8})
    finish(start(folder, SFT_WORKERS="1"))
    report = read_json(folder / "reports/pack.json")
    assert (report["rows_in"], report["rejected"]) == (1000, {"duplicate": 100})
    assert len(list((folder / "data/packed/training").glob("*.parquet"))) > 3
    return folder, digest(folder)


@pytest.fixture
def project(packed, tmp_path):
    """The project before it is packed, and the expected digests."""
    shutil.copytree(packed[0], tmp_path / "project", ignore=shutil.ignore_patterns("packed", "pack.json"))
    return tmp_path / "project", packed[1]


def start(project, *before, **environment):
    """Start pack; `before` is put before Python on the command line."""
    return start_driver(project, *before, sys.executable, "-c", DRIVER, **environment)


def digest(project):
    """Digests of all that pack writes."""
    reports = [file_digest(project / "reports" / name) for name in ("pack.json", "mixture.csv")]
    return folder_digest(project / "data/packed"), *reports


def half_written(project):
    """Return the names beside the outputs that are no outputs."""
    return {path.name for path in (project / "data").iterdir()} - {"filtered", "packed", "prepared"} | {
        path.name for path in (project / "reports").glob(".*")
    }


def in_spool(project, pattern):
    """Return whether the spool of a running pack holds such a file."""
    return any((project / "data").glob(f".packed.partial-*/spool/{pattern}"))


def test_a_dask_cluster_that_loses_a_worker_writes_the_bytes_of_this_machine(project, tmp_path):
    folder, expected = project
    with Cluster(tmp_path) as cluster:
        first, _ = cluster.add_worker("--no-nanny"), cluster.add_worker("--no-nanny")
        cluster.wait_for_workers()
        driver = stopped_when(lambda: start(folder, SFT_EXECUTOR=cluster.address), lambda _: in_spool(folder, "part-*"))
        os.killpg(first.pid, signal.SIGKILL)
        assert "Dask: " in finish(driver)
    assert digest(folder) == expected
    assert half_written(folder) == set()


def kill_child(driver):
    """Kill a process of a driver's, if it has one."""
    for pid in children(driver):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return True
    return False


@pytest.mark.parametrize("step", ["*.arrow", "part-*", "packs-*"])
def test_a_killed_worker_costs_one_task(project, step):
    folder, expected = project
    driver = stopped_when(lambda: start(folder), lambda driver: in_spool(folder, step) and children(driver))
    assert kill_child(driver)
    finish(driver)
    assert digest(folder) == expected
    assert half_written(folder) == set()


def test_a_run_killed_at_any_moment_leaves_nothing_incomplete_and_the_rerun_gives_the_same_bytes(project):
    """Also over an earlier pack, which stays complete until it is replaced in one step."""
    folder, expected = project
    draw, left = random.Random(3), 0
    for earlier in (False, True):
        for _ in range(3):
            driver = stopped_when(lambda: start(folder), lambda _: list((folder / "data").glob(".packed.partial*")))
            driver.send_signal(signal.SIGCONT)
            time.sleep(draw.uniform(0, 1.5))
            driver.kill()
            driver.communicate()
            left += bool(half_written(folder))
            if (folder / "data/packed").exists():
                assert folder_digest(folder / "data/packed") == expected[0]
            assert (folder / "data/packed").exists() or not earlier
        finish(start(folder))
        assert digest(folder) == expected
        assert half_written(folder) == set(), "the next run removes what a killed one left"
    assert left, "a run was killed while it wrote"


def test_a_disk_that_is_full_at_any_step_is_one_error_and_keeps_the_earlier_pack(project):
    """Files are limited to some kilobytes: measures, sorted parts, shards, .npy and metadata exceed it in turn."""
    folder, expected = project
    for kilobytes in (1, 8, 12, 40, 100, 160):
        output, _ = (
            limited := start(folder, "bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "limited")
        ).communicate()
        assert limited.returncode == 1, output
        assert output.startswith("error: File too large: "), output
        assert "Traceback" not in output
        assert half_written(folder) == set()
        assert not (folder / "data/packed").exists() or digest(folder) == expected
        if kilobytes == 40:
            finish(start(folder))
    assert digest(folder) == expected


def test_two_runs_at_once_both_succeed(project):
    folder, expected = project
    runs = [start(folder) for _ in range(2)]
    for each in runs:
        finish(each)
    assert digest(folder) == expected
    assert half_written(folder) == set()
