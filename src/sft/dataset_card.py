"""The card of a data set: which files its README.md names, by config and split, as the Hugging Face hub reads it.

---
configs:
- config_name: default
  data_files:
  - {split: train, path: data/train-*}
---
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sft.cli import InputError

CARD, HEADER = "README.md", re.compile(r"\s*---[ \t]*\n(.*?)\n---[ \t]*(?:\n|$)", re.DOTALL)
DEFAULT, TRAIN = "default", "train"
# Names of files by split.
Splits = dict[str, list[str]]


def files_by_config(
    folder: Path, names: Iterable[str], split_of: Callable[[str], str | None] = lambda _: None
) -> dict[str, Splits]:
    """Return which of some files each config of the card names, by split; a config without any is left out.

    `split_of` returns the split that a path names: of a config with a `data_dir` alone, the files below it.

    Raises:  InputError: the header of the card is not YAML, has a pattern that is none, or a config twice.
    """
    listed, configs = sorted(names), dict[str, Splits]()
    for config in _read(folder / CARD):
        splits: Splits = {}
        below = str(config.get("data_dir") or "").strip("/")
        for split, patterns in _patterns(config.get("data_files")):
            try:
                matches = [_compiled(f"{below}/{pattern}" if below else pattern) for pattern in patterns]
            except ValueError as error:
                raise InputError(f"{folder / CARD}: data_files: {patterns}: {error}. Set read.split: all.") from error
            found = [name for name in listed if any(match.fullmatch(name) for match in matches)]
            splits[split] = sorted({*splits.get(split, []), *found})
        if below and config.get("data_files") is None:
            splits = _by_name([name for name in listed if name.startswith(f"{below}/")], below, split_of)
        splits = {split: found for split, found in splits.items() if found}
        name = str(config.get("config_name", DEFAULT))
        if splits and configs.setdefault(name, splits) != splits:
            raise InputError(
                f"{folder / CARD}: configs: two are named {name!r}, with other files. Rename one in the card, or "
                "set read.split: all."
            )
    return configs


def choose_config(folder: Path, found: dict[str, Splits], config: str | None) -> str:
    """Return the name of a config: `config`, the only one, or the default one.

    Raises:  InputError: no such config, or several and no default; the message lists them.
    """
    if config is None and len(found) == 1:
        return next(iter(found))
    marked = [str(each.get("config_name")) for each in _read(folder / CARD) if each.get("default") is True]
    wanted = config if config is not None else next(iter(marked), DEFAULT)
    if wanted in found:
        return wanted
    names = ", ".join(found) or "none with files in this folder"
    problem = "names several configs" if config is None else f"names no config {config!r} with files in this folder"
    raise InputError(
        f"{folder / CARD}: {problem}. Found: {names}. Set read.config to one of them; read.split: all reads every file."
    )


def _by_name(names: list[str], below: str, split_of: Callable[[str], str | None]) -> Splits:
    """Return files by the split that their paths below a folder name; without one, `train` if no file names that."""
    named = {name: split_of(name.removeprefix(f"{below}/")) for name in names}
    others = None if TRAIN in named.values() else TRAIN
    splits: Splits = {}
    for name, split in named.items():
        if split := split or others:
            splits.setdefault(split, []).append(name)
    return splits


def _read(path: Path) -> list[dict[str, Any]]:
    """Return the configs of a card; none if there is no card, or it has no header."""
    if not path.is_file():
        return []
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    header = HEADER.match(path.read_text(encoding="utf-8-sig", errors="replace"))
    try:
        value = YAML(typ="safe").load(header[1]) if header else None
    except (YAMLError, ValueError) as error:  # ValueError: a date that is none
        raise InputError(
            f"{path}: its header is not YAML: {' '.join(str(error).split())[:200]}. Correct or remove the file, or set "
            "read.split: all."
        ) from error
    configs = value.get("configs") if isinstance(value, dict) else None
    return [each for each in configs if isinstance(each, dict)] if isinstance(configs, list) else []


def _patterns(data_files: Any) -> list[tuple[str, list[str]]]:
    """Return (split, patterns) of the entry of a card: paths, {split: paths}, or a list of {split, path}."""
    if isinstance(data_files, dict):
        return [(str(split), _listed(paths)) for split, paths in data_files.items()]
    entries: list[tuple[str, list[str]]] = []
    for entry in data_files if isinstance(data_files, list) else [data_files]:
        if isinstance(entry, dict):
            entries.append((str(entry.get("split", TRAIN)), _listed(entry.get("path"))))
        else:
            entries.append((TRAIN, _listed(entry)))
    return entries


def _listed(paths: Any) -> list[str]:
    return [path for path in (paths if isinstance(paths, list) else [paths]) if isinstance(path, str)]


def _compiled(pattern: str) -> re.Pattern[str]:
    """Return a pattern for the whole path: `*` and `?` stay in a folder, `**` does not; a folder means all below it."""
    from fsspec.utils import glob_translate

    plain = pattern.removeprefix("./").strip("/")
    return re.compile(f"{glob_translate(plain)}|{re.escape(plain)}/.*", re.DOTALL)
