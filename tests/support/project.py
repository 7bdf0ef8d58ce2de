"""A small project: conversations of realistic shapes, a tiny model, params that train in seconds."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from sft.files import write_json
from sft.hashing import file_digest
from sft.parquet import CONVERSATIONS, SAMPLES, ShardWriter
from tests.support.tiny_model import EOS, made_up, make_tiny_base

ROOT = Path(__file__).parents[2]
CITIES = ("Paris", "Berlin", "Rome", "Oslo", "Bern", "Wien", "Prag", "Lima")
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def tool_records(number: int) -> list[dict[str, Any]]:
    """Conversations that end with a call; every fourth continues with its result and an answer."""
    records = []
    for n in range(number):
        call = {
            "type": "function",
            "function": {"name": "get_weather", "arguments": {"city": f"{CITIES[n % 8]} {n}"}},
        }
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": f"Weather in {CITIES[n % 8]} {n}?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ]
        if n % 4 == 0:
            messages += [
                {"role": "tool", "content": f"{n} C"},
                {"role": "assistant", "content": f"It is {n} C."},
            ]
        records.append({"messages": messages, "tools": [WEATHER]})
    return records


def chat_records(number: int) -> list[dict[str, Any]]:
    """Conversations of two turns, every second one with reasoning."""
    records = []
    for n in range(number):
        thought = {"reasoning_content": f"{n} and 1."} if n % 2 else {}
        records.append(
            {
                "messages": [
                    {"role": "user", "content": f"What is {n} + 1?"},
                    {"role": "assistant", "content": f"{n + 1}", **thought},
                    {"role": "user", "content": "Sure?"},
                    {"role": "assistant", "content": f"Yes, {n + 1}.", **thought},
                ]
            }
        )
    return records


def write_jsonl(path: Path, records: list[Any]) -> None:
    """Write records as JSON lines, gzipped where the name ends in .gz; text is written as a line."""
    lines = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(lines.encode(), mtime=0) if path.suffix == ".gz" else lines.encode())


def set_params(folder: Path, **values: Any) -> None:
    """Change params.yaml of a project: set_params(folder, **{"optimizer.lr": 1e-3})."""
    yaml = YAML()
    path = folder / "params.yaml"
    params = yaml.load(path)
    for name, value in values.items():
        *parents, last = name.split(".")
        section = params
        for parent in parents:
            section = section[parent]
        section[last] = value
    yaml.dump(params, path)


def lay_out(folder: Path, sources: Mapping[str, Iterable[int]]) -> list[dict[str, Any]]:
    """Write made-up prepared data and the reports of filter and prep; return all samples.

    The tokens of a conversation depend on its number only.
    """
    shutil.rmtree(folder / "data", ignore_errors=True)
    everything = []
    for source, numbers in sources.items():
        numbers = list(numbers)
        samples = [sample for number in numbers for sample in made_up(number)]
        with ShardWriter(folder / "data/prepared" / source, "samples", SAMPLES) as shards:
            for sample in samples:
                shards.write(sample)
        template = folder / "data/prepared" / source / "chat_template.jinja"
        template.write_text("template")
        files = {"template": template, "tokenizer": folder / "models/base/tokenizer.json"}
        prints = {f"{name}_sha256": file_digest(path) for name, path in files.items()}
        counts = {"rows_out": len(numbers), "samples": len(samples), "rejected": {}, "stop_id": EOS, "pad_id": 0}
        write_json(folder / f"reports/prep/{source}.json", {**counts, **prints})
        write_json(folder / f"reports/filter/{source}.json", {"sampled": False, "rejected": {}})
        everything += [{**sample, "source": source} for sample in samples]
    return everything


def write_kept(folder: Path, texts: Mapping[str, str]) -> None:
    """Write kept conversations by id into a folder of filtered rows: user and assistant say the same text."""
    with ShardWriter(folder, "kept", CONVERSATIONS) as shards:
        for conversation_id, text in texts.items():
            messages = [{"role": role, "content": text} for role in ("user", "assistant")]
            shards.write({"id": conversation_id, "messages": json.dumps(messages), "tools": None, "meta": "{}"})


def sources_in_params(folder: Path, sources: Mapping[str, dict[str, Any]]) -> None:
    """Write made-up sources into params.yaml; the values are keys of each source."""
    described = {"uri": "file://x.jsonl", "read": "openai"}
    set_params(folder, **{"fetch.sources": {source: {**described, **more} for source, more in sources.items()}})


def make_project(folder: Path) -> None:
    """Fill a folder that has the repository's params.yaml with a tiny blend and a tiny model."""
    inputs = folder / "inputs"
    write_jsonl(inputs / "calls.jsonl", tool_records(60))
    write_jsonl(inputs / "chats.jsonl.gz", [*chat_records(40), "{not json", chat_records(1)[0]])
    make_tiny_base(inputs / "model")
    set_params(
        folder,
        **{
            "fetch.model": {"uri": "file://inputs/model", "license": "MIT"},
            "fetch.sources": {
                "calls": {"uri": "file://inputs/calls.jsonl", "read": "openai", "domain": "tool-use"},
                "chats": {"uri": "file://inputs/chats.jsonl.gz", "read": "openai", "domain": "chat"},
            },
            "filter.near_duplicates": None,
            "prep.reasoning.strip": 0.0,
            "prep.reasoning.truncate": 0.0,
            "pack.near_duplicates": None,
            "pack.pack_size": 512,
            "pack.validation": 0.1,
            "pack.test": 0.1,
            "optimizer.lr": 2e-3,
            "scheduler.lr_warmup_iters": 1,
            "train.train_iters": 6,
            "train.global_batch_size": 2,
            "validation.eval_interval": 3,
            "validation.eval_iters": 1,
            "checkpoint.save_interval": 3,
            "eval.tool_prompts": 4,
            "eval.chat_prompts": 2,
            "eval.max_prompt_tokens": 480,
            "eval.max_new_tokens": 8,
            "eval.gate.min_tool_call_fits": None,
        },
    )


