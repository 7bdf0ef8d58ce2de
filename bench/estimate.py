"""Compare the memory estimate of `make estimate` with measured CPU trainings, by recompute and adapter setting.

    PYTHONPATH=src:. python -m bench.estimate [--base models/base] [--packed data/packed]    after `dvc repro pack`

Each case trains a few steps in its own process, as the train stage does. Measured is the peak resident memory during
the steps, minus that of the process after its imports.
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
    "no recompute": {},
    "full recompute": {"model": FULL},
    "adapters": {"peft": {"name": "lora"}},
    "adapters, full recompute": {"peft": {"name": "lora"}, "model": FULL},
}


def train(case: str, base: Path, packed: Path) -> dict[str, float]:
    """Train a few steps; return measured and estimated bytes, and the pack size."""
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

    process, peak, stop, steps = psutil.Process(), [0], threading.Event(), []

    def sample_memory() -> None:
        while not stop.is_set():
            if steps:  # the first step creates the optimizer state
                peak[0] = max(peak[0], process.memory_info().rss)
            time.sleep(0.002)

    config.prepare_imports()
    geometry = config.geometry_of(config.model_of(base, weights=False)[1])
    before = process.memory_info().rss
    thread = threading.Thread(target=sample_memory)
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
    estimated = estimate.estimate(geometry, params, 1, pack_size, on_gpu=False)
    return {"measured": peak[0] - before, "estimated": estimated.memory.total, "pack_size": pack_size}


def main() -> None:
    """Run every case and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("models/base"))
    parser.add_argument("--packed", type=Path, default=Path("data/packed"))
    parser.add_argument("--case", choices=CASES)
    args = parser.parse_args()
    base, packed = args.base.absolute(), args.packed.absolute()
    if args.case:
        print(json.dumps(train(args.case, base, packed)))
        return
    for case in CASES:
        command = [sys.executable, "-m", "bench.estimate", "--base", str(base), "--packed", str(packed), "--case", case]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        result = json.loads(done.stdout.splitlines()[-1])
        ratio = result["measured"] / result["estimated"]
        print(
            f"{case:26} packs of {result['pack_size']}: {result['measured'] / 1e6:7,.0f} MB measured, "
            f"{result['estimated'] / 1e6:7,.0f} MB estimated, {ratio:.2f}"
        )


if __name__ == "__main__":
    main()
