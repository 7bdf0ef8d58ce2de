"""A web server on loopback: files with byte ranges, redirects, and a Hugging Face hub with one data set."""

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import pytest

BODY = bytes(range(256)) * 8192  # 2 MiB
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Web(http.server.ThreadingHTTPServer):
    """A loopback server: answers by path, and a record of the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.files: dict[str, bytes] = {"/a.bin": BODY}
        self.redirects: dict[str, str] = {}
        self.cut_at: int | None = None
        self.ranges: list[str | None] = []
        self.has_ranges = True
        self.busy = 0
        """Requests that are answered with 503 before the next one is served."""
        self.hub: dict[str, bytes] = {}
        self.card: dict[str, Any] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"


class Page(http.server.BaseHTTPRequestHandler):
    server: Web

    def log_message(self, *parts: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if self.server.busy:
            self.server.busy -= 1
            self.answer(503, b"busy")
        elif path in self.server.redirects:
            self.answer(302, b"", Location=self.server.redirects[path])
        elif path in self.server.files:
            self.send_file(self.server.files[path])
        elif self.server.hub and "/tree/" in path:
            self.answer(200, json.dumps([hub_entry(*file) for file in self.server.hub.items()]).encode())
        elif self.server.hub and "/revision/" in path:
            siblings = [{"rfilename": name} for name in self.server.hub]
            info = {"id": "own/set", "sha": COMMIT, "siblings": siblings, "cardData": self.server.card}
            self.answer(200, json.dumps(info).encode())
        elif self.server.hub and f"/resolve/{COMMIT}/" in path:
            content = self.server.hub[path.partition(f"/resolve/{COMMIT}/")[2]]
            if self.headers.get("Range") and self.command == "GET" and self.server.has_ranges:
                self.send_file(content)
                return
            self.answer(200, content, **{"ETag": f'"{sha256(content)}"', "X-Repo-Commit": COMMIT})
        else:
            self.answer(404, b"no such file")

    def send_file(self, content: bytes) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        asked = asked if self.server.has_ranges else None
        start, end = [*re.findall(r"\d+", asked), None][:2] if asked else (0, None)
        start, end = int(start), int(end) + 1 if end is not None else len(content)
        if start >= len(content):
            self.answer(416, b"")
            return
        rest, cut = content[start:end], self.server.cut_at
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{start + len(rest) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[:cut] if cut is not None else rest)

    def answer(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def hub_entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as the hub lists it; .parquet files are large ones, with a sha256."""
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, Any] = {"type": "file", "oid": git, "size": len(content), "path": path}
    if path.endswith(".parquet"):
        entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
    return entry


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
