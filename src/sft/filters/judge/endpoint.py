"""An OpenAI-compatible endpoint: one request, and what came of it.

Where it is comes from the environment (SFT_JUDGE_URL, SFT_JUDGE_API_KEY, SFT_JUDGE_TIMEOUT) and goes nowhere: no
message, no log, no file. Nothing is raised for what an endpoint does: every fate of a request is a `Reply`.
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

from sft.cli import InputError
from sft.filters.judge.verdicts import short

# SFT_JUDGE_TIMEOUT, in seconds: default and form.
TIMEOUT_S, TIMEOUT_FORM = "120", r"0\.\d*[1-9]|[1-9]\d{0,3}(\.\d+)?"
# After a failure: the first pause, doubled with each failure up to the second; an endpoint may ask for more,
# up to the third.
BACKOFF_S, LONGEST_BACKOFF_S, LONGEST_PAUSE_S = 1.0, 60.0, 120.0
MOST_ANSWER_BYTES = 4 << 20


@dataclass(frozen=True)
class Reply:
    """What came back of one request."""

    status: int
    """HTTP status; 0 if there was no whole answer."""
    body: str
    """What was answered, or what went wrong."""
    retry_after: str = ""
    """The header of that name: seconds, or a date."""
    unreachable: bool = False
    """There was not even a connection."""


class Endpoint:
    """Where the judge is. Neither the URL nor the key is ever shown."""

    def __init__(self, url: str, key: str, timeout_s: float) -> None:
        import httpx  # here and below: slow to import, and most runs have no judge

        for name in ("httpx", "httpcore"):  # they log the URL of every request
            logging.getLogger(name).setLevel(logging.WARNING)
        self._url, self._key, self._timeout_s = url.rstrip("/"), key, timeout_s
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        # Redirects are not followed: the key is for this place only.
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.Client(headers=headers, timeout=timeout_s, limits=limits, follow_redirects=False)

    @classmethod
    def from_environment(cls) -> "Endpoint | None":
        """Read SFT_JUDGE_URL (None if not set), SFT_JUDGE_API_KEY and SFT_JUDGE_TIMEOUT. Raises InputError."""
        import httpx

        url, key = os.environ.get("SFT_JUDGE_URL", "").strip(), os.environ.get("SFT_JUDGE_API_KEY", "").strip()
        timeout_s = float(setting("SFT_JUDGE_TIMEOUT", TIMEOUT_S, TIMEOUT_FORM))
        if not url:
            return None
        try:
            parts = httpx.URL(url)
            usable = parts.scheme in {"http", "https"} and parts.host and (parts.port or 0) < 1 << 16
            usable = usable and not parts.query and not parts.fragment
        except httpx.InvalidURL:
            usable = False
        if not usable:
            raise InputError("SFT_JUDGE_URL: expected http(s)://host[:port]/v1: what stands before /chat/completions.")
        if not re.fullmatch(r"[\x21-\x7e]*", key):
            raise InputError("SFT_JUDGE_API_KEY: expected printable ASCII without spaces.")
        return cls(url, key, timeout_s)

    def post(self, body: dict[str, Any]) -> Reply:
        """Send one request and read the whole answer, within the timeout and MOST_ANSWER_BYTES."""
        import httpx

        content, end = bytearray(), time.monotonic() + self._timeout_s
        url, data = f"{self._url}/chat/completions", json.dumps(body).encode()
        try:
            with self._client.stream("POST", url, content=data) as response:
                for piece in response.iter_bytes():
                    content += piece
                    if time.monotonic() > end:  # httpx limits the wait for each piece only
                        return Reply(0, f"no whole answer in {self._timeout_s:g} s")
                    if len(content) > MOST_ANSWER_BYTES:
                        return Reply(0, f"an answer of more than {MOST_ANSWER_BYTES} bytes")
                text, wait = content.decode("utf-8", "replace"), response.headers.get("Retry-After", "")
                return Reply(response.status_code, text, wait)
        except httpx.RequestError as error:
            unreachable = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            return Reply(0, f"{type(error).__name__} {error}".strip(), unreachable=unreachable)

    def quote(self, text: str) -> str:
        """Shorten a text that came from outside, without the key and the place of the endpoint."""
        parts = urlsplit(self._url)
        for secret in (self._key, self._url, parts.netloc, parts.password, parts.hostname):
            if secret:
                text = re.sub(re.escape(secret), "***", text, flags=re.IGNORECASE)
        return short(text)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def pause_s(failures: int, retry_after: str, backoff_s: float) -> float:
    """Return how long to wait after the n-th failure: doubled each time, spread, and never shorter than asked for."""
    wait = min(LONGEST_BACKOFF_S, backoff_s * 2.0 ** (failures - 1)) * random.uniform(0.5, 1)
    if re.fullmatch(r"\s*\d{1,9}\s*", retry_after):
        return max(wait, float(retry_after))
    with contextlib.suppress(ValueError):
        date = email.utils.parsedate_to_datetime(retry_after)
        return max(wait, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    return wait


def setting(name: str, default: str, form: str) -> str:
    """Read a number of the environment that has the form of a pattern. Raises InputError."""
    text = os.environ.get(name) or default
    if not re.fullmatch(form, text):
        raise InputError(f"{name}={text}: expected a number above 0")
    return text
