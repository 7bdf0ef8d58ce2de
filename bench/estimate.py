"""How far the estimate of memory is from what a training on a CPU takes, by layout of what is kept.

Each case trains the model of models/base on data/packed for a few steps in a process of its own, as the train stage
does. Taken is the most memory (resident) during the steps, less what the process had after its imports.

    PYTHONPATH=src python bench/estimate.py [--base models/base] [--tiny]     where `dvc repro pack` has run
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

STEPS = 3
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "all kept": {},
    "full recompute": {"model": FULL},
    "adapters": {"peft": {"name": "lora"}},
    "adapters, full recompute": {"peft": {"name": "lora"}, "model": FULL},
}


def train(case: str, base: Path, packed: Path) -> dict[str, float]:
    """Train a few steps; return bytes taken and estimated, and the packs' size."""
    import psutil

    from sft.files import read_json
    from sft.params.check import read
    from sft.params.training import TrainParams
    from sft.planning import estimate
    from sft.training import bridge, config

    sections = read().training.model_dump()
    changes = {
        "train": {"train_iters": STEPS},
        "validation": {"eval_iters": 0},
        "scheduler": {"lr_warmup_iters": 1},
        "checkpoint": {"save_interval": 10_000},
    } | CASES[case]
    for name, values in changes.items():
        sections[name] |= values
    params = TrainParams.model_validate(sections)
    pack_size = read_json(packed / "metadata.json")["pack_size"]
    start = Path("runs/bench/base").absolute()
    bridge.import_base(base=base, checkpoint=start)

    process, most, stop, steps = psutil.Process(), [0], threading.Event(), []

    def watch() -> None:
        while not stop.is_set():
            if steps:  # the first step makes the optimizer's states
                most[0] = max(most[0], process.memory_info().rss)
            time.sleep(0.002)

    config.ready()
    geometry = config.geometry_of(config.model_of(base, weights=False)[1])
    before = process.memory_info().rss
    thread = threading.Thread(target=watch)
    thread.start()
    with tempfile.TemporaryDirectory() as folder:
        bridge.train(
            base=base,
            start=start,
            packed=packed,
            run=Path(folder),
            params=params,
            pack_size=pack_size,
            on_step=lambda step: (steps.append(step), step.iteration == STEPS and stop.set()),
            on_validation=lambda *values: None,
        )
    thread.join()
    found = estimate.estimate(geometry, params, 1, pack_size, on_gpu=False)
    return {"taken": most[0] - before, "estimated": found.memory.total, "pack_size": pack_size}


def main() -> None:
    """Run every case and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("models/base"))
    parser.add_argument("--packed", type=Path, default=Path("data/packed"))
    parser.add_argument("--case", choices=CASES)
    asked = parser.parse_args()
    base, packed = asked.base.absolute(), asked.packed.absolute()
    if asked.case:
        print(json.dumps(train(asked.case, base, packed)))
        return
    for case in CASES:
        own = [sys.executable, __file__, "--base", str(base), "--packed", str(packed), "--case", case]
        done = subprocess.run(own, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        seen = json.loads(done.stdout.splitlines()[-1])
        ratio = seen["taken"] / seen["estimated"]
        print(
            f"{case:26} packs of {seen['pack_size']}: {seen['taken'] / 1e6:7,.0f} MB taken, "
            f"{seen['estimated'] / 1e6:7,.0f} MB estimated, {ratio:.2f}"
        )


if __name__ == "__main__":
    main()
