"""harness: the results of lm-eval by metric, filter and item. tests/evaluation/test_tasks.py runs lm-eval."""

import sys
from types import SimpleNamespace

import pytest

from sft.cli import InputError
from sft.evaluation import harness


def sample(item, filtered, **metrics):
    digests = {"doc_hash": "d", "prompt_hash": str(item), "target_hash": "t"}
    row = {"doc_id": item, "doc": {"question": f"q{item}"}, "arguments": [("p", {})], "filter": filtered}
    return {**row, **digests, "metrics": list(metrics), **metrics}


def test_results_are_read_by_metric_filter_and_item():
    samples = [sample(1, "strict", em=1.0, f1=0.5), sample(0, "strict", em=0.0, f1=0.5), sample(0, "loose", em=True)]
    results = {"alias": "t", "em,strict": 0.5, "em_stderr,strict": 0.1, "f1,strict": 0.7, "em,loose": 1.0}
    found = harness.summarize(samples, results, {"em": True, "f1": False})
    assert found["texts"] == ["q0", "q1"]
    assert found["metrics"] == {
        "em/strict": {"value": 0.5, "higher_is_better": True, "by_item": [0.0, 1.0]},
        "f1/strict": {"value": 0.7, "higher_is_better": False, "by_item": None},
        "em/loose": {"value": 1.0, "higher_is_better": True, "by_item": [1.0]},
    }


def test_a_group_with_a_metric_has_the_items_of_its_tasks_and_one_without_is_its_tasks_only():
    scores = {"b": [1.0, 0.0, 1.0], "a": [0.0]}
    results = {
        "samples": {
            task: [sample(item, "none", acc=score) for item, score in enumerate(scores[task])] for task in scores
        },
        "results": {"b": {"acc,none": 2 / 3}, "a": {"acc,none": 0.0}, "all": {"acc,none": 0.5}},
        "groups": {"all": {"acc,none": 0.5}},
        "group_subtasks": {"all": ["a", "part"], "part": ["b"]},
        "higher_is_better": {name: {"acc": True} for name in ("a", "b", "all")},
        "n-shot": {"a": 5, "b": 5},
    }
    found = harness.read_results(results, {"p"})
    assert list(found) == ["all", "b", "a"]
    assert found["all"]["metrics"]["acc"] == {"value": 0.5, "higher_is_better": True, "by_item": [0.0, 1.0, 0.0, 1.0]}
    assert (found["all"]["texts"], found["all"]["num_fewshot"]) == (["q0", "q0", "q1", "q2"], None)
    assert [found[name]["cut"] for name in ("all", "b", "a")] == [4, 3, 1]
    assert harness.read_results(results, {"q"})["all"]["cut"] == 0
    results["results"]["all"]["acc,none"] = 1 / 3  # the mean of the means, not of the items
    assert harness.read_results(results, set())["all"]["metrics"]["acc"]["by_item"] is None


@pytest.fixture
def loaded(monkeypatch):
    """What a task manager of lm-eval loads, by name."""
    tasks = {}

    class TaskManager:
        def __init__(self, **_):
            self.all_tasks = list(tasks)

        def load(self, names):
            return {"tasks": tasks[names[0]]}

    for name in ("lm_eval", "lm_eval.tasks"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(TaskManager=TaskManager))
    return tasks


def a_task(metric=len, process_results=None):
    return SimpleNamespace(_metric_fn_list={"acc": metric}, config=SimpleNamespace(process_results=process_results))


def test_a_task_that_is_in_a_group_is_not_answered_twice(loaded):
    loaded |= {"all": {"a": a_task(), "b": a_task()}, "b": {"b": a_task()}, "c": {"c": a_task()}}
    harness.load_tasks(["all", "c"])
    with pytest.raises(InputError, match=r"^eval\.tasks: b: b is in all too\."):
        harness.load_tasks(["all", "b"])


def test_a_metric_that_is_code_of_the_hub_is_an_error(loaded):
    loaded |= {"own": {"own": a_task(None, process_results=len)}, "far": {"far": a_task(None)}}
    harness.load_tasks(["own"])
    with pytest.raises(InputError, match=r"^eval\.tasks: far: its metric is code of the Hugging Face hub"):
        harness.load_tasks(["own", "far"])
