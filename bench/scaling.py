"""Measure how time and memory of filter, prep and pack grow with the data.

    make bench BENCH=scaling
    PYTHONPATH=src:. python -m bench.scaling [--sizes 1000 10000] [--pack 10000 100000] [--lengths 18000000]

--sizes    conversations of bench/corpus.py through filter, prep and pack, each in a process as `dvc repro` starts it:
           CPU seconds, and peak memory with all child processes (sampled every 20 ms, shared pages counted once)
--longest  conversations, and samples of --pack, of half this many tokens to this many:
           --sizes 12 --longest 250000 --pack-size 262144 --pack 133 266 532 --lengths
--pack     samples through pack alone, with tokens cut from those that prep made of the largest corpus
--lengths  sample lengths through the bin packing alone, at 4,096 and 262,144 tokens

"of limit" is the share of a stage's CPU seconds that its unavoidable work takes: parsing JSON (filter), tokenizing
(prep), reading tokens and writing Parquet (pack). Fits t = a * n ** e per stage; e = 1 is linear.
Writes runs/bench/scaling.json and scaling.svg.
"""

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import fastokens
import numpy as np
import orjson
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from bench.corpus import write_corpus, write_tokenizer
from bench.project import BENCH_RUNS, make_project, stage_environment

from sft.files import read_json, write_json
from sft.packing.bins import lower_bound, plan_bins
from sft.packing.external_sort import PACK_WRITE_OPTIONS
from sft.parquet import CONVERSATIONS, SAMPLES, ShardWriter

PACK_SIZES = (4096, 262_144)
SAMPLE_EVERY = 0.02  # seconds
ROWS_AT_ONCE, TOKENS_AT_ONCE = 1000, 1 << 21
SEED = 1234
LIMIT_ROWS = 50_000
Measure = dict[str, float]


def draw_lengths(number: int, longest: int, seed: int = SEED) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Draw sample lengths in tokens: lognormal, median 600, sigma 1.1, like post-training data."""
    lengths = np.random.default_rng(seed).lognormal(np.log(600), 1.1, number)
    return np.clip(lengths, 16, longest).astype(np.int32)


# --- One process and its children ----------------------------------------------------------------------------


def run_stage(folder: Path, stage: str, *options: str, workers: int = 2) -> Measure:
    """Run a stage in a folder; return its wall seconds, CPU seconds and peak memory in MB."""
    command = [sys.executable, "-m", f"sft.stages.{stage}", *options]
    before, start = os.times(), time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=stage_environment(workers), stdout=subprocess.DEVNULL)
    peak = [0]
    sampler = threading.Thread(target=_sample_memory, args=(process, peak))
    sampler.start()
    status = process.wait()
    sampler.join()
    if status:
        raise SystemExit(f"{folder}: {stage} failed")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall": time.perf_counter() - start, "cpu": cpu, "memory_mb": peak[0] / 1e6}


def _sample_memory(process: "subprocess.Popen[bytes]", peak: list[int]) -> None:
    """Keep the peak memory of a process and its children in peak[0]."""
    while process.poll() is None:
        try:
            root = psutil.Process(process.pid)
            peak[0] = max(peak[0], sum(_memory(each) for each in [root, *root.children(recursive=True)]))
        except psutil.Error:  # one of them just ended
            pass
        time.sleep(SAMPLE_EVERY)


def _memory(process: psutil.Process) -> int:
    """Return the memory of a process in bytes: its share of shared pages, mapped files included."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


# --- Prepared samples ------------------------------------------------------------------------------------------------


