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

import contextlib
import difflib
import hashlib
import ipaddress
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from sft.cli import InputError
from sft.files import flock
from sft.hashing import BLOCK_BYTES, file_digest, files_below, folder_digests, value_digest
from sft.params.data import Download
from sft.sources import hub
from sft.sources.model_files import check_links
from sft.sources.redact import redact

PARTIAL = Path(".fetch-partial")
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
TIMEOUT_SECONDS = (10, 60)  # to connect, and between two blocks of data
# Largest ratio of a member to its compressed size (in the default wheels at most 127), unless the member is small.
BOMB_RATIO, BOMB_BYTES = 200, 10 << 20
MAX_MEMBERS = 100_000
FREE_BYTES = 64 << 20  # that a download leaves on the disk
CHECK_BYTES = 16 << 20  # between two looks at the disk, which on a shared file system are requests to its server
SLOW_SECONDS, SLOW_BYTES = 300.0, 64 << 10  # a server that sends less in that time never ends
ADVICE = {
    **dict.fromkeys((401, 403), "Credentials are read from ~/.netrc."),
    **dict.fromkeys((404, 410), "Check the address."),
}
COMPRESSIONS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
# What Python writes for bytes of a file name that are not UTF-8.
NOT_UTF8 = re.compile("[\ud800-\udfff]")
# An open remote file: the offset of the first block, the size of the file if known, and its blocks.
RemoteFile = tuple[int, int | None, Iterator[bytes]]


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
            check_links(Path(_split_pattern(source.address.removeprefix("file://"))[0]))
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
        _parse_url(source)
    return scheme


def match_paths(names: Iterable[str], path: str, uri: str) -> dict[str, str]:
    """Return the names that a path or pattern matches, each with its path below the part without a pattern.

    Raises:  InputError: no match; lists the most similar names.

    >>> match_paths(["a/b/c.json", "a/b/d/e.json", "a/f.txt"], "a/b", "here")
    {'a/b/c.json': 'c.json', 'a/b/d/e.json': 'd/e.json'}
    >>> match_paths(["a/b/c.json", "a/g/c.json", "a/f.txt"], "a/{b,g}/*.json", "here")
    {'a/b/c.json': 'b/c.json', 'a/g/c.json': 'g/c.json'}
    """
    names = sorted(names)
    fixed, pattern = _split_pattern(path.strip("/"))
    if fixed in names and not pattern:
        return {fixed: PurePosixPath(fixed).name}
    root = fixed if pattern or not fixed else fixed + "/"
    wanted = re.compile(re.escape(root) + _regex(pattern or "**"), re.DOTALL)
    matches = {name: name[len(root) :] for name in names if wanted.fullmatch(name)}
    if not matches:
        near = difflib.get_close_matches(path, names, n=5, cutoff=0.3) or names[:5]
        raise InputError(f"{redact(uri)}: no file {path!r}. Most similar: {', '.join(near) or 'none, it is empty'}.")
    return matches


def extract_zip(archive: Path, path: str, folder: Path, package: str) -> None:
    """Extract the members of a zip archive that a path or pattern matches, to computed paths in a folder.

    One unsafe member, whether it matches or not, makes the whole archive an error.

    Raises:  InputError: names the unsafe member and its fault, or the most similar members if none matches.
    """
    try:
        with zipfile.ZipFile(archive) as wheel:
            members = _safe_members(wheel, archive.stat().st_size, package)
            for name, inner in match_paths(members, path, package).items():
                target = folder / inner
                target.parent.mkdir(parents=True, exist_ok=True)
                with wheel.open(members[name]) as member, target.open("xb") as file:
                    shutil.copyfileobj(member, file, BLOCK_BYTES)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{package}: damaged archive: {error}. Nothing was kept.") from error


def _split_pattern(path: str) -> tuple[str, str]:
    """Split a path into the folders without a pattern, with their slash, and the rest; (path, "") without a pattern."""
    wild = re.search(r"[*?{]", path)
    if wild is None:
        return path, ""
    cut = path.rfind("/", 0, wild.start()) + 1
    return path[:cut], path[cut:]


