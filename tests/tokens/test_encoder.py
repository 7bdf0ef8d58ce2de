"""Encoder: the ids and places of the reference; the faster tokenizer only if it gives the same."""

import itertools
import json
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from sft.tokens.encoder import Encoder, _with_text_merges, make_spec, probes, token_bytes
from tests.support.tokenizers import write_tokenizer


def settings_of(folder, **changes):
    return json.loads((write_tokenizer(folder) / "tokenizer.json").read_text()) | {"post_processor": None} | changes


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    return Encoder(make_spec(settings_of(tmp_path_factory.mktemp("bytes"))))


@pytest.fixture(scope="module")
def normalizing(tmp_path_factory):
    """Writes é as two characters, so its tokens hold other bytes than the text."""
    return Encoder(make_spec(settings_of(tmp_path_factory.mktemp("nfd"), normalizer={"type": "NFD"})))


@pytest.fixture(params=["byte_level", "normalizing"])
def encoder(request):
    return request.getfixturevalue(request.param)


TEXTS = st.lists(
    st.one_of(
        st.text(max_size=12), st.sampled_from(["the sum ", "é", "e\u0301", "👩\u200d👧", "  \n", "12345", "\x00"])
    ),
    max_size=8,
).map("".join)


def offsets(encoder, text):
    return encoder.reference.encode(text, add_special_tokens=False).offsets


@settings(max_examples=300)
@given(TEXTS)
def test_ranges_are_those_of_the_reference(byte_level, normalizing, text):
    for encoder in (byte_level, normalizing):
        assert encoder.token_ranges(text) == offsets(encoder, text)
        assert [encoder.token_ranges(text, most) for most in (0, 1, 3)] == [
            offsets(encoder, text)[:most] for most in (0, 1, 3)
        ]
        assert encoder.count(text) == len(offsets(encoder, text))


@settings(max_examples=300)
@given(st.lists(TEXTS, min_size=1, max_size=4), st.data())
def test_an_edge_is_that_of_the_reference_or_names_the_token_that_spans_it(byte_level, normalizing, texts, data):
    wanted = {
        index: data.draw(st.integers(1, len(text)))
        for index, text in enumerate(texts)
        if text and data.draw(st.booleans())
    }
    for encoder in (byte_level, normalizing):
        ids, sizes = encoder.encode(texts)
        edges = encoder.token_edges(texts, ids, sizes, wanted)
        assert edges.keys() == wanted.keys()
        for index, place in wanted.items():
            tokens, cut = edges[index]
            before = [start for start, _ in offsets(encoder, texts[index]) if start < place]
            across = [texts[index][a:b] for a, b in offsets(encoder, texts[index]) if a < place < b]
            assert tokens == len(before)
            assert bool(cut) == bool(across)
            assert not across or cut == across[0]


def test_bytes_of_tokens_are_known_where_text_is_kept_as_it_is(tmp_path):
    settings = settings_of(tmp_path)
    known = token_bytes(settings)
    assert known[settings["model"]["vocab"]["Ġthe"]] == 4
    assert known[2] == len("<|im_end|>")
    for change in (
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "Metaspace"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
        {"model": settings["model"] | {"byte_fallback": True}},
        {"model": settings["model"] | {"end_of_word_suffix": "</w>"}},
    ):
        assert token_bytes(settings | change) is None, change
    split = {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, settings["pre_tokenizer"]]}
    assert token_bytes(settings | {"pre_tokenizer": split}) is not None


def test_merges_as_text_are_the_same_merges(tmp_path):
    settings = settings_of(tmp_path)
    texts = [*probes(), "the # sum ## of #### all"]
    encoder, plain = Encoder(make_spec(settings)), Tokenizer.from_str(json.dumps(settings))
    merges = settings["model"]["merges"]
    assert _with_text_merges(settings["model"])["merges"] == [" ".join(pair) for pair in merges] != merges
    expected = [plain.encode(text, add_special_tokens=False).ids for text in texts]
    assert np.array_equal(encoder.encode(texts)[0], list(itertools.chain.from_iterable(expected)))


@pytest.mark.parametrize("merge", [["a b", "c"], ["#version", "c"], ["", " "]])
def test_merges_that_text_would_change_stay_pairs(merge):
    model = {"merges": [["a", "b"], merge]}
    assert _with_text_merges(model) == model
    assert _with_text_merges({"merges": [["a", "b"]]}) == {"merges": ["a b"]}
    assert [_with_text_merges(each) for each in ({}, {"merges": []}, {"merges": ["a b"]})] == [
        {},
        {"merges": []},
        {"merges": ["a b"]},
    ]


def test_the_faster_tokenizer_is_used_where_its_ids_are_the_same(tmp_path):
    settings, texts = settings_of(tmp_path), [*probes(), "What is the sum of seven and five?"]
    plain, encoder = Encoder(make_spec(settings)), Encoder(make_spec(settings), fast=True)
    assert (plain.is_fast, encoder.is_fast) == (False, True)
    assert [part.tolist() for part in encoder.encode(texts)] == [part.tolist() for part in plain.encode(texts)]
    assert [part.tolist() for part in encoder.encode([])] == [[], []]
    assert encoder.matches_reference(texts)


@pytest.mark.parametrize("wrong", ["an id", "an end", "unsupported"])
def test_a_faster_tokenizer_that_is_wrong_or_unsupported_is_not_used(tmp_path, monkeypatch, wrong):
    import fastokens

    settings = settings_of(tmp_path)
    right = fastokens.Tokenizer.from_json_str(json.dumps(settings))

    def encode_batch_flat(texts):
        ids, ends = right.encode_batch_flat(texts)
        return (ids[:-4] + b"\x01\0\0\0", ends) if wrong == "an id" else (ids, ends[:-8] + ends[-16:-8])

    def from_json_str(text):
        if wrong == "unsupported":
            raise ValueError("unsupported model")
        return types.SimpleNamespace(encode_batch_flat=encode_batch_flat)

    monkeypatch.setattr(fastokens, "Tokenizer", types.SimpleNamespace(from_json_str=from_json_str))
    expected = [part.tolist() for part in Encoder(make_spec(settings)).encode(["the sum"])]
    encoder = Encoder(make_spec(settings), fast=True)
    assert not encoder.is_fast
    assert [part.tolist() for part in encoder.encode(["the sum"])] == expected


def test_probes_are_many_deterministic_and_contain_hard_cases():
    texts = probes()
    assert texts == probes()
    assert len(set(texts)) > 500
    for hard in ("\r\n", "\u200b", "000000000", " " * 90, "\u0301", "<|im_start|>", "'LL"):
        assert any(hard in text for text in texts), hard
