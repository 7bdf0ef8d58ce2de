"""Which files of a folder hold rows, and of which split they are."""

import itertools
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.raw_folders import RawPaths, count_splits, select_files, split_of
from tests.support.raw_rows import write


@pytest.fixture
def made(tmp_path: Path):
    def make(names: str) -> Path:
        for name in names.split():
            write(tmp_path, name, "")
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00001.parquet", "train"),
        ("data/train-00000-of-00001-0123456789abcdef.parquet", "train"),
        ("train.jsonl", "train"),
        ("TRAIN.JSONL", "train"),
        ("alpaca_train.json", "train"),
        ("train_v2.jsonl", "train"),
        ("training/a.jsonl.gz", "train"),
        ("train_sft-00000-of-00003.parquet", "train_sft"),
        ("test_gen-00000-of-00003.parquet", "test_gen"),
        ("chat.test.jsonl", "test"),
        ("test/data-00000-of-00001.arrow", "test"),
        ("val.jsonl", "validation"),
        ("dev/part-0.jsonl", "validation"),
        ("data/valid-00000-of-00001.parquet", "validation"),
        ("eval.jsonl", "eval"),
        ("held-out.jsonl.zst", "held-out"),
        ("held_out/a.jsonl", "held-out"),
        ("chat-holdout.csv", "held-out"),
        ("code/train/a.jsonl", "train"),
        ("test1.jsonl", "test"),
        ("my_test_data.jsonl", "test"),
        ("chat-held-out-2024/a.jsonl", "held-out"),
        ("a_test_or_train_b.jsonl", None),
        ("contest.jsonl", None),
        ("devops.jsonl", None),
        ("evaluate.jsonl", None),
        ("latest.jsonl", None),
        ("trained.jsonl", None),
        ("chat-00000-of-00003.parquet", None),
    ],
)
def test_a_path_names_a_split_or_none(name: str, split: str | None) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("names", "split", "read", "not_read"),
    [
        ("train.jsonl test.jsonl", "train", "train.jsonl", {"of split test": ["test.jsonl"]}),
        ("train.jsonl dev.jsonl", "dev", "dev.jsonl", {"of split train": ["train.jsonl"]}),
        ("train.jsonl dev.jsonl", "validation", "dev.jsonl", {"of split train": ["train.jsonl"]}),
        ("train.jsonl test.jsonl", "all", "test.jsonl train.jsonl", {}),
        ("a.jsonl b.csv", "train", "a.jsonl b.csv", {}),
        ("a.jsonl test.jsonl", "train", "a.jsonl", {"of split test": ["test.jsonl"]}),
        ("a.jsonl train.jsonl", "train", "train.jsonl", {"without a split in their names": ["a.jsonl"]}),
        ("test.jsonl", "train", "test.jsonl", {}),
        (
            "train_sft-0-of-1.csv test_sft-0-of-1.csv",
            "train",
            "train_sft-0-of-1.csv",
            {"of split test_sft": ["test_sft-0-of-1.csv"]},
        ),
        (
            "a.jsonl b.feather README.md b.zip c.jsonl.tar.gz",
            "train",
            "a.jsonl b.feather",
            {"to unpack first": ["b.zip", "c.jsonl.tar.gz"], "of other kinds": ["README.md"]},
        ),
        ("state.json a.jsonl", "train", "a.jsonl state.json", {}),
        (
            "state.json dataset_info.json cache-0a.arrow a.arrow",
            "train",
            "a.arrow",
            {"of other kinds": ["cache-0a.arrow", "dataset_info.json", "state.json"]},
        ),
    ],
)
def test_train_is_read_unless_another_split_is_named_and_every_other_file_is_listed(
    made, names: str, split: str, read: str, not_read: dict[str, list[str]]
) -> None:
    files = select_files(made(names), split)
    assert (files.read, files.not_read) == (read.split(), not_read)
    assert sorted([*files.read, *itertools.chain(*files.not_read.values())]) == sorted(names.split())


@pytest.mark.parametrize(
    ("names", "split"),
    [
        ("test.jsonl dev.jsonl", "train"),
        ("train_sft-0-of-1.csv train_gen-0-of-1.csv", "train"),
        ("a.jsonl", "test"),
        ("train.jsonl", "tset"),
    ],
)
def test_a_split_that_is_not_there_or_not_clear_is_an_error(made, names: str, split: str) -> None:
    with pytest.raises(InputError, match=r"read\.split"):
        select_files(made(names), split)


