"""One file behind https (and http on this machine) or in an S3 store, downloaded block by block and continued.

The part of an interrupted download stays in PARTIAL, under the digest of the file. Nobody is asked before the address
is checked, and no redirect leads to an address that would not be allowed as the first one.
"""

import contextlib
import ipaddress
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from sft.cli import InputError
from sft.files import flock
from sft.hashing import BLOCK_BYTES, file_digest
from sft.params.data import Download
from sft.sources.redact import redact

PARTIAL = Path(".fetch-partial")
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
TIMEOUT_SECONDS = (10, 60)  # to connect, and between two blocks of data
FREE_BYTES = 64 << 20  # that a download leaves on the disk
CHECK_BYTES = 16 << 20  # between two looks at the disk, which on a shared file system are requests to its server
SLOW_SECONDS, SLOW_BYTES = 300.0, 64 << 10  # a server that sends less in that time never ends
ADVICE = {
    **dict.fromkeys((401, 403), "Credentials are read from ~/.netrc."),
    **dict.fromkeys((404, 410), "Check the address."),
}
# An open remote file: the offset of the first block, the size of the file if known, and its blocks.
RemoteFile = tuple[int, int | None, Iterator[bytes]]


def parse_url(source: Download) -> tuple[str, str, str]:
    """Return scheme, name of the file and digest. Raises InputError."""
    digest = required_digest(source)
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


def fetch_remote_file(source: Download, folder: Path) -> None:
    """Download one file block by block. The part of an interrupted download is kept, and completed next time."""
    scheme, name, digest = parse_url(source)
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
            check_digest(source, partial)
        shutil.move(partial, folder / name)
    remove_partial(partial)


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

    faults = (requests.RequestException, urllib3.exceptions.HTTPError)
    blocks = _blocks(url, response.raw.read1, faults)  # what there is, of a slow server too
    return start, None if length is None else start + length, blocks


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
        file.seek(start)
    return start, size, _blocks(url, file.read, (OSError, BotoCoreError))


def _blocks(url: str, read: Callable[[int], bytes], faults: tuple[type[Exception], ...]) -> Iterator[bytes]:
    """Yield the blocks of an open remote file. Raises InputError: one of the faults of its library."""
    try:
        while block := read(BLOCK_BYTES):
            yield block
    except faults as error:
        raise InputError(f"{redact(url)}: interrupted: {_reason(error)}. Rerun to continue the download.") from error


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


def required_digest(source: Download) -> str:
    """Return the digest of a source. Raises InputError: it has none."""
    if source.sha256 is None:
        raise InputError(
            f"{redact(source.address)}: sha256 is missing. Append #sha256= and the digest that the publisher states, "
            "or that sha256sum prints for a copy you trust."
        )
    return source.sha256


def check_digest(source: Download, path: Path) -> None:
    """Raise InputError, and remove the file, unless it has the digest of its source."""
    digest = file_digest(path)
    if digest != source.sha256:
        path.unlink()
        raise wrong_digest(source.address, source.sha256, digest)


def wrong_digest(uri: str, expected: str | None, actual: str) -> InputError:
    """Return the error of a file with another digest."""
    advice = " If you changed the file, write the new digest after #sha256=." if uri.startswith("file://") else ""
    return InputError(f"{redact(uri)}: expected digest {expected}, found {actual}. Nothing was kept.{advice}")


def _reason(error: BaseException) -> str:
    """Return the innermost cause of a network error, without the queries of URLs in it."""
    chain = [error]
    while inner := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(inner)
    cause = next((link for link in reversed(chain) if isinstance(link, OSError)), error)
    return f"{type(cause).__name__} {redact(str(cause))[:200]}"


def remove_partial(partial: Path) -> None:
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
