"""Ranges: the files that a uri names, with their sizes, and parts of them, without downloading them.

https (and http on loopback), hf, s3 and file. A server that ignores ranges is read from the start only.
"""

import functools
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from sft.cli import InputError
from sft.hashing import BLOCK_BYTES
from sft.params.data import Download
from sft.sources import hub
from sft.sources.download import fetch_files, hub_files, local_files
from sft.sources.redact import redact
from sft.sources.remote_files import TIMEOUT_SECONDS, check_url, https_session, s3_errors

NOT_RANGED = "the server does not serve ranges"
ATTEMPTS = 5
BUSY = (429, 500, 502, 503, 504)
"""Answers of a server that may be another in a few seconds."""


@dataclass
class RemoteFile:
    """A file of a source."""

    name: str
    """Path in the folder of the source."""
    size: int
    read: Callable[[int, int], bytes]
    """(start, stop) -> those bytes; without ranges, start must be 0. Raises InputError: no answer, or another one."""
    has_ranges: bool = True


def read_local(path: Path, start: int, stop: int) -> bytes:
    """Return bytes of a file of this machine."""
    with path.open("rb") as file:
        file.seek(start)
        return file.read(stop - start)


def read_url(url: str, session: Any, has_ranges: bool, start: int, stop: int) -> bytes:
    """Return bytes of a file behind a URL. Raises InputError: no answer, or another one."""
    import requests

    if start >= stop:
        return b""
    headers = {"Range": f"bytes={start}-{stop - 1}"} if has_ranges else {}
    try:
        with session.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
            expected = 206 if has_ranges else 200
            if response.status_code != expected:
                answer = f"the server answers {response.status_code}, expected {expected}"
                raise InputError(f"{redact(url)}: {answer}. Run again, or check the address.")
            content = bytearray()
            for block in response.iter_content(BLOCK_BYTES):
                content += block[: stop - start - len(content)]
                if len(content) == stop - start:
                    break
    except requests.RequestException as error:
        raise InputError(f"{redact(url)}: no answer: {type(error).__name__}. Check the network.") from error
    if len(content) != stop - start:
        raise InputError(f"{redact(url)}: bytes {start} to {stop}: found {len(content)}. Run again.")
    return bytes(content)


def read_object(url: str, start: int, stop: int) -> bytes:
    """Return bytes of an object of an S3 store. Raises InputError: no answer, or no right to read."""
    import fsspec

    with s3_errors(url):
        content: bytes = fsspec.filesystem("s3").cat_file(url, start=start, end=stop)
    return content


class RangeReader(io.RawIOBase):
    """A file object over ranges, for pyarrow."""

    def __init__(self, file: RemoteFile) -> None:
        self._file, self._at, self.bytes_read = file, 0, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move, and return the position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes."""
        content = self._file.read(self._at, min(self._at + len(buffer), self._file.size))
        buffer[: len(content)] = content
        self._at += len(content)
        self.bytes_read += len(content)
        return len(content)


def list_source(source: Download, scratch: Path) -> list[RemoteFile]:
    """Return the files that a uri names. A wheel of pypi:// is downloaded into `scratch`, an empty folder.

    Raises:  InputError: no commit or digest, no such file, no answer.
    """
    scheme = source.address.partition("://")[0]
    if scheme == "hf":
        return list(_hub_files(source))
    if scheme in ("https", "http"):
        check_url(source.address)
        return [
            _web_file(
                PurePosixPath(unquote(urlsplit(source.address).path)).name, source.address, patient(https_session())
            )
        ]
    if scheme == "s3":
        import fsspec

        with s3_errors(source.address):
            info = fsspec.filesystem("s3").info(source.address)
        read = functools.partial(read_object, source.address)
        return [RemoteFile(PurePosixPath(source.address).name, int(info["size"]), read)]
    if scheme == "file":
        found = {inner: path for path, inner in local_files(source).items()}
    else:
        found = {file.path: scratch / file.path for file in fetch_files(source, scratch)}
    return [
        RemoteFile(inner, path.stat().st_size, functools.partial(read_local, path))
        for inner, path in sorted(found.items())
    ]


def lacks_digest(source: Download) -> bool:
    """Return whether fetch would refuse an address that plan can read."""
    return source.sha256 is None and source.address.startswith(("https://", "http://", "s3://"))


def patient(session: Any) -> Any:
    """Make a session of requests ask again, later each time, when a server is busy."""
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    retry = Retry(ATTEMPTS, backoff_factor=0.5, status_forcelist=BUSY, raise_on_status=False)
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def _hub_files(source: Download) -> Iterator[RemoteFile]:
    import huggingface_hub
    import requests
    from huggingface_hub.utils._headers import build_hf_headers

    place = hub.parse(source)
    place.check_commit(source)
    with hub.named_errors(source):
        files = hub_files(source, place)
    session = patient(requests.Session())  # requests drops the token when a redirect leaves the hub
    session.headers.update({**build_hf_headers(), "Accept-Encoding": "identity"})
    for inner, entry in files.items():
        url = huggingface_hub.hf_hub_url(filename=entry.path, **place.remote)
        yield RemoteFile(inner, entry.size, functools.partial(read_url, url, session, True))


def _web_file(name: str, url: str, session: Any) -> RemoteFile:
    """Return a file behind a URL, after one request for its size. Raises InputError: no answer, or no size."""
    import requests

    session.headers["Accept-Encoding"] = "identity"
    try:
        with session.get(url, headers={"Range": "bytes=0-0"}, stream=True, timeout=TIMEOUT_SECONDS) as response:
            ranges, length = response.headers.get("Content-Range", ""), response.headers.get("Content-Length", "")
            status = response.status_code
    except requests.RequestException as error:
        raise InputError(f"{redact(url)}: no answer: {type(error).__name__}. Check the network.") from error
    size = ranges.rpartition("/")[2] if status == 206 else length
    if status not in (200, 206) or not size.isdecimal():
        raise InputError(f"{redact(url)}: the server answers {status}, size {size or 'not stated'}.")
    has_ranges = status == 206
    return RemoteFile(name, int(size), functools.partial(read_url, url, session, has_ranges), has_ranges)
