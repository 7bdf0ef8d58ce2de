"""tasks: lm-eval answers our own tasks with both models; its results, intervals and contamination."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.evaluation import harness, tasks
from sft.params.evaluation import Task
from tests.support.beside import ROOT, install_beside
from tests.support.eval_params import eval_params
from tests.support.tiny_model import make_tiny_base

BASE, FINAL = Path("models/base"), Path("models/final")


def params(*named):
    return eval_params(4, tasks=[Task.model_validate(task) for task in named])


@pytest.fixture(scope="session")
def lm_eval(tmp_path_factory):
    """A folder with the packages of lm-eval: the one of this checkout, or a new one."""
    installed = ROOT / tasks.PACKAGES
    return install_beside(
        tasks.PINS.name, installed if installed.is_dir() else tmp_path_factory.mktemp("lm-eval") / "packages"
    )


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("SFT_WORKERS", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    (tmp_path / "requirements").mkdir()
    shutil.copy(ROOT / tasks.PINS, tmp_path / tasks.PINS)
    for folder in (BASE, FINAL):
        make_tiny_base(tmp_path / folder)
    return tmp_path


def test_lm_eval_answers_our_own_tasks_with_both_models_and_the_base_model_once(project, lm_eval, monkeypatch):
    (project / tasks.PACKAGES).symlink_to(lm_eval)
    shutil.copytree(ROOT / "tasks", project / "tasks")
    asked = params("nano3_tool_choice", {"name": "nano3_tool_calls", "chat_template": False, "limit": 2})
    before, after = tasks.answer_tasks(BASE, FINAL, asked)
    assert before == after, "the same weights"
    choice, calls = after["nano3_tool_choice"], after["nano3_tool_calls"]
    questions = [json.loads(line)["question"] for line in (ROOT / "tasks/tools.jsonl").read_text().splitlines()]
    assert (choice["texts"], calls["texts"]) == (questions, questions[:2])
    assert (choice["cut"], calls["cut"]) == (0, 0)
    acc = choice["metrics"]["acc"]
    assert (len(acc["by_item"]), set(acc["by_item"]) <= {0.0, 1.0}) == (8, True)
    assert acc["value"] == sum(acc["by_item"]) / 8
    assert {name: metric["by_item"] for name, metric in calls["metrics"].items()} == {
        name: [0.0, 0.0] for name in ("well_formed", "fits", "exact")
    }

    ran = []

    def record(request, folder, **_):
        ran.extend(request["models"])
        for target in request["models"].values():
            Path(target).write_text(json.dumps(after))

    monkeypatch.setattr(tasks, "_run_harness", record)
    assert tasks.answer_tasks(BASE, FINAL, asked) == (before, after)
    assert ran == [str(FINAL)]
    (project / "tasks/tools.jsonl").write_text("{}\n")
    tasks.answer_tasks(BASE, FINAL, asked)
    assert ran[1:] == [str(FINAL), str(BASE)], "a task that has changed is answered again"


def test_a_task_that_renders_its_prompts_can_be_loaded_before_there_is_a_model(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tasks"))
    module = importlib.import_module("tool_calls")
    monkeypatch.setenv(harness.TOKENIZER, "")
    assert module.prompt({"question": "Why?", "tools": "[]"}) == "Why?"


def test_known_results_of_the_base_model_count_only_for_the_items_of_now(project, monkeypatch):
    monkeypatch.setattr(tasks, "require_packages", lambda _: None)
    (project / "tasks").mkdir()
    ran, versions = [], iter("aabbbcd")

    def answer(request, folder, **_):
        data = next(versions)
        ran.append((data, list(request["models"])))
        for target in request["models"].values():
            Path(target).write_text(json.dumps({"far": {"digest": data}}))

    monkeypatch.setattr(tasks, "_run_harness", answer)
    both, final, base = [str(FINAL), str(BASE)], [str(FINAL)], [str(BASE)]
    for data in "aab":
        expected = {"far": {"digest": data}}
        assert tasks.answer_tasks(BASE, FINAL, params("far")) == (expected, expected)
    assert ran == [("a", both), ("a", final), ("b", final), ("b", base)]
    assert tasks.answer_tasks(BASE, FINAL, params("far"))[0]["far"]["digest"] == "b"
    with pytest.raises(InputError, match=r"^eval\.tasks: far: the items differ each time"):
        tasks.answer_tasks(BASE, FINAL, params("far"))


def test_what_is_not_here_is_named_with_the_command_that_brings_it(project, lm_eval, monkeypatch):
    with pytest.raises(InputError, match=r"^eval\.tasks: gsm8k: lm-eval is not installed.*make setup-lm-eval$"):
        tasks.answer_tasks(BASE, FINAL, params("gsm8k"))
    (project / tasks.PACKAGES).symlink_to(lm_eval)
    (project / "tasks").mkdir()
    remote = "task: far\ndataset_path: owner/far\noutput_type: multiple_choice\ntest_split: test\n"
    (project / "tasks/far.yaml").write_text(remote)
    monkeypatch.syspath_prepend(str(lm_eval))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"^eval\.tasks: far: its data is not in the cache.*make setup-lm-eval$"):
        harness.load_tasks(["far"])
    (project / tasks.PINS).write_text("lm-eval==0\n")
    with pytest.raises(InputError, match=r"has other versions.*make setup-lm-eval$"):
        tasks.require_packages(params("far").tasks)
    tasks.require_packages([])


def test_a_metric_is_compared_by_item_and_without_contaminated_items():
    def answered(values):
        metric = {"value": sum(values) / len(values), "higher_is_better": True, "by_item": values}
        task = {"texts": ["a"] * len(values), "num_fewshot": 0, "digest": "d", "cut": 1, "metrics": {"acc": metric}}
        return {"t": task}

    compared = tasks.compare_tasks(answered([0.0, 0.0, 1.0, 0.0]), answered([1.0, 1.0, 0.0, 1.0]), {"t": {0, 1}})
    acc = compared["t"]["metrics"].pop("acc")
    rest = {"items": 4, "contaminated": 2, "cut": 1, "num_fewshot": 0, "digest": "d", "metrics": {}}
    assert compared == {"t": rest}
    assert (acc["before"], acc["after"], acc["uncontaminated"]) == (0.25, 0.75, 0.5)
    assert (acc["better"], acc["worse"], acc["p"]) == (3, 1, 0.625)
    assert (acc["interval"]["low"], acc["interval"]["high"]) == pytest.approx((0.300642, 0.954413))


def test_prompts_that_lm_eval_cuts_are_known(project, lm_eval, monkeypatch, capfd):
    from transformers import AutoTokenizer

    from sft.evaluation.generate import load_model

    monkeypatch.syspath_prepend(str(lm_eval))
    instance = importlib.import_module("lm_eval.api.instance").Instance
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    context, answer = 16, 4
    lm = harness.counting_model(pretrained=load_model(BASE), tokenizer=tokenizer, batch_size=2, max_length=context)

    def ask(kind, settings, longest):
        lm.cut_prompts.clear()
        texts = [tokenizer.decode(tokenizer(" a" * 99)["input_ids"][:length]) for length in (2, longest, longest + 1)]
        assert [len(lm.tok_encode(text)) for text in texts] == [2, longest, longest + 1]
        getattr(lm, kind)([instance(kind, {}, (text, settings), 0) for text in texts], disable_tqdm=True)
        assert lm.cut_prompts == {texts[-1]}

    ask("generate_until", {"until": ["\n"], "max_gen_toks": answer}, context - answer)
    ask("loglikelihood", " a", context + 1 - len(lm.tok_encode(" a", add_special_tokens=False)))


@pytest.mark.parametrize(
    ("variable", "offline"), [("", False), ("0", False), ("1", True), ("true", True), ("off", False)]
)
def test_a_download_is_offline_as_the_hub_library_reads_its_variable(variable, offline, tmp_path):
    program = (
        "from sft.evaluation import tasks; from sft.params.evaluation import Task; from types import SimpleNamespace;"
        "tasks.load = lambda _: SimpleNamespace(tasks=[Task(name='t')]); tasks.require_packages = lambda _: None;"
        "tasks._run_harness = lambda *_, offline: print(offline); tasks.download()"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": variable, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(offline)
