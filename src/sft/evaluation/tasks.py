"""Benchmarks: tasks of lm-eval, answered by both models.

    python -m sft.evaluation.tasks     load the data of eval.tasks into the cache of Hugging Face: `make setup-lm-eval`

eval.tasks, models/base, models/final  ->  the section `tasks` of reports/eval.json: each metric before and after, with
intervals, and how many items the training data contains

lm-eval is not in .venv but in .lm-eval, and only the process that answers (sft.evaluation.harness) sees it. The stage
downloads nothing. Results of the base model are kept in runs/measured, as its answers are.
"""

import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sft.cli import InputError, make_parser, run_child, run_or_exit
from sft.evaluation import harness, measure, tool_calls
from sft.evaluation.intervals import share_change, share_interval
from sft.evaluation.loss import DIGITS
from sft.files import project_root, read_json, write_json
from sft.formats import benchmarks
from sft.hashing import file_digest, files_below
from sft.params.evaluation import Eval, Task
from sft.params.read import load

PACKAGES, PINS = Path(".lm-eval"), Path("requirements/lm-eval.txt")
INSTALLED = PACKAGES / PINS.name
"""A copy of the pins, written when they are installed."""
SOURCES = Path(__file__).parents[2]
CODE = (*measure.CODE, *(Path(str(module.__file__)) for module in (harness, tool_calls, benchmarks)))
"""What determines results, beside the packages."""


def require_packages(tasks: Sequence[Task]) -> None:
    """Raise InputError if there are tasks, but lm-eval is not installed as pinned."""
    pins, installed = project_root() / PINS, project_root() / INSTALLED
    if tasks and (not installed.is_file() or installed.read_bytes() != pins.read_bytes()):
        state = "has other versions" if installed.is_file() else "is not installed"
        raise InputError(
            f"eval.tasks: {', '.join(task.name for task in tasks)}: lm-eval {state} ({PACKAGES}). Install it, and "
            f"download the data of the tasks: {harness.DOWNLOAD}"
        )


def answer_tasks(base: Path, final: Path, params: Eval) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the base model and the trained one achieve, as sft.evaluation.harness writes it.

    Both get the prompts of the trained model's template and tokenizer. Known results of the base model count if their
    items are those of now: the data of a task is in a cache that others change.

    Raises:  InputError: lm-eval or the data of a task is not installed, or it failed; items differ each time.
    """
    if not params.tasks:
        return {}, {}
    require_packages(params.tasks)
    files = [path for path in files_below(Path(harness.FOLDER)) if path.suffix != ".pyc"]
    inputs = {
        "tasks": [task.model_dump() for task in params.tasks],
        "batch_size": params.batch_size,
        "files": {str(path): file_digest(path) for path in files},
        "pins": file_digest(project_root() / PINS),
        "tokenizer": [file_digest(final / name) for name in ("tokenizer.json", "chat_template.jinja")],
    }
    known = measure.kept_file(base, inputs, CODE)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "final.json")
        request = {**inputs, "tokenizer": str(final)}
        models = {str(final): str(target)} | ({} if known.is_file() else {str(base): str(known)})
        _run_harness({**request, "models": models}, Path(folder), offline=True)
        before, after = read_json(known), read_json(target)
        if differing_items(before, after) and str(base) not in models:
            _run_harness({**request, "models": {str(base): str(known)}}, Path(folder), offline=True)
            before = read_json(known)
    if differing := differing_items(before, after):
        known.unlink()
        raise InputError(
            f"eval.tasks: {', '.join(differing)}: the items differ each time they are loaded, so that models cannot be "
            "compared. Remove it."
        )
    return before, after


def differing_items(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the tasks of which two models got different items."""
    return sorted(name for name in {*before, *after} if _digest(before, name) != _digest(after, name))


def _digest(found: Mapping[str, Any], name: str) -> Any:
    return found[name]["digest"] if name in found else None


def _run_harness(request: dict[str, Any], folder: Path, *, offline: bool) -> None:
    error, given = folder / "error.json", folder / "request.json"
    write_json(given, {**request, "error": str(error)})
    is_offline = str(int(offline))
    environment = {
        **os.environ,
        "PYTHONPATH": f"{project_root() / PACKAGES}:{SOURCES}",
        "HF_HUB_OFFLINE": is_offline,
        "HF_DATASETS_OFFLINE": is_offline,
        "HF_EVALUATE_OFFLINE": "1",  # it loads metrics as code
        "TOKENIZERS_PARALLELISM": "false",
    }
    environment |= {} if sys.stderr.isatty() else {"TQDM_DISABLE": "1"}
    status = run_child([sys.executable, "-W", "ignore", "-m", harness.__name__, str(given)], env=environment)
    if error.is_file():
        raise InputError(read_json(error))
    if status:
        raise InputError(f"eval.tasks: lm-eval ended with status {status}, see above.")


def compare_tasks(
    before: Mapping[str, Any], after: Mapping[str, Any], contaminated: Mapping[str, Iterable[int]]
) -> dict[str, Any]:
    """Return the section `tasks` of reports/eval.json.

    A metric that is right or wrong for each item has Wilson's interval (of the trained model), the items that got
    better and worse, and the probability of that by chance. `uncontaminated` is the trained model's value without the
    items that the training data contains; `cut` counts the items whose prompt is longer than the model's context.
    """
    return {
        name: {
            "items": len(task["texts"]),
            "contaminated": len(found := set(contaminated[name])),
            "cut": task["cut"],
            "num_fewshot": task["num_fewshot"],
            "digest": task["digest"],
            "metrics": {
                metric: _compare_metric(before[name]["metrics"][metric], now, found)
                for metric, now in task["metrics"].items()
            },
        }
        for name, task in after.items()
    }


def _compare_metric(was: Mapping[str, Any], now: Mapping[str, Any], contaminated: set[int]) -> dict[str, Any]:
    compared = {
        "before": round(was["value"], DIGITS),
        "after": round(now["value"], DIGITS),
        "higher_is_better": now["higher_is_better"],
    }
    old, new = was["by_item"], now["by_item"]
    if new is None or old is None:
        return compared
    clean = [value for item, value in enumerate(new) if item not in contaminated]
    compared["uncontaminated"] = round(sum(clean) / len(clean), DIGITS) if clean else None
    if {*old, *new} <= {0.0, 1.0}:
        better = now["higher_is_better"]
        claims = [[bool(value) == better for value in values] for values in (old, new)]
        compared |= {"interval": share_interval([bool(value) for value in new]), **(share_change(*claims) or {})}
    return compared


def download() -> None:
    """Load the data of eval.tasks; unless HF_HUB_OFFLINE is on, what the cache of Hugging Face lacks is downloaded."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    tasks = load("eval").tasks
    if not tasks:
        return
    require_packages(tasks)
    with tempfile.TemporaryDirectory() as folder:
        request = {"tasks": [task.model_dump() for task in tasks], "models": {}, "tokenizer": ""}
        _run_harness(request, Path(folder), offline=HF_HUB_OFFLINE)


if __name__ == "__main__":
    make_parser(__name__, __doc__).parse_args()
    run_or_exit(download)
