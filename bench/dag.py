"""Measure how long `dvc repro` takes when nothing has changed, by number of sources.

    PYTHONPATH=src:. python -m bench.dag [--sources 2 12] [--files 32] [--megabytes 1] [--rounds 5]

Copies the tracked files of this repository and gives them that many sources. Writes random outputs (--files files of
--megabytes for each prepared source), records them as if the stages had run (`dvc commit`), then measures wall and CPU
seconds of `dvc repro --all-pipelines`, as `make repro` calls it.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.project import ROOT
from ruamel.yaml import YAML


def make_project(folder: Path, sources: int, files: int, size: int) -> int:
    """Make a project in which every stage is up to date; return its number of stages."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in tracked.split("\0")[:-1]:
        if (ROOT / name).exists() and name != "dvc.lock":  # it would keep the stages of the own sources, too
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    names = [f"source-{number}" for number in range(sources)]
    params["fetch"]["sources"] = {name: {"uri": "file://x.jsonl", "read": "openai"} for name in names}
    yaml.dump(params, folder / "params.yaml")
    stages: list[dict[str, Any]] = []
    for stage in YAML(typ="safe").load(folder / "dvc.yaml")["stages"].values():
        stages += [stage] if "foreach" not in stage else [stage["do"] | {"key": name} for name in names]
    for stage in stages:
        for out in stage["outs"] + stage.get("metrics", []) + stage.get("plots", []):
            path = folder / (out if isinstance(out, str) else next(iter(out))).replace("${key}", stage.get("key", ""))
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix or path.name == "last":
                path.write_text("{}")
            else:
                path.mkdir(exist_ok=True)
                for number in range(files if "prepared" in path.parts else 1):
                    (path / f"{number:05d}.parquet").write_bytes(os.urandom(size))
    (folder / "x.jsonl").write_text("{}\n")
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / "models/base" / name).write_text("{}")
    run(folder, "git", "init", "--quiet")
    run(folder, "dvc", "commit", "--force", "--quiet")
    return len(stages)


def run(folder: Path, *command: str) -> str:
    """Run a command in a folder and return its output."""
    variables = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DVC_SITE_CACHE_DIR": str(folder / ".site"),
    }
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def main() -> None:
    """Measure each number of sources."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=int, nargs="+", default=[2, 12])
    parser.add_argument("--files", type=int, default=32)
    parser.add_argument("--megabytes", type=float, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    for sources in args.sources:
        with tempfile.TemporaryDirectory() as folder:
            stages = make_project(Path(folder), sources, args.files, int(args.megabytes * 1e6))
            output = run(Path(folder), "dvc", "repro", "--all-pipelines")  # fills DVC's own caches
            assert "Running stage" not in output, output
            walls, cpus = [], []
            for _ in range(args.rounds):
                before, start = os.times(), time.perf_counter()
                run(Path(folder), "dvc", "repro", "--all-pipelines")
                after = os.times()
                walls.append(time.perf_counter() - start)
                cpus.append(sum(after[2:4]) - sum(before[2:4]))
        print(
            f"{stages} stages: dvc repro with nothing to do takes {statistics.median(walls):.1f} s, "
            f"{statistics.median(cpus):.1f} CPU-s (load {os.getloadavg()[0]:.1f})"
        )


if __name__ == "__main__":
    main()
