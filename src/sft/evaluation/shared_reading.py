"""Held-out loss and answers of a model that reads each text once.

samples, prompts -> what sft.evaluation.generate's held_out_loss and generate return for them

Most prompts are the start of a sample. The sample is read for its loss, and what attention keeps of it, up to the end
of the prompt, is where the answer starts: on a CPU this saves a third of an evaluation. Values differ from those of
separate passes by rounding at most. A model that keeps anything else (a state, a window) reads its prompts by itself.
"""

import bisect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from sft.evaluation.generate import generate, held_out_loss, segment_loss

ROPES_BY_LENGTH = {"dynamic", "longrope"}
"""Position embeddings that depend on the length of the whole text."""

Sample = tuple[Sequence[int], Sequence[int]]
"""ids and marks, as in sft.evaluation.generate.held_out_loss."""

Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer: (texts, heads, length, head size)."""


def loss_and_answers(
    model: Any, samples: Sequence[Sample], prompts: Sequence[Sequence[int]], **limits: Any
) -> tuple[list[tuple[float, int]], list[list[int]]]:
    """Return the losses of the samples and the answers to the prompts; `limits` are those of generate."""
    if not prompts:
        return held_out_loss(model, samples), []
    if not keeps_all_of_a_text(model):
        return held_out_loss(model, samples), generate(model, prompts, **limits)
    sample_of = find_samples(samples, prompts)
    losses: dict[int, tuple[float, int]] = {}

    def read(batch: Sequence[int]) -> DynamicCache:
        longest = max(len(prompts[prompt]) for prompt in batch) - 1
        starts = []
        for prompt in batch:
            sample = sample_of.get(prompt)
            ids, marks = (prompts[prompt], []) if sample is None else samples[sample]
            cache = DynamicCache(config=model.config)
            loss = segment_loss(model, ids, marks, cache)
            if sample is not None:
                losses[sample] = loss
            cache.crop(len(prompts[prompt]) - 1)  # the last token of the prompt is read with the answer
            starts.append(padded_layers(cache, longest))
        return join(starts, model.config)

    answers = generate(model, prompts, caches=read, **limits)
    rest = [number for number in range(len(samples)) if number not in losses]
    losses |= dict(zip(rest, held_out_loss(model, [samples[number] for number in rest]), strict=True))
    return [losses[number] for number in range(len(samples))], answers


def keeps_all_of_a_text(model: Any) -> bool:
    """Return whether what a model keeps of a text is the start of what it keeps of a longer one."""
    if not model._supports_default_dynamic_cache():  # RWKV: its state is in no cache that generate makes
        return False
    layers = DynamicCache(config=model.config).layers
    rope = getattr(model.config.get_text_config(decoder=True), "rope_parameters", None) or {}
    return bool(layers) and {type(layer) for layer in layers} == {DynamicLayer} and not _by_length(rope)


def _by_length(rope: dict[str, Any]) -> bool:
    """Return whether position embeddings depend on the length; there may be some for each type of layer."""
    return rope.get("rope_type") in ROPES_BY_LENGTH or any(_by_length(n) for n in rope.values() if isinstance(n, dict))


def find_samples(samples: Sequence[Sample], prompts: Sequence[Sequence[int]]) -> dict[int, int]:
    """Return the number of the sample that starts with a prompt, by the number of the prompt; one prompt a sample.

    >>> find_samples([([1, 2, 3], []), ([1, 2, 4], [])], [[1, 2], [1, 2], [3], [1, 2, 4]])
    {0: 0, 1: 1}
    """
    found: dict[int, int] = {}
    free = sorted((list(ids), number) for number, (ids, _) in enumerate(samples))
    for number, prompt in enumerate(map(list, prompts)):
        size, place, matches = len(prompt), bisect.bisect_left(free, (prompt, -1)), list[int]()
        while place < len(free) and free[place][0][:size] == prompt:
            matches += [place] if len(free[place][0]) > size else []
            place += 1
        if matches:
            found[number] = free.pop(min(matches, key=lambda each: free[each][1]))[1]
    return found


def padded_layers(cache: DynamicCache, length: int) -> Layers:
    """Return copies of a cache of one text, padded on the left: the memory of what was cropped is free again."""
    return [(_pad_left(layer.keys, length), _pad_left(layer.values, length)) for layer in cache.layers]


def _pad_left(states: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(states, (0, 0, length - states.shape[2], 0))


def join(texts: Sequence[Layers], config: Any) -> DynamicCache:
    """Return the layers of texts of one length as the cache of a batch."""
    joined = DynamicCache(config=config)
    for number, layers in enumerate(zip(*texts, strict=True)):
        keys, values = (torch.cat(states) for states in zip(*layers, strict=True))
        joined.update(keys, values, number)
    return joined