def make_prepared(folder: Path, like: Path, samples: int, longest: int | None) -> None:
    """Write prepared samples and kept rows: drawn lengths, with tokens, masks and messages of the project `like`.

    The messages of a row begin with its number, so that no two rows are near-duplicates.
    """
    tables = [
        pq.read_table(path, columns=["ids", "mask"]) for path in sorted(like.glob("data/prepared/bench/*.parquet"))
    ]
    ids, mask = (
        np.concatenate([chunk.flatten().to_numpy() for table in tables for chunk in table.column(name).chunks])
        for name in ("ids", "mask")
    )
    conversations = pq.read_table(min(like.glob("data/filtered/bench/kept-*")), columns=["messages"])
    conversations = conversations["messages"].to_pylist()
    stops = np.flatnonzero(ids == ids[np.flatnonzero(np.diff(mask.astype(np.int8)) == -1)[0]])
    draw = np.random.default_rng(SEED)
    drawn = draw_lengths(samples, 32_000) if longest is None else draw.integers(longest // 2, longest, samples)
    lengths = np.minimum(drawn, len(ids) - 1)
    at_once = max(1, min(ROWS_AT_ONCE, TOKENS_AT_ONCE // int(lengths.max())))
    prepared, filtered = folder / "data/prepared/bench", folder / "data/filtered/bench"
    with (
        ShardWriter(prepared, "samples-00000", SAMPLES) as shards,
        ShardWriter(filtered, "kept", CONVERSATIONS) as kept,
    ):
        for first in range(0, samples, at_once):
            own = lengths[first : first + at_once]
            ends = np.minimum(len(ids) - 1, draw.integers(own, len(ids)))
            ends = np.maximum(own, stops[np.minimum(len(stops) - 1, np.searchsorted(stops, ends))] + 1)
            own = np.minimum(own, ends)
            edges = np.concatenate([[0], np.cumsum(own)])
            places = np.repeat(ends - own - edges[:-1], own) + np.arange(edges[-1])
            offsets = pa.array(edges, pa.int32())
            names = [f"{number:032x}" for number in range(first, first + len(own))]
            shards.write_table(
                pa.table(
                    {
                        "conversation_id": names,
                        "sample": np.zeros(len(own), np.int32),
                        "ids": pa.ListArray.from_arrays(offsets, ids[places]),
                        "mask": pa.ListArray.from_arrays(offsets, mask[places]),
                        "turn_ends": [[length] for length in own.tolist()],
                        "group": pa.nulls(len(own), pa.uint64()),
                        "license": [""] * len(own),
                    },
                    schema=SAMPLES,
                )
            )
            turns = [conversations[number % len(conversations)] for number in range(first, first + len(own))]
            turns = [text.replace('"content":"', f'"content":"{n} ', 1) for n, text in zip(names, turns, strict=True)]
            kept.write_table(
                pa.table(
                    {"id": names, "messages": turns, "tools": [None] * len(own), "meta": ["{}"] * len(own)},
                    schema=CONVERSATIONS,
                )
            )
    shutil.copyfile(like / "data/prepared/bench/chat_template.jinja", prepared / "chat_template.jinja")
    counts = {"rows_in": samples, "rows_out": samples, "rejected": {}}
    for stage in ("filter", "prep"):
        report = read_json(like / f"reports/{stage}/bench.json") | counts | {"samples": samples}
        write_json(folder / f"reports/{stage}/bench.json", report)


# --- Measures --------------------------------------------------------------------------------------------------


def changes(pack_size: int) -> dict[str, dict[str, Any]]:
    """Return the changed params: all filters that need no network, and the pack size."""
    few = {"validation": {"eval_iters": 0}}  # a few long conversations fill no step of validation
    return {"filter": {"contamination": None, "max_rejected": 1.0}, "pack": {"pack_size": pack_size}, **few}


def measure_stages(folder: Path, size: int, pack_size: int, longest: int | None) -> dict[str, Measure]:
    """Measure all stages on a corpus of `size` conversations."""
    shutil.rmtree(folder, ignore_errors=True)
    make_project(folder, changes(pack_size))
    (folder / "data/raw/bench").mkdir(parents=True)
    write_corpus(folder / "data/raw/bench/corpus.jsonl", size, longest)
    measures = {}
    for stage, kind in (("filter", "kept"), ("prep", "samples"), ("pack", "")):
        measures[stage] = run_stage(folder, stage, *(() if stage == "pack" else ("--source", "bench")))
        report = read_json(folder / "reports" / (f"{stage}.json" if stage == "pack" else f"{stage}/bench.json"))
        written = folder / (
            "data/packed" if stage == "pack" else f"data/{'filtered' if kind == 'kept' else 'prepared'}/bench"
        )
        measures[stage] |= {
            "rows": report["rows_in"],
            "tokens": report.get("tokens", 0),
            "bytes": sum(path.stat().st_size for path in written.rglob(f"{kind}*.parquet")),
            "corpus_bytes": (folder / "data/raw/bench/corpus.jsonl").stat().st_size,
        }
    return measures


def measure_pack(folder: Path, like: Path, size: int, pack_size: int, longest: int | None) -> Measure:
    """Measure pack on samples like those of another project."""
    shutil.rmtree(folder, ignore_errors=True)
    make_project(folder, changes(pack_size))
    make_prepared(folder, like, size, longest)
    measure = run_stage(folder, "pack")
    report = read_json(folder / "reports/pack.json")
    size_on_disk = sum(path.stat().st_size for path in (folder / "data/packed").rglob("*.parquet"))
    shutil.rmtree(folder)
    training = report["splits"]["training"]
    figures = {"rows": report["rows_in"], "tokens": report["tokens"], "bytes": size_on_disk}
    return {**measure, **figures, "efficiency": training["packing_efficiency"]}


def measure_limits(folder: Path) -> dict[str, float]:
    """Return CPU seconds of the unavoidable work of each stage, for a folder in which all stages have run.

    Measured on the first rows and files, then scaled up to all of them.
    """
    rows = {stage: read_json(folder / f"reports/{stage}/bench.json")["rows_in"] for stage in ("filter", "prep")}
    with (folder / "data/raw/bench/corpus.jsonl").open("rb") as file:
        lines = list(itertools.islice(file, LIMIT_ROWS))
    kept, prepared, packed = (
        sorted(folder.glob(pattern))
        for pattern in ("data/filtered/bench/kept*", "data/prepared/bench/*.parquet", "data/packed/training/*")
    )
    table = pq.read_table(kept[0], columns=["messages"]).slice(0, LIMIT_ROWS)
    messages = [orjson.loads(row) for row in table.column("messages").to_pylist()]
    texts = [message["content"] + message.get("reasoning_content", "") for each in messages for message in each]
    tokenizer = fastokens.Tokenizer.from_json_str((folder / "models/base/tokenizer.json").read_text(encoding="utf-8"))
    packs = pq.read_table(packed[0])

    def parse() -> float:
        for line in lines:
            orjson.loads(line)
        return rows["filter"] / len(lines)

    def tokenize() -> float:
        tokenizer.encode_batch_flat(texts)
        return rows["prep"] / len(messages)

    def write() -> float:
        pq.write_table(packs, pa.BufferOutputStream(), row_group_size=128, **PACK_WRITE_OPTIONS)
        return len(packed)

    def read() -> float:
        pq.read_table(prepared[0], columns=["ids", "mask"])
        return len(prepared)

    seconds = dict.fromkeys(("filter", "prep", "pack"), 0.0)
    for stage, work in (("filter", parse), ("prep", tokenize), ("pack", read), ("pack", write)):
        start = time.process_time()
        scale = work()
        seconds[stage] += scale * (time.process_time() - start)
    return seconds


def measure_lengths(size: int, pack_size: int) -> Measure:
    """Measure the bin packing of drawn lengths, in this process."""
    lengths = draw_lengths(size, pack_size)
    plan_bins(lengths[:1000], pack_size)  # compiles
    start = time.process_time()
    bins = plan_bins(lengths, pack_size)
    cpu = time.process_time() - start
    return {"rows": size, "cpu": cpu, "packs": len(bins), "fewest_packs": lower_bound(lengths, pack_size)}


def exponent(measures: list[Measure]) -> float | None:
    """Fit e of cpu = a * rows ** e; None with fewer than two sizes."""
    if len(measures) < 2:
        return None
    rows, values = (np.log([each[name] for each in measures]) for name in ("rows", "cpu"))
    return round(float(np.polyfit(rows, values, 1)[0]), 3)


def plot(measures: dict[str, list[Measure]], path: Path) -> None:
    """Draw CPU seconds over rows, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for name, each in measures.items():
        label = f"{name} ({exponent(each)})"
        axes.loglog([size["rows"] for size in each], [size["cpu"] for size in each], marker="o", label=label)
    axes.set(xlabel="rows", ylabel="CPU seconds", title="CPU seconds over rows (exponent)")
    axes.legend()
    figure.savefig(path)


def show(measures: dict[str, list[Measure]]) -> None:
    """Print the table and the exponents."""
    print(f"{'':16} {'rows':>11} {'tokens':>13} {'CPU s':>8} {'rows/CPU-s':>11} {'tokens/CPU-s':>12}", end="")
    print(f" {'MB/CPU-s':>8} {'memory MB':>10} {'of limit':>8}")
    for name, each in measures.items():
        for size in each:
            cpu, tokens, read = size["cpu"], size.get("tokens", 0), size.get("corpus_bytes", 0)
            share = f"{size['limit_cpu'] / cpu:8.0%}" if "limit_cpu" in size else ""
            print(
                f"{name:16} {size['rows']:11,.0f} {tokens:13,.0f} {cpu:8.2f} {size['rows'] / cpu:11,.0f} "
                f"{tokens / cpu:12,.0f} {read / cpu / 1e6:8.1f} {size.get('memory_mb', 0):10,.0f} {share}"
            )
        if (power := exponent(each)) is not None:
            print(f"{name:16} grows with rows ** {power}")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def main() -> None:
    """Measure all sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--pack", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--lengths", type=int, nargs="*", default=[10_000, 100_000, 1_000_000, 18_000_000])
    parser.add_argument("--pack-size", type=int, default=4096)
    parser.add_argument("--longest", type=int)
    parser.add_argument("--json", type=Path, default=BENCH_RUNS / "scaling.json")
    args = parser.parse_args()
    if not (BENCH_RUNS / "tokenizer").exists():
        write_tokenizer(BENCH_RUNS / "tokenizer")
    measures: dict[str, list[Measure]] = {}
    folder = BENCH_RUNS / "scaling"
    for size in sorted(args.sizes):
        for stage, measure in measure_stages(folder, size, args.pack_size, args.longest).items():
            measures.setdefault(stage, []).append(measure)
    for stage, seconds in measure_limits(folder).items():
        measures[stage][-1]["limit_cpu"] = seconds
    for size in sorted(args.pack):
        alone = measure_pack(BENCH_RUNS / "pack", folder, size, args.pack_size, args.longest)
        measures.setdefault("pack alone", []).append(alone)
    for pack_size in PACK_SIZES:
        for size in sorted(args.lengths):
            measures.setdefault(f"lengths, {pack_size}", []).append(measure_lengths(size, pack_size))
    show(measures)
    exponents = {name: exponent(each) for name, each in measures.items()}
    write_json(args.json, {"measures": measures, "exponents": exponents, "load": os.getloadavg()})
    plot(measures, args.json.with_suffix(".svg"))


if __name__ == "__main__":
    main()
