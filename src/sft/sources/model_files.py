"""Which files of a fetched model are taken: weights, configs, tokenizer, text. No code, no pickle, nothing by a link.

The same list holds for every kind of address. Files that are left out are named on the terminal.
"""

import json
import re
from pathlib import Path
from typing import Any

from sft.cli import InputError
from sft.hashing import files_below

SUFFIXES = {".json", ".safetensors", ".txt", ".model", ".jinja", ".tiktoken", ".md"}
"""Files of a model's folder that are taken; compared as written, so `.JSON` is none of them."""
FOLDERS = {"additional_chat_templates"}
"""Folders in a model's folder whose files are taken."""
SECOND_COPY = re.compile(r"consolidated[\w.-]*\.safetensors")
"""Mistral publishes the weights a second time, under names of its own; they are left out."""
TEXT = {".json", ".txt", ".jinja", ".tiktoken", ".md"}
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack", ".npz"}
BINARY = re.compile(rb"PK\x03\x04|\x80[\x02-\x05]|\x89HDF|\x93NUMPY|\x7fELF|MZ")
"""How archives, pickles, arrays and programs begin."""
CODE_KEY = "auto_map"
"""In a config: classes in files of the model's folder, which would be run as code."""


def taken_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return (files that are taken, files that are left out) of a fetched model, by path.

    Raises:  InputError: pickled weights; a file that is not what its name says.
    """
    paths = files_below(folder)
    if pickled := [path.name for path in paths if path.suffix.lower() in PICKLES]:
        raise InputError(
            f"fetch.model: {', '.join(pickled[:5])}: pickled weights can run code when they are loaded. "
            "Select the safetensors with a pattern in the uri, or use a commit that has them."
        )
    places = {folder, *(folder / name for name in FOLDERS)}
    taken = [path for path in paths if path.parent in places and is_taken(path.name)]
    for path in taken:
        _check_content(path)
    return taken, [path for path in paths if path not in taken]


def is_taken(name: str) -> bool:
    """Return whether a file of this name is taken, if it is in the model's folder."""
    return Path(name).suffix in SUFFIXES and not SECOND_COPY.fullmatch(name)


def _check_content(path: Path) -> None:
    """Raise InputError if a file begins like an archive, a pickle or a program, or is text by name and not UTF-8."""
    with path.open("rb") as file:
        start = file.read(16)
    # The length of a safetensors' header comes first, and may look like a pickle's first bytes: 640 is 80 02.
    if BINARY.match(start) and not (path.suffix == ".safetensors" and start[8:9] == b"{"):
        raise InputError(
            f"fetch.model: {path.name}: begins with {start[:4]!r}, like an archive, pickle or program. Remove it."
        )
    if path.suffix in TEXT:
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"fetch.model: {path.name}: not UTF-8 text: {error.reason} at {error.start}") from error


def remove_code_keys(path: Path) -> bool:
    """Remove the classes that a JSON config names in code files; return whether there were any."""
    config = read_config(path)
    if not isinstance(config, dict) or CODE_KEY not in config:
        return False
    del config[CODE_KEY]
    write_config(path, config)
    return True


def read_config(path: Path) -> Any:
    """Return the value of a JSON file of a model. Raises InputError: not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"fetch.model: {path.name}: not valid JSON: {error}") from error


def write_config(path: Path, value: Any) -> None:
    """Write a JSON file of a model."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_links(folder: Path) -> None:
    """Raise InputError if a link in a local model folder leads out of it.

    A snapshot in the cache of the Hugging Face hub has links to the blobs beside it; these are taken.
    """
    root = folder.resolve()
    allowed = [root, *([root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [])]
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in allowed):
            raise InputError(f"{path}: a link to {path.resolve()}, outside of the model's folder. Copy the file there.")
