"""An OpenAI-compatible endpoint on loopback that answers what a test says."""

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Answer = Callable[[str, dict[str, Any]], tuple[int, Any]]
"""Path and body of a request (empty for GET) -> status, and what is sent as JSON; text is sent as it is."""


class ScriptedEndpoint(http.server.ThreadingHTTPServer):
    """Answers each request with `answer`; `requests` are the paths and bodies, `keys` the headers of authorization."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.keys: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: ScriptedEndpoint
    protocol_version = "HTTP/1.1"

    def log_message(self, *parts: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._reply({})

    def do_POST(self) -> None:
        self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _reply(self, body: dict[str, Any]) -> None:
        path = self.path.removeprefix("/v1/")
        self.server.requests.append((path, body))
        self.server.keys.append(self.headers["Authorization"])
        status, answer = self.server.answer(path, body)
        content = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def scripted_endpoint(answer: Answer) -> Iterator[ScriptedEndpoint]:
    """Yield a running endpoint."""
    server = ScriptedEndpoint(answer)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
