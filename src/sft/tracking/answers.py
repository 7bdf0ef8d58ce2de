"""Bounds on the answers of a tracking server: MLflow's client reads them whole, however long they are.

`bound_answers()` holds for this process; downloads of files, which are streamed to disk, are not bounded.
"""

import functools
import time
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.response import HTTPResponse

MAX_BYTES = 64 << 20
MAX_SECONDS = 60.0  # for one answer, however slowly it comes
BLOCK_BYTES = 1 << 16


class AnswerError(requests.RequestException):
    """An answer that is too long or too slow."""


def bound_answers() -> None:
    """Bound the size and the time of every answer that this process reads; a second call changes nothing."""
    if not hasattr(HTTPAdapter.send, "__wrapped__"):
        HTTPAdapter.send = _bounded(HTTPAdapter.send)  # type: ignore[method-assign]
        HTTPResponse.drain_conn = HTTPResponse.close  # type: ignore[method-assign]  # it reads an error to its end


def _bounded(send: Any) -> Any:
    @functools.wraps(send)
    def send_and_read(
        self: HTTPAdapter, request: Any, stream: bool = False, *arguments: Any, **options: Any
    ) -> requests.Response:
        response: requests.Response = send(self, request, True, *arguments, **options)
        return response if stream else _read(response)

    return send_and_read


def _read(response: requests.Response) -> requests.Response:
    """Read an answer into its `content`. Raises AnswerError."""
    content, end = bytearray(), time.monotonic() + MAX_SECONDS
    while block := response.raw.read1(BLOCK_BYTES, decode_content=True):
        content += block
        if len(content) > MAX_BYTES or time.monotonic() > end:
            response.close()
            raise AnswerError(f"its answer is longer than {MAX_BYTES >> 20} MiB or takes over {MAX_SECONDS:.0f} s")
    response.raw.release_conn()
    response._content, response._content_consumed = bytes(content), True  # type: ignore[attr-defined]
    return response