def _regex(pattern: str) -> str:
    """Return the regular expression of a path pattern."""
    known = {"**/": "(?:.+/)?", "**": ".*", "*": "[^/]*", "?": "[^/]", "{": "(?:", "}": ")"}
    depth, parts = 0, []
    for token in re.findall(r"\*\*/|\*\*|[*?{},]|[^*?{},]+", pattern):
        depth += (token == "{") - (token == "}")
        parts.append("|" if token == "," and depth > 0 else known.get(token, re.escape(token)))
        if depth < 0:
            break
    if depth:
        raise InputError(f"{pattern!r}: unbalanced braces")
    return "".join(parts)


def _safe_members(archive: zipfile.ZipFile, size: int, package: str) -> dict[str, zipfile.ZipInfo]:
    """Return the files of an archive by name. Raises InputError: a member that is not safe to extract."""
    members: dict[str, zipfile.ZipInfo] = {}
    seen: set[str] = set()
    infos = archive.infolist()
    if len(infos) > MAX_MEMBERS or sum(info.compress_size for info in infos) > size:
        raise InputError(f"{package}: {len(infos)} members overlap, or are more than {MAX_MEMBERS}. Nothing was kept.")
    for info in infos:
        name, kind = info.orig_filename, stat.S_IFMT(info.external_attr >> 16)
        folded = unicodedata.normalize("NFC", name).casefold()
        faults = {
            "leaves its folder": ".." in name.split("/"),
            "has an absolute path": name.startswith("/") or re.match("[A-Za-z]:", name) is not None,
            "has a backslash or control character": re.search(r"[\\\x00-\x1f]", name) is not None,
            "has an empty part in its path": not name or "//" in name or "." in name.split("/"),
            "is neither file nor folder": kind not in (0, stat.S_IFREG, stat.S_IFDIR),
            "exists twice": folded in seen,
            "is encrypted": bool(info.flag_bits & 1),
            "has an unknown compression": info.compress_type not in COMPRESSIONS,
            "is suspiciously large when extracted": info.file_size > max(BOMB_BYTES, BOMB_RATIO * info.compress_size),
        }
        for fault, is_present in faults.items():
            if is_present:
                raise InputError(f"{package}: unsafe archive: member {name[:200]!r} {fault}. Nothing was kept.")
        seen.add(folded)
        if not info.is_dir():
            members[name] = info
    return members


def _parse_pypi(source: Download) -> tuple[str, str, str, str]:
    """Return name, version, path in the wheel and digest. Raises InputError."""
    named = re.fullmatch(r"pypi://([A-Za-z0-9][\w.-]*)==([\w.+!]+)/(.+)", source.address, re.ASCII)
    if named is None:
        raise InputError(f"{redact(source.address)}: expected pypi://name==version/path/inside/wheel")
    name, version, path = named.groups()
    return name, version, path, _required_digest(source)


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
                raise _wrong_digest(source.address, digest, other.group(1))
            output = [line for line in done.stderr.splitlines() if line.strip()][-3:]
            raise InputError(
                f"{redact(source.address)}: pip cannot download the wheel: {redact(' '.join(output)) or 'no message'}. "
                "Check the name, the version and the network (pip's own configuration chooses the index)."
            )
        _check_digest(source, wheels[0])
        extract_zip(wheels[0], path, folder, f"{name}=={version}")
    finally:
        _remove_partial(scratch)


def local_files(source: Download) -> dict[Path, str]:
    """Return the files that a file:// uri names, each with its path in the folder of the source.

    Raises:  InputError: there are none; a digest for several.
    """
    path = source.address.removeprefix("file://")
    fixed, pattern = _split_pattern(path)
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
            _check_digest(source, folder / inner)


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
    _remove_partial(local)


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
        raise _wrong_digest(f"{source.address} ({entry.path})", expected, actual)


def _parse_url(source: Download) -> tuple[str, str, str]:
    """Return scheme, name of the file and digest. Raises InputError."""
    digest = _required_digest(source)
    try:
        url = urlsplit(source.address)
    except ValueError as error:  # brackets without an address
        raise InputError(f"{redact(source.address)}: not a URL: {error}") from error
    name = PurePosixPath(unquote(url.path)).name
    if not name or name in {".", ".."} or re.search(r"[\\\x00-\x1f]", name) or not url.hostname:
        raise InputError(f"{redact(source.address)}: no file name; expected {url.scheme}://host-or-bucket/path/to/file")
    if url.scheme != "s3":
        check_url(source.address)
    return url.scheme, name, digest


