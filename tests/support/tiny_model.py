"""The smallest real model: what other tests train, export and read instead of a downloaded one."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STORY = (
    "The quick brown fox jumps over the lazy dog while the weather in Paris stays mild. "
    'What is the sum of seven and five? The sum is twelve. {"city": "Paris", "unit": "celsius"} '
    "<think>First look at the tools, then call one.</think> user assistant system tool <tool_call> "
    "<function=get_weather> <parameter=city> Berlin </parameter> </function> </tool_call> "
)
ADDED_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 400
EOS = 2  # <|im_end|>
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(vocabulary: int = VOCABULARY, added: tuple[str, ...] = ADDED_TOKENS) -> Any:
    """Train a byte-level BPE `tokenizers.Tokenizer` on STORY: without torch, the same each time."""
    from sft.rehearse import tiny_model

    return tiny_model.train_tokenizer([STORY], vocabulary, added)


def save_tokenizer(folder: Path) -> None:
    """Write the files of the byte-level BPE tokenizer, with its chat template."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def make_tiny_base(folder: Path, layers: int = 2) -> None:
    """Write a Llama of a few layers and its tokenizer: the same bytes every time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    save_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=EOS,
        pad_token_id=0,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = LlamaForCausalLM(config)
        for weights in model.parameters():
            if weights.ndim == 1:  # norms of exactly 1 would hide a norm left out
                weights.data += 0.01 * torch.randn_like(weights)
    model.save_pretrained(folder)


def write_packs(folder: Path, packs: Sequence[dict[str, Any]], shards: int = 1) -> None:
    """Write packs (input_ids, loss_mask, seq_start_id, and columns of one's own) as pack does, in order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from sft.packing.external_sort import PACK_WRITE_OPTIONS

    types = {
        "input_ids": pa.list_(pa.int32()),
        "loss_mask": pa.list_(pa.uint8()),
        "seq_start_id": pa.list_(pa.int32()),
    }
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(packs) // shards)
    for shard in range(shards):
        rows = packs[shard * size : (shard + 1) * size]
        columns = {name: pa.array([row[name] for row in rows], types.get(name)) for name in rows[0]}
        pq.write_table(pa.table(columns), folder / f"{shard:05d}.parquet", **PACK_WRITE_OPTIONS)


def make_pack(*samples: tuple[list[int], list[int]]) -> dict[str, list[int]]:
    """Pack samples (prompt ids, answer ids): answer and stop token are trained, the mask is shifted once."""
    pack: dict[str, list[int]] = {"input_ids": [], "loss_mask": [], "seq_start_id": []}
    for prompt, answer in samples:
        ids = [*prompt, *answer, EOS]
        trained = [0] * len(prompt) + [1] * (len(answer) + 1)
        pack["seq_start_id"].append(len(pack["input_ids"]))
        pack["input_ids"] += ids
        pack["loss_mask"] += [*trained[1:], 0]
    return pack


def make_packs(count: int, size: int, seed: int) -> list[dict[str, list[int]]]:
    """Make packs of at most `size` tokens that can be learned: every answer counts on from its prompt."""
    draw = random.Random(seed)
    packs = []
    for _ in range(count):
        samples, space = [], size
        while space >= 16:
            prompt = [draw.randrange(300, 380) for _ in range(draw.randrange(3, 8))]
            answer = [prompt[-1] + step for step in range(1, draw.randrange(3, 8))]
            samples.append((prompt, answer))
            space -= len(prompt) + len(answer) + 1
        packs.append(make_pack(*samples))
    return packs


def pack_samples(samples: Sequence[dict[str, Any]], multiple: int, pad_id: int) -> dict[str, Any]:
    """Join samples (ids, mask, and columns of their own) into one pack, as a row of data/packed."""
    import numpy as np

    from sft.packing.write import build_packs

    parts = [
        (place, np.array(sample["ids"], np.int32), np.array(sample["mask"], np.uint8))
        for place, sample in enumerate(samples)
    ]
    lengths = np.array([len(sample["ids"]) for sample in samples])
    columns = build_packs(parts, lengths, np.array([0, len(samples)]), multiple, pad_id).columns()
    row = {name: column.to_pylist()[0] for name, column in columns.items()}
    names = ("conversation_id", "sample", "source", "repeat")
    row |= {name: [sample[name] for sample in samples] for name in names}
    return row | {"window": [sample.get("window", 0) for sample in samples]}


def made_up(number: int) -> list[dict[str, Any]]:
    """Make up the samples of conversation `number`: one or two, each of up to four turns, as prep writes them."""
    drawn = random.Random(number)
    samples = []
    for place in range(drawn.choice([1, 1, 2])):
        ids, mask, ends = [], [], []
        for _ in range(drawn.randint(1, 4)):
            prompt, answer = drawn.randint(1, 20), drawn.randint(1, 12)
            ids += [5 + number] * prompt + [9] * (answer - 1) + [EOS]
            mask += [0] * prompt + [1] * answer
            ends.append(len(ids))
        samples.append({"conversation_id": f"c{number}", "sample": place, "ids": ids, "mask": mask, "turn_ends": ends})
    return samples
