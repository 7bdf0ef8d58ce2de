"""Download what a uri of params.yaml names into an empty folder, and verify it.

| uri | pinned by |
|---|---|
| `hf://owner/name@commit[/path]`, `hf://models/owner/name@commit[/path]` | commit, 40 hex digits |
| `pypi://name==version/path/in/wheel#sha256=...` | digest of the wheel; pip downloads it with its own configuration |
| `https://host/file#sha256=...`, `s3://bucket/key#sha256=...` | digest of the file |
| `file://path`, with or without `#sha256=...` | nothing: the report has the digests of the copies |

A path names a file, a folder (all files below it) or a pattern: `*`, `?`, `**` (any folders), `{a,b}` (either). Files
keep their path below the part without a pattern. No file is opened before its digest is checked (hf: the digests of
the hub); archives are extracted to computed paths only, and only regular files. Interrupted downloads continue from
their part in `.fetch-partial/`. Messages never contain the user or the query of a URL.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.cli import InputError
from sft.hashing import file_digest, files_below, folder_digests, value_digest
from sft.params.data import Download
from sft.sources import hub
from sft.sources.archives import extract_zip
from sft.sources.model_files import check_links
from sft.sources.patterns import match_paths, split_pattern
from sft.sources.redact import redact
from sft.sources.remote_files import (
    PARTIAL,
    check_digest,
    check_fits,
    fetch_remote_file,
    parse_url,
    remove_partial,
    required_digest,
    wrong_digest,
)

# What Python writes for bytes of a file name that are not UTF-8.
NOT_UTF8 = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class FetchedFile:
    """One file of a source, as published."""

    path: str
    """Relative to the folder of the source, with slashes."""
    bytes: int
    sha256: str


def fetch_files(source: Download, folder: Path, *, is_model: bool = False) -> list[FetchedFile]:
    """Download the files that the uri of a source names into an empty folder; return them sorted by path.

    `is_model`: `hf://owner/name` is a model, not a data set.

    Raises:  InputError: unknown scheme, missing pin, wrong digest, missing file, hostile archive, no network.
    """
    scheme = check_address(source, is_model=is_model)
    if scheme == "hf":
        _fetch_hf(source, folder, is_model)
    else:
        if is_model and scheme == "file":
            check_links(Path(split_pattern(source.address.removeprefix("file://"))[0]))
        SCHEMES[scheme](source, folder)
    digests = folder_digests(folder)
    if name := next(filter(NOT_UTF8.search, digests), None):
        raise InputError(f"{redact(source.address)}: the file name {name!r} is not UTF-8. Rename the file.")
    return [FetchedFile(path, (folder / path).stat().st_size, digest) for path, digest in digests.items()]


def check_address(source: Download, *, is_model: bool = False) -> str:
    """Return the scheme of an address. Raises InputError, without asking anybody: another shape, a missing pin."""
    scheme, separator, _ = source.address.partition("://")
    if not separator or scheme not in KNOWN_SCHEMES:
        advice = "" if separator else f" For a file on this machine write {redact(f'file://{source.address}')}"
        known = ", ".join(f"{name}://" for name in KNOWN_SCHEMES)
        raise InputError(f"{redact(source.address)}: unknown scheme. Known: {known}.{advice}")
    if scheme == "hf":
        hub.parse(source, is_model).check_commit(source)
    elif scheme == "pypi":
        _parse_pypi(source)
    elif scheme != "file":
        parse_url(source)
    return scheme


def _parse_pypi(source: Download) -> tuple[str, str, str, str]:
    """Return name, version, path in the wheel and digest. Raises InputError."""
    named = re.fullmatch(r"pypi://([A-Za-z0-9][\w.-]*)==([\w.+!]+)/(.+)", source.address, re.ASCII)
    if named is None:
        raise InputError(f"{redact(source.address)}: expected pypi://name==version/path/inside/wheel")
    name, version, path = named.groups()
    return name, version, path, required_digest(source)


def _fetch_pypi(source: Download, folder: Path) -> None:
    name, version, path, digest = _parse_pypi(source)
    scratch = PARTIAL / value_digest([source.address, digest])
    scratch.mkdir(parents=True, exist_ok=True)
    requirements = scratch / "requirements.txt"
    # With the hash, pip picks the right wheel and checks it before it reads its metadata.
    requirements.write_text(f"{name}=={version} --hash=sha256:{digest}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(scratch), "--requirement", str(requirements)]
    shown = None if sys.stdout.isatty() else subprocess.DEVNULL
    try:
        done = subprocess.run(command, stdout=shown, stderr=subprocess.PIPE, text=True, check=False)
        wheels = list(scratch.glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            if other := re.search(r"Got\s+([0-9a-f]{64})", done.stderr):
                raise wrong_digest(source.address, digest, other.group(1))
            output = [line for line in done.stderr.splitlines() if line.strip()][-3:]
            raise InputError(
                f"{redact(source.address)}: pip cannot download the wheel: {redact(' '.join(output)) or 'no message'}. "
                "Check the name, the version and the network (pip's own configuration chooses the index)."
            )
        check_digest(source, wheels[0])
        extract_zip(wheels[0], path, folder, f"{name}=={version}")
    finally:
        remove_partial(scratch)


def local_files(source: Download) -> dict[Path, str]:
    """Return the files that a file:// uri names, each with its path in the folder of the source.

    Raises:  InputError: there are none; a digest for several.
    """
    path = source.address.removeprefix("file://")
    fixed, pattern = split_pattern(path)
    root = Path(fixed or ".")
    if not path or not root.exists():
        raise InputError(f"{source.address}: {root} does not exist (relative to {Path.cwd()})")
    if root.is_file():
        chosen = {root: root.name}
    else:
        files = {file.relative_to(root).as_posix(): file for file in _files_below(root)}
        chosen = {files[name]: inner for name, inner in match_paths(files, pattern, source.address).items()}
    if source.sha256 is not None and len(chosen) != 1:
        raise InputError(f"{source.address}: #sha256= pins one file, but the path matches {len(chosen)}. Remove it.")
    return chosen


def _fetch_file(source: Download, folder: Path) -> None:
    for file, inner in local_files(source).items():
        (folder / inner).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / inner)
        if source.sha256 is not None:
            check_digest(source, folder / inner)


def _files_below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Yield the files below a folder, also those behind links, and broken links, which fail when they are copied.

    Links to a folder above them are skipped.
    """
    real = folder.resolve()
    for path in folder.iterdir() if real not in above else ():
        if path.is_dir():
            yield from _files_below(path, above | {real})
        elif path.is_file() or path.is_symlink():
            yield path


