"""check: each kind of problem is found before DVC starts, all at once, and nothing changes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from sft.experiments import check
from sft.experiments.check import MODEL_REPORT, find_problems, stages_up_to
from sft.files import write_json
from sft.hashing import folder_digests
from tests.support.project import ROOT, commit, run, set_params

GIGABYTE = 1_000_000_000


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project that has run its data stages with the params of the repository: 502 packs, and 12 of validation."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    write_json(
        check.METADATA, {"splits": {"training": {"packs": 502}, "validation": {"packs": 12}, "test": {"packs": 9}}}
    )
    write_lock(tmp_path)
    return tmp_path


def write_lock(folder: Path, size: int = 0) -> None:
    """Write what DVC would after all stages ran with params.yaml, each with an output of some bytes."""
    yaml = YAML(typ="safe", pure=True)
    params, stages = yaml.load(folder / "params.yaml"), {}
    for name, stage in yaml.load(folder / "dvc.yaml")["stages"].items():
        for source in params["fetch"]["sources"] if "foreach" in stage else [""]:
            keys = [key.replace("${key}", source) for key in stage.get("do", stage).get("params", [])]
            values = {}
            for key in keys:
                values[key] = params
                for part in key.split("."):
                    values[key] = values[key][part]
            outs = [{"path": f"data/{name}/{source}", "size": size}]
            stages[f"{name}@{source}" if source else name] = {
                "cmd": "x",
                "params": {"params.yaml": values},
                "outs": outs,
            }
    yaml.dump({"schema": "2.0", "stages": stages}, folder / "dvc.lock")


def only(problems: list[str]) -> str:
    """The one problem."""
    assert len(problems) == 1, problems
    return problems[0]


def test_a_project_without_a_problem_passes_and_needs_no_git(project):
    assert find_problems([]) == []
    (project / "dvc.lock").unlink()
    shutil.rmtree(project / "data")
    assert find_problems([]) == []


def test_all_problems_are_said_at_once_with_exit_status_2_and_nothing_changes(project):
    set_params(project, **{"pack.validation": 0.0, "fetch.model.uri": "file://nowhere/model"})
    before = folder_digests(project)
    program = [sys.executable, "-m", "sft.experiments.check"]
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin", "MLFLOW_TRACKING_URI": "./mlruns"}
    done = subprocess.run(program, check=False, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert [line.split(":")[:2] for line in lines] == [
        ["error", " MLFLOW_TRACKING_URI=./mlruns"],
        ["error", " fetch.model.uri"],
        ["error", " params.yaml"],
    ]
    assert folder_digests(project) == before


def test_every_mistake_in_params_yaml_is_said_and_how_to_go_back(project):
    run(project, "git", "init", "-q")
    commit(project, "one")
    set_params(project, **{"optimizer.lr": "abc", "train.train_iters": 0})
    (problem,) = find_problems(["filter"])
    assert "optimizer.lr: " in problem
    assert "train.train_iters: " in problem
    assert problem.endswith("git checkout params.yaml")


def test_settings_count_as_if_params_yaml_had_them(project):
    assert "optimizer.lr" in only(find_problems([], ["optimizer.lr=abc"]))
    assert "500" in only(find_problems([], ["train.global_batch_size=500"]))


def test_files_that_are_too_large_for_the_patch_are_named_before_the_data_stages_run(project):
    run(project, "git", "init", "-q")
    commit(project, "one")
    (project / "weights.bin").write_bytes(b"x" * (6 << 20))
    problem = only(find_problems([]))
    assert "weights.bin" in problem
    assert ".gitignore" in problem
    assert find_problems(["pack"]) == [], "only a training keeps them"
    (project / ".gitignore").write_text("weights.bin\n")
    assert find_problems([]) == []


@pytest.mark.parametrize("uri", ["file://nowhere.jsonl", "file://nowhere/*.jsonl", "file:///nowhere/at/all"])
def test_a_file_that_does_not_exist_is_said_unless_it_has_been_fetched(project, uri):
    set_params(project, **{"fetch.sources.agents.uri": uri})
    problem = only(find_problems(["fetch"]))
    assert problem.startswith(f"fetch.sources.agents.uri: {uri}: ")
    assert "does not exist" in problem
    write_lock(project)
    assert find_problems(["fetch"]) == []


@pytest.mark.parametrize("key", ["fetch.model", "fetch.sources.agents"])
@pytest.mark.parametrize("uri", ["file:///", "file://.", "file://.."])
def test_a_folder_that_holds_the_project_is_refused_with_its_key(project, key, uri):
    set_params(project, **{f"{key}.uri": uri})
    assert only(find_problems(["fetch"])).startswith(f"{key}.uri: {uri}: ")


def test_a_repository_that_git_does_not_read_is_said_before_a_training(project, monkeypatch, capsys):
    run(project, "git", "init", "-q")
    commit(project, "one")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert find_problems([]) == []
    assert "dubious ownership" in capsys.readouterr().out


@pytest.mark.parametrize("uri", ["file://mine.jsonl", "file://own/*.jsonl", "file://own", "file://*.jsonl"])
def test_a_file_that_exists_passes(project, uri):
    (project / "own").mkdir()
    (project / "mine.jsonl").touch()
    set_params(project, **{"fetch.sources.agents.uri": uri})
    assert find_problems([]) == []


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("fetch.sources.agents.uri=own.jsonl", "unknown scheme"),
        ("fetch.sources.agents.uri=ftp://host/f", "unknown scheme"),
        ("fetch.sources.agents.uri=https://me:hunter2@host/f.jsonl", "sha256 is missing"),
        (f"fetch.sources.agents.uri='https://me:hunter2@host/f.jsonl#sha256={'a' * 64}'", "netrc"),
        (f"fetch.sources.agents.uri='http://host/f.jsonl#sha256={'a' * 64}'", "only https"),
        ("fetch.sources.agents.uri=hf://owner/name", "make pin"),
        ("fetch.sources.agents.uri=hf://owner/name@main", "make pin"),
        ("fetch.sources.agents.uri=hf://owner", "expected hf://"),
        ("fetch.sources.agents.uri=pypi://name/file", "expected pypi://"),
        ("fetch.sources.agents.read=jsonl", "format 'jsonl' is unknown"),
        ("fetch.sources.agents.read={format: openai, fields: {mesages: turns}}", "has no field 'mesages'"),
        ("prep.template=my template.jinja", "not found"),
        ("prep.template=-x", "not found"),
        ("prep.template=templates", "not found"),
        ("prep.template=params.yaml", "not a Jinja template"),
        ("filter.narrative=none.toml", "no such file"),
        (
            "filter.judge={model: m, rubric: none.md, min_score: 3, max_tokens: 9, max_prompt_chars: 9, "
            "on_failure: stop, budget_requests: null, budget_tokens: null}",
            "cannot be read",
        ),
        ("train.train_iters=99999999999999999999999", "train.train_iters: expected"),
        ("rng.seed=-1", "rng.seed: expected"),
        ("scheduler.lr_warmup_iters=1000", "expected less than the"),
        ("checkpoint.pretrained_checkpoint=/nope", "no such folder"),
        ("filter.max_rows=99999999999999999999999", "filter.max_rows: expected"),
    ],
)
def test_what_a_stage_would_refuse_is_said_before_dvc_removes_an_output(project, setting, said):
    if "params.yaml" in setting:
        (project / "params.yaml").write_text((project / "params.yaml").read_text() + "# {{ {% \n")
    problem = only(find_problems([], [setting]))
    assert said in problem
    assert "hunter2" not in problem
    assert len(problem.splitlines()) == 1


def test_packs_count_only_if_no_data_stage_is_going_to_run(project):
    set_params(project, **{"train.global_batch_size": 13})
    assert "data/packed/validation: 12 packs, expected at least 13" in only(find_problems([]))
    assert find_problems(["pack"]) == []
    set_params(project, **{"validation.eval_iters": 0})
    assert find_problems([]) == []
    set_params(project, **{"validation.eval_iters": 2, "pack.pack_size": 64})
    assert find_problems([]) == []


def test_what_the_stages_wrote_the_last_time_has_to_fit_on_the_disk(project, monkeypatch):
    free = shutil.disk_usage(project)._replace(free=10 * GIGABYTE)
    monkeypatch.setattr(check.shutil, "disk_usage", lambda path: free)
    write_lock(project, size=3 * GIGABYTE)
    for name in ("pack", "train", "eval"):
        (project / "data" / name).mkdir(parents=True)
    problem = only(find_problems(["pack"]))
    assert "10.0 GB free" in problem
    assert "data/fetch/" in problem
    shutil.rmtree(project / "data/pack")
    for stage in ("fetch", "filter", "prep"):
        for source in YAML(typ="safe").load(project / "params.yaml")["fetch"]["sources"]:
            (project / "data" / stage / source).mkdir(parents=True)
    for name in ("check", "fetch-model", "fetch-benchmarks"):
        (project / "data" / name).mkdir(parents=True)
    assert find_problems(["pack"]) == [], "3 GB of packs fit"


def test_a_training_needs_room_for_a_checkpoint_of_the_model(project, monkeypatch):
    free = shutil.disk_usage(project)._replace(free=100 * GIGABYTE)
    monkeypatch.setattr(check.shutil, "disk_usage", lambda path: free)
    set_params(project, **{"fetch.model.uri": f"https://host/model#sha256={'a' * 64}", "optimizer.lr": 2e-5})
    write_json(MODEL_REPORT, {"uri": "https://host/model", "parameters": 30 * GIGABYTE})
    problem = only(find_problems([]))
    assert "540.0 GB (runs and models/final 540.0 GB)" in problem
    assert find_problems(["pack"]) == []
    assert find_problems([], is_stage=True) == [], "dvc repro may end before train"
    (project / "runs/0123/checkpoints").mkdir(parents=True)
    write_json(project / "runs/0123/params.json", check.check_params().training.model_dump())
    assert find_problems([]) == [], "this training has begun and may resume"


def test_the_stage_of_dvc_writes_the_same_mark_each_time_and_none_if_there_is_a_problem(project):
    mark = Path("data/checked")
    check.main([], mark)
    before = mark.read_bytes()
    set_params(project, **{"optimizer.lr": 2e-5})
    check.main([], mark)
    assert mark.read_bytes() == before
    mark.unlink()
    set_params(project, **{"optimizer.lr": "abc"})
    with pytest.raises(SystemExit) as end:
        check.main([], mark)
    assert end.value.code == 2
    assert not mark.exists()


def test_a_damaged_dvc_lock_is_restored_before_it_is_read(project, capsys):
    run(project, "git", "init", "-q")
    run(project, "dvc", "init", "-q")
    commit(project, "one")
    whole = (project / "dvc.lock").read_bytes()
    (project / "dvc.lock").write_bytes(b"")
    assert find_problems([]) == []
    assert (project / "dvc.lock").read_bytes() == whole
    assert "Restored" in capsys.readouterr().out


def test_targets_run_every_stage_up_to_the_last_of_them():
    assert stages_up_to(["fetch", "fetch-model", "fetch-benchmarks"]) == {"fetch"}
    assert stages_up_to(["filter@chats"]) == {"fetch", "filter"}
    assert len(stages_up_to([])) == 6
