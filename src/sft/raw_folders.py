"""Which files of a raw folder hold rows, and of which split they are: what its card says, or else their names.

`data/train-00000-of-00002.parquet`, `train.jsonl`, `chat_test.jsonl.gz` and `validation/0.arrow` name a split; a file
without such a name belongs to none. The names are those that Hugging Face's datasets knows, and held-out. The card of
a data set (sft.dataset_card) is asked first.
"""

import contextlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sft.cli import InputError
from sft.dataset_card import CARD, Splits, choose_config, files_by_config
from sft.hashing import files_below

LINES, DOCUMENT, TABLES = {".jsonl", ".jsonlines", ".ndjson"}, {".json"}, {".parquet", ".arrow", ".feather"}
DELIMITED = {".csv": ",", ".tsv": "\t"}
COMPRESSED = {".gz", ".zst", ".bz2", ".xz"}
KINDS = ".jsonl, .json, .parquet, .arrow, .feather, .csv or .tsv, plain or with .gz, .zst, .bz2 or .xz"  # for messages
# What datasets writes beside the rows of a folder; state.json is the same only next to a dataset_info.json.
ABOUT_ROWS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json"}
STATE = "state.json"
CACHED = re.compile(r"cache-[0-9a-f]+\.arrow")
TRAIN, ALL = "train", "all"
WORDS = {
    **dict.fromkeys(("training", "train"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("testing", "test"), "test"),
    **dict.fromkeys(("evaluation", "eval"), "eval"),
    **dict.fromkeys(("held-out", "held_out", "heldout", "holdout"), "held-out"),
}
_WORD = "|".join(WORDS)
# `train_sft-00000-of-00003-0123456789abcdef`: a split of its own, train_sft
SHARD = re.compile(rf"({_WORD})(_\w+?)?-\d+-of-\d+(?:-[0-9a-f]{{16}})?")
FIRST_WORD = re.compile(rf"({_WORD})(?![a-z])")
LAST_WORD = re.compile(rf"(?:.*[^a-z])?({_WORD})[-_. ]?\d*(?:-of-\d+)?(?:-[0-9a-f]{{16}})?")
ANY_WORD = re.compile(rf"(?<![a-z])({_WORD})(?![a-z])")
ARCHIVES = {".zip", ".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar"}
NO_SPLIT, ARCHIVE, OTHER_KIND = "without a split in their names", "to unpack first", "of other kinds"


class SelectedFiles(NamedTuple):
    """The files of a folder that are read, and the others."""

    read: list[str]
    """Relative to the folder, with slashes, sorted."""
    split: str | None
    """The split that they are of; None if their names say none, or all files are read."""
    config: str | None
    """The config of the card that they are of; None if no card names them."""
    not_read: dict[str, list[str]]
    """What they are ("of split test", "of other kinds") -> names."""

    def report(self) -> dict[str, Any]:
        """Return the counts as in `reports/`."""
        groups = {group: {"files": len(names), "first": names[0]} for group, names in self.not_read.items()}
        config = {} if self.config is None else {"config": self.config}
        return {"read": len(self.read), "split": self.split, **config, "not_read": groups}

    def line(self) -> str:
        """Return what is not read, with an example each; empty if everything is read."""
        return ", ".join(
            f"{len(names)} {'file' if len(names) == 1 else 'files'} {group} ({names[0]}{', …' * (len(names) > 1)})"
            for group, names in self.not_read.items()
        )


class RawPaths:
    """The paths of the files of a source, whose addresses may have files of the same name."""

    def __init__(self) -> None:
        self._files, self._folders = set[str](), set[str]()

    def add(self, path: str, number: int, address: str) -> str:
        """Return the path of a file of the `number`th address: its own, or in a folder with that number.

        Raises:  InputError: both are taken by other addresses.
        """
        for free in (path, f"{number}/{path}"):
            above = {folder.as_posix() for folder in PurePosixPath(free).parents}
            if free not in self._files and free not in self._folders and not above & self._files:
                self._files.add(free)
                self._folders |= above
                return free
        raise InputError(f"{address}: {path} is a file of another address. Make it a source.")


def file_kind(name: str) -> tuple[str, str]:
    """Return what the rows of a file are written in, and its compression ("" = none), as suffixes.

    >>> file_kind("a/b.JSONL.bz2"), file_kind("README")
    (('.jsonl', '.bz2'), ('', ''))
    """
    path = PurePosixPath(name.lower())
    packed = path.suffix in COMPRESSED
    return PurePosixPath(path.stem).suffix if packed else path.suffix, path.suffix if packed else ""


def split_of(name: str) -> str | None:
    """Return the split that a path names, in its file name or else in the nearest folder; None if it names none.

    >>> [split_of(name) for name in ("data/test-00000-of-00001.parquet", "valid/a.jsonl", "contest.jsonl")]
    ['test', 'validation', None]
    """
    path = PurePosixPath(name.lower())
    kind, packed = file_kind(name)
    for part in (path.name.removesuffix(packed).removesuffix(kind), *reversed(path.parent.parts)):
        if shard := SHARD.fullmatch(part):
            return WORDS[shard[1]] + (shard[2] or "")
        if word := FIRST_WORD.match(part) or LAST_WORD.fullmatch(part):
            return WORDS[word[1]]
        if len(inner := {WORDS[word] for word in ANY_WORD.findall(part)}) == 1:
            return inner.pop()
    return None


def count_splits(folder: Path) -> dict[str, int]:
    """Return the number of files with rows of each split, sorted; of several configs as config/split.

    A card that cannot be read is left to `select_files`, which does not need it for `all`.
    """
    names, configs = _names(folder), dict[str, Splits]()
    with_rows = [name for name in names if _has_rows(name, names)]
    with contextlib.suppress(InputError):
        configs = files_by_config(folder, with_rows, split_of)
    if configs:
        named = [
            (f"{config}/" * (len(configs) > 1) + split, files)
            for config in configs
            for split, files in configs[config].items()
        ]
        return dict(sorted((name, len(files)) for name, files in named))
    return dict(sorted(Counter(split for name in with_rows if (split := split_of(name))).items()))


def select_files(folder: Path, split: str = ALL, config: str | None = None) -> SelectedFiles:
    """Return the files of a split below a folder, and those that are not read.

    `split`: all, or the name of a split. Without files of several splits, all are read. Files whose names say no split
    are read for `train` if no file says train. `config`: one of the card, if that names several.

    Raises:  InputError: no file of this split, or no such config; the message lists the splits or configs.
    """
    names = _names(folder)
    with_rows = sorted(name for name in names if _has_rows(name, names))
    configs = files_by_config(folder, with_rows, split_of) if config is not None or split != ALL else {}
    groups: dict[str | None, list[str]] = {}
    if configs or config is not None:
        config = choose_config(folder, configs, config)
        for name, files in configs[config].items():
            groups.setdefault(None if split == ALL else WORDS.get(name, name), []).extend(files)
    else:
        for name in with_rows:
            groups.setdefault(None if split == ALL else split_of(name), []).append(name)
    chosen = _choose(folder, groups, WORDS.get(split, split))
    read = sorted({*groups.get(chosen, [])})
    others: list[tuple[str, Iterable[str]]] = [
        (NO_SPLIT if group is None else f"of split {group}", groups[group]) for group in _sorted(groups, chosen)
    ]
    others += [(f"of config {other}", itertools.chain(*configs[other].values())) for other in sorted(configs)]
    others += [
        (f"that {CARD} does not name", with_rows),
        (ARCHIVE, [name for name in names if file_kind(name)[0] in ARCHIVES]),
    ]
    others += [(OTHER_KIND, names.difference(with_rows))]
    left, not_read = names.difference(read), {}
    for title, of in others:
        if found := sorted(left.intersection(of)):
            not_read[title] = found
            left.difference_update(found)
    return SelectedFiles(read, chosen, config, not_read)


def _names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in files_below(folder)}


