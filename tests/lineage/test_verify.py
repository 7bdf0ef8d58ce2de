"""verify: whatever differs is named, with what was expected and what was found."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sft.files import read_json, write_json
from sft.hashing import folder_digests
from sft.lineage.resolve import cached, find, of_folder, outs
from sft.lineage.verify import ABSENT, DIFFERS, INTACT, digests, dvc_digest, verify
from sft.training.checkpoints import iteration_folder, manifest_of
from tests.support.finished_project import make_recorded, sha256


@pytest.fixture
def project(tmp_path):
    return make_recorded(tmp_path / "project")


def test_untouched_files_are_intact(project):
    states, faults = verify(of_folder(project), with_cache=True)
    assert faults == []
    assert set(states.values()) == {INTACT}
    assert {
        "data/raw/calls",
        "data/benchmarks",
        "data/prepared/chats",
        "data/packed",
        "models/base",
        "models/final",
    } <= states.keys()


@pytest.mark.parametrize(
    ("path", "out"),
    [
        ("data/raw/calls/rows.jsonl", "data/raw/calls"),
        ("data/benchmarks/items.jsonl", "data/benchmarks"),
        ("data/filtered/chats/kept-00000.parquet", "data/filtered/chats"),
        ("data/packed/training/0.parquet", "data/packed"),
        ("models/base/model.safetensors", "models/base"),
        ("models/final/model.safetensors", "models/final"),
    ],
)
def test_a_changed_a_missing_and_a_new_file_are_named(project, path, out):
    before = (project / path).read_bytes()
    (project / path).write_bytes(before + b"!")
    states, faults = verify(of_folder(project))
    assert [fault.path for fault in faults] == [path]
    assert faults[0].expected != faults[0].actual
    assert states[out] == DIFFERS
    (project / path).unlink()
    (fault,) = verify(of_folder(project))[1]
    assert (fault.path, fault.actual) == (path, "no such file")
    (project / path).write_bytes(before)
    (project / out / "more").write_text("more")
    (fault,) = verify(of_folder(project))[1]
    assert (fault.path, fault.expected) == (f"{out}/more", "no such file")


def test_without_cache_and_lock_lineage_json_still_has_the_digests_of_data_and_models(project):
    (project / "dvc.lock").unlink()
    assert verify(of_folder(project))[1] == []
    (project / "data/packed/training/0.parquet").write_text("others")
    (fault,) = verify(of_folder(project))[1]
    assert fault.path == "data/packed"
    assert "lineage.json" in fault.expected


def test_a_changed_lineage_json_is_found_by_its_own_key(project):
    path = project / "models/final/lineage.json"
    (project / "dvc.lock").unlink()
    lineage = read_json(path)
    write_json(path, {**lineage, "params": {**lineage["params"], "optimizer": {"lr": 9.0}}})
    (fault,) = verify(of_folder(project))[1]
    assert fault.path == "models/final/lineage.json"
    assert fault.actual == lineage["lineage_key"]


def test_a_changed_run_id_is_found_by_dvc_and_by_the_version_in_mlflow(project):
    path = project / "models/final/lineage.json"
    expected = sha256(path)
    write_json(path, {**read_json(path), "mlflow_run_id": "f" * 32})
    assert [fault.path for fault in verify(of_folder(project))[1]] == ["models/final/lineage.json"]
    (project / "dvc.lock").unlink()
    assert verify(of_folder(project))[1] == []
    (fault,) = verify(of_folder(project, version={"lineage_json": expected}))[1]
    assert expected in fault.expected


def test_a_report_of_other_data_is_named(project):
    path = project / "reports/filter/calls.json"
    write_json(path, {**read_json(path), "rows_out": 1})
    faults = verify(of_folder(project))[1]
    assert [fault.path for fault in faults] == ["reports/filter/calls.json"]


def test_of_another_training_equal_outputs_are_intact_and_the_rest_absent(project, tmp_path):
    other = replace(of_folder(make_recorded(tmp_path / "other", lr=2e-3)), root=project, folder=None)
    states, faults = verify(other)
    assert faults == []
    assert (states["data/packed"], states["models/final"]) == (INTACT, ABSENT)


def test_an_absent_output_is_no_fault(project):
    for file in (project / "data/raw/calls").iterdir():
        file.unlink()
    (project / "data/raw/calls").rmdir()
    states, faults = verify(of_folder(project))
    assert (states["data/raw/calls"], faults) == (ABSENT, [])


def test_a_spoiled_object_of_the_cache_is_named_with_what_it_is_of(project):
    kept = [path for path in (project / ".dvc/cache").rglob("*") if path.is_file()]
    spoiled = next(path for path in kept if path.read_bytes() == b"rows of chats")
    spoiled.write_bytes(b"rows of nobody")
    records = of_folder(project)
    assert verify(records)[1] == []
    (fault,) = verify(records, with_cache=True)[1]
    assert "data/raw/chats/rows.jsonl" in fault.path
    assert spoiled.name in fault.path


def test_a_spoiled_listing_of_a_folder_in_the_cache_is_named_too(project):
    path, md5 = "data/raw/chats", outs(of_folder(project).lock)["data/raw/chats"]
    cached(project, md5).write_text("[{")
    (fault,) = verify(of_folder(project), with_cache=True)[1]
    assert path in fault.path
    assert md5.removesuffix(".dir") in fault.expected


def test_a_changed_checkpoint_of_the_run_is_named(project):
    run = project / "runs" / of_folder(project).lineage["lineage_key"]
    for step in (1, 2, 3):
        checkpoint = iteration_folder(run, step)
        checkpoint.mkdir(parents=True)
        (checkpoint / "weights").write_bytes(b"weights")
        write_json(manifest_of(checkpoint), folder_digests(checkpoint))
    manifest_of(iteration_folder(run, 3)).unlink()  # as after a kill: it is never loaded
    assert verify(of_folder(project), with_cache=True)[1] == []
    (iteration_folder(run, 2) / "weights").write_bytes(b"wEights")
    assert verify(of_folder(project))[1] == []
    (fault,) = verify(of_folder(project), with_cache=True)[1]
    assert fault.path == f"runs/{run.name}/checkpoints/iter_0000002"
    assert fault.actual == "weights is changed"


@pytest.mark.parametrize("file", ["model.safetensors", "lineage.json"])
def test_a_copy_of_the_model_is_verified_without_its_project(project, tmp_path, file):
    copy = tmp_path / "from-a-hub"
    shutil.copytree(project / "models/final", copy)
    records = find(str(copy), tmp_path, tmp_path)
    states, faults = verify(records)
    assert (states["models/final"], states["data/packed"], faults) == (INTACT, ABSENT, [])
    text = (copy / file).read_text()
    (copy / file).write_text(text.replace(records.lineage["data"], "0" * 64) if file == "lineage.json" else text + "!")
    (fault,) = verify(find(str(copy), tmp_path, tmp_path))[1]
    assert fault.path == str(copy / file)


def test_digests_are_those_of_dvc(tmp_path: Path):
    (tmp_path / "folder/deep").mkdir(parents=True)
    (tmp_path / "folder/b.txt").write_text("b")
    (tmp_path / "folder/deep/ä.txt").write_text("ä")
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "dvc", "add", "-q", "folder"], cwd=tmp_path, check=True, capture_output=True)
    assert dvc_digest(digests(tmp_path / "folder")) in (tmp_path / "folder.dvc").read_text()
    assert json.dumps(dvc_digest(digests(tmp_path / "folder/b.txt"))) == '"92eb5ffee6ae2fec3ad71c777531578f"'
