"""Measure models: held-out loss of samples, greedy answers to prompts.

model folder, token ids
    ->  runs/measured/<digest>.json: {"losses": [[sum, tokens], ...], "answers": [[token id, ...], ...]}

A model is measured once for the same weights, token ids, limits and packages: the base model once for all experiments.
The work is cut into shards, each a batch of prompts with their samples, or some other samples. On a CPU they run side
by side, in as many processes as cores and memory allow. Neither shards nor threads of a process depend on how many run,
or on which models are known already: results are the same to the last digit.
"""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import psutil  # type: ignore[import-untyped]
from rich.console import Console
from rich.progress import track

from sft.cli import num_threads
from sft.evaluation.prompts import Prompt, Segment
from sft.files import project_root, read_json, write_json
from sft.hashing import file_digest, folder_digest, value_digest
from sft.params.evaluation import Eval
from sft.weight_files import count_parameters
from sft.workers import cores, map_shards, worker_count

SOURCES = Path(__file__).parents[1]
CODE = (
    *(
        Path(__file__).with_name(name)
        for name in ("generate.py", "grouped_attention.py", "served.py", "shared_reading.py")
    ),
    *sorted((SOURCES / "mamba").glob("*.py")),
)
PACKAGES = ("torch", "transformers")
# Memory of a model while it answers, as a multiple of its fp32 weights: they, caches and logits of a batch.
MEMORY_FACTOR = 4.0
FP32_BYTES = 4
# A smaller model answers in less time than a second process takes to start.
PARAMETERS_SIDE_BY_SIDE = 5_000_000
# A process has a thread for each such number of parameters of its model: small models gain more from more processes.
PARAMETERS_PER_THREAD = 500_000_000
SAMPLES_PER_SHARD = 16
"""Of those that no prompt is the start of."""

_loaded: dict[str, Any] = {}
"""The model that this process measures, by its folder."""


class Measured(NamedTuple):
    """What a model did: a loss for each sample, an answer to each prompt."""

    losses: list[tuple[float, int]]
    """(sum of the negative log likelihood, trained tokens)"""
    answers: list[list[int]]
    """Token ids; a stop token is the last one, if the answer ended by itself."""


class Shard(NamedTuple):
    """Numbers of the samples and of the prompts that are measured together."""

    samples: list[int]
    prompts: list[int]


def measure_models(
    base: Path,
    final: Path,
    segments: Sequence[Segment],
    prompts: Sequence[Prompt],
    stop_ids: Sequence[int],
    params: Eval,
) -> tuple[Measured, Measured]:
    """Return what the base model and the trained one do with the same token ids.

    Raises:  InputError: a model has no safetensors, or no embedding for a token id; no endpoint answers.
    """
    inputs = {
        "segments": [[segment.ids, segment.marks] for segment in segments],
        "prompts": [prompt.ids for prompt in prompts],
        "stop_ids": list(stop_ids),
        "max_new_tokens": params.max_new_tokens,
        "batch_size": params.batch_size,
        "engine": params.engine,
    }
    threads = {model: thread_count(model) for model in (base, final)}
    known = {model: kept_file(model, {**inputs, "threads": threads[model]}) for model in (base, final)}
    asks_again = final if params.engine == "endpoint" else None  # it may have served other weights before
    missing = {path: model for model, path in known.items() if model == asks_again or not path.is_file()}
    if missing:
        _measure(missing, threads, inputs)
    return _read(known[base]), _read(known[final])


def _measure(models: dict[Path, Path], threads: dict[Path, int], inputs: dict[str, Any]) -> None:
    """Write what models do with `inputs`, each as soon as it is known; `models`: folders by the file to write."""
    from sft.evaluation import served

    limits = {name: inputs[name] for name in ("stop_ids", "max_new_tokens")}
    asks_endpoint = inputs["prompts"] and inputs["engine"] == "endpoint"
    servers = {model: served.find_endpoints(str(model)) for model in models.values() if asks_endpoint}
    shards = plan_shards(inputs["segments"], [] if servers else inputs["prompts"], inputs["batch_size"])
    tasks = [
        {
            "model": str(model),
            "threads": threads[model],
            "samples": [inputs["segments"][number] for number in shard.samples],
            "prompts": [inputs["prompts"][number] for number in shard.prompts],
            "limits": {**limits, "batch_size": inputs["batch_size"]},
        }
        for model in models.values()
        for shard in shards
    ]
    upcoming = iter(models.items())
    done: list[Any] = []

    def add(result: Any) -> None:
        """Keep the result of a shard, and write those of a model after its last one."""
        done.append(result)
        if len(done) < len(shards):
            return
        path, model = next(upcoming)
        losses: dict[int, Any] = {}
        answers: dict[int, Any] = {}
        for shard, (found_losses, found_answers) in zip(shards, done, strict=True):
            losses |= dict(zip(shard.samples, found_losses, strict=True))
            answers |= dict(zip(shard.prompts, found_answers, strict=True))
        if model in servers:
            answers = dict(enumerate(served.generate(servers[model], str(model), inputs["prompts"], **limits)))
        found = {"losses": losses, "answers": answers}
        write_json(path, {name: [each[number] for number in sorted(each)] for name, each in found.items()})
        done.clear()

    workers = process_count(list(models.values()), max(threads[model] for model in models.values()))
    if workers > 1:
        map_shards(measure_shard, tasks, "measuring", add, at_most=workers)
    else:
        console = Console(stderr=True)
        for task in track(tasks, "measuring", console=console, transient=True, disable=not sys.stderr.isatty()):
            add(measure_shard(task))
        _forget()