def _fetch_remote_file(source: Download, folder: Path) -> None:
    """Download one file block by block. The part of an interrupted download is kept, and completed next time."""
    scheme, name, digest = _parse_url(source)
    partial = PARTIAL / digest
    with _own_part(partial) as file:
        size = partial.stat().st_size
        if not size or file_digest(partial) != digest:
            start, total, blocks = (_open_s3 if scheme == "s3" else _open_https)(source.address, size)
            check_fits(source.address, (total or start) - start)
            file.truncate(start)
            with _progress() as progress:
                task = progress.add_task(name, total=total, completed=start)
                try:
                    for block in _in_bounds(source.address, start, total, blocks):
                        file.write(block)
                        progress.advance(task, len(block))
                    file.flush()
                except (_DoesNotFitError, OSError):  # the part would fill the disk for everybody
                    partial.unlink()
                    raise
            _check_digest(source, partial)
        shutil.move(partial, folder / name)
    _remove_partial(partial)


class _DoesNotFitError(InputError):
    """A download that is larger than the free space of the disk."""


def check_fits(uri: str, size: int) -> None:
    """Raise InputError unless a number of bytes fits on the disk of the parts."""
    free = shutil.disk_usage(PARTIAL if PARTIAL.exists() else ".").free
    if size + FREE_BYTES > free:
        raise _DoesNotFitError(
            f"{redact(uri)}: {size:,} bytes or more are missing, but the disk has {free:,} free. Free some space."
        )


def _in_bounds(uri: str, start: int, total: int | None, blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the blocks of a download from an offset while they fit on the disk and come in time."""
    size = checked = start
    since, received = time.monotonic(), 0
    for block in blocks:
        size, received = size + len(block), received + len(block)
        if total is not None and size > total:
            raise InputError(f"{redact(uri)}: the server sends more than the {total:,} bytes that it names.")
        if size - checked >= CHECK_BYTES:
            check_fits(uri, len(block))
            checked = size
        if (seconds := time.monotonic() - since) > SLOW_SECONDS:
            if received < SLOW_BYTES:
                raise InputError(
                    f"{redact(uri)}: {received:,} bytes in {seconds:.0f} s. Rerun to continue the download."
                )
            since, received = time.monotonic(), 0
        yield block


@contextlib.contextmanager
def _own_part(partial: Path) -> Iterator[Any]:
    """Open the part of a download for this process alone; another one that has it is waited for."""
    while True:
        PARTIAL.mkdir(exist_ok=True)
        try:
            file = partial.open("ab")
        except FileNotFoundError:  # the other process has removed the folder
            continue
        with file:
            while flock(file.fileno()) is False:
                time.sleep(0.1)
            if _is_at(partial, file):  # else it was moved meanwhile
                try:
                    yield file
                finally:
                    if _is_at(partial, file) and not partial.stat().st_size:
                        partial.unlink()
                return


def _is_at(path: Path, file: Any) -> bool:
    """Return whether an open file is still the one at a path."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _open_https(url: str, offset: int) -> RemoteFile:
    """Open a file at an offset, or at its start if the server cannot do that."""
    import requests
    import urllib3

    check_url(url)
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={offset}-"} if offset else {})}
    try:
        response = https_session().get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS)
    except requests.RequestException as error:
        raise InputError(
            f"{redact(url)}: no answer: {_reason(error)}. Check the network and the name of the host."
        ) from error
    if response.status_code == 416 and offset:  # the part is longer than the file, so it is of another one
        return _open_https(url, 0)
    if not response.ok:
        advice = ADVICE.get(response.status_code, "Rerun later." if response.status_code >= 500 else "")
        answer = f"{response.status_code} {redact(response.reason)}"
        raise InputError(f"{redact(url)}: the server answers {answer}. {advice}".rstrip())
    start = offset if response.status_code == 206 else 0
    length = response.raw.length_remaining

    def blocks() -> Iterator[bytes]:
        try:
            while block := response.raw.read1(BLOCK_BYTES):  # what there is, of a slow server too
                yield block
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise _interrupted(url, error) from error

    return start, None if length is None else start + length, blocks()


@contextlib.contextmanager
def s3_errors(url: str) -> Iterator[None]:
    """Turn errors of an S3 store into an InputError that names the object."""
    from botocore.exceptions import BotoCoreError

    try:
        yield
    except (OSError, BotoCoreError) as error:
        raise InputError(
            f"{redact(url)}: cannot download: {_reason(error)}. Check bucket, key, credentials and AWS_ENDPOINT_URL."
        ) from error


