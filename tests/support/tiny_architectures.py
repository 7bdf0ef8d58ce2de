"""Tiny models of the architectures that are not a Llama: Nemotron 3 Nano, and attention with experts only."""

import json
from pathlib import Path
from typing import Any

from tests.support import tiny_model as tiny

NANO_CONFIG = Path(__file__).parents[2] / "profiles/models/NVIDIA-Nemotron-3-Nano-30B-A3B-Base-BF16/config.json"
# Nemotron 3 Nano with every kind of layer that it has, 305,000 parameters; a chunk of the scan is 32 tokens.
SHRUNK = {
    "dtype": "float32",
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 64,
    "hybrid_override_pattern": "MEM*EM*E",
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 32,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "ssm_state_size": 16,
    "n_groups": 4,
    "chunk_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 64,
    "max_position_embeddings": 1024,
}
# Latent attention (MLA), experts from the second layer on.
DEEPSEEK = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
IDS = {"bos_token_id": 1, "eos_token_id": tiny.EOS, "pad_token_id": 0}
EMBEDDING_OF_TRANSFORMERS, EMBEDDING_OF_NVIDIA = "backbone.embedding.weight", "backbone.embeddings.weight"


def make_tiny_nano(folder: Path, **changes: Any) -> None:
    """Write a tiny Nemotron 3 Nano as NVIDIA's folders are; `changes` are keys of config.json."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    tiny.save_tokenizer(folder)
    config = {**json.loads(NANO_CONFIG.read_text(encoding="utf-8")), **SHRUNK, **IDS, **changes}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded = AutoConfig.from_pretrained(folder)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(loaded, dtype=torch.float32)
        for name, weight in [*model.named_parameters(), *model.named_buffers()]:
            if weight.ndim == 1 and weight.is_floating_point():  # norms of 1, biases of 0 would hide one left out
                weight += 0.05 * torch.randn_like(weight)
            elif weight.ndim >= 2 and "conv1d" not in name:
                weight *= 3.0  # routing that is decided, states that matter
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    # transformers 5.12.1 renames the embedding when it saves; Megatron-Bridge 0.6.2 does not find that name.
    weights[EMBEDDING_OF_NVIDIA] = weights.pop(EMBEDDING_OF_TRANSFORMERS)
    save_file(weights, file, metadata={"format": "pt"})


def make_tiny_experts(folder: Path) -> None:
    """Write a tiny Qwen 3 with experts in every layer."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    tiny.save_tokenizer(folder)
    config = Qwen3MoeConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        dtype="float32",
        **IDS,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        model = Qwen3MoeForCausalLM(config)
        for weight in model.parameters():
            if weight.ndim == 1:
                weight += 0.05 * torch.randn_like(weight)
            else:
                weight *= 3.0
    model.save_pretrained(folder)