def _has_rows(name: str, names: set[str]) -> bool:
    path = PurePosixPath(name)
    if any(part.startswith(".") for part in path.parts):  # .cache/, and ._a.jsonl of macOS
        return False
    if path.name in ABOUT_ROWS or (path.name == STATE and (path.parent / "dataset_info.json").as_posix() in names):
        return False
    return file_kind(name)[0] in LINES | DOCUMENT | TABLES | DELIMITED.keys() and not CACHED.fullmatch(path.name)


def _choose(folder: Path, groups: dict[str | None, list[str]], split: str) -> str | None:
    """Return which group is read. Raises InputError."""
    if split in groups:
        return split
    if split == TRAIN:
        parts = [group for group in groups if group is not None and group.startswith("train_")]
        if None in groups and not parts:
            return None
        if len(groups) <= 1 or len(parts) == 1:
            return parts[0] if parts else next(iter(groups), None)
    elif split == ALL:
        return None
    found = ", ".join(f"{group} ({groups[group][0]})" for group in _sorted(groups)) or "none: no name says a split"
    raise InputError(
        f"{folder}: no files of split {split!r}. Found: {found}. Set read.split to one of them, or to all."
    )


def _sorted(groups: Iterable[str | None], left_out: str | None = ALL) -> list[str | None]:
    return sorted((group for group in groups if group != left_out), key=lambda group: (group is None, group or ""))
