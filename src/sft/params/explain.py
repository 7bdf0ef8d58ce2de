"""What is wrong with params.yaml, said so that it can be fixed: the line, what was found, the right name.

An unknown key is answered with the nearest key here, the key that another tool's name stands for (learning_rate ->
optimizer.lr), or the key that took the place of one of version 0.1.0.
"""

import difflib
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node

# Names that Hugging Face, axolotl, LLaMA-Factory, ms-swift and open-instruct use for the same thing.
FOREIGN_NAMES = {
    "learning_rate": "optimizer.lr",
    "lr": "optimizer.lr",
    "warmup_steps": "scheduler.lr_warmup_iters",
    "warmup_ratio": "scheduler.lr_warmup_iters",
    "lr_scheduler_type": "scheduler.lr_decay_style",
    "lr_scheduler": "scheduler.lr_decay_style",
    "max_grad_norm": "optimizer.clip_grad",
    "num_train_epochs": "train.train_iters",
    "num_epochs": "train.train_iters",
    "epochs": "train.train_iters",
    "max_steps": "train.train_iters",
    "per_device_train_batch_size": "train.micro_batch_size",
    "micro_batch": "train.micro_batch_size",
    "batch_size": "train.global_batch_size",
    "gradient_accumulation_steps": "train.global_batch_size",
    "output_dir": "checkpoint.save_interval",
    "save_steps": "checkpoint.save_interval",
    "save_total_limit": "checkpoint.most_recent_k",
    "resume_from_checkpoint": "checkpoint.pretrained_checkpoint",
    "eval_steps": "validation.eval_interval",
    "evaluation_strategy": "validation.eval_interval",
    "max_length": "pack.pack_size",
    "max_seq_length": "pack.pack_size",
    "max_seq_len": "pack.pack_size",
    "seq_length": "pack.pack_size",
    "sequence_len": "pack.pack_size",
    "cutoff_len": "pack.pack_size",
    "model_max_length": "pack.pack_size",
    "packing": "pack.pack_size",
    "sample_packing": "pack.pack_size",
    "val_size": "pack.validation",
    "val_set_size": "pack.validation",
    "chat_template": "prep.template",
    "template": "prep.template",
    "dataset": "fetch.sources",
    "datasets": "fetch.sources",
    "model_name_or_path": "fetch.model",
    "base_model": "fetch.model",
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
    "hidden_size": "fetch.model",
    "num_layers": "fetch.model",
    "load": "checkpoint.pretrained_checkpoint",
}
# What a foreign name means where the right one works differently.
FOREIGN_NOTES = {
    "num_train_epochs": "steps, not epochs: packs x epochs / train.global_batch_size",
    "num_epochs": "steps, not epochs: packs x epochs / train.global_batch_size",
    "epochs": "steps, not epochs: packs x epochs / train.global_batch_size",
    "warmup_ratio": "steps, not a ratio",
    "gradient_accumulation_steps": "packs in a step over all GPUs; accumulation follows from it",
    "output_dir": "places are not params: checkpoints live in runs/<lineage key>, the model in models/final",
    "packing": "always packed; this is the length",
    "sample_packing": "always packed; this is the length",
    "hidden_size": "the geometry is that of the model's weights: choose another model",
    "num_layers": "the geometry is that of the model's weights: choose another model",
    "resume_from_checkpoint": "a stopped run resumes by itself; this names weights to start from",
}

# Keys of version 0.1.0 -> where their value stands now.
RENAMED = {
    "filter.sample": "filter.max_rows",
    "filter.markup": "filter.control_tokens (with as_text for plain)",
    "filter.repetition.density": "filter.repetition.min_repeated_share",
    "filter.repetition.numbered_repeats": "filter.repetition.max_numbered_repeats",
    "filter.repetition.run_chars": "filter.repetition.max_char_run",
    "filter.repetition.counted": "filter.repetition.max_counting_run",
}
# The same for the keys of a source, of the base model and of a benchmark.
RENAMED_IN_SOURCE = {
    "sha256": "at the end of uri, behind #sha256=",
    "revision": "in uri, behind the repository: hf://owner/name@<revision>/path",
    "format": "read, or read.format",
    "fields": "read.fields",
    "where": "read.select",
    "rows": "read.max_rows",
}


