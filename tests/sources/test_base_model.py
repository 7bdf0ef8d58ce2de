"""The base model: one layout whatever was fetched, and markers that split text in the same way everywhere."""

import errno
import json
import shutil
import struct
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sft.cli import InputError
from sft.hashing import folder_digests
from sft.sources.base_model import (
    MARKERS,
    _NamingFile,
    check_base,
    isolate_markers,
    make_base,
    split_digits,
    without_byte_fallback,
)
from sft.weight_files import count_parameters

TEXT = "The quick <think> brown > fox < jumps over >\n\nthe lazy dog. <tool_call> {1: 22} think tool_call "


def build_tokenizer(*tokens: str) -> dict[str, Any]:
    """A byte-level BPE tokenizer, as in GGUF files; `tokens` are added to its vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", *tokens],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    found: dict[str, Any] = json.loads(tokenizer.to_str())
    return found


PLAIN = Tokenizer.from_str(json.dumps(build_tokenizer()))
ISOLATED = Tokenizer.from_str(json.dumps(isolate_markers(build_tokenizer())))
PIECES = st.lists(st.sampled_from([*MARKERS, "<", ">", "</", "think>", " ", "\n", "a", "é", "dog. "]), max_size=12)


@given(st.text(max_size=40) | PIECES.map("".join))
def test_text_without_a_marker_keeps_its_ids(text: str) -> None:
    if not any(marker in text for marker in MARKERS):
        assert ISOLATED.encode(text).ids == PLAIN.encode(text).ids


@given(before=st.text(max_size=20), marker=st.sampled_from(MARKERS), after=st.text(max_size=20))
def test_a_marker_cuts_the_text_as_if_its_sides_were_alone(before: str, marker: str, after: str) -> None:
    parts = [ISOLATED.encode(part).ids for part in (before, marker, after)]
    if not any(other in before + marker[0] or other in marker[-1] + after for other in MARKERS):
        assert ISOLATED.encode(before + marker + after).ids == list(chain.from_iterable(parts))


def test_without_isolation_a_marker_melts_into_its_neighbours() -> None:
    whole = PLAIN.encode("over <think>\n\nthe").ids
    parts = [PLAIN.encode(part).ids for part in ("over ", "<think>", "\n\nthe")]
    assert whole != list(chain.from_iterable(parts))


@given(PIECES.map("".join))
def test_every_text_survives_the_round_trip(text: str) -> None:
    assert ISOLATED.decode(ISOLATED.encode(text).ids) == text


def test_the_vocabulary_does_not_change_and_doing_it_twice_changes_nothing() -> None:
    before = build_tokenizer()
    after = isolate_markers(before)
    assert after["model"] == before["model"]
    assert after["added_tokens"] == before["added_tokens"]
    assert after["pre_tokenizer"]["pretokenizers"][0]["type"] == "Split"
    assert isolate_markers(after) == after


def test_markers_that_are_tokens_are_left_alone() -> None:
    whole = build_tokenizer(*MARKERS)
    assert isolate_markers(whole) == whole
    some = isolate_markers(build_tokenizer("<think>", "</think>"))
    assert "think" not in some["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    assert "<tool_call>" in some["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]


def test_a_tokenizer_that_puts_spaces_in_front_of_pieces_is_left_alone() -> None:
    spaced = build_tokenizer()
    spaced["pre_tokenizer"]["add_prefix_space"] = True
    assert isolate_markers(spaced) == spaced


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in Hugging Face's layout."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("published")
    fast = PreTrainedTokenizerFast(tokenizer_object=PLAIN, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = "{{ messages }}"
    fast.save_pretrained(folder)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(fast), eos_token_id=2, bos_token_id=1, tie_word_embeddings=True, **shape)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory, published: Path) -> Path:
    """The same model as a GGUF file."""
    from gguf import GGUFWriter, TokenType
    from safetensors.numpy import load_file

    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    config = json.loads((published / "config.json").read_text())
    tokenizer = json.loads((published / "tokenizer.json").read_text())
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(1)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages }}")
    names = {
        "embed_tokens": "token_embd",
        "norm": "output_norm",
        "input_layernorm": "blk.0.attn_norm",
        "post_attention_layernorm": "blk.0.ffn_norm",
        "q_proj": "blk.0.attn_q",
        "k_proj": "blk.0.attn_k",
        "v_proj": "blk.0.attn_v",
        "o_proj": "blk.0.attn_output",
        "gate_proj": "blk.0.ffn_gate",
        "up_proj": "blk.0.ffn_up",
        "down_proj": "blk.0.ffn_down",
    }
    for name, tensor in load_file(published / "model.safetensors").items():
        writer.add_tensor(f"{names[name.split('.')[-2]]}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file.parent


def test_a_published_folder_is_taken_as_it_is_but_for_the_markers(published: Path, tmp_path: Path) -> None:
    make_base(published, tmp_path)
    before, after = folder_digests(published), folder_digests(tmp_path)
    assert {name for name in before | after if before.get(name) != after.get(name)} == {"tokenizer.json"}
    parameters = count_parameters(tmp_path)
    # embedding, four attention and three feed-forward matrices, three norms
    assert parameters == len(json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]) * 32 + (
        4 * 32 * 32 + 3 * 32 * 64 + 3 * 32
    )


@pytest.mark.parametrize("links", [True, False])
def test_weights_take_no_more_space_where_files_can_have_two_names(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("Operation not permitted")

    if not links:
        monkeypatch.setattr("os.link", fail)
    source = shutil.copytree(published, tmp_path / "in")
    (tmp_path / "out").mkdir()
    make_base(source, tmp_path / "out")
    shared = [name for name in folder_digests(source) if (source / name).samefile(tmp_path / "out" / name)]
    assert shared == (["model.safetensors"] if links else [])
    assert (tmp_path / "out/model.safetensors").read_bytes() == (published / "model.safetensors").read_bytes()


def test_what_transformers_loads_cuts_at_the_markers(published: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    make_base(published, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "over <think>\n\nthe"
    assert loaded(text)["input_ids"] == ISOLATED.encode(text).ids
    assert loaded.eos_token == "<|im_end|>"
    assert loaded.chat_template == "{{ messages }}"


def test_a_gguf_file_becomes_a_folder_that_transformers_loads_with_the_right_end(gguf: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    make_base(gguf, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.float32
    assert (tokenizer.eos_token, tokenizer.eos_token_id, model.config.eos_token_id) == ("<|im_end|>", 2, 2)
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == 2
    assert (tmp_path / "chat_template.jinja").read_text() == "{{ messages }}"
    assert tokenizer("over <think>\n\nthe")["input_ids"] == ISOLATED.encode("over <think>\n\nthe").ids


def test_a_tokenizer_of_bytes_is_not_taken_for_sentencepiece(gguf: Path, tmp_path: Path) -> None:
    make_base(gguf, tmp_path)
    written = json.loads((tmp_path / "tokenizer.json").read_text())
    assert (written["model"]["byte_fallback"], written["decoder"]["type"]) == (False, "ByteLevel")
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["clean_up_tokenization_spaces"] is False
    as_loaded = {
        **written,
        "model": {**written["model"], "byte_fallback": True},
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}, written["decoder"]]},
    }
    new, old = (Tokenizer.from_str(json.dumps(settings)) for settings in (written, as_loaded))
    for text in ("over the fox", "\u65e5\u672c\u8a9e \u2581 <0x0A> \x00", "<think>x</think> , ."):
        ids = new.encode(text).ids
        assert ids == old.encode(text).ids
        assert new.decode(ids) == old.decode(ids) == text


def test_a_tokenizer_of_sentencepiece_stays_as_it_is() -> None:
    sentencepiece = {"pre_tokenizer": None, "model": {"byte_fallback": True}, "decoder": {"type": "Sequence"}}
    assert without_byte_fallback(sentencepiece) == sentencepiece


def test_a_gguf_file_gives_the_same_bytes_twice_and_names_no_folder(gguf: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        make_base(gguf, tmp_path / name)
    assert len(folder_digests(tmp_path / "one")) >= 5
    assert folder_digests(tmp_path / "one") == folder_digests(tmp_path / "two")
    for path in (tmp_path / "one").glob("*.json"):
        assert str(tmp_path) not in path.read_text()
        assert str(gguf) not in path.read_text()


def changed(published: Path, folder: Path, name: str, **values: Any) -> Path:
    shutil.copytree(published, folder)
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **values}))
    return folder


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "deep/weights.pkl"])
def test_pickled_weights_are_refused_by_name(published: Path, tmp_path: Path, name: str) -> None:
    source = shutil.copytree(published, tmp_path / "in")
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).write_bytes(b"")
    with pytest.raises(InputError, match=rf"fetch\.model: {Path(name).name}: "):
        make_base(source, tmp_path / "out")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"fetch\.model: .*notes\.txt"):
        make_base(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_folder_without_its_tokenizer_is_refused(published: Path, tmp_path: Path, name: str) -> None:
    source = shutil.copytree(published, tmp_path / "in")
    (source / name).unlink()
    with pytest.raises(InputError, match=f"fetch.model: {name} "):
        make_base(source, tmp_path / "out")


def test_an_end_that_is_no_token_is_refused(published: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json: eos_token_id 9999"):
        check_base(changed(published, tmp_path / "in", "config.json", eos_token_id=9999))
    with pytest.raises(InputError, match="eos_token_id None"):
        check_base(changed(published, tmp_path / "none", "config.json", eos_token_id=None))


def test_a_full_disk_is_not_taken_for_a_damaged_file() -> None:
    with pytest.raises(OSError, match="No space") as caught, _NamingFile("m.gguf"):
        raise OSError(errno.ENOSPC, "No space left")
    assert not isinstance(caught.value, InputError)


def test_a_tokenizer_of_another_model_is_refused(published: Path, tmp_path: Path) -> None:
    source = shutil.copytree(published, tmp_path / "in")
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    added = [{**tokenizer["added_tokens"][0], "id": 5000, "content": "<|extra|>"}]
    (source / "tokenizer.json").write_text(json.dumps({**tokenizer, "added_tokens": tokenizer["added_tokens"] + added}))
    with pytest.raises(InputError, match="embedding"):
        check_base(source)


NO_FIELDS = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)
NAME = b"general.architecture"
OF_TOMORROW = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, len(NAME)) + NAME + struct.pack("<IQ", 8, 5) + b"nova9"


@pytest.mark.parametrize(
    "content",
    [b"", b"GGUF", b"GGUF" + b"\xff" * 99, b"GGUF\3\0\0\0" + b"\1" * 99, NO_FIELDS, OF_TOMORROW],
    ids=["empty", "magic", "ones", "counts", "no fields", "unknown architecture"],
)
def test_a_damaged_or_unknown_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/m.gguf").write_bytes(content)
    with pytest.raises(InputError, match=r"fetch\.model: m\.gguf: "):
        make_base(tmp_path / "in", tmp_path / "out")


def test_more_layers_than_there_are_tensors_are_refused_before_they_are_built(published: Path, tmp_path: Path) -> None:
    source = changed(published, tmp_path / "in", "config.json", num_hidden_layers=10**9)
    with pytest.raises(InputError, match=r"num_hidden_layers: 1,000,000,000, but .* tensors"):
        check_base(source)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", '{"added_tokens": [{"x": 1}], "model": null}'),
        ("tokenizer.json", '{"version": "9.0", "added_tokens": [], "model": {"type": "OfTomorrow"}}'),
        ("tokenizer_config.json", "[]"),
        ("config.json", "[]"),
        ("config.json", '{"model_type": "of tomorrow"}'),
        ("config.json", '{"model_type": "llama", "hidden_size": "x"}'),
        ("config.json", '{"model_type": "llama", "dtype": false, "eos_token_id": 2}'),
    ],
)
def test_a_model_that_cannot_be_read_is_an_error_that_names_the_file(
    published: Path, tmp_path: Path, name: str, content: str
) -> None:
    source = shutil.copytree(published, tmp_path / "in")
    (source / name).write_text(content)
    with pytest.raises(InputError, match=rf"fetch\.model: .*{name}.*: "):
        make_base(source, tmp_path / "out")


def test_damaged_weights_are_refused(published: Path, tmp_path: Path) -> None:
    source = shutil.copytree(published, tmp_path / "in")
    (source / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(InputError, match=r"fetch\.model: .*model\.safetensors: "):
        check_base(source)


def test_split_digits_gives_blanks_before_a_number_the_tokens_they_have_before_a_word():
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer, plain.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    trainer = trainers.BpeTrainer(
        vocab_size=300, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    plain.train_from_iterator(["a\n\n"] * 9, trainer)
    apart = Tokenizer.from_str(json.dumps(split_digits(json.loads(plain.to_str()))))
    assert apart.encode("a\n\n12").tokens == ["a", "\u010a\u010a", "1", "2"]
    assert plain.encode("a\n\n12").tokens == ["a", "\u010a", "\u010a", "1", "2"]
    assert apart.decode(apart.encode("a\n\n12").ids) == "a\n\n12"
