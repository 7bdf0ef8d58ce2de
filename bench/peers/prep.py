"""Prep against peers: rendering, tokenising and masking the same conversations with the same tokenizer.

    make bench-peers PEERS=prep [NVIDIA=FOLDER]
    PYTHONPATH=src:. python -m bench.peers.prep [--rows 5000] [--whole-rows 20000] [--rounds 5] [--json FILE]

Peers: Hugging Face `datasets.map` over `apply_chat_template(return_assistant_tokens_mask=True)`, with our template and
generation marks in it; and, where NVIDIA names a checkout of github.com/NVIDIA-NeMo/Nemotron, the function of its SFT
data preparation that does the same (`process_chat_sft_spool_core`), with its own template. Each measure is a process of
its own, warmed up; all sides of a round run one after the other, and ratios are medians over the rounds of the
ratios within a round, so that what else the machine does falls on all.

Two measures. One process, CPU seconds from the first row to the last, imports and loading left out. And the whole from
JSON lines on disk to prepared files, as wall time with SFT_WORKERS (2) processes, start-up and all: of ours with the
filter stage (its optional filters off) and without it, because peers neither check nor filter.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.corpus import write_corpus, write_tokenizer
from ruamel.yaml import YAML

from sft.files import publish_folder, write_json
from sft.workers import worker_environment

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "runs" / "bench"
TEMPLATE = ROOT / "templates" / "nano3.jinja"
WARM_UP, WORKERS, COMPARED = 20, 2, 500
Measure = dict[str, float]

# Where the answers of our template are marked for `return_assistant_tokens_mask`.
MARKS = (
    (
        "{{- '<|im_start|>assistant\\n' ~ said | trim -}}",
        "{{- '<|im_start|>assistant\\n' -}}{% generation %}{{- said | trim -}}",
    ),
    (
        "    {{- '<|im_end|>\\n' -}}\n  {%- elif message.role == 'tool' -%}",
        "    {{- '<|im_end|>' -}}{% endgeneration %}{{- '\\n' -}}\n  {%- elif message.role == 'tool' -%}",
    ),
)


def make_project(folder: Path, corpus: Path) -> None:
    """Make a folder in which the stages prepare the corpus, with optional filters off; nothing is filtered yet."""
    raw = folder / "data/raw/bench"
    raw.mkdir(parents=True)
    shutil.copy(corpus, raw / "corpus.jsonl")
    for name, target in (
        ("templates", ROOT / "templates"),
        ("filters", ROOT / "filters"),
        ("models/base", PLACE / "tokenizer"),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(target)
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    params["fetch"]["sources"] = {"bench": {"uri": f"file://{corpus}", "read": "openai"}}
    off = {"repetition": None, "narrative": None, "consistency": False, "near_duplicates": None, "contamination": None}
    params["filter"].update({name: value for name, value in off.items() if name in params["filter"]})
    yaml.dump(params, folder / "params.yaml")


def filter_corpus(folder: Path) -> None:
    """Run the filter stage."""
    call = [sys.executable, "-m", "sft.stages.filter", "--source", "bench"]
    subprocess.run(call, cwd=folder, env=environment(), check=True, stdout=subprocess.DEVNULL)


def environment() -> dict[str, str]:
    """Return the environment of a measured process."""
    return {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "SFT_WORKERS": str(WORKERS),
        "TOKENIZERS_PARALLELISM": "false",
    }


# --- One process: what runs in a process of its own --------------------------------------------------------------


def measured(work: Callable[[], tuple[int, int]]) -> Measure:
    """Time some work that returns rows and tokens."""
    begin, wall = time.process_time(), time.perf_counter()
    rows, tokens = work()
    cpu = time.process_time() - begin
    status = Path("/proc/self/status").read_text(encoding="ascii")  # ru_maxrss is at least that of the parent
    rss = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    return {"rows": rows, "tokens": tokens, "cpu": cpu, "wall": time.perf_counter() - wall, "rss_mb": rss}


def ours(place: Path) -> Measure:
    """Filtered Parquet -> prepared Parquet."""
    from sft.params.read import load
    from sft.parquet import plan_row_ranges
    from sft.stages.prep import load_chat, prepare_stretch

    os.chdir(place / "project")  # the tokenizer is models/base of this folder
    task = {"template": "templates/nano3.jinja", "reasoning": load("prep").reasoning.model_dump(), "quick": True}
    load_chat(task["template"], True)

    def work(folder: Path) -> tuple[int, int]:
        stretches = plan_row_ranges(folder / "data/filtered/bench", "kept")
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            done = [
                prepare_stretch({**task, "scratch": scratch, "number": number, "stretch": stretch})
                for number, stretch in enumerate(stretches, 1)  # the first, 0, also checks the tokenizer: loading
            ]
        tokens = sum(int(length) * count for each in done for length, count in each["counts"]["lengths"].items())
        return sum(each["rows"] for each in done), tokens

    work(place / "warm")
    return measured(lambda: work(place / "project"))


def hugging_face(place: Path, processes: int | None = None) -> Measure:
    """JSON lines -> Arrow, by datasets.map."""
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(place.parent / "tokenizer")
    tokenizer.chat_template = marked_template()

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        messages, tools = json.loads(row["messages"]), json.loads(row["tools"])
        encoded = tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return {"input_ids": encoded["input_ids"], "assistant_masks": encoded["assistant_masks"]}

    with tempfile.TemporaryDirectory(dir=place) as cache:
        rows = datasets.load_dataset(
            "json", data_files=str(place / "hugging-face.jsonl"), cache_dir=cache, split="train"
        )
        options = {"remove_columns": rows.column_names, "load_from_cache_file": False}
        if processes is None:
            rows.select(range(WARM_UP)).map(encode, **options)

        def work() -> tuple[int, int]:
            done = rows.map(encode, num_proc=processes, **options)
            return len(done), sum(map(len, done["input_ids"])) if processes is None else 0

        return measured(work)


def marked_template() -> str:
    """Return our template with generation marks around what an assistant says."""
    text = TEMPLATE.read_text(encoding="utf-8")
    for place, marked in MARKS:
        assert text.count(place) == 1, f"{TEMPLATE} no longer has {place}"
        text = text.replace(place, marked)
    return text


def nvidia(place: Path, checkout: str) -> Measure:
    """JSON lines -> spool, by the function of NVIDIA's data preparation; its packages' own imports are left out."""
    import fsspec
    import numpy as np
    from transformers import PreTrainedTokenizerFast

    for name in ("nemotron", "nemotron.data_prep", "nemotron.data_prep.core", "nemotron.data_prep.utils"):
        package = types.ModuleType(name)
        package.__path__ = [str(Path(checkout, "src", *name.split(".")))]
        sys.modules[name] = package
    from nemotron.data_prep.core.chat_sft_shard_core import process_chat_sft_spool_core

    tokenizer = PreTrainedTokenizerFast.from_pretrained(place.parent / "tokenizer")

    def spool(rows: int | None) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=place) as folder:
            done: dict[str, Any] = process_chat_sft_spool_core(
                shard_index=0,
                files=[{"path": str(place / "corpus.jsonl"), "local_path": str(place / "corpus.jsonl"), "size": 0}],
                output_dir=folder,
                receipts_dir=folder,
                spool_dir=None,
                output_fs=fsspec.filesystem("file"),
                tokenizer=tokenizer,
                messages_field="messages",
                tools_field="tools",
                pack_size=4096,
                algorithm="first_fit_shuffle",
                dtype=np.dtype("int32"),
                chat_template="nano3",
                max_doc_tokens=None,
                max_rows=rows,
                seed=1,
                used_in_filter=None,
                used_in_field="used_in",
            )
            tokens = sum(path.stat().st_size for path in Path(folder).rglob("tokens.bin")) // 4
            return {**done, "tokens": tokens}

    spool(WARM_UP)

    def work() -> tuple[int, int]:
        done = spool(None)
        return done["num_input_rows"], done["tokens"]

    return measured(work)


# --- The driver ---------------------------------------------------------------------------------------------------


def run_side(side: str, place: Path, nvidia: str = "") -> Measure:
    """Run one side in a process of its own."""
    call = [sys.executable, "-m", "bench.peers.prep", "--side", side, "--place", str(place)]
    own = worker_environment(1) if side == "ours" else {"NVIDIA": nvidia}
    done = subprocess.run(call, env=environment() | own, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side}:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_whole(work: Callable[[], Any]) -> Measure:
    """Time processes from their start to their end."""
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": time.perf_counter() - wall, "cpu": cpu}


def run_prep(folder: Path) -> None:
    """Run the prep stage."""
    call = [sys.executable, "-m", "sft.stages.prep", "--source", "bench"]
    subprocess.run(call, cwd=folder, env=environment(), check=True, stdout=subprocess.DEVNULL)


def count_same_ids(place: Path) -> tuple[int, int, int]:
    """Compare our ids with Hugging Face's, of conversations that are one sample to both.

    Returns how many are equal, of how many, and how many were left out because somebody typed a control token in them:
    there it becomes one.
    """
    import pyarrow.parquet as pq
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(place.parent / "tokenizer")
    tokenizer.chat_template = marked_template()
    project = place / "project"
    tables = [
        pq.read_table(path).to_pylist() for path in sorted((project / "data/filtered/bench").glob("kept-*.parquet"))
    ]
    prepared = sorted((project / "data/prepared/bench").glob("*.parquet"))
    ids = {row["conversation_id"]: row["ids"] for path in prepared for row in pq.read_table(path).to_pylist()}
    control = set(tokenizer.all_special_tokens)
    compared = same = typed = 0
    for row in (row for table in tables for row in table):
        messages = json.loads(row["messages"])
        if any(token in row["messages"] for token in control):
            typed += 1
        elif compared < COMPARED and not any("reasoning_content" in message for message in messages):
            tools = json.loads(row["tools"]) if row["tools"] else None
            compared += 1
            same += (
                tokenizer.apply_chat_template(messages, tools=tools, tokenize=True, return_dict=True)["input_ids"]
                == ids[row["id"]]
            )
    return same, compared, typed


def prepare_place(name: str, rows: int) -> Path:
    """Make a corpus, and the projects in which it is prepared; the tokenizer, if there is none."""
    if not (PLACE / "tokenizer").exists():
        write_tokenizer(PLACE / "tokenizer")
    with publish_folder(PLACE / name) as place:
        write_corpus(place / "corpus.jsonl", rows)
        lines = (place / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
        with (place / "hugging-face.jsonl").open("w", encoding="utf-8") as file:
            for line in lines:
                record = json.loads(line)
                for message in record["messages"]:
                    for call in message.get("tool_calls", []):
                        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
                texts = {"messages": json.dumps(record["messages"]), "tools": json.dumps(record.get("tools"))}
                file.write(json.dumps(texts) + "\n")
        (place / "warm.jsonl").write_text("\n".join(lines[-WARM_UP:]) + "\n", encoding="utf-8")
        for project, corpus in (("project", "corpus.jsonl"), ("warm", "warm.jsonl")):
            make_project(place / project, place / corpus)
            filter_corpus(place / project)
    return PLACE / name


def median(values: list[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def report(rounds: list[dict[str, Measure]], same: tuple[int, int, int]) -> dict[str, Any]:
    """Print the tables; return them."""
    sides = list(rounds[0])
    one = [side for side in sides if "rows" in rounds[0][side]]
    print(f"{'one process':34} conversations/CPU-s       tokens/CPU-s   RSS MB   ours is faster by")
    table: dict[str, Any] = {}
    for side in one:
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
    if len(one) < len(sides):
        print(f"\n{f'JSON lines to files, {WORKERS} processes':34}  wall s      CPU s   Hugging Face: longer by")
    for side in [side for side in sides if side not in one]:
        walls = sorted(each[side]["wall"] for each in rounds)
        ratios = [each["Hugging Face, whole"]["wall"] / each[side]["wall"] for each in rounds]
        cpu = median([each[side]["cpu"] for each in rounds])
        print(
            f"{side:34} {median(walls):7.1f} {cpu:10.1f}   {median(ratios):.1f}x [{min(ratios):.1f}..{max(ratios):.1f}]"
        )
        table[side] = {"wall_s": walls, "cpu_s": cpu, "hugging_face_longer_by": median(ratios)}
    print(f"\n{len(rounds)} rounds, load {os.getloadavg()[0]:.1f}; ids equal to Hugging Face's: {same[0]} of {same[1]}")
    print(f"left out of that: {same[2]} conversations with a control token typed as text, which becomes one there")
    return {"rounds": rounds, "table": table, "same_ids": same, "load": os.getloadavg()}


def main() -> None:
    """Measure all sides, round by round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000, help="conversations for one process")
    parser.add_argument(
        "--whole-rows", type=int, default=20_000, help="conversations from JSON lines to files; 0: none"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--nvidia", metavar="FOLDER", default=os.environ.get("NVIDIA"), help="a checkout of their repository"
    )
    parser.add_argument("--json", type=Path, default=PLACE / "prep.json")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        if arguments.side != "ours":  # peers have Arrow's own heap, as anywhere else
            os.environ.pop("ARROW_DEFAULT_MEMORY_POOL", None)
        sides: dict[str, Callable[[], Measure]] = {
            "ours": lambda: ours(arguments.place),
            "hugging-face": lambda: hugging_face(arguments.place),
            "hugging-face-whole": lambda: hugging_face(arguments.place, WORKERS),
            "nvidia": lambda: nvidia(arguments.place, arguments.nvidia),
        }
        print(json.dumps(sides[arguments.side]()))
        return
    place, rounds = prepare_place("prep", arguments.rows), []
    whole = prepare_place("prep-whole", arguments.whole_rows) if arguments.whole_rows else None
    run_prep(place / "project")
    for _ in range(arguments.rounds):
        each = {"ours": run_side("ours", place), "Hugging Face": run_side("hugging-face", place)}
        if arguments.nvidia:
            each["NVIDIA"] = run_side("nvidia", place, arguments.nvidia)
        if whole is not None:
            project = whole / "project"
            each["ours, filter and prep"] = run_whole(lambda: (filter_corpus(project), run_prep(project)))  # noqa: B023
            each["ours, prep"] = run_whole(lambda: run_prep(project))  # noqa: B023
            each["Hugging Face, whole"] = run_whole(lambda: run_side("hugging-face-whole", whole))
        rounds.append(each)
    if not arguments.nvidia:
        print("NVIDIA's functions are not measured: NVIDIA= names no checkout of github.com/NVIDIA-NeMo/Nemotron\n")
    write_json(
        arguments.json,
        report(rounds, count_same_ids(place)) | {"rows": arguments.rows, "whole_rows": arguments.whole_rows},
    )


if __name__ == "__main__":
    main()
