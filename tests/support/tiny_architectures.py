"""Tiny models of the architectures that are not a Llama: Nemotron 3 Nano, and attention with experts only."""

import json
from pathlib import Path
from typing import Any

from sft.rehearse.tiny_model import shrink, write_model
from tests.support import tiny_model as tiny

NANO_CONFIG = Path(__file__).parents[2] / "profiles/models/NVIDIA-Nemotron-3-Nano-30B-A3B-Base-BF16/config.json"
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


def make_tiny_nano(folder: Path, **changes: Any) -> None:
    """Write a tiny Nemotron 3 Nano (305,000 parameters) as NVIDIA's folders are; `changes` are keys of config.json."""
    tiny.save_tokenizer(folder)
    config = json.loads(NANO_CONFIG.read_text(encoding="utf-8"))
    write_model(folder, {**shrink(config), "vocab_size": tiny.VOCABULARY, **IDS, **changes})


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
