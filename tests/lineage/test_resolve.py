"""resolve: a training is found by any of its names, and its records are read from wherever they are."""

import shutil
import subprocess
from pathlib import Path

import mlflow
import pytest

from sft.cli import InputError
from sft.lineage.patch import keep_patch
from sft.lineage.record import records as texts_of
from sft.lineage.resolve import LINEAGE, _is_of, find, of_folder
from sft.tracking import store, sync
from sft.tracking.journal import RECORDS, Dataset, add_model, open_run
from tests.support.finished_project import commit_all, make_recorded


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def project(tmp_path, monkeypatch, local_store):
    monkeypatch.chdir(tmp_path)
    return make_recorded(tmp_path / "project")


def test_a_folder_is_read_from_disk_and_missing_files_from_the_cache(project, tmp_path):
    records = find("models/final", project, tmp_path)
    assert records.folder == project
    assert records.lineage["lineage_key"] == records.json("reports/train.json")["lineage_key"]
    shutil.rmtree(project / "models/final")
    shutil.rmtree(project / "data/packed")
    again = of_folder(project)
    assert again.lineage == records.lineage
    assert again.json("data/packed/metadata.json")["pack_size"] == 64
    assert again.read("data/packed/training/none.parquet") is None
    assert again.json("reports/none.json") == {}


def test_a_copy_of_a_model_has_its_own_records_only(project, tmp_path):
    shutil.copytree(project / "models/final", tmp_path / "copy")
    records = find(str(tmp_path / "copy"), project, tmp_path)
    assert records.lineage["sources"].keys() == {"calls", "chats"}
    assert records.folder is None
    assert records.read("reports/train.json") is None


def test_a_revision_and_an_experiment_are_read_from_git_and_the_cache(project, tmp_path):
    commit = commit_all(project)
    key = of_folder(project).lineage["lineage_key"]
    git(project, "update-ref", f"refs/exps/{commit[:2]}/{commit[2:]}/lofty-heron", commit)
    (project / "reports/train.json").write_text("{}")
    (project / "dvc.lock").unlink()
    for name in ("HEAD", "main", commit[:10], "lofty-heron"):
        records = find(name, project, tmp_path)
        assert records.json("reports/train.json")["lineage_key"] == key, name
        assert records.json(LINEAGE)["lineage_key"] == key, name
        assert "2+2?" in records.text("reports/answers.jsonl"), name


def test_a_run_is_found_by_id_key_version_and_alias_also_when_the_folder_has_another_model(
    project, tmp_path, monkeypatch
):
    monkeypatch.chdir(project)
    lineage = of_folder(project).lineage
    run = project / "runs" / lineage["lineage_key"]
    data = [Dataset("packed", lineage["data"], "file:///packed", "training", {})]
    run_journal = open_run(run, lineage["params"], {}, data)
    changes = keep_patch(b"changes", run)
    run_journal.attach(RECORDS, {**texts_of(project), changes.name: changes})
    add_model(run_journal, Path("models/final"), {})
    run_id, version = (getattr(sync.sync_run(run), name) for name in ("run_id", "version"))
    store.connect().set_registered_model_alias(store.LOCAL_NAME, "champion", version.split("/")[1])
    make_recorded(tmp_path / "other", lr=2e-3)
    for name in ("models", "dvc.lock"):  # the folder now holds another model
        shutil.rmtree(project / name) if (project / name).is_dir() else (project / name).unlink()
        source = tmp_path / "other" / name
        shutil.copytree(source, project / name) if source.is_dir() else shutil.copy(source, project / name)
    model = store.LOCAL_NAME
    changes.unlink()
    for name in (run_id, lineage["lineage_key"], version, f"{model}@champion"):
        records = find(name, project, tmp_path)
        assert records.lineage["lineage_key"] == lineage["lineage_key"], name
        assert records.folder is None
        assert records.run["run"] == run_id
        assert records.version["lineage_json"]
        assert records.json("reports/filter/calls.json")["rejected"] == {"no-answer": 1}
        assert records.read(changes.name) == b"changes", "MLflow has it too"
    mlflow.set_tracking_uri(None)


def test_without_an_answer_of_the_store_the_folder_is_read(project, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    records = find("models/final", project, tmp_path)
    assert (records.run, records.lineage["lineage_key"]) == (None, of_folder(project).lineage["lineage_key"])
    assert "http://127.0.0.1:9" in capsys.readouterr().out


def test_the_model_of_a_training_without_mlflow_is_known_by_its_key():
    lineage = {"mlflow_run_id": None, "lineage_key": "k"}
    assert _is_of(lineage, "run", {"lineage_key": "k"})
    assert not _is_of(lineage, "run", {"lineage_key": "other"})
    assert not _is_of({**lineage, "mlflow_run_id": "another"}, "run", {"lineage_key": "k"})


def test_without_a_model_the_error_says_how_to_get_one(tmp_path):
    git(tmp_path, "init", "-q")
    with pytest.raises(InputError, match=r"^models/final: .*make repro.*dvc pull models/final"):
        find("models/final", tmp_path, tmp_path)


def test_an_unknown_name_is_an_error(project, tmp_path):
    git(project, "init", "-q")
    for name in ("models/none", "nano3-sft/7", "f" * 32, "0" * 16, "--help"):
        with pytest.raises(InputError, match=rf"^{name!r}"):
            find(name, project, tmp_path)
