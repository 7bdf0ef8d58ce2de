"""Pack against peers: lengths into packs, by Megatron-Bridge's packers, by TRL's, and by ours.

    python -m bench.peers.packing [--samples 1000000] [--pack-size 4096] [--rounds 5] [--peers Bridge TRL] [--json FILE]

Lengths are lognormal (median 600, sigma 1.1). Each side is a process of its own that prints its CPU seconds for the
packing alone, imports and compiling left out; the sides of a round run one after the other, and ratios are medians of
those within a round. Megatron-Bridge's are those that are installed. TRL's, which moves tokens too and holds all of
them (one byte each here), takes part up to TRL_SAMPLES where `make bench-peers` has installed it.
"""

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench.corpus import PLACE
from bench.scaling import draw_lengths

from sft.files import write_json
from sft.packing.bins import lower_bound, plan_bins

PEERS = PLACE / "peers"
TRL_SAMPLES = 200_000
Measure = dict[str, float]


def ours(lengths: np.ndarray[Any, np.dtype[np.int32]], pack_size: int) -> Callable[[], int]:
    """Return what packs with ours and counts the packs."""
    plan_bins(lengths[:100], pack_size)  # compiles
    return lambda: len(plan_bins(lengths, pack_size))


def bridge(lengths: np.ndarray[Any, np.dtype[np.int32]], pack_size: int, name: str) -> Callable[[], int]:
    """Return what packs with a function of Megatron-Bridge; of the package only the module with it is imported."""
    import megatron

    for package in ("bridge", "bridge.utils", "bridge.data", "bridge.data.packing"):
        module = types.ModuleType(f"megatron.{package}")
        module.__path__ = [str(Path(folder, *package.split("."))) for folder in megatron.__path__]
        sys.modules[module.__name__] = module
    pack = getattr(importlib.import_module("megatron.bridge.data.packing.algorithms"), name)
    values = lengths.tolist()
    return lambda: len(pack(values, pack_size))


def trl(lengths: np.ndarray[Any, np.dtype[np.int32]], pack_size: int) -> Callable[[], int]:
    """Return what packs with TRL's best-fit decreasing, over the whole table."""
    import pyarrow as pa

    data_utils: Any = importlib.import_module("trl.data_utils")
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
    tokens = pa.array(np.zeros(lengths.sum(), np.int8))
    table = pa.table({"input_ids": pa.LargeListArray.from_arrays(offsets, tokens)})
    return lambda: int(data_utils._pack_bfd(table, pack_size).num_rows)


SIDES: dict[str, Callable[[np.ndarray[Any, np.dtype[np.int32]], int], Callable[[], int]]] = {
    "ours": ours,
    "Megatron-Bridge, first_fit_decreasing": lambda *asked: bridge(*asked, "first_fit_decreasing"),
    "Megatron-Bridge, first_fit_shuffle": lambda *asked: bridge(*asked, "first_fit_shuffle"),
    "TRL, bfd": trl,
}


def run_side(side: str, samples: int, pack_size: int) -> Measure:
    """Measure one side in a process of its own."""
    call = [
        sys.executable,
        "-m",
        "bench.peers.packing",
        "--side",
        side,
        "--samples",
        str(samples),
        "--pack-size",
        str(pack_size),
    ]
    paths = [*os.environ.get("PYTHONPATH", "").split(os.pathsep), *([str(PEERS)] if side.startswith("TRL") else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side}:\n{done.stderr[-4000:]}")
    measure: Measure = json.loads(done.stdout.splitlines()[-1])
    return measure


def measure_side(side: str, samples: int, pack_size: int) -> Measure:
    """Pack with one side, here."""
    lengths = draw_lengths(samples, pack_size)
    pack = SIDES[side](lengths, pack_size)
    begin = time.process_time()
    packs = pack()
    cpu = time.process_time() - begin
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    bound = lower_bound(lengths, pack_size)
    efficiency = int(lengths.sum(dtype=np.int64)) / (packs * pack_size)
    return {"cpu": cpu, "packs": packs, "over_bound": packs / bound - 1, "efficiency": efficiency, "memory_mb": memory}


def show(rounds: list[dict[str, Measure]], samples: int, pack_size: int) -> dict[str, Any]:
    """Print the table; return it."""
    print(f"{samples:,} samples into packs of {pack_size:,}, {len(rounds)} rounds, load {os.getloadavg()[0]:.1f}")
    print(f"{'':38} {'CPU s':>8} {'least..most':>16} {'full':>10} {'over bound':>11} {'RSS MB':>8}   ours is faster by")
    table = {}
    for side, first in rounds[0].items():
        cpu = sorted(each[side]["cpu"] for each in rounds)
        ratios = sorted(each[side]["cpu"] / each["ours"]["cpu"] for each in rounds)
        table[side] = {**first, "cpu": cpu, "ours_faster_by": ratios}
        print(
            f"{side:38} {statistics.median(cpu):8.3f} {f'{cpu[0]:.3f}..{cpu[-1]:.3f}':>16} {first['efficiency']:10.4%} "
            f"{first['over_bound']:11.4%} {first['memory_mb']:8,.0f}   {statistics.median(ratios):.0f}x "
            f"[{ratios[0]:.0f}..{ratios[-1]:.0f}]"
        )
    return {"samples": samples, "pack_size": pack_size, "table": table, "load": os.getloadavg()}


def main() -> None:
    """Measure all sides, round by round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--pack-size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="+", default=["Bridge", "TRL"], help="those whose name holds one of these")
    parser.add_argument("--json", type=Path, default=PLACE / "pack.json")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    asked = arguments.samples, arguments.pack_size
    if arguments.side:
        print(json.dumps(measure_side(arguments.side, *asked)))
        return
    has_trl = (PEERS / "trl").exists() and arguments.samples <= TRL_SAMPLES
    sides = [side for side in SIDES if side == "ours" or any(name in side for name in arguments.peers)]
    sides = [side for side in sides if has_trl or not side.startswith("TRL")]
    rounds = [{side: run_side(side, *asked) for side in sides} for _ in range(arguments.rounds)]
    write_json(arguments.json, show(rounds, *asked))
    if not has_trl:
        print(f"TRL is left out: `make bench-peers` installs it; it takes part up to {TRL_SAMPLES:,} samples")


if __name__ == "__main__":
    main()
