"""Digests and keyed hashes: the same on every machine, and as they always were."""

import errno
import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.files import publish_folder
from sft.hashing import (
    BLOCK_BYTES,
    canonical_json,
    file_digest,
    files_below,
    folder_digest,
    folder_digests,
    keyed_hash,
    keyed_hashes,
    value_digest,
)
from sft.raw_folders import _names
from tests.support.project import printed_by_processes


def test_digests_stay_what_they_are(tmp_path):
    """These values stand in reports, models and the names of runs: a change of them is a change of format."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_bytes(b"abc")
    (tmp_path / "a").write_bytes(b"")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert file_digest(tmp_path / "b" / "x") == abc
    assert list(folder_digests(tmp_path).items()) == [("a", empty), ("b/x", abc)]
    assert folder_digest(tmp_path) == "9129793e2275e27ac56ad0b3f59adda2b33d22de69431567ef3b913db6f714a9"
    assert (
        value_digest({"b": [1, 2.5, None], "a": "é"})
        == "d764fee2563da33e3d57334755404e635da33c995824b0adfabc4b6e1af4f608"
    )


def test_a_folder_s_digest_sees_names_contents_and_missing_files(tmp_path):
    def digest(**contents: str) -> str:
        with publish_folder(tmp_path / "out") as partial:
            for name, text in contents.items():
                (partial / name).write_text(text)
        return folder_digest(tmp_path / "out")

    folders = [{"a": "1", "b": "2"}, {"a": "2", "b": "1"}, {"a": "1"}, {"a": "1", "c": "2"}, {}]
    assert len({digest(**folder) for folder in folders}) == len(folders)
    assert digest(a="1", b="2") == digest(b="2", a="1")


def test_a_file_of_several_blocks_has_the_digest_of_its_bytes(tmp_path):
    content = bytes(range(256)) * (BLOCK_BYTES // 128) + b"end"
    (tmp_path / "a").write_bytes(content)
    assert file_digest(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_digests_of_values_do_not_depend_on_the_process():
    code = "from sft.hashing import value_digest; print(value_digest({'b': 'x', 'a': ['y']}))"
    assert printed_by_processes(code) == {value_digest({"a": ["y"], "b": "x"}) + "\n"}


def test_canonical_json_sorts_keys_and_keeps_half_surrogates():
    assert canonical_json({"b": [1, None], "a": "é\ud800"}) == b'{"a":"\xc3\xa9\xed\xa0\x80","b":[1,null]}'


@pytest.mark.parametrize(
    ("seed", "text", "digest"),
    [
        (1234, "0", "7a7052027e0df6984d20f41fecc8bfef"),
        (1234, "é", "3fd25a9bc8c821c366c4a574a308e9e9"),
        (0, "0", "ac72368a586a18c19088393573ce0307"),
    ],
)
def test_keyed_hashes_stay_what_they_are(seed, text, digest):
    """They decide which rows are drawn, and which conversations are held out."""
    assert keyed_hash(seed, text)[:32] == digest


@given(st.integers(0, 2**32), st.lists(st.text(st.characters(codec="utf-8")), max_size=20))
def test_numbers_of_keyed_hashes_have_the_order_of_their_texts(seed, texts):
    numbers = keyed_hashes(seed, texts)
    assert numbers.dtype == np.uint64
    assert [f"{number:016x}" for number in numbers] == [keyed_hash(seed, text)[:16] for text in texts]


def test_a_large_file_is_read_again_only_if_it_changed(tmp_path, monkeypatch):
    path, read = tmp_path / "file", []
    sha256 = hashlib.sha256
    monkeypatch.setattr("sft.hashing.hashlib.sha256", lambda: read.append(1) or sha256())
    monkeypatch.setattr("sft.hashing.SETTLED_NS", 0)
    path.write_bytes(b"a" * (BLOCK_BYTES + 1))
    first = file_digest(path)
    assert (file_digest(path), len(read)) == (first, 1)
    time.sleep(0.02)  # a tick of the clock of the file system
    path.write_bytes(b"b" * (BLOCK_BYTES + 1))
    assert file_digest(path) == sha256(path.read_bytes()).hexdigest() != first
    assert len(read) == 2


def test_a_file_that_has_just_changed_is_read_again(tmp_path):
    path = tmp_path / "file"
    for letter in (b"a", b"b"):
        path.write_bytes(letter * (BLOCK_BYTES + 1))
        assert file_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_folder_that_cannot_be_read_is_an_error_and_does_not_drop_its_files(tmp_path, monkeypatch):
    (tmp_path / "below").mkdir()
    (tmp_path / "below/one").touch()
    assert files_below(tmp_path) == [tmp_path / "below/one"]
    assert files_below(tmp_path / "nothing") == []
    scandir = os.scandir

    def fails(path="."):
        if Path(path).name == "below":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fails)
    for read in (files_below, folder_digest, _names):
        with pytest.raises(OSError, match="Input/output error"):
            read(tmp_path)
