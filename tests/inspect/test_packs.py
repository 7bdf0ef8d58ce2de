"""packs: found by number or id, and shown token by token."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.cli import InputError
from sft.files import write_json
from sft.hashing import file_digest
from sft.inspect.packs import Place, locate, pieces, read_pack, samples, unpack
from sft.packing.splits import SPLITS
from sft.parquet import PACKS, REJECTED, ShardWriter
from tests.support.printed_json import printed_json
from tests.support.tiny_model import EOS, pack_samples, train_tokenizer

PAD = 0
IDS = {name: f"{name * 6}{'0' * 26}" for name in "abc"}


def sample(name, number=0, ids=(300, 301, 302), mask=(0, 1, 1), **more):
    return {"conversation_id": IDS[name], "sample": number, "source": "calls", "ids": ids, "mask": mask, **more}


def write_packed(folder, splits, multiple=1):
    """Write data/packed through the writers of the pack stage."""
    for split in SPLITS:
        with ShardWriter(folder / split, "packs", PACKS) as shards:
            for members in splits.get(split, []):
                pack = pack_samples([{"repeat": 0, **member} for member in members], multiple, PAD)
                shards.write(pack)


def make_tokenizer(folder):
    """Write the tokenizer of the tiny model alone: without torch, in no time."""
    tokenizer = train_tokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def project(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = tmp_path / "models/base"
    base.mkdir(parents=True)
    tokenizer.save(str(base / "tokenizer.json"))
    metadata = {
        "pack_size": 8,
        "pad_segments_to": 4,
        "tokenizer_sha256": file_digest(base / "tokenizer.json"),
    }
    write_json(tmp_path / "data/packed/metadata.json", metadata)
    packed = {
        "training": [[sample("a"), sample("b", 1)], [sample("b")]],
        "validation": [[sample("c")]],
    }
    write_packed(tmp_path / "data/packed", packed, multiple=4)
    return tmp_path


def control_ids(tokenizer):
    return set(tokenizer.get_added_tokens_decoder())


@given(text=st.text(min_size=1))
def test_the_texts_of_the_pieces_are_the_text_of_the_tokens(tokenizer, text):
    ids = tokenizer.encode(text).ids
    cut = list(pieces(ids, [True] * len(ids), tokenizer))
    assert "".join(piece.text for piece in cut) == tokenizer.decode(ids, skip_special_tokens=False) == text
    assert not any("\ufffd" in piece.text for piece in cut) or "\ufffd" in text


@given(tokens=st.lists(st.tuples(st.integers(0, 399), st.booleans()), min_size=1))
def test_any_tokens_are_all_there_in_order_and_no_piece_is_half_trained(tokenizer, tokens):
    ids, trained = [token for token, _ in tokens], [kept for _, kept in tokens]
    cut = list(pieces(ids, trained, tokenizer, start=7))
    assert [token for piece in cut for token in piece.ids] == ids
    assert [piece.is_trained for piece in cut for _ in piece.ids] == trained
    position = 7
    for piece in cut:
        assert piece.first == position
        assert piece.is_control == (piece.ids[0] in control_ids(tokenizer))
        assert piece.text
        position += len(piece.ids)


def test_the_tokens_of_one_character_are_one_piece(tokenizer):
    ids = tokenizer.encode("a🦊b").ids
    cut = list(pieces(ids, [False] * len(ids), tokenizer))
    assert [(piece.text, len(piece.ids)) for piece in cut] == [("a", 1), ("🦊", 4), ("b", 1)]


def test_bytes_that_make_no_character_are_shown_and_do_not_swallow_what_follows(tokenizer):
    fox, stop = tokenizer.encode("🦊").ids, EOS
    cut = list(pieces([*fox[:2], stop, fox[0], *tokenizer.encode("a").ids], [True] * 5, tokenizer))
    assert [piece.text[-1] for piece in cut] == ["\ufffd", ">", "a"]
    assert [piece.is_control for piece in cut] == [False, True, False]


def test_a_control_token_and_text_that_looks_like_it_are_told_apart(tokenizer):
    typed = tokenizer.encode("<|im_").ids + tokenizer.encode("end|>").ids
    cut = list(pieces([*typed, EOS], [False] * (len(typed) + 1), tokenizer))
    assert "".join(piece.text for piece in cut[:-1]) == cut[-1].text == "<|im_end|>"
    assert [piece.is_control for piece in cut] == [False] * (len(cut) - 1) + [True]


def test_a_token_that_the_tokenizer_does_not_know_is_named(tokenizer):
    (piece,) = pieces([9_999], [False], tokenizer)
    assert (piece.text, piece.is_control) == ("no text for id 9999", True)


@pytest.mark.parametrize("mask", [(0, 1, 1), (0, 0, 1), (0, 1, 0), (0, 0, 0)])
def test_a_token_is_trained_if_its_sample_said_so_before_packing(tokenizer, mask):
    pack = pack_samples([sample("a", mask=mask, repeat=0), sample("b", mask=(0, 1, 0), repeat=0)], 1, PAD)
    first, second = samples(pack, None, tokenizer, 1)
    assert [int(piece.is_trained) for piece in first.pieces] == list(mask)
    assert [int(piece.is_trained) for piece in second.pieces] == [0, 1, 0]
    assert (first.trained, second.start, second.tokens) == (sum(mask), 3, 3)


def test_padding_is_one_piece_that_is_not_counted(tokenizer):
    pack = pack_samples([sample("a", repeat=0), sample("b", ids=(300, PAD), mask=(0, 1), repeat=0)], 4, PAD)
    first, second = samples(pack, None, tokenizer, 4)
    assert first.pieces[-1][:3] == (3, [PAD, PAD], "padding, 2 tokens")
    assert (first.tokens, second.tokens, second.trained) == (3, 2, 1)  # a trained token is none, whatever its id
    assert second.pieces[-1].text == "padding, 3 tokens"


def test_a_pack_is_found_by_number_and_split(project):
    assert locate("1") == (Place("training", 1), [])
    assert locate("validation:0") == (Place("validation", 0), [])
    shown = unpack("0")
    assert shown.title == "calls: training pack 0 (from 0), 2 samples, 6 tokens, 4 trained (66.7%), pack size 8"
    assert [one.name for one in shown.samples if one.is_selected] == [f"{IDS['a']}:0", f"{IDS['b']}:1"]


def test_a_conversation_is_found_by_the_start_of_its_id_in_whichever_pack(project):
    assert locate("cccccc")[0] == Place("validation", 0, 0)
    assert locate(IDS["b"]) == (Place("training", 1, 0), [Place("training", 0, 1)])
    assert locate("bbbbbb:1")[0] == Place("training", 0, 1)
    shown = unpack("bbbbbb:1")
    assert [one.is_selected for one in shown.samples] == [False, True]
    assert f"sample 2 of 2, calls {IDS['b']}:1, positions 5 to 7, 3 tokens" in shown.title
    assert shown.title.endswith("; the conversation is also in training pack 1")


def test_a_pack_is_printed_as_json_with_every_token(project):
    pack = printed_json(project, "sft.inspect.sample", "--pack", "bbbbbb:1")
    assert (pack["split"], pack["pack"], pack["pack_size"]) == ("training", 0, 8)
    assert [sample["is_selected"] for sample in pack["samples"]] == [False, True]
    assert [(sample["source"], sample["start"], sample["tokens"]) for sample in pack["samples"]] == [
        ("calls", 0, 3),
        ("calls", 5, 3),
    ]
    first = pack["samples"][0]["pieces"][0]
    assert (first["first"], first["ids"], first["is_trained"], first["is_control"]) == (0, [300], False, False)
    assert printed_json(project, "sft.inspect.sample", "--pack", "9", message="error: '9': no pack") is None


def test_a_pack_beyond_the_first_row_group_is_read(project):
    many = [[sample("a", ids=(300, number % 300), mask=(0, 1))] for number in range(1_003)]
    write_packed(project / "data/packed", {"training": many})
    assert read_pack(Place("training", 1_001))["input_ids"] == [300, 101]


@pytest.mark.parametrize("wanted", ["2", "test:0", "validation:1", "dddddd", "bbbbbb:2", "aaaaa", "nope", ""])
def test_what_is_not_there_says_what_can_be_given(project, wanted):
    with pytest.raises(InputError, match=r"training:0 to training:1, validation:0 to validation:0"):
        locate(wanted)


def test_an_id_that_fits_several_conversations_names_them(project):
    other = {**sample("a"), "conversation_id": "a" * 32}
    write_packed(project / "data/packed", {"training": [[sample("a"), other]]})
    with pytest.raises(InputError, match=f"2 .*: {IDS['a']}, {'a' * 32}"):
        locate("aaaaaa")
    assert locate("a" * 7)[0] == Place("training", 0, 1)


def test_a_conversation_that_was_rejected_is_named_with_stage_and_reason(project):
    row = {"id": "d" * 32, "source": "calls", "reason": "over-length", "evidence": "9 tokens"}
    (project / "data/packed/rejected.jsonl").write_text(json.dumps(row) + "\n")
    (project / "data/filtered/calls").mkdir(parents=True)
    with ShardWriter(project / "data/filtered/calls", "rejected", REJECTED):
        pass
    with pytest.raises(InputError, match=f"{'d' * 32} of calls: pack .*, over-length"):
        locate("dddddd")


def test_what_is_missing_or_does_not_belong_together_says_what_to_run(project):
    (project / "models/base/tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"models/base/tokenizer\.json: .*make pack"):
        unpack("0")
    shutil.rmtree(project / "data/packed")
    with pytest.raises(InputError, match=r"data/packed: not found\. .*make pack"):
        unpack("0")
