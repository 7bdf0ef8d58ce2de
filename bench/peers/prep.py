"""Compare prep with Hugging Face and NVIDIA: render, tokenize and mask the same conversations with one tokenizer.

    make bench-peers PEERS=prep [NVIDIA=<checkout of github.com/NVIDIA-NeMo/Nemotron>]
    PYTHONPATH=src:. python -m bench.peers.prep [--rows 5000] [--whole-rows 20000] [--rounds 5] [--json FILE]

Measures, per side:
- one process: CPU seconds from the first row to the last, after a warm-up; imports and loading do not count
- whole: wall seconds from JSON lines to prepared files with 2 processes, including their start. Ours is measured with
  and without the filter stage (optional filters off), because the peers neither check nor filter.

Each measure runs in its own process. The sides of a round run one after the other, and a ratio is the median of the
ratios within a round, so that other load on the machine affects all sides alike.
Also counted: conversations whose ids equal Hugging Face's. Peers: bench/peers/hugging_face.py, bench/peers/nvidia.py.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench.corpus import write_corpus, write_tokenizer
from bench.peers import hugging_face, nvidia
from bench.project import BENCH_RUNS, make_project, stage_environment

from sft.files import publish_folder, write_json
from sft.workers import worker_environment

TOKENIZER = BENCH_RUNS / "tokenizer"
WARM_UP_ROWS, WORKERS, COMPARED_ROWS = 20, 2, 500
OPTIONAL_FILTERS_OFF = {
    "repetition": None,
    "narrative": None,
    "consistency": False,
    "near_duplicates": None,
    "contamination": None,
}
Measure = dict[str, float]


# --- One process ------------------------------------------------------------------------------------------------


def measure(work: Callable[[], tuple[int, int]]) -> Measure:
    """Time a function that returns (rows, tokens)."""
    cpu_start, wall_start = time.process_time(), time.perf_counter()
    rows, tokens = work()
    cpu, wall = time.process_time() - cpu_start, time.perf_counter() - wall_start
    status = Path("/proc/self/status").read_text(encoding="ascii")  # ru_maxrss would include the parent's
    rss = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    return {"rows": rows, "tokens": tokens, "cpu": cpu, "wall": wall, "rss_mb": rss}


def measure_ours(folder: Path) -> Measure:
    """Prepare filtered Parquet with the code of our stage, in this process."""
    from sft.params.read import load
    from sft.parquet import plan_row_ranges
    from sft.stages.prep import prepare_range

    os.chdir(folder / "project")  # the tokenizer is models/base of this folder
    params = load("prep")
    fixed = {"template": "templates/nano3.jinja", "stop_tokens": params.stop_tokens, "date": params.date}
    task = {**fixed, "reasoning": params.reasoning.model_dump(), "fast": True}

    def prepare(project: Path) -> tuple[int, int]:
        ranges = plan_row_ranges(project / "data/filtered/bench", "kept")
        with tempfile.TemporaryDirectory(dir=project) as scratch:
            results = [
                prepare_range({**task, "scratch": scratch, "number": number, "row_range": rows})
                for number, rows in enumerate(ranges, 1)  # number 0 would also check the tokenizer
            ]
        tokens = sum(int(length) * count for each in results for length, count in each["counts"]["lengths"].items())
        return sum(each["rows"] for each in results), tokens

    prepare(folder / "warm")  # loads the template, too
    return measure(lambda: prepare(folder / "project"))


def measure_hugging_face(folder: Path, processes: int | None = None) -> Measure:
    """Prepare JSON lines with Hugging Face's `datasets`."""
    with hugging_face.preparation(folder / "hugging-face.jsonl", TOKENIZER, processes, folder) as prepare:
        if processes is None:
            prepare(WARM_UP_ROWS)
        return measure(lambda: prepare(None))


def measure_nvidia(folder: Path, checkout: str) -> Measure:
    """Prepare JSON lines with NVIDIA's function."""
    prepare = nvidia.preparation(folder / "corpus.jsonl", TOKENIZER, checkout, folder)
    prepare(WARM_UP_ROWS)
    return measure(lambda: prepare(None))


def run_side(side: str, folder: Path, checkout: str = "") -> Measure:
    """Measure one side in a new process."""
    command = [sys.executable, "-m", "bench.peers.prep", "--side", side, "--folder", str(folder)]
    environment = stage_environment(WORKERS) | {"TOKENIZERS_PARALLELISM": "false", "NVIDIA": checkout}
    if side == "ours":
        environment |= worker_environment(1)
    else:  # importing our workers chose another memory pool for Arrow
        environment.pop("ARROW_DEFAULT_MEMORY_POOL", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side}:\n{done.stderr[-4000:]}")
    result: Measure = json.loads(done.stdout.splitlines()[-1])
    return result


# --- The whole way from JSON lines to files -----------------------------------------------------------------------


def run_whole(work: Callable[[], object]) -> Measure:
    """Time processes from their start to their end."""
    before, wall_start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": time.perf_counter() - wall_start, "cpu": cpu}


def run_stage(stage: str, project: Path) -> None:
    """Run a stage in a project, with WORKERS processes."""
    command = [sys.executable, "-m", f"sft.stages.{stage}", "--source", "bench"]
    subprocess.run(command, cwd=project, env=stage_environment(WORKERS), check=True, stdout=subprocess.DEVNULL)


# --- The comparison -----------------------------------------------------------------------------------------------


