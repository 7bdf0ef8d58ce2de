"""A scratch project for a rehearsal: the params of a profile with a tiny model, made-up rows and a small layout.

A profile's params, the config.json of its model  ->  a folder in which the stages run:

    params.yaml                 all params of the profile, but for what SIZES and `scaled` change
    inputs/model/               a tiny model of the same class, with a tokenizer
    inputs/<source>.jsonl       made-up conversations with and without tools
    slurm/clusters/<name>.yaml  the cluster file, with as many ranks as the layout needs
"""

import itertools
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft.chat_files import DEFAULT_FILE, read_template
from sft.cluster.cluster_file import CLUSTER_FILES, GPU_OPTIONS, option_name, read_cluster_file
from sft.files import REPOSITORY, read_json, resolve_repo_file, write_json
from sft.params.check import Params, read
from sft.params.read import params_file, read_text
from sft.planning.checks import segment_multiple
from sft.planning.preflight import model_folder
from sft.rehearse import tiny_model

Json = dict[str, Any]
ROWS = 80
"""Conversations of a source."""
VOCABULARY = 1024
STEPS, SAVE_EVERY = 20, 5
AXES = (
    *("tensor_model_parallel_size", "pipeline_model_parallel_size"),
    *("context_parallel_size", "expert_model_parallel_size"),
)
# Params of the rehearsal, by their dotted names; every other one is the profile's.
SIZES: Json = {
    "fetch.benchmarks": {},
    "filter.max_rows": None,
    "filter.judge.model": None,
    "pack.pack_size": 512,
    "pack.validation": 0.1,
    "pack.test": 0.1,
    "pack.precedence": [],
    "pack.exclude_licenses": [],
    "model.moe_token_dispatcher_type": "alltoall",
    "model.moe_permute_fusion": False,
    "mixed_precision.name": "fp32",
    "optimizer.lr": 2e-3,
    "scheduler.lr_warmup_iters": 1,
    "scheduler.lr_decay_iters": None,
    "train.train_iters": STEPS,
    "train.epochs": None,
    "validation.eval_interval": SAVE_EVERY,
    "validation.eval_iters": 1,
    "checkpoint.save_interval": SAVE_EVERY,
    "checkpoint.save_retain_interval": None,
    "checkpoint.pretrained_checkpoint": None,
    "checkpoint.pretrained_sha256": None,
    "bridge": {},
    "eval.samples_per_domain": 8,
    "eval.tool_prompts": 3,
    "eval.chat_prompts": 3,
    "eval.max_prompt_tokens": 480,
    "eval.max_new_tokens": 8,
    "eval.tasks": [],
    "eval.gate.min_tool_call_fits": None,
}
CITIES = ("Paris", "Berlin", "Rome", "Oslo", "Bern", "Vienna", "Prague", "Lima")
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def write_project(folder: Path, profile: str) -> Params:
    """Write the scratch project of a profile into an empty folder; return its params.

    Raises:  InputError: there is no such profile, or the shapes of its model are not known here.
    """
    params = read(params_file(profile))
    config = tiny_model.shrink(read_json(model_folder(params, has_inputs=False) / "config.json"))
    sources = chosen_sources(params)
    for number, source in enumerate(sources.values()):
        rows = list(made_up_rows(number, source["read"].get("select", {})))
        file = folder / source["uri"].removeprefix("file://")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    template = template_text(params.prep.template)
    control = [*tiny_model.control_tokens(template), *params.prep.stop_tokens]
    base = folder / "inputs/model"
    base.mkdir()
    (base / DEFAULT_FILE).write_text(template, encoding="utf-8")
    texts = [*(file.read_text(encoding="utf-8") for file in sorted(folder.glob("inputs/*.jsonl"))), template]
    ids = tiny_model.write_tokenizer(base, texts, VOCABULARY, control)
    tiny_model.write_model(base, {**config, "vocab_size": VOCABULARY, **ids})
    values = scaled(read_text(params_file(profile))[1], params)
    values["fetch"] |= {"sources": sources, "model": {"uri": "file://inputs/model"}}
    write_json(folder / "params.yaml", values)
    return read(folder / "params.yaml")


def template_text(name: str) -> str:
    """Return the text of a chat template, of this repository or of a published model. Raises InputError."""
    return read_template(resolve_repo_file(name))


def scaled(values: Json, params: Params) -> Json:
    """Return the values of a profile with SIZES, and each axis of its layout 2 where the profile has 2 or more."""
    tiny: Json = json.loads(json.dumps(values))
    layout = {name: min(2, size) for name, size in sizes_of(params).items()}
    for name, value in {**SIZES, **layout}.items():
        *parents, last = name.split(".")
        section = tiny
        for parent in parents:
            section = section[parent]
        section[last] = value
    training = Params.model_validate(tiny).training
    tiny["pack"]["pad_segments_to"] = segment_multiple(training.model)
    tiny["train"]["global_batch_size"] = max(2, ranks_of(Params.model_validate(tiny)))
    return tiny


