"""Make a project folder in which a benchmark runs the stages on one source, `bench`. Used by other benchmarks."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
# All that a benchmark writes: corpora, tokenizer, projects, results.
BENCH_RUNS = ROOT / "runs" / "bench"


def make_project(folder: Path, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Make a folder with templates, filters, a tokenizer as models/base, and params.yaml with changed sections.

    Its source is whatever you put into data/raw/bench, in the openai format.
    """
    folder.mkdir(parents=True)
    (folder / "models").mkdir()
    links = {"templates": ROOT / "templates", "filters": ROOT / "filters", "models/base": BENCH_RUNS / "tokenizer"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    params["fetch"]["sources"] = {"bench": {"uri": "file://corpus.jsonl", "read": "openai"}}
    for section, values in changes.items():
        params[section].update(values)
    yaml.dump(params, folder / "params.yaml")


def stage_environment(workers: int) -> dict[str, str]:
    """Return the environment of a stage that runs in such a folder, with that many worker processes."""
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "SFT_WORKERS": str(workers)}
