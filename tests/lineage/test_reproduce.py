"""reproduce: a model is built again from its records, and the first output that differs is explained."""

import json
import shutil

import pytest
from ruamel.yaml import YAML

from sft.cli import InputError
from sft.files import read_json, write_json
from sft.lineage.record import all_packages, hardware
from sft.lineage.reproduce import DECLARED, DIFFERS, IDENTICAL, MISSING, compare, explain, make_worktree, share_data
from sft.lineage.resolve import of_folder
from tests.support.finished_project import SOURCES, commit_all, make_recorded, text, write_lock
from tests.support.project import clone_project, run, set_params


@pytest.fixture
def two(tmp_path):
    return make_recorded(tmp_path / "one"), make_recorded(tmp_path / "two")


def verdicts(two, until="eval"):
    return {entry.path: entry.verdict for entry in compare(*map(of_folder, two), until)}


def change_lock(folder, stage, **more):
    yaml = YAML(typ="safe")
    lock = yaml.load(folder / "dvc.lock")
    lock["stages"][stage] |= more
    yaml.dump(lock, folder / "dvc.lock")


def test_equal_outputs_are_identical_and_lineage_json_is_declared_to_differ(two):
    path = two[1] / "models/final/lineage.json"
    write_json(path, {**read_json(path), "mlflow_run_id": "1" * 32})
    found = verdicts(two)
    assert found.pop("models/final/lineage.json") == DECLARED
    assert set(found.values()) == {IDENTICAL}
    assert {"data/raw/calls", "data/packed", "models/base", "models/final/model.safetensors"} <= found.keys()
    assert {"reports/eval.json", "reports/train.json"} <= found.keys()
    assert not {path for path in verdicts(two, "pack") if "final" in path}


def test_the_first_difference_comes_first_and_what_was_not_recorded_is_named(two):
    text(two[1] / "data/filtered/chats/kept-00000.parquet", "other rows")
    text(two[1] / "data/packed/training/0.parquet", "other packs")
    write_lock(two[1], 1e-3)
    change_lock(two[0], "eval", outs=[])
    (two[0] / "reports/eval.json").unlink()
    compared = compare(*map(of_folder, two))
    wrong = [entry for entry in compared if entry.verdict == DIFFERS]
    assert [entry.path for entry in wrong] == ["data/filtered/chats", "data/packed"]
    assert {entry.path: entry.verdict for entry in compared}["reports/eval.json"] == MISSING


def test_a_report_that_differs_names_its_numbers(two):
    path = two[1] / "reports/eval.json"
    write_json(path, {**read_json(path), "after": {**read_json(path)["after"], "loss": 9.0}})
    write_lock(two[1], 1e-3)
    (wrong,) = [entry for entry in compare(*map(of_folder, two)) if entry.verdict == DIFFERS]
    assert wrong.note == "after.loss 0.501 -> 9.0"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"deps": [{"path": "src/sft/a.py", "md5": "0"}]}, "code: src/sft/a.py differs"),
        ({"deps": [{"path": "requirements/train.txt", "md5": "0"}]}, "packages: requirements/train.txt differs"),
        ({"deps": [{"path": "data/packed", "md5": "0"}]}, "data: data/packed differs"),
        ({"params": {"params.yaml": {"optimizer": {"lr": 7}}}}, "params: optimizer.lr was 0.001, is 7"),
        ({"cmd": "other"}, "code: the command was run, is other"),
    ],
)
def test_a_difference_is_explained_by_the_inputs(two, change, reason):
    change_lock(two[1], "train", **change)
    assert reason in explain("train", *map(of_folder, two))


def as_here(folder, **more):
    path = folder / "models/final/lineage.json"
    write_json(path, {**read_json(path), "packages": all_packages(), "hardware": hardware(), **more})


