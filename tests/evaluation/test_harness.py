"""harness: the results of lm-eval by metric, filter and item. tests/evaluation/test_tasks.py runs lm-eval."""

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
