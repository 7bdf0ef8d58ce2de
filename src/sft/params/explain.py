"""Explain mistakes in params.yaml: the line, what was found, the right name.

For an unknown key the message suggests the most similar key, or the key for a name of another tool
(learning_rate -> optimizer.lr).
"""

import difflib
import re
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node

from sft.params.schema import Params

# Names in Hugging Face, axolotl, LLaMA-Factory, ms-swift and open-instruct for the same thing, and what differs.
FOREIGN_NAMES = {
    "learning_rate": "optimizer.lr",
    "lr": "optimizer.lr",
    "warmup_steps": "scheduler.lr_warmup_iters",
    "warmup_ratio": "scheduler.lr_warmup_iters (steps, not a ratio)",
    "lr_scheduler_type": "scheduler.lr_decay_style",
    "lr_scheduler": "scheduler.lr_decay_style",
    "max_grad_norm": "optimizer.clip_grad",
    "num_train_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "epochs": "train.epochs",
    "max_steps": "train.train_iters",
    "per_device_train_batch_size": "train.micro_batch_size",
    "micro_batch": "train.micro_batch_size",
    "batch_size": "train.global_batch_size",
    "gradient_accumulation_steps": "train.global_batch_size (packs per step over all GPUs; accumulation follows)",
    "output_dir": "checkpoint.save_interval (no folder: checkpoints are in runs/, the model in models/final)",
    "save_steps": "checkpoint.save_interval",
    "save_total_limit": "checkpoint.most_recent_k",
    "resume_from_checkpoint": "checkpoint.pretrained_checkpoint (a killed run resumes; this names weights)",
    "eval_steps": "validation.eval_interval",
    "evaluation_strategy": "validation.eval_interval",
    "max_length": "pack.pack_size",
    "max_seq_length": "pack.pack_size",
    "max_seq_len": "pack.pack_size",
    "seq_length": "pack.pack_size",
    "sequence_len": "pack.pack_size",
    "cutoff_len": "pack.pack_size",
    "model_max_length": "pack.pack_size",
    "packing": "pack.pack_size (samples are always packed; this is the length)",
    "sample_packing": "pack.pack_size (samples are always packed; this is the length)",
    "val_size": "pack.validation",
    "val_set_size": "pack.validation",
    "chat_template": "prep.template",
    "template": "prep.template",
    "dataset": "fetch.sources",
    "datasets": "fetch.sources",
    "model_name_or_path": "fetch.model",
    "base_model": "fetch.model",
    "max_chars": "prep.max_tokens (in tokens of a sample)",
    "max_message_chars": "prep.max_tokens (in tokens of a sample)",
    "max_samples": "filter.max_rows",
    "limit": "filter.max_rows",
    "bf16": "mixed_precision.name",
    "fp16": "mixed_precision.name",
    "tensor_parallel_size": "model.tensor_model_parallel_size",
    "expert_parallel_size": "model.expert_model_parallel_size",
    "gradient_checkpointing": "model.recompute_granularity",
    "activation_checkpointing": "model.recompute_granularity",
    "adapter": "peft.name",
    "lora_r": "peft.dim",
    "lora_rank": "peft.dim",
    "lora_alpha": "peft.alpha",
    "lora_dropout": "peft.dropout",
    "lora_target_modules": "peft.target_modules",
    "hidden_size": "fetch.model (the weights determine the geometry: choose another model)",
    "num_layers": "fetch.model (the weights determine the geometry: choose another model)",
    "load": "checkpoint.pretrained_checkpoint",
    "revision": "fetch.sources.<name>.uri (in it: hf://owner/name@<commit>)",
    "sha256": "fetch.sources.<name>.uri (at its end: #sha256=<hex>)",
}


def known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return the dotted names of all keys, `optimizer.lr`; within entries that you name, `fetch.sources.<name>.uri`."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        entry = "<name>." if typing.get_origin(field.annotation) is dict else ""
        for part in (field.annotation, *typing.get_args(field.annotation)):  # a section, or a section or null
            if isinstance(part, type) and issubclass(part, BaseModel):
                keys += known_keys(part, f"{prefix}{name}.{entry}")
    return keys