def sizes_of(params: Params) -> dict[str, int]:
    """Return the sizes of the axes of a layout, by the names of their params."""
    return {f"model.{name}": getattr(params.training.model, name) for name in AXES}


def ranks_of(params: Params) -> int:
    """Return the fewest ranks that a layout needs."""
    tensor, pipeline, context, expert = sizes_of(params).values()
    return math.lcm(tensor * pipeline * context, expert * pipeline)


def chosen_sources(params: Params) -> dict[str, Json]:
    """Return the sources of the rehearsal: of each way to read and each of tools or none, the first of the profile.

    Rows of a package's own format are replaced by rows of format openai.
    """
    chosen: dict[str, Json] = {}
    kinds = set()
    for name, source in params.fetch.sources.items():
        kind = (source.read.format, json.dumps(source.read.select, sort_keys=True), source.domain == "tool-use")
        if kind in kinds:
            continue
        kinds.add(kind)
        read_as = {"format": "openai", "select": source.read.select}
        chosen[name] = {"uri": f"file://inputs/{name}.jsonl", "read": read_as, "domain": source.domain}
        if source.share is not None:
            chosen[name]["share"] = source.share
    total = math.fsum(entry.get("share", 0.0) for entry in chosen.values())
    for entry in chosen.values():
        if "share" in entry:
            entry["share"] /= total
    return chosen


def made_up_rows(seed: int, select: dict[str, list[str]]) -> Iterator[Json]:
    """Yield conversations of format openai with all values of `select`: half of them call a tool, half have reasoning.

    Their sentences are of words drawn at random, so that no two are near duplicates.
    """
    draw = random.Random(seed)
    syllables = ["".join(pair) for pair in itertools.product("bdfklmnprst", "aeiou")]
    words = ["".join(draw.choices(syllables, k=draw.choice((2, 3)))) for _ in range(200)]

    def sentence() -> str:
        return " ".join(draw.choices(words, k=draw.randint(6, 14))).capitalize() + "."

    for number in range(ROWS):
        city = CITIES[number % len(CITIES)]
        thought = {"reasoning_content": sentence()} if number % 2 else {}
        answer = {"role": "assistant", "content": sentence(), **thought}
        row: Json = {"messages": [{"role": "user", "content": sentence()}, answer]}
        if number % 4 < 2:
            call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": city}}}
            row["messages"][0]["content"] += f" What is the weather in {city}?"
            row["messages"][1] = {"role": "assistant", "content": None, "tool_calls": [call], **thought}
            if number % 8 < 4:
                row["messages"] += [{"role": "tool", "content": f"{number} C"}, {**answer, "content": sentence()}]
            row["tools"] = [WEATHER]
        yield {**row, **{field: values[:1] for field, values in select.items()}}


def requests_gpus(option: str) -> bool:
    """Whether an sbatch option requests GPUs, or is about requested ones.

    >>> [requests_gpus(each) for each in ("--gres=gpu:8", "--mem-per-gpu=80G", "--gres=nvme:1", "--qos=gpu")]
    [True, True, False, False]
    """
    name = option_name(option)
    return "gpu" in name or (name in (*GPU_OPTIONS, "tres-bind") and "gpu" in option)


def write_cluster_file(folder: Path, name: str, ranks: int) -> None:
    """Write slurm/clusters/<name>.yaml with the ranks of the rehearsal, without GPUs.

    Raises:  InputError: there is no such cluster file, or it has a fault.
    """
    path = CLUSTER_FILES / f"{name}.yaml"
    read_cluster_file(name)
    values = read_text(path)[1]
    nodes = math.gcd(values["nodes"], ranks)
    values |= {"nodes": nodes, "ranks_per_node": ranks // nodes, "gpus_per_node": 0}
    for section in (values, values.get("prep") or {}, values.get("eval") or {}):
        if "sbatch_options" in section:
            section["sbatch_options"] = [each for each in section["sbatch_options"] if not requests_gpus(each)]
        if section is not values:
            section.pop("gpus_per_node", None)
    if values.get("slurm_conf"):
        values["slurm_conf"] = str(Path(values["slurm_conf"]).absolute())
    file = folder / path
    file.parent.mkdir(parents=True)
    write_json(file, values)
    (folder / ".dvc").mkdir()  # prep and eval as jobs read their inputs and outputs from dvc.yaml
    (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n", encoding="utf-8")
    for needed in ("dvc.yaml", "src", "requirements", "tasks", "templates", "filters"):
        (folder / needed).symlink_to(REPOSITORY / needed)
