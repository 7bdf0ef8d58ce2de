"""Answer tasks of lm-eval with models. A program of its own: it needs the packages of `make setup-lm-eval`.

    python -m sft.evaluation.harness REQUEST     sft.evaluation.tasks starts it, with .lm-eval on PYTHONPATH

REQUEST, a file of JSON: {"tasks": as in eval.tasks, "models": {Hugging Face folder: file for its results}, "tokenizer":
the folder whose template and tokens are used, "batch_size", "error": a file}
    ->  a file for each model: {task: {"metrics", "texts", "digest", "num_fewshot", "cut"}}; or in `error`, why there is
        none

lm-eval cuts the start of a prompt that is longer than the context of the model. `cut` counts the items of such prompts.

The data of a task is read from the cache of Hugging Face; where HF_HUB_OFFLINE is 0, it is downloaded.
"""

import os
import sys
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from sft.cli import InputError, one_line
from sft.files import read_json, write_json
from sft.formats.benchmarks import item_texts
from sft.hashing import value_digest

TOKENIZER = "SFT_TASK_TOKENIZER"
"""Our own tasks render their prompts with the tokenizer of this folder (tasks/tool_calls.py); empty: only load them."""
THINK_END = "</think>"
FOLDER = "tasks"
"""Our own tasks."""
DOWNLOAD = "make setup-lm-eval"


def load_tasks(names: Sequence[str]) -> Any:
    """Load the data of tasks; return lm-eval's manager of tasks.

    Raises:  InputError: no such task, its data is not here, it needs other packages, it runs what a model writes.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=FOLDER, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=FOLDER)  # reads thousands of files
    named: dict[str, str] = {}
    for name in names:
        place = f"eval.tasks: {name}"
        if name not in manager.all_tasks:
            raise InputError(f"{place}: neither in {FOLDER}/ nor a task, group or tag of lm-eval. Correct the name.")
        try:
            loaded = manager.load([name])["tasks"]
        except ImportError as error:
            raise InputError(f"{place}: needs a package that .lm-eval does not have: {error}") from error
        except (OSError, LookupError, ValueError) as error:  # as datasets and nltk say that data is not in their cache
            raise InputError(
                f"{place}: its data is not in the cache of Hugging Face ({one_line(str(error))}). Download "
                f"it, on a machine with internet and the same HF_HOME: {DOWNLOAD}"
            ) from error
        if any(getattr(task, "UNSAFE_CODE", False) for task in loaded.values()):
            raise InputError(f"{place}: runs code that a model writes, which this project does not. Remove it.")
        if any(needs_foreign_metric(task) for task in loaded.values()):
            raise InputError(f"{place}: its metric is code of the Hugging Face hub, which is not run. Remove it.")
        if twice := sorted(named.keys() & loaded.keys()):
            raise InputError(f"{place}: {twice[0]} is in {named[twice[0]]} too. Remove one of them.")
        named |= dict.fromkeys(loaded, name)
    return manager


def needs_foreign_metric(task: Any) -> bool:
    """Return whether a metric of a task is not in lm-eval: it would be loaded with `evaluate`, which is offline."""
    return task.config.process_results is None and None in getattr(task, "_metric_fn_list", {}).values()


def answer_tasks(folder: Path, request: Mapping[str, Any], manager: Any) -> dict[str, Any]:
    """Return what a model achieves in each task."""
    from lm_eval import simple_evaluate
    from transformers import AutoTokenizer

    from sft.evaluation.generate import load_model

    tokenizer = AutoTokenizer.from_pretrained(request["tokenizer"], local_files_only=True)
    model = load_model(folder)
    found: dict[str, Any] = {}
    for task in request["tasks"]:
        answering = counting_model(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=request["batch_size"],
            enable_thinking=task["thinking"],
            think_end_token=THINK_END if task["thinking"] else None,
        )
        results = simple_evaluate(
            answering,
            tasks=[task["name"]],
            task_manager=manager,
            num_fewshot=task["num_fewshot"],
            limit=task["limit"],
            apply_chat_template=task["chat_template"],
            bootstrap_iters=0,
        )
        found |= read_results(results, answering.cut_prompts)
    return found


def counting_model(**options: Any) -> Any:
    """Return lm-eval's model of transformers, which also keeps the prompts whose start it cuts: `cut_prompts`."""
    from lm_eval.models.huggingface import HFLM

    class CountingModel(HFLM):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(**options)
            self.cut_prompts: set[str] = set()

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
            longest = self.max_length + 1  # the last token is only predicted
            self.cut_prompts |= {texts[0] for texts, ids, answer in requests if len(ids) + len(answer) > longest}
            return super()._loglikelihood_tokens(requests, *args, **kwargs)

        def tok_batch_encode(self, strings: Any, *args: Any, left_truncate_len: int, **kwargs: Any) -> Any:
            ids, mask = super().tok_batch_encode(strings, *args, **kwargs)
            lengths = mask.sum(1).tolist()
            self.cut_prompts |= {
                text for text, tokens in zip(strings, lengths, strict=True) if tokens > left_truncate_len
            }
            return ids[:, -left_truncate_len:], mask[:, -left_truncate_len:]

    return CountingModel()