def suggest(key: str, model: type[BaseModel] = Params) -> str:
    """Return a question that names the key probably meant by an unknown dotted name; empty if none is similar.

    >>> suggest("learning_rate")
    "Did you mean 'optimizer.lr'?"
    >>> suggest("pack.pack_sise")
    "Did you mean 'pack.pack_size'?"
    """
    last = key.rpartition(".")[2]
    known = known_keys(model)
    if model is Params and last in FOREIGN_NAMES and key not in known:
        name, space, note = FOREIGN_NAMES[last].partition(" ")
        return f"Did you mean '{name}'{space}{note}?"
    same_name = [name for name in known if name.rpartition(".")[2] == last]
    near = same_name or difflib.get_close_matches(".".join(_as_known(key.split("."))), known, n=1, cutoff=0.75)
    near = near or [
        name for name in known if difflib.SequenceMatcher(None, name.rpartition(".")[2], last).ratio() >= 0.75
    ]
    return f"Did you mean '{near[0]}'?" if near else ""


def explain(
    path: Path, text: str, error: ValidationError, model: type[BaseModel], section: tuple[str, ...] = ()
) -> str:
    """Return a message for each mistake that a schema found in a YAML file.

    `section`: the schema is that of this section of the file.
    """
    schema = Params if _is_of_params(model) else model
    tree = YAML(typ="safe", pure=True).compose(text)
    messages = []
    for fault in error.errors():
        location = [str(part) for part in (*section, *fault["loc"]) if part != "[key]"]
        shown = _explain({**fault, "loc": location}, schema)
        messages.append(f"{path}:{_line(tree, location)}: {'.'.join(location) or path.stem}{shown}")
    return "\n".join(dict.fromkeys(messages))


def _explain(fault: Any, schema: type[BaseModel]) -> str:
    """Return what was found at a key, what was expected, and what to do."""
    location = fault["loc"]
    if fault["type"] == "extra_forbidden":
        siblings = ", ".join(_siblings(location, schema)) or "none"
        return f": unknown key. {suggest('.'.join(location), schema) or f'Known here: {siblings}.'}"
    if fault["type"] == "missing":
        advice = " docs/reference/params.md has its default." if schema is Params else ""
        return f": missing.{advice}"
    if fault["type"] == "string_pattern_mismatch" and location[-1] == fault["input"]:
        name = re.sub("[^a-z0-9]+", "-", fault["input"].lower()).strip("-") or "my-data"
        return f": a name has lower-case letters, digits and dashes: {name}"
    message = fault["msg"].removeprefix("Value error, ").replace("Input should be", "expected", 1)
    return f": {message}; found {_shown(fault['input'])}."


def _as_known(location: list[str]) -> list[str]:
    """Replace the name of a source or an evaluation set by <name>, as known_keys does."""
    is_inside = location[0] == "fetch" and location[1:2] in (["sources"], ["benchmarks"]) and len(location) > 3
    return [*location[:2], "<name>", *location[3:]] if is_inside else location


def _siblings(location: list[str], schema: type[BaseModel]) -> list[str]:
    parent = ".".join(_as_known(location)[:-1])
    return [name.rpartition(".")[2] for name in known_keys(schema) if name.rpartition(".")[0] == parent]


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"


def _line(node: Node, location: list[str]) -> int:
    """Return the line of a key in the YAML tree; of the nearest parent if the key is missing."""
    line = node.start_mark.line + 1
    for part in location:
        if not isinstance(node, MappingNode):
            break
        for key_node, value_node in node.value:
            if key_node.value == part:
                line, node = key_node.start_mark.line + 1, value_node
                break
        else:
            break
    return int(line)


def _is_of_params(model: type[BaseModel]) -> bool:
    """Return whether a schema is that of params.yaml or of a section of it."""
    return model is Params or model in {field.annotation for field in Params.model_fields.values()}
