"""record: lineage.json leads from the model back to data, code and run, and the texts of a run are found."""

import hashlib
import json
import subprocess
from pathlib import Path

from sft.files import write_json
from sft.hashing import file_digest
from sft.lineage.key import Lineage
from sft.lineage.record import EVAL_RECORDS, git_state, lineage_json, records
from sft.params.data import Download

BASE = Download(uri="hf://models/owner/base@" + "b" * 40)
ONE = Lineage(
    data="d" * 64,
    base_model="b" * 64,
    params={"optimizer": {"lr": 1e-5}, "rng": {"seed": 1}},
    code="c" * 64,
    numeric_packages={"torch": "2.13.0"},
)


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_git_state_is_dirty_by_code_and_not_by_what_the_pipeline_writes(tmp_path):
    assert git_state(tmp_path) == (None, None)
    git(tmp_path, "init")
    (tmp_path / "code.py").write_text("x = 1\n")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-m", "one")
    commit, dirty = git_state(tmp_path)
    assert commit is not None
    assert len(commit) == 40
    assert dirty is False
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/pack.json").write_text("{}")
    (tmp_path / "dvc.lock").write_text("")
    assert git_state(tmp_path) == (commit, False)
    (tmp_path / "code.py").write_text("x = 2\n")
    assert git_state(tmp_path) == (commit, True)


def make_packed(folder: Path) -> None:
    counts = {"domain": "chat", "license": "MIT", "conversations": 1, "tokens": 2, "trained_tokens": 1}
    write_json(folder / "data/packed/metadata.json", {"sources": {"chats": counts}})
    write_json(folder / "reports/fetch/chats.json", {"uri": "file://x", "sha256": "f", "rows_out": 3, "license": "MIT"})
    write_json(folder / "reports/filter/chats.json", {"rows_found": 3, "rows_out": 2, "rejected": {"no-answer": 1}})
    write_json(folder / "reports/eval.json", {})


def test_lineage_json_leads_from_the_model_back(tmp_path):
    make_packed(tmp_path)
    written = lineage_json(ONE, "run-1", tmp_path, BASE, b"changes", (None, None))
    assert written["lineage_key"] == ONE.key
    assert written["mlflow_run_id"] == "run-1"
    assert written["packages"]["torch"]
    assert {"git_commit", "git_dirty", "data", "base_model", "params"} <= written.keys()
    assert written["patch"] == hashlib.sha256(b"changes").hexdigest()
    assert lineage_json(ONE, "run-1", tmp_path, BASE, None, (None, None))["patch"] is None
    assert written["sources"]["chats"]["uri"] == "file://x"
    assert written["sources"]["chats"]["rows"] == 3
    assert written["sources"]["chats"]["rejected"] == {"no-answer": 1}
    assert written["hardware"].keys() == {"machine", "processor", "threads", "gpus", "driver"}
    assert json.loads(json.dumps(written)) == written


def test_lineage_json_names_the_reports_of_the_data_and_not_those_that_come_later(tmp_path):
    make_packed(tmp_path)
    write_json(tmp_path / "reports/filter/left-the-blend.json", {})
    named = lineage_json(ONE, "run-1", tmp_path, BASE, None, (None, None))["records"]
    assert named.keys() == {"data/packed/metadata.json", "reports/fetch/chats.json", "reports/filter/chats.json"}
    assert named["reports/fetch/chats.json"] == file_digest(tmp_path / "reports/fetch/chats.json")


def test_the_records_of_a_run_are_found_by_their_places(tmp_path):
    make_packed(tmp_path)
    (tmp_path / "dvc.lock").write_text("")
    assert records(tmp_path).keys() >= {"dvc.lock", "reports/fetch/chats.json"}
    assert records(tmp_path, EVAL_RECORDS).keys() == {"dvc.lock", "reports/eval.json"}
