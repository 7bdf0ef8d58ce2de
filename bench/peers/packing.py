"""Compare bin packing with Megatron-Bridge and TRL: the same sample lengths into packs.

    make bench-peers PEERS=packing
    PYTHONPATH=src:. python -m bench.peers.packing [--samples 1000000] [--pack-size 4096] [--rounds 5]
                                                   [--peers Bridge TRL] [--json FILE]

Lengths are lognormal (median 600, sigma 1.1). Measures CPU seconds of the packing alone, without imports and
compilation, each side in its own process; the sides of a round run one after the other, and a ratio is the median of
the ratios within a round. Megatron-Bridge is the installed version. TRL also moves tokens and holds all of them (here
one byte each), so it takes part up to TRL_SAMPLES samples, if `make bench-peers` has installed it.
"""

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from bench.project import BENCH_RUNS
from bench.scaling import draw_lengths

from sft.files import write_json
from sft.packing.bins import lower_bound, plan_bins

INSTALLED_PEERS = BENCH_RUNS / "peers"
TRL_SAMPLES = 200_000
Lengths = npt.NDArray[np.int32]
Measure = dict[str, float]


def ours(lengths: Lengths, pack_size: int) -> Callable[[], int]:
    """Return a function that packs with ours and counts the packs."""
    plan_bins(lengths[:100], pack_size)  # compiles
    return lambda: len(plan_bins(lengths, pack_size))


def bridge(lengths: Lengths, pack_size: int, name: str) -> Callable[[], int]:
    """Return a function that packs with one of Megatron-Bridge's. Imports only the module that holds it."""
    import megatron

    for package in ("bridge", "bridge.utils", "bridge.data", "bridge.data.packing"):
        module = types.ModuleType(f"megatron.{package}")
        module.__path__ = [str(Path(folder, *package.split("."))) for folder in megatron.__path__]
        sys.modules[module.__name__] = module
    pack = getattr(importlib.import_module("megatron.bridge.data.packing.algorithms"), name)
    values = lengths.tolist()
    return lambda: len(pack(values, pack_size))


def trl(lengths: Lengths, pack_size: int) -> Callable[[], int]:
    """Return a function that packs a whole table with TRL's best-fit decreasing."""
    import pyarrow as pa

    data_utils: Any = importlib.import_module("trl.data_utils")
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
    tokens = pa.array(np.zeros(lengths.sum(), np.int8))
    table = pa.table({"input_ids": pa.LargeListArray.from_arrays(offsets, tokens)})
    return lambda: int(data_utils._pack_bfd(table, pack_size).num_rows)


SIDES: dict[str, Callable[[Lengths, int], Callable[[], int]]] = {
    "ours": ours,
    "Megatron-Bridge, first_fit_decreasing": lambda *args: bridge(*args, "first_fit_decreasing"),
    "Megatron-Bridge, first_fit_shuffle": lambda *args: bridge(*args, "first_fit_shuffle"),
    "TRL, bfd": trl,
}


def measure_side(side: str, samples: int, pack_size: int) -> Measure:
    """Pack with one side, in this process."""
    lengths = draw_lengths(samples, pack_size)
    pack = SIDES[side](lengths, pack_size)
    start = time.process_time()
    packs = pack()
    cpu = time.process_time() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    bound = lower_bound(lengths, pack_size)
    efficiency = int(lengths.sum(dtype=np.int64)) / (packs * pack_size)
    return {"cpu": cpu, "packs": packs, "over_bound": packs / bound - 1, "efficiency": efficiency, "memory_mb": memory}


def run_side(side: str, samples: int, pack_size: int) -> Measure:
    """Measure one side in a new process."""
    command = [sys.executable, "-m", "bench.peers.packing", "--side", side]
    command += ["--samples", str(samples), "--pack-size", str(pack_size)]
    installed = [str(INSTALLED_PEERS)] if side.startswith("TRL") else []
    paths = [*os.environ.get("PYTHONPATH", "").split(os.pathsep), *installed]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side}:\n{done.stderr[-4000:]}")
    measure: Measure = json.loads(done.stdout.splitlines()[-1])
    return measure


def report(rounds: list[dict[str, Measure]], samples: int, pack_size: int) -> dict[str, Any]:
    """Print the table and return it."""
    print(f"{samples:,} samples into packs of {pack_size:,}, {len(rounds)} rounds, load {os.getloadavg()[0]:.1f}")
    print(f"{'':38} {'CPU s':>8} {'min..max':>16} {'full':>10} {'over bound':>11} {'RSS MB':>8}   ours is faster by")
    table = {}
    for side, first in rounds[0].items():
        cpu = sorted(each[side]["cpu"] for each in rounds)
        ratios = sorted(each[side]["cpu"] / each["ours"]["cpu"] for each in rounds)
        table[side] = {**first, "cpu": cpu, "ours_faster_by": ratios}
        print(
            f"{side:38} {median(cpu):8.3f} {f'{cpu[0]:.3f}..{cpu[-1]:.3f}':>16} {first['efficiency']:10.4%} "
            f"{first['over_bound']:11.4%} {first['memory_mb']:8,.0f}   {median(ratios):.0f}x "
            f"[{ratios[0]:.0f}..{ratios[-1]:.0f}]"
        )
    return {"samples": samples, "pack_size": pack_size, "table": table, "load": os.getloadavg()}


def main() -> None:
    """Measure all sides, round by round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--pack-size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="+", default=["Bridge", "TRL"], help="sides whose name contains one of these")
    parser.add_argument("--json", type=Path, default=BENCH_RUNS / "packing.json")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure_side(args.side, args.samples, args.pack_size)))
        return
    has_trl = (INSTALLED_PEERS / "trl").exists() and args.samples <= TRL_SAMPLES
    sides = [side for side in SIDES if side == "ours" or any(name in side for name in args.peers)]
    sides = [side for side in sides if has_trl or not side.startswith("TRL")]
    rounds = [{side: run_side(side, args.samples, args.pack_size) for side in sides} for _ in range(args.rounds)]
    write_json(args.json, report(rounds, args.samples, args.pack_size))
    if not has_trl:
        print(f"TRL is not measured: it takes part up to {TRL_SAMPLES:,} samples, if make bench-peers installed it")


if __name__ == "__main__":
    main()
