"""Estimate tokens, hours, disk and memory of data preparation for any size, from measured rates.

    PYTHONPATH=src:. python -m bench.plan [--samples 18000000] [--mean-tokens 10000] [--pack-sizes 4096 262144]
                                          [--cores 2 64 512] [--rates bench/rates.json]

The rates are the output of bench/scaling.py (--json), per stage those of the largest size; bench/rates.json holds
those of one machine. Lengths are lognormal as in scaling.py, with another mean. Samples longer than a pack are trained
in windows, of which a quarter is repeated context; pack renders their conversations once more.
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
MEAN_TOKENS = 10_000  # of a sample; the collections of profiles/nemotron3-nano.yaml have 40 kB a row
CONTEXT = 4 / 3  # tokens of windows for each token of their sample
MAX_WINDOWS = 16  # pack.max_windows
SPOOL_BYTES = 5  # per token, on disk while pack runs
HOUR = 3600

Table = dict[str, dict[str, float]]


def packed_tokens(mean: float, pack_size: int) -> tuple[float, float, float]:
    """Return tokens for each sample: all, those of samples longer than a pack, and those that are packed."""
    lengths = draw_lengths(DRAWN_LENGTHS, LONGEST).astype(np.float64)
    lengths = np.clip(lengths * mean / lengths.mean(), 16, LONGEST)
    over = lengths > pack_size
    windows = np.minimum(lengths * CONTEXT, MAX_WINDOWS * pack_size)
    return lengths.mean(), (lengths * over).mean(), np.where(over, windows, lengths).mean()


def memory(measured: list[dict[str, float]], samples: int) -> float:
    """Return the memory of a stage in bytes; beyond the largest measured size it grows as before it."""
    *before, largest = sorted(measured, key=lambda each: each["rows"])
    smaller = before[-1] if before else largest
    slope = (largest["memory_mb"] - smaller["memory_mb"]) / max(1, largest["rows"] - smaller["rows"])
    return 1e6 * (largest["memory_mb"] + max(0.0, slope) * max(0, samples - largest["rows"]))


def plan(samples: int, mean: float, pack_size: int, measures: dict[str, list[dict[str, float]]]) -> Table:
    """Return tokens, CPU hours, disk bytes and memory bytes of each stage, on one machine."""
    tokens, over, kept = (samples * each for each in packed_tokens(mean, pack_size))
    stages = {name: max(measures[name], key=lambda each: each["rows"]) for name in ("filter", "prep", "pack alone")}
    filtered, prepared, packed = stages.values()
    filtered = {**filtered, "tokens": prepared["tokens"] * filtered["rows"] / prepared["rows"]}
    table = {
        name: {
            "tokens": count,
            "cpu_hours": count * rate["cpu"] / rate["tokens"] / HOUR,
            "disk": count * rate["bytes"] / rate["tokens"],
            "memory": memory(measures[measured], samples),
        }
        for name, measured, count, rate in (
            ("filter", "filter", tokens, filtered),
            ("prep", "prep", tokens, prepared),
            ("pack", "pack alone", kept, packed),
        )
    }
    table["prep"]["memory"] = prepared["memory_mb"] * 1e6  # a batch of rows, however many there are
    table["pack"]["cpu_hours"] += over * prepared["cpu"] / prepared["tokens"] / HOUR
    table["pack"] |= {"packs": math.ceil(kept / pack_size / packed["efficiency"]), "spool": kept * SPOOL_BYTES}
    return table


def show(table: Table, pack_size: int, cores: list[int]) -> None:
    """Print one plan."""
    packed = table["pack"]
    print(
        f"packs of {pack_size:,}: {packed['packs']:,.0f} packs, {packed['tokens'] / 1e9:.1f} G tokens; "
        f"{packed['spool'] / 1e9:,.0f} GB more while pack runs"
    )
    hours = "".join(f"{f'hours on {number}':>13}" for number in cores)
    print(f"  {'':8}{'G tokens':>10}{'CPU hours':>11}{hours}{'disk GB':>10}{'memory GB':>11}")
    for stage, each in table.items():
        spent = "".join(f"{each['cpu_hours'] / number:13.2f}" for number in cores)
        print(
            f"  {stage:8}{each['tokens'] / 1e9:10.1f}{each['cpu_hours']:11.1f}{spent}"
            f"{each['disk'] / 1e9:10.0f}{each['memory'] / 1e9:11.1f}"
        )


def main() -> None:
    """Print a plan for each pack size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=18_000_000)
    parser.add_argument("--mean-tokens", type=float, default=MEAN_TOKENS)
    parser.add_argument("--pack-sizes", type=int, nargs="+", default=[4096, 262_144])
    parser.add_argument("--cores", type=int, nargs="+", default=[2, 64, 512])
    parser.add_argument("--rates", type=Path, default=RATES)
    args = parser.parse_args()
    rates: dict[str, Any] = json.loads(args.rates.read_text(encoding="utf-8"))
    measured = f"rates of {args.rates.name} (load {rates['load'][0]:.1f} then)"
    print(f"{args.samples / 1e6:g} M samples of {args.mean_tokens:,.0f} tokens, {measured}")
    for pack_size in args.pack_sizes:
        show(plan(args.samples, args.mean_tokens, pack_size, rates["measures"]), pack_size, args.cores)


if __name__ == "__main__":
    main()