def _open_s3(url: str, offset: int) -> RemoteFile:
    """Open an object at an offset, or at its start if it is shorter."""
    import fsspec
    from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]

    with s3_errors(url):
        file = fsspec.filesystem("s3").open(url, "rb", block_size=8 * BLOCK_BYTES, cache_type="readahead")
        size = int(file.size)
    start = offset if offset < size else 0

    def blocks() -> Iterator[bytes]:
        try:
            with file:
                file.seek(start)
                while block := file.read(BLOCK_BYTES):
                    yield block
        except (OSError, BotoCoreError) as error:
            raise _interrupted(url, error) from error

    return start, size, blocks()


def https_session() -> Any:
    """Return a session of requests that follows only redirects to URLs that would be allowed as the first one."""
    import requests

    class Session(requests.Session):
        """With checked redirects."""

        def get_redirect_target(self, resp: requests.Response) -> str | None:
            target = super().get_redirect_target(resp)
            if target is not None:
                try:
                    check_url(urljoin(resp.url, target), resp.url)
                except ValueError as error:  # an InputError, or what is no URL
                    raise InputError(f"{redact(resp.url)}: redirects to {redact(target)}: {error}") from error
            return target

    return Session()


def check_url(url: str, before: str | None = None) -> None:
    """Raise InputError unless a URL is https (or http on this machine), without a password or an inward redirect."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.username is not None or parts.password is not None:
        raise InputError(f"{redact(url)}: a user or password in a URL would be in reports. Put it into ~/.netrc.")
    if parts.scheme != "https" and not (parts.scheme == "http" and host in LOOPBACK):
        raise InputError(f"{redact(url)}: only https is allowed, and http on 127.0.0.1, localhost and [::1]")
    if before is not None and _is_internal(host) and not _is_internal(urlsplit(before).hostname or ""):
        raise InputError(f"{redact(before)}: redirects to the internal address {host}")


def _is_internal(host: str) -> bool:
    """Return whether a host is an address that is not public, in any notation (0x7f.1, 2130706433)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            address = ipaddress.ip_address(socket.inet_aton(host))
        except OSError:
            return host == "localhost" or host.endswith(".localhost")
    return not address.is_global


def _required_digest(source: Download) -> str:
    if source.sha256 is None:
        raise InputError(
            f"{redact(source.address)}: sha256 is missing. Append #sha256= and the digest that the publisher states, "
            "or that sha256sum prints for a copy you trust."
        )
    return source.sha256


def _check_digest(source: Download, path: Path) -> None:
    digest = file_digest(path)
    if digest != source.sha256:
        path.unlink()
        raise _wrong_digest(source.address, source.sha256, digest)


def _wrong_digest(uri: str, expected: str | None, actual: str) -> InputError:
    advice = " If you changed the file, write the new digest after #sha256=." if uri.startswith("file://") else ""
    return InputError(f"{redact(uri)}: expected digest {expected}, found {actual}. Nothing was kept.{advice}")


def _interrupted(url: str, error: Exception) -> InputError:
    return InputError(f"{redact(url)}: interrupted: {_reason(error)}. Rerun to continue the download.")


def _reason(error: BaseException) -> str:
    """Return the innermost cause of a network error, without the queries of URLs in it."""
    chain = [error]
    while inner := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(inner)
    cause = next((link for link in reversed(chain) if isinstance(link, OSError)), error)
    return f"{type(cause).__name__} {redact(str(cause))[:200]}"


def _remove_partial(partial: Path) -> None:
    """Remove the part of a finished download, and the folder of parts if it is empty."""
    shutil.rmtree(partial, ignore_errors=True)
    with contextlib.suppress(OSError):
        PARTIAL.rmdir()


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (
        "{task.description}",
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)


SCHEMES: dict[str, Callable[[Download, Path], None]] = {
    "pypi": _fetch_pypi,
    "https": _fetch_remote_file,
    "http": _fetch_remote_file,
    "s3": _fetch_remote_file,
    "file": _fetch_file,
}
KNOWN_SCHEMES = ("pypi", "hf", *(name for name in SCHEMES if name != "pypi"))
