"""Estimate tokens, hours, disk and memory of data preparation for any size, from measured rates.

    PYTHONPATH=src:. python -m bench.plan [--samples 18000000] [--pack-sizes 4096 262144] [--cores 2 64]
                                          [--rates bench/rates.json]

The rates are the output of bench/scaling.py (--json), per stage those of the largest size; bench/rates.json holds
those of one machine. Lengths are lognormal as in scaling.py; samples longer than a pack count as lost.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from bench.scaling import draw_lengths

RATES = Path(__file__).parent / "rates.json"
DRAWN_LENGTHS = 1_000_000
LONGEST = 262_144  # tokens of the longest sample
SPOOL_BYTES = 5  # per token, on disk while pack runs
HOUR = 3600

Table = dict[str, dict[str, float]]


def lost_share(pack_size: int) -> tuple[float, float, float]:
    """Return the mean length of a sample, and the shares of samples and of tokens that are longer than a pack."""
    lengths = draw_lengths(DRAWN_LENGTHS, LONGEST).astype(np.int64)
    over = lengths > pack_size
    return float(lengths.mean()), float(over.mean()), float(lengths[over].sum() / lengths.sum())


def memory(measured: list[dict[str, float]], samples: int) -> float:
    """Return the memory of a stage in bytes; beyond the largest measured size it grows as before it."""
    *before, largest = sorted(measured, key=lambda each: each["rows"])
    smaller = before[-1] if before else largest
    slope = (largest["memory_mb"] - smaller["memory_mb"]) / max(1, largest["rows"] - smaller["rows"])
    return 1e6 * (largest["memory_mb"] + max(0.0, slope) * max(0, samples - largest["rows"]))


def plan(samples: int, pack_size: int, measures: dict[str, list[dict[str, float]]]) -> Table:
    """Return rows, tokens, CPU hours, disk bytes and memory bytes of each stage, on one machine."""
    mean, lost_samples, lost_tokens = lost_share(pack_size)
    stages = {name: max(measures[name], key=lambda each: each["rows"]) for name in ("filter", "prep", "pack alone")}
    filtered, prepared, packed = stages.values()
    tokens = samples * mean
    kept = tokens * (1 - lost_tokens)
    table = {
        "filter": {
            "rows": samples,
            "cpu_hours": samples * filtered["cpu"] / filtered["rows"] / HOUR,
            "disk": samples * filtered["bytes"] / filtered["rows"],
            "memory": memory(measures["filter"], samples),
        },
        "prep": {
            "rows": samples,
            "tokens": tokens,
            "cpu_hours": tokens * prepared["cpu"] / prepared["tokens"] / HOUR,
            "disk": tokens * prepared["bytes"] / prepared["tokens"],
            "memory": prepared["memory_mb"] * 1e6,
        },
        "pack": {
            "rows": samples * (1 - lost_samples),
            "tokens": kept,
            "cpu_hours": kept * packed["cpu"] / packed["tokens"] / HOUR,
            "disk": kept * packed["bytes"] / packed["tokens"],
            "memory": memory(measures["pack alone"], samples),
            "packs": math.ceil(kept / pack_size / packed["efficiency"]),
            "spool": kept * SPOOL_BYTES,
        },
    }
    return table


def show(table: Table, pack_size: int, cores: list[int]) -> None:
    """Print one plan."""
    packed = table["pack"]
    print(
        f"packs of {pack_size:,}: {packed['packs']:,.0f} packs, {packed['tokens'] / 1e9:.1f} G tokens, "
        f"{packed['rows'] / 1e6:.2f} M samples; {packed['spool'] / 1e9:,.0f} GB more while pack runs"
    )
    hours = "".join(f"{f'hours on {number}':>13}" for number in cores)
    print(f"  {'':8}{'G tokens':>10}{'CPU hours':>11}{hours}{'disk GB':>10}{'memory GB':>11}")
    for stage, each in table.items():
        spent = "".join(f"{each['cpu_hours'] / number:13.2f}" for number in cores)
        print(
            f"  {stage:8}{each.get('tokens', 0) / 1e9:10.1f}{each['cpu_hours']:11.1f}{spent}"
            f"{each['disk'] / 1e9:10.0f}{each['memory'] / 1e9:11.1f}"
        )


def main() -> None:
    """Print a plan for each pack size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=18_000_000)
    parser.add_argument("--pack-sizes", type=int, nargs="+", default=[4096, 262_144])
    parser.add_argument("--cores", type=int, nargs="+", default=[2, 64])
    parser.add_argument("--rates", type=Path, default=RATES)
    args = parser.parse_args()
    rates: dict[str, Any] = json.loads(args.rates.read_text(encoding="utf-8"))
    print(f"{args.samples / 1e6:g} M samples, rates of {args.rates.name} (load {rates['load'][0]:.1f} then)")
    for pack_size in args.pack_sizes:
        show(plan(args.samples, pack_size, rates["measures"]), pack_size, args.cores)


if __name__ == "__main__":
    main()