def plan_shards(
    segments: Sequence[tuple[Sequence[int], Sequence[int]]], prompts: Sequence[Sequence[int]], batch_size: int
) -> list[Shard]:
    """Return the shards of the work; each sample and each prompt is in one of them. There is always one shard.

    >>> plan_shards([([7], []), ([1, 2, 3], [])], [[1], [1, 2], [5]], 2)
    [Shard(samples=[1], prompts=[1, 0]), Shard(samples=[], prompts=[2]), Shard(samples=[0], prompts=[])]
    """
    from sft.evaluation.generate import batches_of
    from sft.evaluation.shared_reading import find_samples

    sample_of = find_samples(segments, prompts)
    batches = batches_of(prompts, batch_size)
    shards = [Shard([sample_of[number] for number in batch if number in sample_of], batch) for batch in batches]
    rest = [number for number in range(len(segments)) if number not in set(sample_of.values())]
    starts = range(0, len(rest) or 1, SAMPLES_PER_SHARD)
    return [*shards, *(Shard(rest[start : start + SAMPLES_PER_SHARD], []) for start in starts)]


def measure_shard(task: dict[str, Any]) -> tuple[list[tuple[float, int]], list[list[int]]]:
    """Return the losses of the samples and the answers to the prompts of a shard. Its model stays in memory."""
    from sft.evaluation import generate
    from sft.evaluation.shared_reading import loss_and_answers

    name, samples, prompts, limits = (task[key] for key in ("model", "samples", "prompts", "limits"))
    if name not in _loaded:
        _forget()
        _loaded[name] = generate.load_model(Path(name), task["threads"])
    model = _loaded[name]
    every_id = [limits["stop_ids"], *prompts, *(ids for ids, _ in samples)]
    generate.check_ids(model, (number for ids in every_id for number in ids), name)
    return loss_and_answers(model, samples, prompts, **limits)


def _forget() -> None:
    """Free the memory of the model, before another one is loaded."""
    from sft.evaluation.generate import release_memory

    _loaded.clear()
    release_memory()


def _read(path: Path) -> Measured:
    found = read_json(path)
    return Measured([(total, count) for total, count in found["losses"]], found["answers"])


def kept_file(folder: Path, inputs: dict[str, Any], code: Sequence[Path] = CODE) -> Path:
    """Return the file in runs/measured for what a model does, named by everything that determines it."""
    key = value_digest(
        {
            "model": folder_digest(folder),
            "inputs": inputs,
            "code": [file_digest(path) for path in code],
            "packages": {name: version(name) for name in PACKAGES},
            "device": _device(),
        }
    )
    kept = project_root() / "runs" / "measured"
    kept.mkdir(parents=True, exist_ok=True)
    return kept / f"{key}.json"


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def thread_count(model: Path) -> int:
    """Return the threads of a process that measures a model on a CPU: by its size, at most the cores."""
    return num_threads(max(1, min(cores(), count_parameters(model) // PARAMETERS_PER_THREAD)))


def process_count(models: Sequence[Path], threads: int) -> int:
    """Return how many processes measure at once: one on a GPU, on a CPU as many as its cores and free memory allow."""
    parameters = max(map(count_parameters, models))
    if _device() != "cpu" or os.environ.get("SFT_EXECUTOR") or parameters < PARAMETERS_SIDE_BY_SIDE:
        return 1
    fitting = int(psutil.virtual_memory().available / (MEMORY_FACTOR * FP32_BYTES * parameters))
    return max(1, min(worker_count() // threads, fitting))
