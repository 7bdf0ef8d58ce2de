"""A base model without a chat template gets ours: tokens, rows, stop token; packs of it have an exact mask."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, processors

from sft.chat_files import stop_ids
from sft.cli import InputError
from sft.hashing import folder_digests
from sft.planning.untrained_tokens import untrained_control_tokens
from sft.sources.base_model import make_base
from sft.tokens.render import ChatTemplate
from tests.support.tiny_model import train_tokenizer

TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "What is the sum?"},
    {"role": "assistant", "content": "", "reasoning_content": "Look.", "tool_calls": [CALL]},
    {"role": "tool", "content": "12", "tool_call_id": "c"},
    {"role": "assistant", "content": "Twelve."},
]
TRAINED = (
    "Look.\n</think>\n<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>\n<|im_end|>",
    "Twelve.<|im_end|>",
)


def published(folder: Path, added: tuple[str, ...], rows: int, *, tied: bool, family: str, **save: Any) -> Path:
    """Write a base model without a chat template, whose first added token ends a text and whose second begins it."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    tokenizer: Tokenizer = train_tokenizer(400, added)
    if family == "llama":
        tokenizer.post_processor = processors.TemplateProcessing(f"{added[1]} $A", special_tokens=[(added[1], 1)])
    names = {"bos_token": added[1]} if family == "llama" else {}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=added[0], **names).save_pretrained(folder)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    shape |= {"vocab_size": rows, "eos_token_id": 0, "bos_token_id": 1, "tie_word_embeddings": tied}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = LlamaForCausalLM(LlamaConfig(**shape)) if family == "llama" else Qwen2ForCausalLM(Qwen2Config(**shape))
    model.to(torch.bfloat16 if family == "llama" else torch.float32).save_pretrained(folder, **save)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untied, in BF16, in several shards, as many rows as tokens, BOS in front of each text."""
    folder = tmp_path_factory.mktemp("llama")
    return published(folder, ("<eos>", "<bos>"), 400, tied=False, family="llama", max_shard_size="20KB")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tied, in FP32, in one file, with more rows than tokens, and <|im_start|> among them."""
    folder = tmp_path_factory.mktemp("qwen")
    return published(folder, ("<|endoftext|>", "<|im_start|>"), 512, tied=True, family="qwen")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


@pytest.mark.parametrize(
    ("family", "new", "rows"),
    [("llama", {"<|im_start|>": 400, "<|im_end|>": 401}, 512), ("qwen", {"<|im_end|>": 400}, 512)],
)
def test_new_tokens_get_the_mean_row_and_everything_else_keeps_its_bytes(
    request: pytest.FixtureRequest, tmp_path: Path, family: str, new: dict[str, int], rows: int
) -> None:
    source = request.getfixturevalue(family)
    fetched = shutil.copytree(source, tmp_path / "fetched")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        added = make_base(fetched, tmp_path / name)
    assert (added["new_tokens"], added["embedding_rows"]) == (new, rows)
    assert folder_digests(tmp_path / "one") == folder_digests(tmp_path / "two")
    assert folder_digests(fetched) == folder_digests(source)  # also where a file has two names
    before, after = tensors(source), tensors(tmp_path / "one")
    assert before.keys() == after.keys()
    grown = {name for name in before if not torch.equal(before[name], after[name][: len(before[name])])}
    vocabulary = {"model.embed_tokens.weight", "lm_head.weight"} & before.keys()
    assert grown | {name for name in before if before[name].shape != after[name].shape} == vocabulary
    for name in vocabulary:
        expected = torch.from_numpy(before[name][:400].double().numpy().mean(axis=0)).to(before[name].dtype)
        assert torch.equal(after[name][:400], before[name][:400])
        assert torch.equal(after[name][400:], expected.expand(rows - 400, -1))
    same = [path.name for path in fetched.glob("*.safetensors") if path.samefile(tmp_path / "one" / path.name)]
    assert len(same) == len([*fetched.glob("*.safetensors")]) - len(vocabulary)


def test_transformers_loads_it_and_it_stops_at_the_new_token(llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    make_base(llama, tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (len(tokenizer), model.config.vocab_size, model.lm_head.weight.shape[0]) == (402, 512, 512)
    assert (tokenizer.eos_token, GenerationConfig.from_pretrained(tmp_path).eos_token_id) == ("<|im_end|>", [401, 0])
    prompt = tokenizer.apply_chat_template(MESSAGES[:1], add_generation_prompt=True, return_dict=False)
    assert prompt[:2] == [1, 400]  # BOS, <|im_start|>
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["metadata"]["total_size"]
    assert index == sum(value.numel() * value.element_size() for value in tensors(tmp_path).values())


@pytest.mark.parametrize("family", ["llama", "qwen"])
@pytest.mark.parametrize("template", ["templates/nano3.jinja", None])
def test_the_mask_is_exact_and_adapters_know_what_is_untrained(
    request: pytest.FixtureRequest, tmp_path: Path, family: str, template: str | None
) -> None:
    make_base(request.getfixturevalue(family), tmp_path)
    chat = ChatTemplate.load(template or str(tmp_path / "chat_template.jinja"), tmp_path)
    rendered = chat.render_samples(MESSAGES, TOOLS)
    assert isinstance(rendered, list)
    texts = []
    for sample in chat.encode(rendered):
        ids, mask = np.array(sample.ids), np.array(sample.mask)  # type: ignore[union-attr]
        starts = [0, *np.flatnonzero(np.diff(mask)) + 1]
        texts += [
            chat.decode(ids[a:b].tolist()) for a, b in zip(starts, [*starts[1:], len(ids)], strict=True) if mask[a]
        ]
        assert (ids[0] == 1) == (family == "qwen" or template is None)  # <|im_start|> of Qwen, BOS of Llama
    assert texts == list(TRAINED)
    assert stop_ids(tmp_path)[0] == chat.stop_id
    untrained = untrained_control_tokens(tmp_path, tmp_path / "chat_template.jinja")
    assert untrained == ((), ("<|im_start|>", "<|im_end|>") if family == "llama" else ("<|im_end|>",))


def test_a_model_with_a_template_stays_as_it_is(qwen: Path, tmp_path: Path) -> None:
    source = shutil.copytree(qwen, tmp_path / "in")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "out").mkdir()
    assert make_base(source, tmp_path / "out") == {}
    assert (source / "model.safetensors").samefile(tmp_path / "out/model.safetensors")


def test_a_tokenizer_of_another_kind_says_how_to_convert_it(qwen: Path, tmp_path: Path) -> None:
    source = shutil.copytree(qwen, tmp_path / "in")
    (source / "tokenizer.json").rename(source / "tokenizer.model")
    (tmp_path / "out").mkdir()
    with pytest.raises(
        InputError, match=r"tokenizer\.json is missing.*tokenizer\.model is not read.*\n.*save_pretrained"
    ):
        make_base(source, tmp_path / "out")


def test_ids_that_the_vocabulary_does_not_use_are_refused(qwen: Path, tmp_path: Path) -> None:
    source = shutil.copytree(qwen, tmp_path / "in")
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    last = max(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    tokenizer["model"]["vocab"][last] = 450
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=r"tokenizer\.json: .*<\|im_end\|>"):
        make_base(source, tmp_path / "out")
