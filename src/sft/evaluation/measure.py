"""Measure models: held-out loss of samples, greedy answers to prompts.

model folder, token ids
    ->  runs/measured/<digest>.json: {"losses": [[sum, tokens], ...], "answers": [[token id, ...], ...]}

The base model is measured once for the same weights, token ids, limits and packages, however many experiments are
evaluated; the trained model each time, unless the caller keeps it too. On a CPU the models run side by side, each in a
process of its own, if memory holds both; else one after the other.
"""

import os
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import psutil  # type: ignore[import-untyped]

from sft.evaluation.prompts import Prompt, Segment
from sft.files import project_root, read_json, write_json
from sft.hashing import file_digest, folder_digest, value_digest
from sft.params.evaluation import Eval
from sft.weight_files import count_parameters
from sft.workers import map_shards, worker_count

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
PARAMETERS_SIDE_BY_SIDE = 10_000_000


class Measured(NamedTuple):
    """What a model did: a loss for each sample, an answer to each prompt."""

    losses: list[tuple[float, int]]
    """(sum of the negative log likelihood, trained tokens)"""
    answers: list[list[int]]
    """Token ids; a stop token is the last one, if the answer ended by itself."""


def measure_models(
    base: Path,
    final: Path,
    segments: Sequence[Segment],
    prompts: Sequence[Prompt],
    stop_ids: Sequence[int],
    params: Eval,
    *,
    keep_final: bool = False,
) -> tuple[Measured, Measured]:
    """Return what the base model and the trained one do with the same token ids.

    With `keep_final` the trained model is not measured again either.

    Raises:  InputError: a model has no safetensors, or no embedding for a token id.
    """
    inputs = {
        "segments": [[segment.ids, segment.marks] for segment in segments],
        "prompts": [prompt.ids for prompt in prompts],
        "stop_ids": list(stop_ids),
        "max_new_tokens": params.max_new_tokens,
        "batch_size": params.batch_size,
        "engine": params.engine,
    }
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder, "inputs.json")
        known = kept_file(base, inputs)
        target = kept_file(final, inputs) if keep_final else Path(folder, "final.json")
        write_json(given, inputs)
        tasks = [
            {"model": str(model), "inputs": str(given), "target": str(path)}
            for path, model in {known: base, target: final}.items()
            if not path.is_file()
        ]
        if len(tasks) == 2 and worker_count() > 1 and _fit_side_by_side(base, final):
            map_shards(measure_model, tasks, "measuring both models")
        else:
            for task in tasks:
                measure_model(task)
        return _read(known), _read(target)


def measure_model(task: dict[str, str]) -> None:
    """Measure one model and publish the result; its memory is free again afterwards."""
    from sft.evaluation import generate, served
    from sft.evaluation.shared_reading import loss_and_answers

    inputs = read_json(Path(task["inputs"]))
    servers = served.find_endpoints(task["model"]) if inputs["prompts"] and inputs["engine"] == "endpoint" else []
    model = generate.load_model(Path(task["model"]))
    every_id = [inputs["stop_ids"], *inputs["prompts"], *(ids for ids, _ in inputs["segments"])]
    generate.check_ids(model, (number for ids in every_id for number in ids), task["model"])
    limits = {name: inputs[name] for name in ("stop_ids", "max_new_tokens")}
    prompts = [] if servers else inputs["prompts"]
    losses, answers = loss_and_answers(model, inputs["segments"], prompts, batch_size=inputs["batch_size"], **limits)
    if servers:
        answers = served.generate(servers, task["model"], inputs["prompts"], **limits)
    del model
    generate.release_memory()
    write_json(Path(task["target"]), {"losses": losses, "answers": answers})


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


def _fit_side_by_side(base: Path, final: Path) -> bool:
    """Return whether both models can run at once: on a CPU of this machine, in its free memory."""
    if _device() != "cpu" or os.environ.get("SFT_EXECUTOR"):
        return False
    parameters = count_parameters(base) + count_parameters(final)
    needed = MEMORY_FACTOR * FP32_BYTES * parameters
    return parameters > PARAMETERS_SIDE_BY_SIDE and bool(psutil.virtual_memory().available > needed)
