"""The card of a data set: its forms of data_files, as the hub's documentation shows them."""

from pathlib import Path

import pytest

from sft.cli import InputError
from sft.dataset_card import files_by_config
from sft.raw_folders import ALL, count_splits, select_files
from tests.support.raw_rows import write

FILES = ["a/x.jsonl", "a/deep/y.jsonl", "b.csv", "train-0.parquet"]


@pytest.mark.parametrize(
    ("config", "splits"),
    [
        ("data_files: b.csv", {"train": ["b.csv"]}),
        ("data_files: [b.csv, 'train-*']", {"train": ["b.csv", "train-0.parquet"]}),
        ("data_files: {test: b.csv, train: ['a/*', b.csv]}", {"train": ["a/x.jsonl", "b.csv"], "test": ["b.csv"]}),
        ("data_files: [{split: dev, path: 'a/**'}]", {"dev": ["a/deep/y.jsonl", "a/x.jsonl"]}),
        ("data_files: [{split: dev, path: a/deep}]", {"dev": ["a/deep/y.jsonl"]}),
        ("data_files: [{split: dev, path: ./b.csv}]", {"dev": ["b.csv"]}),
        ("data_dir: a\n  data_files: [{split: dev, path: '*.jsonl'}]", {"dev": ["a/x.jsonl"]}),
        ("data_files: [{split: dev, path: gone/*}]", None),
        ("data_dir: a", {"train": ["a/deep/y.jsonl", "a/x.jsonl"]}),
        ("data_dir: gone", None),
        ("description: no files", None),
    ],
)
def test_every_form_of_data_files_is_read(tmp_path: Path, config: str, splits: dict[str, list[str]] | None) -> None:
    write(tmp_path, "README.md", f"---\nlicense: mit\nconfigs:\n- config_name: c\n  {config}\n---\n# Data\n")
    assert files_by_config(tmp_path, FILES) == ({} if splits is None else {"c": splits})


@pytest.mark.parametrize("text", ["", "# Data\n---\nx: 1\n---\n", "---\nlicense: mit\n---\n", "---\nconfigs: 1\n---\n"])
def test_a_card_without_configs_names_no_files(tmp_path: Path, text: str) -> None:
    write(tmp_path, "README.md", text)
    assert files_by_config(tmp_path, FILES) == {}
    assert files_by_config(tmp_path / "none", FILES) == {}


def test_two_configs_of_one_name_with_other_files_are_an_error(tmp_path: Path) -> None:
    write(
        tmp_path,
        "README.md",
        "---\nconfigs:\n- {config_name: en, data_files: a.jsonl}\n- {config_name: en, data_files: b.jsonl}\n---\n",
    )
    with pytest.raises(InputError, match=r"README\.md.*'en'"):
        files_by_config(tmp_path, ["a.jsonl", "b.jsonl"])
    assert files_by_config(tmp_path, ["a.jsonl"]) == {"en": {"train": ["a.jsonl"]}}


@pytest.mark.parametrize("header", ["configs: [", "date: 2024-13-45", "configs:\n- data_files: '**a'"])
def test_a_card_that_cannot_be_read_is_named_where_it_is_needed(tmp_path: Path, header: str) -> None:
    write(tmp_path, "README.md", f"---\n{header}\n---\n")
    write(tmp_path, "train.jsonl", "{}")
    with pytest.raises(InputError, match=r"README\.md: .*read\.split: all"):
        files_by_config(tmp_path, FILES)
    assert count_splits(tmp_path) == {"train": 1}
    assert select_files(tmp_path, ALL).read == ["train.jsonl"]


def test_files_of_a_data_dir_have_the_splits_of_their_names(tmp_path: Path) -> None:
    write(
        tmp_path, "README.md", "---\nconfigs:\n- {config_name: a, data_dir: a}\n- {config_name: b, data_dir: b}\n---\n"
    )
    for name in ("a/train.jsonl", "a/test.jsonl", "a/more.jsonl", "b/train.jsonl"):
        write(tmp_path, name, "{}")
    assert select_files(tmp_path, "train", "a").read == ["a/train.jsonl"]
    assert count_splits(tmp_path) == {"a/test": 1, "a/train": 1, "b/train": 1}