def known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """List the dotted names of all keys: `optimizer.lr`; those of what the user names under `fetch.sources.<name>`."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        named = "<name>." if typing.get_origin(field.annotation) is dict else ""
        for part in (field.annotation, *typing.get_args(field.annotation)):  # a section, or a section that may be null
            if isinstance(part, type) and issubclass(part, BaseModel):
                keys += known_keys(part, f"{prefix}{name}.{named}")
    return keys


def suggest(key: str, model: type[BaseModel] | None = None) -> str:
    """Say which key was probably meant by the unknown dotted name `key`; empty if none is near.

    Without a model, the key is one of params.yaml.

    >>> suggest("learning_rate")
    "Did you mean 'optimizer.lr'?"
    >>> suggest("pack.pack_sise")
    "Did you mean 'pack.pack_size'?"
    """
    last = key.rpartition(".")[2]
    known = known_keys(model or _whole())
    if model in (None, _whole()) and last in FOREIGN_NAMES and key not in known:
        note = f" ({FOREIGN_NOTES[last]})" if last in FOREIGN_NOTES else ""
        return f"Did you mean '{FOREIGN_NAMES[last]}'{note}?"
    same_name = [name for name in known if name.rpartition(".")[2] == last]
    near = same_name or difflib.get_close_matches(".".join(_unnamed(key.split("."))), known, n=1, cutoff=0.75)
    near = near or [
        name for name in known if difflib.SequenceMatcher(None, name.rpartition(".")[2], last).ratio() >= 0.75
    ]
    return f"Did you mean '{near[0]}'?" if near else ""


def explain(
    path: Path, text: str, error: ValidationError, model: type[BaseModel], section: tuple[str, ...] = ()
) -> str:
    """Return a line for each fault that a schema found in a YAML file; `section`: the model is that of a section."""
    tree = YAML(typ="safe", pure=True).compose(text)
    lines = [_explain(path, tree, {**fault, "loc": (*section, *fault["loc"])}, model) for fault in error.errors()]
    return "\n".join(dict.fromkeys(lines))


def _whole() -> type[BaseModel]:
    from sft.params.check import Params

    return Params


def _explain(path: Path, tree: Node, fault: Any, model: type[BaseModel]) -> str:
    """Turn one fault that pydantic found into: where, what was found, what was expected, what to do."""
    location = [str(part) for part in fault["loc"] if part != "[key]"]
    key = ".".join(location)
    where = f"{path}:{_line(tree, location)}: {key or path.stem}"
    if fault["type"] == "extra_forbidden":
        if now := _renamed(location, model):
            return f"{where}: a key of version 0.1.0. Its value stands {now} now."
        siblings = ", ".join(_siblings(location, model)) or "none"
        meant = suggest(key, None if _is_of_params(model) else model)
        return f"{where}: unknown key. {meant or f'Known here: {siblings}.'}"
    if fault["type"] == "missing":
        default = " Every key must be given: git show HEAD:params.yaml has the default." if _is_of_params(model) else ""
        return f"{where}: missing.{default}"
    return f"{where}: {fault['msg'].removeprefix('Value error, ')}; found {_short(fault['input'])}."


def _unnamed(location: list[str]) -> list[str]:
    """Put <name> for the name of a source or a benchmark, as known_keys does."""
    is_inside = location[0] == "fetch" and location[1:2] in (["sources"], ["benchmarks"]) and len(location) > 3
    return [*location[:2], "<name>", *location[3:]] if is_inside else location


def _siblings(location: list[str], model: type[BaseModel]) -> list[str]:
    prefix = ".".join(_unnamed(location)[:-1])
    names = [
        name for name in known_keys(_whole() if _is_of_params(model) else model) if name.rpartition(".")[0] == prefix
    ]
    return [name.rpartition(".")[2] for name in names]


def _short(value: Any) -> str:
    shown = repr(value)
    return f"{shown if len(shown) <= 80 else shown[:77] + '...'} ({type(value).__name__})"


def _line(node: Node, location: list[str]) -> int:
    """Find the line of a key in the YAML tree; the nearest parent's where the key itself is absent."""
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
    """Whether a schema is that of params.yaml or of a section of it."""
    return model is _whole() or model in {field.annotation for field in _whole().model_fields.values()}


def _renamed(location: list[str], model: type[BaseModel]) -> str:
    """Say where the value of a key of version 0.1.0 stands now; empty if it is none."""
    if not _is_of_params(model):
        now = getattr(model, "renamed", {}).get(".".join(location))
        return f"in {now}" if now else ""
    if location[0] == "fetch" and location[-1] in RENAMED_IN_SOURCE:
        return RENAMED_IN_SOURCE[location[-1]]
    now = RENAMED.get(".".join(location))
    return f"in {now}" if now else ""
