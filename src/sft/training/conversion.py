"""What passes between a Hugging Face folder and a Megatron model: every tensor, each in its number format.

Megatron-Bridge 0.6.2 logs a warning where a parameter finds no tensor, leaves its weights random, and exports all
tensors in one format (docs/known-issues.md: missing-tensor, one-format).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from sft.cli import InputError
from sft.weight_files import stored_tensors

ROUTER_BIAS = re.compile(r"\b(e_score_correction_bias|expert_bias)$")
"""Tensors that choose experts: always FP32, because BF16 rounds their small differences away."""
NOT_PARAMETERS = re.compile(r"\brotary_emb\.inv_freq$")
"""Tensors of old folders that a model computes itself."""
FORMATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
NAMES_IN_MESSAGE = 3


def tensor_formats(folder: Path) -> dict[str, torch.dtype]:
    """Return the number format of every floating-point tensor of a Hugging Face folder, FP32 for router biases."""
    return {
        name: torch.float32 if ROUTER_BIAS.search(name) else FORMATS[tensor.format]
        for name, tensor in stored_tensors(folder).items()
        if tensor.format in FORMATS
    }


def in_formats(
    tensors: Iterable[tuple[str, torch.Tensor]], formats: dict[str, torch.dtype]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors in the given formats; a tensor without one stays as it is."""
    for name, tensor in tensors:
        yield name, tensor.to(formats.get(name, tensor.dtype))


def save_weights(bridge: Any, model: Any, folder: Path, base: Path) -> None:
    """Write a Megatron model's weights as safetensors, in the shards and formats of `base`, a tensor at a time."""
    source, formats = bridge.hf_pretrained.state.source, tensor_formats(base)
    save_generator = source.save_generator
    source.save_generator = lambda tensors, *values, **options: save_generator(
        in_formats(tensors, formats), *values, **options
    )
    bridge.save_hf_weights(model, folder, show_progress=False)


def check_complete(bridge: Any, model: Any) -> None:
    """Raise InputError unless every parameter of a model has its tensor in the base and every tensor its parameter."""
    converter, source = bridge._model_bridge, bridge.hf_pretrained.state.source
    tensors = set(source.get_all_keys())
    tasks = converter.build_conversion_tasks(bridge.hf_pretrained, model)
    without: list[str] = []
    taken: set[str] = set()
    for task in tasks:
        if task is None:
            raise AssertionError("Megatron-Bridge has no name in Hugging Face for a parameter of the model")
        names = [task.mapping.hf_param] if isinstance(task.mapping.hf_param, str) else task.mapping.hf_param.values()
        taken.update(names)
        if task.megatron_module is None:
            without += [name for name in names if name not in tensors]
    if converter._share_embeddings_and_output_weights(model[0].config):
        lookup = converter.mapping_registry().megatron_to_hf_lookup
        embedding, output = (lookup(name) for name in ("embedding.word_embeddings.weight", "output_layer.weight"))
        if output is not None:
            taken.add(output.hf_param)
            if embedding is not None and {embedding.hf_param, output.hf_param} <= tensors:
                check_tied(source, embedding.hf_param, output.hf_param)
    unused = sorted(name for name in tensors - taken if not NOT_PARAMETERS.search(name))
    if without or unused:
        faults = [f"{kind} {_some(names)}" for kind, names in (("has no", without), ("has unknown", unused)) if names]
        raise InputError(
            f"models/base/*.safetensors: {', and '.join(faults)}: Megatron-Bridge expects each tensor of a model under "
            "its name and no other, or weights stay random (docs/known-issues.md, missing-tensor). Fetch a folder with "
            "the names that the model's publisher uses."
        )


def check_tied(source: Mapping[str, torch.Tensor], embedding: str, output: str) -> None:
    """Raise InputError if a model that shares its embeddings with the output layer has another output layer."""
    if not torch.equal(source[embedding], source[output]):
        raise InputError(
            f"models/base/*.safetensors: {output} differs from {embedding}, but config.json says that they are one "
            "(tie_word_embeddings): the first would be lost. If the model was trained with both, set "
            "tie_word_embeddings to false in its config.json; or else remove the tensor."
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_IN_MESSAGE} more" if len(names) > NAMES_IN_MESSAGE else ""
    return ", ".join(sorted(names)[:NAMES_IN_MESSAGE]) + more