def _fetch_hf(source: Download, folder: Path, is_model: bool) -> None:
    import huggingface_hub
    from huggingface_hub.utils.tqdm import disable_progress_bars

    place = hub.parse(source, is_model)
    if not sys.stderr.isatty():
        disable_progress_bars()
    local = PARTIAL / value_digest([source.address, source.revision])
    with hub.named_errors(source):
        files = hub_files(source, place)
        here = sum(path.stat().st_size for path in files_below(local))  # of an interrupted download
        check_fits(source.address, sum(entry.size for entry in files.values()) - here)
        exact = [re.sub(r"([*?[])", r"[\1]", entry.path) for entry in files.values()]
        huggingface_hub.snapshot_download(allow_patterns=exact, local_dir=local, **place.remote)
    for inner, entry in files.items():
        _check_hub_digest(source, entry, local / entry.path)
        (folder / inner).parent.mkdir(parents=True, exist_ok=True)
        os.replace(local / entry.path, folder / inner)
    remove_partial(local)


def hub_files(source: Download, place: hub.Place) -> dict[str, Any]:
    """Return the files of a source on the hub, as the hub lists them, by their path in the folder of the source."""
    files = hub.list_files(place)
    return {inner: files[name] for name, inner in match_paths(files, place.path, source.address).items()}


def _check_hub_digest(source: Download, entry: Any, path: Path) -> None:
    """Check a file against the digest in the commit: sha256 of a large file, else git's blob id."""
    if entry.lfs is not None:
        expected, actual = entry.lfs.sha256, file_digest(path)
    else:
        content = path.read_bytes()
        expected, actual = entry.blob_id, hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if expected != actual:
        path.unlink()
        raise wrong_digest(f"{source.address} ({entry.path})", expected, actual)


SCHEMES: dict[str, Callable[[Download, Path], None]] = {
    "pypi": _fetch_pypi,
    "https": fetch_remote_file,
    "http": fetch_remote_file,
    "s3": fetch_remote_file,
    "file": _fetch_file,
}
KNOWN_SCHEMES = ("pypi", "hf", *(name for name in SCHEMES if name != "pypi"))
