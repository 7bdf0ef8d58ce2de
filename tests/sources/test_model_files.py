"""model_files: what is taken of a fetched model, and what is an error."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sft.cli import InputError
from sft.files import read_json, write_json
from sft.params.data import Download
from sft.sources.download import fetch_files
from sft.sources.model_files import check_links, remove_code_keys, taken_files

PICKLE = pickle.dumps({"a": 1})


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("data.pkl", PICKLE)
    return buffer.getvalue()


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def test_weights_configs_tokenizer_and_text_are_taken_and_nothing_else(tmp_path: Path) -> None:
    taken = [
        "README.md", "additional_chat_templates/tools.jinja", "config.json", "merges.txt", "model.safetensors",
        "tokenizer.model",
    ]  # fmt: skip
    left_out = [
        "consolidated.safetensors", "modeling_own.py", "onnx/config.json", "optimizer/iter_1/common.json",
        "run.sh", "weights.JSON", "x.so",
    ]  # fmt: skip
    found = taken_files(make(tmp_path, *taken, *left_out))
    assert [[path.relative_to(tmp_path).as_posix() for path in paths] for paths in found] == [taken, left_out]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "MODEL.PT", "deep/weights.Pkl", "arrays.npz"])
def test_pickles_and_arrays_are_an_error_whatever_the_letters(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=rf"^fetch\.model: {Path(name).name}: "):
        taken_files(make(tmp_path, "config.json", name))


@pytest.mark.parametrize("content", [PICKLE, archive(), b"\x93NUMPY\x01\x00", b"\x7fELF\x02", b"\x89HDF\r\n"])
@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.model", "weights.json", "model.safetensors"])
def test_a_pickle_under_another_name_is_an_error(tmp_path: Path, name: str, content: bytes) -> None:
    make(tmp_path, "config.json")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"^fetch\.model: {name}: begins with"):
        taken_files(tmp_path)


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_safetensors_whose_header_has_the_length_of_a_pickle_s_first_bytes_are_taken(
    tmp_path: Path, length: int
) -> None:
    weights = tmp_path / "model.safetensors"
    save_file({"w": torch.ones(2)}, weights, metadata={"format": "x" * (length - 90)})
    assert int.from_bytes(weights.read_bytes()[:8], "little") == length
    assert taken_files(tmp_path) == ([weights], [])


def test_text_that_is_not_utf_8_is_an_error(tmp_path: Path) -> None:
    make(tmp_path, "config.json")
    (tmp_path / "README.md").write_bytes(b"caf\xe9 latin")
    with pytest.raises(InputError, match=r"^fetch\.model: README\.md: .* at 3"):
        taken_files(tmp_path)


def test_the_classes_of_code_are_removed_from_a_config(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    write_json(config, {"auto_map": {"AutoModel": "modeling_own.Own"}, "hidden_size": 8})
    assert remove_code_keys(config)
    assert read_json(config) == {"hidden_size": 8}
    before = config.read_bytes()
    assert not remove_code_keys(config)
    assert config.read_bytes() == before


def test_a_link_out_of_the_folder_is_an_error_and_one_within_it_is_not(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("mine")
    model = make(tmp_path / "model", "config.json")
    os.symlink("config.json", model / "generation_config.json")
    check_links(model)
    os.symlink(tmp_path / "secret.json", model / "tokenizer.json")
    with pytest.raises(InputError, match=r"model/tokenizer\.json: a link to .*secret\.json"):
        fetch_files(Download(uri=f"file://{model}"), tmp_path / "fetched", is_model=True)
    assert not (tmp_path / "fetched").exists()


def test_a_linked_folder_outside_is_an_error(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", "config.json")
    model = make(tmp_path / "model", "config.json")
    os.symlink(tmp_path / "elsewhere", model / "original")
    with pytest.raises(InputError, match="model/original: a link"):
        check_links(model)


def test_a_snapshot_of_the_hub_s_cache_has_its_blobs_beside_it(tmp_path: Path) -> None:
    make(tmp_path, "blobs/0123", "snapshots/main/README.md")
    os.symlink("../../blobs/0123", tmp_path / "snapshots/main/config.json")
    check_links(tmp_path / "snapshots/main")
