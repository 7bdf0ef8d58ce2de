"""One request to an OpenAI-compatible endpoint: that of the judge (SFT_JUDGE) or one that serves models (SFT_EVAL).

The environment says where it is: <name>_URL, <name>_API_KEY, <name>_TIMEOUT. Neither URL nor key is in a message, log
or file. A failure of the endpoint raises nothing: it is a `Reply` as well.
"""

import contextlib
import email.utils
import json
import logging
import os
import random
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from sft.cli import InputError, one_line

# <name>_TIMEOUT, in seconds: default and pattern.
TIMEOUT_S, TIMEOUT_PATTERN = "120", r"0\.\d*[1-9]|[1-9]\d{0,3}(\.\d+)?"
# The pause after a failure: BACKOFF_S, doubled with each failure up to MAX_BACKOFF_S. An endpoint may ask for a longer
# one, up to MAX_PAUSE_S.
BACKOFF_S, MAX_BACKOFF_S, MAX_PAUSE_S = 1.0, 60.0, 120.0
# HTTP statuses: try again later (also from 500 on).
LATER = {0, 408, 425, 429}
MAX_REPLY_BYTES = 4 << 20


@dataclass(frozen=True)
class Reply:
    """The outcome of one request."""

    status: int
    """HTTP status; 0 without a complete reply."""
    body: str
    """The text of the reply, or the error."""
    retry_after: str = ""
    """The header of that name: seconds or a date."""
    unreachable: bool = False
    """Whether there was no connection."""


class Endpoint:
    """An endpoint. Its URL and key are never shown."""

    def __init__(self, url: str, key: str, timeout_s: float) -> None:
        import httpx  # here and below: slow to import, and most runs have no judge

        for name in ("httpx", "httpcore"):  # they log the URL of each request
            logging.getLogger(name).setLevel(logging.WARNING)
        self._url, self._key, self._timeout_s = url.rstrip("/"), key, timeout_s
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        # Redirects are not followed: the key is for this host only.
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.Client(headers=headers, timeout=timeout_s, limits=limits, follow_redirects=False)

    @classmethod
    def from_environment(cls, name: str) -> "Endpoint | None":
        """Return the endpoint that <name>_URL names; None if it is not set. Raises InputError."""
        url = os.environ.get(f"{name}_URL", "").strip()
        return cls.at(url, name) if url else None

    @classmethod
    def at(cls, url: str, name: str) -> "Endpoint":
        """Return the endpoint at a URL, with the key and the timeout of the environment. Raises InputError."""
        import httpx

        key = os.environ.get(f"{name}_API_KEY", "").strip()
        timeout_s = float(number_from_environment(f"{name}_TIMEOUT", TIMEOUT_S, TIMEOUT_PATTERN))
        try:
            parts = httpx.URL(url)
            usable = parts.scheme in {"http", "https"} and parts.host and (parts.port or 0) < 1 << 16
            usable = usable and not parts.query and not parts.fragment
        except httpx.InvalidURL:
            usable = False
        if not usable:
            raise InputError(f"{name}_URL: expected http(s)://host[:port]/v1, the part before /chat/completions.")
        if not re.fullmatch(r"[\x21-\x7e]*", key):
            raise InputError(f"{name}_API_KEY: expected printable ASCII without spaces.")
        return cls(url, key, timeout_s)

    def post(self, body: dict[str, Any], path: str = "chat/completions") -> Reply:
        """Send one request and return the reply, within the timeout and MAX_REPLY_BYTES."""
        return self._send("POST", path, json.dumps(body).encode())

    def get(self, path: str) -> Reply:
        """The same without a body."""
        return self._send("GET", path, None)

    def _send(self, method: str, path: str, data: bytes | None) -> Reply:
        import httpx

        content, end = bytearray(), time.monotonic() + self._timeout_s
        try:
            with self._client.stream(method, f"{self._url}/{path}", content=data) as response:
                for piece in response.iter_bytes():
                    content += piece
                    if time.monotonic() > end:  # the timeout of httpx is for each piece
                        return Reply(0, f"no whole answer in {self._timeout_s:g} s")
                    if len(content) > MAX_REPLY_BYTES:
                        return Reply(0, f"an answer of more than {MAX_REPLY_BYTES} bytes")
                text, wait = content.decode("utf-8", "replace"), response.headers.get("Retry-After", "")
                return Reply(response.status_code, text, wait)
        except httpx.RequestError as error:
            unreachable = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            return Reply(0, f"{type(error).__name__} {error}".strip(), unreachable=unreachable)

    def quote(self, text: str) -> str:
        """Return a text from outside as one short line, without the key and the address of the endpoint."""
        parts = urlsplit(self._url)
        for secret in (self._key, self._url, parts.netloc, parts.password, parts.username, parts.hostname):
            if secret:
                text = re.sub(re.escape(secret), "***", text, flags=re.IGNORECASE)
        return one_line(text)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def pause_s(failures: int, retry_after: str, backoff_s: float) -> float:
    """Return the pause after the n-th failure: doubled each time, randomized, at least what `retry_after` asks for."""
    wait = min(MAX_BACKOFF_S, backoff_s * 2.0 ** (failures - 1)) * random.uniform(0.5, 1)
    if re.fullmatch(r"\s*\d{1,9}\s*", retry_after):
        return max(wait, float(retry_after))
    with contextlib.suppress(ValueError):
        date = email.utils.parsedate_to_datetime(retry_after)
        return max(wait, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    return wait


def number_from_environment(name: str, default: str, pattern: str) -> str:
    """Return an environment variable that matches a pattern. Raises InputError."""
    text = os.environ.get(name) or default
    if not re.fullmatch(pattern, text):
        raise InputError(f"{name}={text}: expected a number above 0")
    return text
