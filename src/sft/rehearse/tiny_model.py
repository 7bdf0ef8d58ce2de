"""A model as a config.json describes it, with few and small layers, random weights and a tokenizer of its own.

`shrink` keeps the class, every kind of layer and every switch of the config, and changes sizes only.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Sizes of a tiny model, by their names in config.json; a config gets those that it has.
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    # Experts.
    "n_routed_experts": 8,
    "num_experts": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 64,
    # Mamba layers.
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "ssm_state_size": 16,
    "n_groups": 4,
}
CHUNK = 32
"""Tokens of a chunk of a Mamba layer; configs name it only if it is not the default, 128."""
PATTERN = "hybrid_override_pattern"
PATTERN_OF_NANO = "MEM*EM*E"
"""Layers of a tiny Nemotron 3 Nano: each kind twice or more, so that a pipeline stage has every kind."""
CONTROL_TOKEN = re.compile(r"<\|[^|<>\s]+\|>|</?(?:think|tool_call|tool_response)>")
END_OF_ANSWER = re.compile(r"im_end|end_of_turn|eot|end")
PADDING = "<|endoftext|>"
EMBEDDING_OF_TRANSFORMERS, EMBEDDING_OF_NVIDIA = "backbone.embedding.weight", "backbone.embeddings.weight"
SEED = 7


def shrink(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json with the sizes of a tiny model, in fp32, and with every kind of layer that it has.

    >>> shrink({"hidden_size": 4096, "num_hidden_layers": 3, "layer_types": ["window", "window", "full"], "act": "x"})
    {'hidden_size': 64, 'num_hidden_layers': 4, 'layer_types': ['window', 'full', 'window', 'full'], 'act': 'x', \
'dtype': 'float32'}
    """
    tiny = {name: SIZES.get(name, value) for name, value in config.items()}
    if PATTERN in config:
        kinds = "".join(dict.fromkeys(config[PATTERN]))
        tiny[PATTERN] = PATTERN_OF_NANO if set(kinds) == set(PATTERN_OF_NANO) else kinds * 2
        tiny["num_hidden_layers"] = len(tiny[PATTERN])
        tiny["chunk_size"] = CHUNK
    for name, value in config.items():
        if isinstance(value, list) and len(value) == config.get("num_hidden_layers"):  # a value for each layer
            values = list(dict.fromkeys(value))
            tiny[name] = [values[layer % len(values)] for layer in range(tiny["num_hidden_layers"])]
    tiny.pop("torch_dtype", None)
    return {**tiny, "dtype": "float32"}


def control_tokens(template: str) -> list[str]:
    """Return the control tokens that a chat template writes.

    >>> control_tokens("<|im_start|>{{ role }}<think></think>{{ text }}<|im_end|>{{ '<b>' }}")
    ['<|im_start|>', '<think>', '</think>', '<|im_end|>']
    """
    return list(dict.fromkeys(CONTROL_TOKEN.findall(template)))


def train_tokenizer(texts: Iterable[str], vocabulary: int, added: Iterable[str]) -> Any:
    """Train a byte-level BPE `tokenizers.Tokenizer`: without torch, the same each time. `added` get the first ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(added),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_tokenizer(folder: Path, texts: Iterable[str], vocabulary: int, control: list[str]) -> dict[str, int]:
    """Write a tokenizer whose added tokens are `control` and one for padding; return the ids that config.json names.

    The first control token whose name says that it ends an answer does.
    """
    from transformers import PreTrainedTokenizerFast

    added = list(dict.fromkeys([PADDING, *control]))
    stop = next((token for token in control if END_OF_ANSWER.search(token)), PADDING)
    tokenizer = train_tokenizer(texts, vocabulary, added)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=stop, pad_token=PADDING)
    fast.save_pretrained(folder)
    return {"bos_token_id": added.index(stop), "eos_token_id": added.index(stop), "pad_token_id": 0}


def write_model(folder: Path, config: dict[str, Any]) -> None:
    """Write config.json and random weights, with the names of tensors that the publisher uses."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()  # a warning that it computes without kernels
    logging.disable_progress_bar()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded = AutoConfig.from_pretrained(folder)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(SEED)
        model = AutoModelForCausalLM.from_config(loaded, dtype=torch.float32)
        for name, weight in [*model.named_parameters(), *model.named_buffers()]:
            if weight.ndim == 1 and weight.is_floating_point():  # norms of 1, biases of 0 would hide one left out
                weight += 0.05 * torch.randn_like(weight)
            elif weight.ndim >= 2 and "conv1d" not in name:
                weight *= 3.0  # routing that is decided, states that matter
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    if EMBEDDING_OF_TRANSFORMERS in weights:  # transformers 5.12.1 renames it, Megatron-Bridge 0.6.2 does not find it
        weights[EMBEDDING_OF_NVIDIA] = weights.pop(EMBEDDING_OF_TRANSFORMERS)
        save_file(weights, file, metadata={"format": "pt"})