def test_what_is_not_read_is_one_line_with_an_example_each(made) -> None:
    files = select_files(made("data/train-0.csv data/test-0.csv data/test-1.csv README.md"), "train")
    assert files.line() == "2 files of split test (data/test-0.csv, …), 1 file of other kinds (README.md)"
    assert files.report() == {
        "read": 1,
        "split": "train",
        "not_read": {
            "of split test": {"files": 2, "first": "data/test-0.csv"},
            "of other kinds": {"files": 1, "first": "README.md"},
        },
    }


def test_files_of_several_addresses_get_paths_of_their_own() -> None:
    paths = RawPaths()
    added = [paths.add(path, number, "uri") for number, path in enumerate(("a.jsonl", "b/c.jsonl", "a.jsonl", "b"), 1)]
    assert added == ["a.jsonl", "b/c.jsonl", "3/a.jsonl", "4/b"]
    assert paths.add("a.jsonl.gz", 5, "uri") == "a.jsonl.gz"
    with pytest.raises(InputError, match=r"uri: a\.jsonl"):
        paths.add("a.jsonl", 3, "uri")


def test_splits_are_counted_by_files_with_rows(made) -> None:
    assert count_splits(made("train.jsonl dev.jsonl dev/b.csv test.md a.jsonl")) == {"train": 1, "validation": 2}


def test_hidden_files_are_no_rows(made) -> None:
    folder = made("a.jsonl ._a.jsonl .cache/train.jsonl data/.b.json")
    chosen = select_files(folder)
    assert chosen.read == ["a.jsonl"]
    assert chosen.not_read == {"of other kinds": ["._a.jsonl", ".cache/train.jsonl", "data/.b.json"]}
    assert count_splits(made(".cache/train.jsonl test.jsonl")) == {"test": 1}


CARD = """---
configs:
- config_name: en
  data_files:
  - {split: train, path: "en/*.jsonl"}
  - {split: test_easy, path: [en/held/**, more/easy.jsonl]}
- config_name: de
  data_files: [{split: train, path: de.jsonl}]
---
"""
FILES = "en/a.jsonl en/held/b.jsonl en/held/deep/test.jsonl more/easy.jsonl de.jsonl train.jsonl logo.png"


@pytest.mark.parametrize(
    ("split", "read"),
    [
        ("train", "en/a.jsonl"),
        ("test_easy", "en/held/b.jsonl en/held/deep/test.jsonl more/easy.jsonl"),
        ("all", "en/a.jsonl en/held/b.jsonl en/held/deep/test.jsonl more/easy.jsonl"),
    ],
)
def test_the_card_of_a_data_set_says_the_splits(made, split: str, read: str) -> None:
    folder = made(FILES)
    write(folder, "README.md", CARD)
    files = select_files(folder, split, "en")
    assert (files.read, files.config) == (read.split(), "en")
    assert files.not_read["of config de"] == ["de.jsonl"]
    assert files.not_read["that README.md does not name"] == ["train.jsonl"]
    assert files.not_read["of other kinds"] == ["README.md", "logo.png"]
    assert sorted([*files.read, *itertools.chain(*files.not_read.values())]) == sorted([*FILES.split(), "README.md"])
    assert select_files(folder, "all").config is None
    assert len(select_files(folder, "all").read) == 6
    assert count_splits(folder) == {"de/train": 1, "en/test_easy": 3, "en/train": 1}


def test_several_configs_without_a_default_and_unknown_ones_are_refused_by_name(made) -> None:
    folder = made(FILES)
    write(folder, "README.md", CARD)
    for config in (None, "fr"):
        with pytest.raises(InputError, match=r"README\.md: .*en, de.*read\.config"):
            select_files(folder, "train", config)
    with pytest.raises(InputError, match=r"read\.split"):
        select_files(folder, "test", "en")
    write(folder, "README.md", CARD.replace("- config_name: de", "- config_name: de\n  default: true"))
    assert select_files(folder, "train").read == ["de.jsonl"]