def read_results(results: Mapping[str, Any], cut_prompts: Set[str]) -> dict[str, Any]:
    """Return results of lm-eval by task; a group with metrics of its own, such as mmlu, has the items of its tasks."""
    samples, children = results["samples"], results["group_subtasks"]

    def tasks_in(name: str) -> list[str]:
        return [name] if name in samples else [task for child in children[name] for task in tasks_in(child)]

    found = {}
    for name in (*results.get("groups", {}), *samples):
        rows = [{**row, "doc_id": (task, row["doc_id"])} for task in tasks_in(name) for row in samples[task]]
        found[name] = summarize(rows, results["results"][name], results["higher_is_better"].get(name, {}))
        cut = {row["doc_id"] for row in rows if any(request[0] in cut_prompts for request in row["arguments"])}
        found[name]["cut"] = len(cut)
        found[name]["num_fewshot"] = results["n-shot"].get(name)
    return found


def summarize(
    samples: Sequence[Mapping[str, Any]], results: Mapping[str, Any], higher_is_better: Mapping[str, Any]
) -> dict[str, Any]:
    """Return each metric as lm-eval computed it and by item, in the order of the items, and what each item asks.

    `by_item` is None where the metric is not the mean of a number for each item.
    """
    metrics = {}
    for written, mean in results.items():
        name, _, filtered = written.partition(",")
        if name.endswith("_stderr") or not filtered or not isinstance(mean, int | float):
            continue
        rows = sorted((row for row in samples if row["filter"] == filtered), key=lambda row: row["doc_id"])
        each = [row.get(name) for row in rows]
        numbers = [float(value) for value in each if isinstance(value, int | float)]
        is_mean = 0 < len(numbers) == len(each) and abs(sum(numbers) / len(numbers) - mean) < 1e-9
        metrics[name if filtered == "none" else f"{name}/{filtered}"] = {
            "value": float(mean),
            "higher_is_better": bool(higher_is_better.get(name, True)),
            "by_item": numbers if is_mean else None,
        }
    first = {row["doc_id"]: row for row in reversed(samples)}
    rows = [first[number] for number in sorted(first)]
    digest = value_digest([[row[f"{name}_hash"] for name in ("doc", "prompt", "target")] for row in rows])
    return {"metrics": metrics, "texts": [_asked(row) for row in rows], "digest": digest}


def _asked(row: Mapping[str, Any]) -> str:
    """Return what an item asks: its question, or else the prompt."""
    try:
        return "\n".join(item_texts(row["doc"]))
    except InputError:
        return str(row["arguments"][0][0])


def main(path: Path) -> None:
    """Answer the tasks of a request with each of its models."""
    from sft.evaluation.generate import release_memory

    request = read_json(path)
    os.environ[TOKENIZER] = request["tokenizer"]
    try:
        manager = load_tasks([task["name"] for task in request["tasks"]])
        for folder, target in request["models"].items():
            write_json(Path(target), answer_tasks(Path(folder), request, manager))
            release_memory()
    except InputError as error:
        write_json(Path(request["error"]), str(error))


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit("error: expected the file of a request; sft.evaluation.tasks runs this")
    main(Path(sys.argv[1]))