def link_project(folder: Path) -> None:
    """Make a folder in which stages run: the repository's params.yaml and a tiny blend, nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    make_project(folder)


def clone_checkout(folder: Path) -> Path:
    """Make a git repository with one commit: this checkout with its uncommitted edits, without results.

    Its .venv is a link to the environment that runs the tests, so that nothing is installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listed = run(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file() and not name.startswith(("reports/", "dvc.lock")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(sys.prefix)
    run(folder, "git", "init", "-q", "-b", "main")
    (folder / ".git/info").mkdir(exist_ok=True)
    (folder / ".git/info/exclude").write_text("/.venv\n")
    commit(folder, "clone")
    return folder


def clone_project(folder: Path) -> Path:
    """Clone the checkout into a folder, with the tiny blend and the tiny model, committed."""
    clone_checkout(folder)
    make_project(folder)
    commit(folder, "tiny")
    return folder


def commit(folder: Path, message: str) -> None:
    """Commit all changes in a folder."""
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-q", "-m", message)


def environment(**more: str) -> dict[str, str]:
    """The environment of a user with an active virtual environment, without those of an outer make, DVC or MLflow."""
    outer = ("MAKE", "GIT_", "DVC_", "MLFLOW_", "SFT_", "PYTEST_", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "CLUSTER")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(outer)},
        "PATH": f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "DVC_SITE_CACHE_DIR": str(Path(tempfile.gettempdir(), f"nano3-sft-dvc-{os.getuid()}")),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_AUTHOR_NAME": "test",
        "GIT_AUTHOR_EMAIL": "test@example.org",
        "GIT_COMMITTER_NAME": "test",
        "GIT_COMMITTER_EMAIL": "test@example.org",
        "OMP_NUM_THREADS": "1",
        **more,
    }


def run(folder: Path, *command: str, fails: bool = False, timeout: float = 1800, **environ: str) -> str:
    """Run a command in a folder and return its output. An unexpected exit status fails the test with the output."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(**environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    output = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, f"{' '.join(command)}: status {done.returncode}\n{output[-10_000:]}"
    return output if fails else done.stdout


def run_script(folder: Path, script: str, **environ: str) -> str:
    """Run a shell script from the documentation in a folder; it must exit with 0."""
    return run(folder, "bash", "-euo", "pipefail", "-c", script, **environ)


def printed_by_processes(code: str) -> set[str]:
    """The outputs of a program in processes with different string hashes: one, if nothing depends on them."""
    return {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT / "src")},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("0", "4711")
    }