def test_packages_and_hardware_explain_what_code_and_data_do_not(two):
    as_here(two[0], packages={**all_packages(), "torch": "0.1"}, hardware={**hardware(), "processor": "abacus"})
    reasons = explain("train", *map(of_folder, two))
    assert [reason.partition(",")[0] for reason in reasons] == [
        "packages: torch was 0.1",
        "hardware: processor was abacus",
    ]
    as_here(two[0])
    assert explain("fetch@calls", *map(of_folder, two)) == ["data: the source now has other bytes"]
    (reason,) = explain("train", *map(of_folder, two))
    assert "not deterministic" in reason


def test_a_missing_commit_and_missing_changes_are_named(tmp_path):
    project = make_recorded(tmp_path / "project")
    commit_all(project)
    with pytest.raises(InputError, match=r"a{40}.*git fetch"):
        make_worktree(of_folder(project))
    path = project / "models/final/lineage.json"
    head = run(project, "git", "rev-parse", "HEAD").strip()
    write_json(path, {**read_json(path), "git_commit": head, "git_dirty": True, "patch": "e" * 64})
    with pytest.raises(InputError, match=r"eeeeeeeeeeeeeeee\.patch"):
        make_worktree(of_folder(project))
    write_json(path, {**read_json(path), "git_dirty": False, "patch": None})
    place = make_worktree(of_folder(project))
    assert (place / "params.yaml").read_text() == (project / "params.yaml").read_text()
    assert make_worktree(of_folder(project)) == place
    assert len(SOURCES) == 2


def test_your_own_data_is_taken_from_the_project_and_from_no_patch(tmp_path):
    project = make_recorded(tmp_path / "project")
    text(project / "params.yaml", "fetch: {sources: {mine: {uri: 'file://mine/*.jsonl'}}}\n")
    commit_all(project)
    text(project / "mine/one.jsonl", "{}\n")
    path = project / "models/final/lineage.json"
    head = run(project, "git", "rev-parse", "HEAD").strip()
    write_json(path, {**read_json(path), "git_commit": head, "git_dirty": False, "patch": None})
    place = make_worktree(of_folder(project))
    assert not (place / "mine").exists()
    share_data(project, place)
    share_data(project, place)
    assert (place / "mine/one.jsonl").read_text() == "{}\n"


@pytest.mark.pipeline
@pytest.mark.timeout(1200)
def test_a_model_of_a_dirty_tree_comes_out_identical_and_other_data_is_named(tmp_path):
    project = clone_project(tmp_path / "clone")
    set_params(project, **{"optimizer.lr": 1e-3})
    text(project / "src/sft/formats/extra.py", '"""A module that nobody has committed."""\n')
    run(project, "dvc", "repro", "train")
    asked = ("python", "-m", "sft.lineage.reproduce", "--until")
    rebuilt = json.loads(run(project, *asked, "train", "--json", PYTHONPATH="src"))
    found = {entry["path"]: entry["verdict"] for entry in rebuilt["compared"]}
    assert found.pop("models/final/lineage.json") == DECLARED
    assert set(found.values()) == {IDENTICAL}, rebuilt
    assert {"data/raw/calls", "data/packed", "models/base", "models/final/model.safetensors"} <= found.keys()
    place = project / "runs/reproduce" / rebuilt["lineage_key"]
    assert (place / "src/sft/formats/extra.py").exists()
    assert run(place, "dvc", "cache", "dir").strip() == str(place / ".dvc/cache")

    # Recorded data by its digest, from the cache: what git has by now of the inputs does not matter.
    shutil.rmtree(project / "data")
    rebuilt = json.loads(run(project, *asked, "filter", "--data", "pull", "--json", PYTHONPATH="src"))
    assert {entry["verdict"] for entry in rebuilt["compared"]} == {IDENTICAL}, rebuilt

    lock = (project / "dvc.lock").read_text()
    md5 = of_folder(project).lock["filter@calls"]["outs"][0]["md5"]
    (project / "dvc.lock").write_text(lock.replace(md5, "0" * 32 + ".dir"))
    output = run(project, *asked, "filter", "--data", "pull", PYTHONPATH="src", fails=True)
    assert "first differs at filter@calls, data/filtered/calls" in output