def make_inputs(name: str, rows: int) -> Path:
    """Make a folder with a corpus, the same for Hugging Face, and projects in which ours is filtered."""
    if not TOKENIZER.exists():
        write_tokenizer(TOKENIZER)
    with publish_folder(BENCH_RUNS / name) as folder:
        corpus = folder / "corpus.jsonl"
        write_corpus(corpus, rows)
        lines = corpus.read_text(encoding="utf-8").splitlines()
        hugging_face.write_input([json.loads(line) for line in lines], folder / "hugging-face.jsonl")
        (folder / "warm.jsonl").write_text("\n".join(lines[-WARM_UP_ROWS:]) + "\n", encoding="utf-8")
        for project, source in (("project", corpus), ("warm", folder / "warm.jsonl")):
            make_project(folder / project, {"filter": OPTIONAL_FILTERS_OFF})
            raw = folder / project / "data/raw/bench"
            raw.mkdir(parents=True)
            shutil.copy(source, raw / "corpus.jsonl")
            run_stage("filter", folder / project)
    return BENCH_RUNS / name


def report(rounds: list[dict[str, Measure]], equal_ids: tuple[int, int, int]) -> dict[str, Any]:
    """Print the tables and return them."""
    one_process = [side for side in rounds[0] if "rows" in rounds[0][side]]
    whole = [side for side in rounds[0] if side not in one_process]
    table: dict[str, Any] = {}
    print(f"{'one process':34} conversations/CPU-s       tokens/CPU-s   RSS MB   ours is faster by")
    for side in one_process:
        speeds = sorted(each[side]["rows"] / each[side]["cpu"] for each in rounds)
        tokens = median([each[side]["tokens"] / each[side]["cpu"] for each in rounds])
        ratios = [
            each["ours"]["rows"] / each["ours"]["cpu"] / (each[side]["rows"] / each[side]["cpu"]) for each in rounds
        ]
        rss = max(each[side]["rss_mb"] for each in rounds)
        print(
            f"{side:34} {median(speeds):7,.0f} [{speeds[0]:,.0f}..{speeds[-1]:,.0f}] {tokens:14,.0f} {rss:8,.0f}   "
            f"{median(ratios):.1f}x [{min(ratios):.1f}..{max(ratios):.1f}]"
        )
        table[side] = {"conversations_per_cpu_s": speeds, "tokens_per_cpu_s": tokens, "ours_faster_by": median(ratios)}
    if whole:
        print(f"\n{f'JSON lines to files, {WORKERS} processes':34}  wall s      CPU s   Hugging Face takes longer by")
    for side in whole:
        walls = sorted(each[side]["wall"] for each in rounds)
        ratios = [each["Hugging Face, whole"]["wall"] / each[side]["wall"] for each in rounds]
        cpu = median([each[side]["cpu"] for each in rounds])
        print(
            f"{side:34} {median(walls):7.1f} {cpu:10.1f}   {median(ratios):.1f}x [{min(ratios):.1f}..{max(ratios):.1f}]"
        )
        table[side] = {"wall_s": walls, "cpu_s": cpu, "hugging_face_longer_by": median(ratios)}
    equal, compared, skipped = equal_ids
    print(f"\n{len(rounds)} rounds, load {os.getloadavg()[0]:.1f}; ids equal to Hugging Face's: {equal} of {compared}")
    print(f"skipped: {skipped} conversations with a control token typed as text, which Hugging Face turns into one")
    return {"rounds": rounds, "table": table, "equal_ids": equal_ids, "load": os.getloadavg()}


def main() -> None:
    """Measure all sides, round by round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000, help="conversations for one process")
    parser.add_argument("--whole-rows", type=int, default=20_000, help="conversations for the whole way; 0: skip it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nvidia", metavar="FOLDER", default=os.environ.get("NVIDIA"), help="their checkout")
    parser.add_argument("--json", type=Path, default=BENCH_RUNS / "prep.json")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        sides: dict[str, Callable[[], Measure]] = {
            "ours": lambda: measure_ours(args.folder),
            "hugging-face": lambda: measure_hugging_face(args.folder),
            "hugging-face-whole": lambda: measure_hugging_face(args.folder, WORKERS),
            "nvidia": lambda: measure_nvidia(args.folder, args.nvidia),
        }
        print(json.dumps(sides[args.side]()))
        return
    folder, rounds = make_inputs("prep", args.rows), []
    whole = make_inputs("prep-whole", args.whole_rows) if args.whole_rows else None
    run_stage("prep", folder / "project")
    for _ in range(args.rounds):
        each = {"ours": run_side("ours", folder), "Hugging Face": run_side("hugging-face", folder)}
        if args.nvidia:
            each["NVIDIA"] = run_side("nvidia", folder, args.nvidia)
        if whole is not None:
            project = whole / "project"
            each["ours, filter and prep"] = run_whole(lambda: [run_stage(s, project) for s in ("filter", "prep")])  # noqa: B023
            each["ours, prep"] = run_whole(lambda: run_stage("prep", project))  # noqa: B023
            each["Hugging Face, whole"] = run_whole(lambda: run_side("hugging-face-whole", whole))
        rounds.append(each)
    if not args.nvidia:
        print("NVIDIA's function is not measured: set NVIDIA=<checkout of github.com/NVIDIA-NeMo/Nemotron>\n")
    equal_ids = hugging_face.count_equal_ids(folder / "project", TOKENIZER, COMPARED_ROWS)
    write_json(args.json, report(rounds, equal_ids) | {"rows": args.rows, "whole_rows": args.whole_rows})


if __name__ == "__main__":
    main()
