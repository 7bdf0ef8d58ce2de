"""Greedy answers and held-out loss of a model, with plain transformers.

A Hugging Face folder and token ids -> token ids of answers; sums of negative log likelihood. Transformers rather than
Megatron, because users load the exported folder with it: a fault of the export shows here. Safetensors only, no remote
code, nothing from the network. fp32 on a CPU; the number format of the folder on a GPU. What transformers computes
wrongly is repaired (sft.mamba.load).
"""

import gc
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Cache, GenerationConfig

from sft.cli import InputError, num_threads
from sft.evaluation.grouped_attention import use_grouped_attention
from sft.mamba.load import load_folder
from sft.weight_files import require_model


def load_model(folder: Path, threads: int | None = None) -> Any:
    """Return a causal language model in evaluation mode, on the GPU if there is one; `threads`: None = all cores.

    Raises:  InputError: the folder is missing or holds no safetensors weights.
    """
    require_model(folder)
    torch.set_num_threads(threads or num_threads(len(os.sched_getaffinity(0))))
    on_gpu = torch.cuda.is_available()
    model = load_folder(folder, "auto" if on_gpu else torch.float32)
    model = model.to("cuda" if on_gpu else "cpu").eval()
    use_grouped_attention(model)
    return model


def release_memory() -> None:
    """Free the memory of models that nothing refers to, before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def check_ids(model: Any, ids: Iterable[int], name: str) -> None:
    """Raise InputError unless the model has an embedding for every token id; `name` is the model's, for the message."""
    vocabulary = int(model.get_input_embeddings().num_embeddings)
    largest = max(ids, default=0)
    if largest >= vocabulary:
        raise InputError(
            f"{name}: found token id {largest}, expected less than {vocabulary}, the size of its vocabulary. Its "
            "tokenizer is of another model. Fetch and train again: dvc repro --force fetch-model && dvc repro"
        )


def batches_of(prompts: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Return the numbers of the prompts that are answered together: those of similar length, the longest first."""
    longest_first = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    return [longest_first[start : start + batch_size] for start in range(0, len(prompts), batch_size)]


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    batch_size: int,
    caches: Callable[[Sequence[int]], Cache] | None = None,
) -> list[list[int]]:
    """Return the greedy answer to every prompt, in the order of the prompts.

    An answer ends with one of `stop_ids`, or is cut after `max_new_tokens` and contains none. Prompts of similar length
    share a batch, padded on the left and masked: the batch changes rounding at most. The sampling defaults of the
    model folder are not used. `caches` returns what the model has read of some prompts, by number: all but the last
    token, padded in the same way; None: it has read nothing.
    """
    config = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=list(stop_ids), pad_token_id=stop_ids[0]
    )
    model.generation_config = config
    answers: dict[int, list[int]] = {}
    for batch in batches_of(prompts, batch_size):
        width = max(len(prompts[i]) for i in batch)
        padding = [width - len(prompts[i]) for i in batch]
        rows = [[stop_ids[0]] * pad + list(prompts[i]) for i, pad in zip(batch, padding, strict=True)]
        mask = [[0] * pad + [1] * (width - pad) for pad in padding]
        with torch.inference_mode():
            output = model.generate(
                torch.tensor(rows, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                generation_config=config,
                past_key_values=caches(batch) if caches else None,
            )
        for i, ids in zip(batch, output[:, width:].tolist(), strict=True):
            end = next((place for place, number in enumerate(ids) if number in stop_ids), len(ids))
            answers[i] = ids[: end + 1]
    return [answers[i] for i in range(len(prompts))]


def held_out_loss(model: Any, segments: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, int]]:
    """Return for every segment the sum of the negative log likelihood of its marked labels, and their number.

    A segment is (ids, marks); marks[i] says whether predicting ids[i + 1] counts, as in packed rows, so the last mark
    is 0. Segments run one at a time: no padding, no attention between them. Logits are computed for marked positions
    only: with a large vocabulary they need more memory than anything else.
    """
    return [segment_loss(model, ids, marks) for ids, marks in segments]


def segment_loss(model: Any, ids: Sequence[int], marks: Sequence[int], cache: Cache | None = None) -> tuple[float, int]:
    """Return what held_out_loss returns of one segment; a cache is filled with what the model keeps of it."""
    positions = [i for i, mark in enumerate(marks[: len(ids) - 1]) if mark]
    if not positions and cache is None:
        return 0.0, 0
    row = torch.tensor(ids, device=model.device)
    at = torch.tensor(positions, dtype=torch.long, device=model.device)
    with torch.inference_mode():
        found = model(row[None], use_cache=cache is not None, past_key_values=cache, logits_to_keep=at)
        loss = torch.nn.functional.cross_entropy(found.logits[0].float(), row[at + 1], reduction="none")
    return float(loss.double().sum()), len(positions)
